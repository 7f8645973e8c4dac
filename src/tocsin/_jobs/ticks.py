"""Compute the ticks of a schedule.

A schedule ticks by a cron expression in a time zone, or at an interval. cronsim steps
from one tick of an expression to the next, by the rules of Debian's cron: where the
clocks go forward, a tick at a time that does not exist comes at the first time that
does. Where they go back, a tick at a time that comes twice comes once. An expression
with a star as hour or minute ticks by elapsed time.

All functions take and return aware datetimes; ticks are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import attrs
from cronsim import CronSim, CronSimError

from tocsin.errors._jobs import ScheduleInvalid

WORDS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Words that stand for an expression."""

_FIELDS: Final = ("minute", "hour", "day-of-month", "month", "day-of-week")


@attrs.frozen(kw_only=True)
class Ticks:
    """When a schedule ticks."""

    cron: str | None
    """The expression: five fields, or one of `WORDS`."""
    every: timedelta | None
    """The interval; either this or `cron` is None."""
    anchor: datetime
    """The first tick of an interval; unless ticks count from then on only."""
    zone: str
    """Name of the time zone in which the expression is meant."""

    def next(self, after: datetime) -> datetime:
        """Return the first tick after a time.

        Raises:
            ScheduleInvalid: There is none, or the expression or the zone is invalid.
        """
        for tick in self.iterate(after):
            return tick
        if self.cron is None:
            raise ScheduleInvalid("every", "the next tick is after the year 9999")
        raise ScheduleInvalid("cron", f"{self.cron!r} has no tick within fifty years")

    def latest(self, after: datetime, to: datetime, most: int) -> list[datetime]:
        """Return the latest ticks of a span of time, at most this many, oldest first.

        Only the end of a long span is searched: an outage of weeks may have any number
        of ticks.

        Args:
            after: The begin of the span, exclusive.
            to: Its end, inclusive.
            most: How many ticks to return.
        """
        length = timedelta(minutes=1)
        while True:
            begin = max(after, to - length)
            found: list[datetime] = []
            for tick in self.iterate(begin):
                if tick > to:
                    break
                found.append(tick)
            if begin == after or len(found) >= most:
                return found[-most:]
            length *= 8

    def iterate(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks after a time, in order."""
        if self.every is not None:
            number = max(0, (after - self.anchor) // self.every + 1)
            with suppress(OverflowError):  # after the year 9999
                while True:
                    yield self.anchor + number * self.every
                    number += 1
            return
        last = after
        for local in CronSim(check_cron(self.cron or ""), after.astimezone(load_zone(self.zone))):
            tick = local.astimezone(UTC)
            if tick > last:  # a time that does not exist, or comes twice, may repeat a tick
                last = tick
                yield tick


def check_cron(cron: str) -> str:
    """Return the five fields of an expression.

    Raises:
        ScheduleInvalid: It is not valid; the error names the field.
    """
    if not isinstance(cron, str):
        raise TypeError(f"cron must be text, not {type(cron).__name__}")
    if cron.strip().startswith("@"):
        if (meant := WORDS.get(cron.strip())) is None:
            raise ScheduleInvalid("cron", f"{cron!r} is none of {', '.join(WORDS)}")
        return meant
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        raise ScheduleInvalid(
            "cron", f"{cron!r} has {len(fields)} fields, not five: {', '.join(_FIELDS)}"
        )
    for name, field in zip(_FIELDS, fields, strict=True):
        try:
            CronSim(" ".join([field if other == name else "*" for other in _FIELDS]), _EPOCH)
        except CronSimError:
            raise ScheduleInvalid(
                f"cron.{name}", f"{field!r} is no {name} of a cron expression"
            ) from None
    try:
        CronSim(cron, _EPOCH)
    except CronSimError:
        raise ScheduleInvalid("cron.day-of-month", f"no month of {cron!r} has such a day") from None
    return " ".join(fields)


@lru_cache(maxsize=128)
def load_zone(zone: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ScheduleInvalid: This system knows no such zone.
    """
    try:
        return ZoneInfo(zone)
    except (LookupError, ValueError, OSError):  # a directory raises OSError
        raise ScheduleInvalid(
            "zone", f"{zone!r} is no time zone that this system knows; one is 'Europe/Vienna'"
        ) from None


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
