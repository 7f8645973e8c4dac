"""Durations: seconds, `timedelta` or text outside, `timedelta` towards the database."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import TypeAlias, overload

Duration: TypeAlias = float | timedelta
"""A number of seconds, or a timedelta."""

MAX_DURATION = timedelta(days=365_000)
"""The longest duration. Python can represent every time that PostgreSQL computes with
it."""


@overload
def to_timedelta(value: Duration, name: str, *, zero: bool = False) -> timedelta: ...
@overload
def to_timedelta(value: Duration | None, name: str, *, zero: bool = False) -> timedelta | None: ...
def to_timedelta(value: Duration | None, name: str, *, zero: bool = False) -> timedelta | None:
    """Return a duration as a timedelta; None stays None.

    Args:
        name: The argument that an error names.
        zero: Whether 0 is allowed.

    Raises:
        TypeError: The value is not a duration.
        ValueError: The duration is negative, is longer than a thousand years, or is 0
            where ``zero`` is not allowed.
    """
    if value is None:
        return None
    if not isinstance(value, timedelta):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"{name} must be a number of seconds or a timedelta, not {type(value).__name__}"
            )
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")
        try:
            value = timedelta(seconds=value)
        except OverflowError:
            raise ValueError(f"{name} is too long: {value} s") from None
    if value < timedelta(0) or (not zero and value == timedelta(0)):
        raise ValueError(
            f"{name} must be {'at least 0' if zero else 'greater than 0'}, not"
            f" {value.total_seconds()} s"
        )
    if value > MAX_DURATION:
        raise ValueError(f"{name} must be at most a thousand years, not {value.days} days")
    return value


def to_seconds(value: Duration, name: str, *, zero: bool = False) -> float:
    """Return a duration as a number of seconds, checked like `to_timedelta`."""
    return to_timedelta(value, name, zero=zero).total_seconds()


_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d|w)?")
_UNITS = {
    None: "seconds",
    "ms": "milliseconds",
    "s": "seconds",
    "m": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}


def parse_duration(text: str) -> timedelta:
    """Return the duration that a text means.

    Args:
        text: A number with a unit, such as ``250ms``, ``1.5s``, ``30m``, ``2h``, ``7d``
            or ``1w``, or without one, such as ``12`` for seconds.

    Raises:
        ValueError: The text means no duration, or one that is too long. The error
            says what would be right.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"must be a duration such as 250ms, 1.5s, 30m, 2h, 7d, 1w or 12 (seconds), not {text!r}"
        )
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        raise ValueError(
            f"must be a duration of at most {timedelta.max.days} days, not {text!r}"
        ) from None


def write_due(delay: Duration | None, at: datetime | None) -> tuple[str | None, str | None]:
    """Write when a message is due, as a delay or as a time.

    The delay becomes an interval of PostgreSQL's, and the time a text in ISO 8601. One
    of them, or both, are None.

    Raises:
        TypeError: ``delay`` is not a duration, or ``at`` is not a datetime.
        ValueError: Both are given, ``delay`` is negative or too long, or ``at`` has no
            time zone.
    """
    if delay is not None and at is not None:
        raise ValueError("give delay or at, not both")
    if at is not None and not isinstance(at, datetime):
        raise TypeError(f"at must be a datetime, not {type(at).__name__}")
    if at is not None and at.tzinfo is None:
        raise ValueError("at must have a time zone, such as datetime.now(UTC)")
    due_in = to_timedelta(delay, "delay", zero=True)
    return None if due_in is None else write_interval(due_in), (
        None if at is None else at.isoformat()
    )


def write_interval(duration: timedelta) -> str:
    """Return the duration as an interval of PostgreSQL's."""
    return f"{duration.days} days {duration.seconds} s {duration.microseconds} us"
