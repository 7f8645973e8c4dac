"""Define an option of ``tocsin queue create`` and ``update`` for each setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from tocsin._arguments import check_count
from tocsin._durations import to_timedelta
from tocsin._queue.admin import queue_settings
from tocsin._queue.admin.queue_settings import SETTINGS, Notify

from .options import COUNT, DURATION, KEYS, LIMIT, RETENTION

R = TypeVar("R")

_TYPES: dict[queue_settings.Check, Any] = {
    to_timedelta: DURATION,
    queue_settings.check_delay: DURATION,
    check_count: COUNT,
    queue_settings.check_limit: LIMIT,
    queue_settings.check_factor: float,
    queue_settings.check_share: float,
    queue_settings.check_keys: KEYS,
    queue_settings.check_retention: RETENTION,
    queue_settings.check_notify: click.Choice(get_args(Notify)),
}
"""The type of an option, by the function that checks the setting."""


def settings_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command an option for each setting of a queue."""
    for name, setting in reversed(SETTINGS.items()):
        function = click.option(
            f"--{name.replace('_', '-')}",
            type=_TYPES[setting.check],
            help=f"{setting.meaning} ({setting.default}).",
        )(function)
    return function
