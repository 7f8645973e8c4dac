"""Handle a tick message: submit what is due, and compute the next tick.

``sql/functions/jobs/ticks.sql`` says why no tick is lost, and none is handled twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from tocsin._queue.message import Message, finish_by

from .ticks import Ticks

ON_TIME: Final = timedelta(minutes=1)
"""How late a tick may be handled that does not count as missed."""

_TICK: Final = (
    "select array[tocsin.tick((%s::bigint[])[1], (%s::bigint[])[1], %s::timestamptz[], %s)]"
)


async def handle_tick(message: Message) -> None:
    """Submit the jobs of the ticks that are due, and enqueue the next tick message.

    Raises:
        ScheduleInvalid: The zone is not known here, or the schedule cannot tick. The
            message fails, and is delivered again.

    Cancellation:
        All of it is done or nothing.
    """
    about: dict[str, Any] = message.payload
    every = about["every"]
    ticks = Ticks(
        cron=about["cron"],
        every=None if every is None else timedelta(seconds=every),
        anchor=datetime.fromisoformat(about["anchor"]),
        zone=about["zone"],
    )
    handled_to = datetime.fromisoformat(about["handled_to"])
    now = message.dequeued_at  # by the server's clock, by which the message was due
    due = find_due(ticks, handled_to, now, about["missed"])
    await finish_by(message, _TICK, [due, ticks.next(max(handled_to, now))])


def find_due(ticks: Ticks, handled_to: datetime, now: datetime, missed: int) -> list[datetime]:
    """Return the ticks that submit a job now.

    A tick is missed when a later one is due, too, or when it is handled more than a
    minute late.

    Args:
        ticks: The ticks of the schedule.
        handled_to: Up to when ticks have been handled.
        now: The time by the server's clock.
        missed: How many missed ticks are made up for.
    """
    due = ticks.latest(handled_to, now, max(missed, 1))
    return due if missed else [tick for tick in due if now - tick <= ON_TIME]
