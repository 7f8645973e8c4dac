"""Where a consumer claims next: at the start of its queue, or where it claimed last."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

import tocsin
from tests.support import Handled, query, run_until_suspended, until_asleep
from tocsin._queue.consuming.claim_cursor import CHEAP, LOOK_EVERY, SHARE, ClaimCursor

DUE = datetime(2026, 1, 1, tzinfo=UTC)


def row(priority: int, due: datetime) -> Any:
    return (1, 1, priority, 1, due, due, due, due, None, None, None, "1", None)


def test_it_looks_first_then_glances_for_a_time_that_depends_on_the_look() -> None:
    front = ClaimCursor()
    assert front.next_position(0) is None
    front.claimed(row(3, DUE))
    front.looked(10, 10.001, math.inf)
    assert front.next_position(10.001 + 0.9 * SHARE * 0.001) == (3, DUE, 1)
    assert front.next_position(10.001 + 1.1 * SHARE * 0.001) is None
    front.looked(20, 25, math.inf)
    assert front.next_position(25 + 0.9 * LOOK_EVERY) == (3, DUE, 1)
    assert front.next_position(25 + 1.1 * LOOK_EVERY) is None


def test_it_looks_when_something_is_due() -> None:
    front = ClaimCursor()
    front.claimed(row(0, DUE))
    front.looked(10, 11, 11.5)
    assert front.next_position(11.4) == (0, DUE, 1)
    assert front.next_position(11.5) is None


def test_after_a_glance_in_vain_it_looks_at_once_unless_that_is_expensive() -> None:
    front = ClaimCursor()
    front.claimed(row(0, DUE))
    front.looked(10, 10 + CHEAP / 2, math.inf)
    assert front.glanced_in_vain() == -math.inf
    assert front.next_position(10 + CHEAP / 2) is None
    front.looked(20, 20 + 2 * CHEAP, math.inf)
    again_at = front.glanced_in_vain()
    assert again_at == pytest.approx(20 + 2 * CHEAP + SHARE * 2 * CHEAP)
    assert front.next_position(again_at - 0.001) == (0, DUE, 1)
    assert front.next_position(again_at) is None


async def test_what_comes_before_the_last_position_is_found(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A message of a smaller priority, one that was given back, one whose transaction
    took its time."""
    await store.queues.ensure("q")
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
    ):
        await producer.enqueue("held")
        (held,) = await consumer.dequeue()
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        async with store.transaction() as slow:
            await producer.enqueue("slow", connection=slow)
            await producer.enqueue("quick", priority=1)
            await handled.wait(1)
        await handled.wait(2)
        await producer.enqueue("urgent", priority=-1)
        await handled.wait(3)
        await held.release()
        await handled.wait(4)
        assert handled.payloads == ["quick", "slow", "urgent", "held"]
        await until_asleep(store)
        assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(4,)]
        await consumer.interrupt()
