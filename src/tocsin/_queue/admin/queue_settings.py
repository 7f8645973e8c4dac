"""The settings of a queue: their names, types, checks and meanings."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, Literal, TypedDict, get_args

import attrs

from tocsin._arguments import check_count, check_text
from tocsin._durations import MAX_DURATION, Duration, to_timedelta

Notify = Literal["on_demand", "always"]
"""When a queue's channel is notified of messages.

``on_demand``: only while a consumer is idle, which lets many producers commit at the
same time. ``always``: with each insert, for programs that LISTEN by hand.
"""

NO_END = MAX_DURATION
"""A retention of this length or longer means that nothing is deleted."""


class QueueSettings(TypedDict, total=False):
    """The settings of a queue; a setting that is not given has its default."""

    vt: Duration | None
    """Visibility timeout in seconds (30)."""
    max_deliveries: int | None
    """The number of deliveries after which a failed message becomes a dead letter.

    The default is 5.
    """
    retry_base: Duration | None
    """Seconds of delay after the first failure (1)."""
    retry_factor: float | None
    """The factor by which the delay grows with each further failure (2)."""
    retry_max: Duration | None
    """The longest delay in seconds (3600)."""
    retry_jitter: float | None
    """The share, 0 to 1, by which a delay is longer or shorter at random (0.2)."""
    max_payload: int | None
    """The largest payload in bytes of JSON text (1 MiB); headers may be as large again.
    """
    max_string: int | None
    """Most characters of a string in a payload (0: any number)."""
    max_depth: int | None
    """Most levels of arrays and objects in a payload (0: any number)."""
    required_keys: Collection[str] | None
    """Keys that a payload must have, which makes it an object (none)."""
    forbidden_keys: Collection[str] | None
    """Keys that no object in a payload may have (none)."""
    retention: Duration | None
    """How many seconds archived messages are kept (30 days).

    0: not at all; ``math.inf``: without limit. A change counts for messages that are
    archived from then on.
    """
    dead_letter_retention: Duration | None
    """How many seconds dead letters are kept (``math.inf``: without limit)."""
    notify: Notify | None
    """When its channel is notified of messages ("on_demand")."""


def check_limit(value: int, name: str) -> int:
    """Check a maximum of which 0 means none."""
    return value if value == 0 and type(value) is int else check_count(value, name)


def check_retention(value: Duration, name: str) -> timedelta:
    """Check how long something is kept."""
    if value == math.inf or (isinstance(value, timedelta) and value > NO_END):
        return NO_END
    return to_timedelta(value, name, zero=name == "retention")


def check_delay(value: Duration, name: str) -> timedelta:
    """Check a delay, which may be 0."""
    return to_timedelta(value, name, zero=True)


def check_keys(value: Collection[str], name: str) -> list[str]:
    """Check names of keys."""
    if isinstance(value, str) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a list of keys, not {value!r}")
    for key in value:
        check_text(key, name)
    return sorted(set(value))


def _number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return value


def check_factor(value: float, name: str) -> float:
    """Check a factor of at least 1."""
    if not _number(value, name) >= 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def check_share(value: float, name: str) -> float:
    """Check a share between 0 and 1."""
    if not 0 <= _number(value, name) <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
    return value


def check_notify(value: Notify, name: str) -> Notify:
    """Check the value of `notify`."""
    if value not in get_args(Notify):
        raise ValueError(f"{name} must be one of {', '.join(get_args(Notify))}, not {value!r}")
    return value


Check = Callable[[Any, str], object]
"""Checks the value of a setting of this name; returns the database's parameter."""


@attrs.frozen
class Setting:
    """A setting of a queue. The column of ``tocsin.queues`` has its default."""

    check: Check
    """The check of a value."""
    default: str
    """The default, as the command line writes it."""
    meaning: str
    """Its meaning, as the command line says it."""


SETTINGS: dict[str, Setting] = {
    "vt": Setting(
        to_timedelta,
        "30s",
        "Visibility timeout: how long a lease lasts unless it is extended",
    ),
    "max_deliveries": Setting(
        check_count,
        "5",
        "The number of deliveries after which a failed message becomes a dead letter",
    ),
    "retry_base": Setting(check_delay, "1s", "Delay after the first failure"),
    "retry_factor": Setting(
        check_factor, "2", "The factor by which the delay grows with each further failure"
    ),
    "retry_max": Setting(check_delay, "1h", "The longest delay"),
    "retry_jitter": Setting(
        check_share, "0.2", "The fraction, 0 to 1, by which a delay differs at random"
    ),
    "max_payload": Setting(check_count, "1048576", "Largest payload in bytes of JSON text"),
    "max_string": Setting(
        check_limit, "0", "Maximum characters of a string in a payload; 0: any number"
    ),
    "max_depth": Setting(
        check_limit, "0", "Maximum levels of arrays and objects in a payload; 0: any number"
    ),
    "required_keys": Setting(
        check_keys, "none", "Keys that a payload must have, which makes it an object; '' for none"
    ),
    "forbidden_keys": Setting(
        check_keys, "none", "Keys that no object in a payload may have; '' for none"
    ),
    "retention": Setting(
        check_retention, "30d", "How long archived messages are kept; 0 for not at all"
    ),
    "dead_letter_retention": Setting(check_retention, "forever", "How long dead letters are kept"),
    "notify": Setting(
        check_notify,
        "on_demand",
        "Notify the queue's channel only while a consumer is idle, or always, for programs that"
        " LISTEN by themselves",
    ),
}
"""The settings of a queue, by name.

`QueueSettings` and `Queue` have their types, and ``tocsin.queues`` has their columns; a
test compares the names.
"""


def check_settings(settings: QueueSettings) -> dict[str, object]:
    """Check the settings that are given, and return them as the database's parameters.

    Raises:
        ValueError: A value is wrong; the error names the setting.
        TypeError: A value has a wrong type, or there is no such setting.
    """
    checked: dict[str, object] = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise TypeError(
                f"{name!r} is not a setting of a queue; there are {', '.join(SETTINGS)}"
            )
        if value is not None:
            checked[name] = SETTINGS[name].check(value, name)
    return checked
