"""Where a consumer claims next: at the start of its queue, or where it claimed last."""

from __future__ import annotations

import trio

import tocsin
from tests.support import Handled, query, run_until_suspended, until_asleep


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
