"""Dead letters that a test makes."""

from __future__ import annotations

from typing import Any

import tocsin
from tests.support import failed_with


async def kill(
    consumer: tocsin.Consumer, error: str = "it failed", limit: int = 1
) -> list[tocsin.Message]:
    """Claim messages and let their handler fail, as a run does."""
    messages = await consumer.dequeue(limit)
    await consumer._parts.settler.fail(messages, [failed_with(error)] * len(messages))
    return messages


async def make_dead(
    store: tocsin.Store, queue: str, *payloads: object, error: str = "it failed", **options: Any
) -> list[int]:
    """Make dead letters, each after one delivery."""
    ids = [await store.produce(queue, payload, max_deliveries=1, **options) for payload in payloads]
    async with store.consumer(queue) as consumer:
        assert [m.id for m in await kill(consumer, error, len(ids))] == ids
    return ids
