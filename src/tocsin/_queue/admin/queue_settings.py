"""The settings of a queue, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, Literal, TypedDict, get_args

from tocsin._arguments import check_count, check_text
from tocsin._durations import MAX_DURATION, Duration, to_timedelta

Notify = Literal["on_demand", "always"]
"""When a queue's channel is notified of messages: only while a consumer sleeps
(``waiting``), which lets many producers commit at the same time, or with each insert
(``always``), for programs that LISTEN by hand."""

FOR_EVER = MAX_DURATION
"""A retention of this length or longer stands for ever."""


class QueueSettings(TypedDict, total=False):
    """The settings of a queue that can be given; those that are not have their
    defaults."""

    vt: Duration | None
    """Visibility timeout in seconds (30)."""
    max_deliveries: int | None
    """After so many deliveries, a message that fails again becomes a dead letter (5).
    """
    retry_base: Duration | None
    """Seconds of delay after the first failure (1)."""
    retry_factor: float | None
    """By how much the delay grows with each further failure (2)."""
    retry_max: Duration | None
    """The longest delay in seconds (3600)."""
    retry_jitter: float | None
    """The share, 0 to 1, by which a delay may be longer or shorter by chance (0.2)."""
    max_payload: int | None
    """The largest payload in bytes of JSON text (1 MiB); headers may be as large again.
    """
    max_string: int | None
    """Most characters of a string in a payload (0: any number)."""
    max_depth: int | None
    """Most levels of arrays and objects in a payload (0: any number)."""
    required_keys: Collection[str] | None
    """Keys that a payload must have, which must be an object then (none)."""
    forbidden_keys: Collection[str] | None
    """Keys that no object in a payload may have (none)."""
    retention: Duration | None
    """How many seconds what is archived is kept (30 days); 0: not at all; ``math.inf``:
    for ever. A change counts for what is archived from then on."""
    dead_letter_retention: Duration | None
    """How many seconds dead letters are kept (``math.inf``: for ever)."""
    notify: Notify | None
    """When its channel is notified of messages ("on_demand")."""


def check_settings(settings: QueueSettings) -> dict[str, object]:
    """Return the settings that are given as the database's parameters. Raises
    `ValueError` or `TypeError` naming the one that is wrong."""
    checked: dict[str, object] = {}
    for setting, value in settings.items():
        if setting not in _CHECKS:
            raise TypeError(f"{setting!r} is no setting of a queue; there are {', '.join(_CHECKS)}")
        if value is not None:
            checked[setting] = _CHECKS[setting](value, setting)
    return checked


def _limit(value: int, name: str) -> int:
    return value if value == 0 and type(value) is int else check_count(value, name)


def _retention(value: Duration, name: str) -> timedelta:
    if value == math.inf or (isinstance(value, timedelta) and value > FOR_EVER):
        return FOR_EVER
    return to_timedelta(value, name, zero=name == "retention")


def _delay(value: Duration, name: str) -> timedelta:
    return to_timedelta(value, name, zero=True)


def _keys(value: Collection[str], name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a list of keys, not {value!r}")
    for key in value:
        check_text(key, name)
    return sorted(set(value))


def _number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return value


def _factor(value: float, name: str) -> float:
    if not _number(value, name) >= 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _share(value: float, name: str) -> float:
    if not 0 <= _number(value, name) <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
    return value


def _notify(value: Notify, name: str) -> Notify:
    if value not in get_args(Notify):
        raise ValueError(f"{name} must be one of {', '.join(get_args(Notify))}, not {value!r}")
    return value


_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "vt": to_timedelta,
    "max_deliveries": check_count,
    "retry_base": _delay,
    "retry_factor": _factor,
    "retry_max": _delay,
    "retry_jitter": _share,
    "max_payload": check_count,
    "max_string": _limit,
    "max_depth": _limit,
    "required_keys": _keys,
    "forbidden_keys": _keys,
    "retention": _retention,
    "dead_letter_retention": _retention,
    "notify": _notify,
}
"""The settings of a queue, and what checks a value and makes it the database's."""
