"""Where a consumer claims next: at the start of its queue, or where it claimed last."""

from __future__ import annotations

import tocsin
from tests.support import query, until_idle
from tests.support.runs import running


async def test_what_comes_before_the_last_position_is_found(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A message of a smaller priority, one that was requeued, one whose transaction
    took its time."""
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue("held")
        (held,) = await consumer.dequeue()
        async with running(consumer) as run:
            async with store.transaction() as slow:
                await producer.enqueue("slow", connection=slow)
                await producer.enqueue("quick", priority=1)
                await run.handled.wait(1)
            await run.handled.wait(2)
            await producer.enqueue("urgent", priority=-1)
            await run.handled.wait(3)
            await held.release()
            await run.handled.wait(4)
            assert run.handled.payloads == ["quick", "slow", "urgent", "held"]
            await until_idle(store)
            assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(4,)]
