"""Durations: numbers of seconds or `timedelta` on the outside, or text such as ``7d``; `timedelta` towards the database."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias, overload

from .texts import check_text

Duration: TypeAlias = float | timedelta
"""A number of seconds, or a timedelta."""

MAX_DURATION = timedelta(days=365_000)
"""The longest duration: with it, no time that PostgreSQL reckons out is one that Python cannot read."""
MAX_KEY = 1024
"""Most bytes of a unique key; an index takes somewhat more."""


@overload
def to_timedelta(value: Duration, name: str, *, zero: bool = False) -> timedelta: ...
@overload
def to_timedelta(value: Duration | None, name: str, *, zero: bool = False) -> timedelta | None: ...
def to_timedelta(value: Duration | None, name: str, *, zero: bool = False) -> timedelta | None:
    """Return the duration as a timedelta (None stays None).

    Raises `ValueError` naming the argument for a negative duration, for one of more than a thousand years and, unless ``zero`` is allowed,
    for 0; `TypeError` for what is no duration.
    """
    if value is None:
        return None
    if not isinstance(value, timedelta):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number of seconds or a timedelta, not {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")
        try:
            value = timedelta(seconds=value)
        except OverflowError:
            raise ValueError(f"{name} is too long: {value} s") from None
    if value < timedelta(0) or (not zero and value == timedelta(0)):
        raise ValueError(f"{name} must be {'at least 0' if zero else 'greater than 0'}, not {value.total_seconds()} s")
    if value > MAX_DURATION:
        raise ValueError(f"{name} must be at most a thousand years, not {value.days} days")
    return value


def to_seconds(value: Duration, name: str, *, zero: bool = False) -> float:
    """Like `to_timedelta`, as a number of seconds."""
    return to_timedelta(value, name, zero=zero).total_seconds()


_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d|w)?")
_UNITS = {None: "seconds", "ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Return the duration that a text means: ``250ms``, ``1.5s``, ``30m``, ``2h``, ``7d``, ``1w``, or ``12`` for seconds.

    Raises `ValueError`, which says what would be right.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be a duration such as 250ms, 1.5s, 30m, 2h, 7d, 1w or 12 (seconds), not {text!r}")
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        raise ValueError(f"must be a duration of at most {timedelta.max.days} days, not {text!r}") from None


def check_priority(value: int) -> int:
    """Return a priority; raises `TypeError` or `ValueError` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"priority must be an integer, not {type(value).__name__}")
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"priority must fit into 32 bits, not {value}")
    return value


def check_key(value: str | None) -> str | None:
    """Return a unique key (None stays None); raises `TypeError` for what is no text, `ValueError` for what no index takes."""
    if value is not None and len(check_text(value, "key").encode()) > MAX_KEY:
        raise ValueError(f"key must be at most {MAX_KEY} bytes, not {len(value.encode())}; a digest of it will do as well")
    return value


def check_id(value: int, name: str) -> int:
    """Return an id; raises `TypeError` or `ValueError` naming the argument for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, not {value}")
    return value


def check_count(value: int, name: str) -> int:
    """Return a positive number that fits into 32 bits; raises `TypeError` or `ValueError` naming the argument otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    if value >= 2**31:
        raise ValueError(f"{name} must be less than {2**31}, not {value}")
    return value
