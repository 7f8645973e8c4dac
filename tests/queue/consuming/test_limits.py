"""Limits: how many messages of a key run at a time, and in which order."""

from __future__ import annotations

import json

import pytest

import tocsin
from tests.support import query


def limit(name: str, n: int = 1, key: str | None = None, **more: object) -> dict[str, object]:
    return {"name": name, "n": n} | ({} if key is None else {"key": key}) | more


async def enqueue(dsn: str, *limits: dict[str, object], payload: object = 1, **options: str) -> int:
    """Enqueue a message with limits."""
    chosen = "".join(f", {name} => '{value}'" for name, value in options.items())
    rows = await query(
        dsn,
        f"select tocsin.enqueue('q', %s::text::jsonb, options => %s::text::jsonb{chosen})",
        json.dumps(payload),
        json.dumps({"limits": limits}),
    )
    return int(rows[0][0])


async def states(dsn: str) -> list[tuple[int, str]]:
    return await query(dsn, "select id, state::text from tocsin.messages order by id")


async def claimed(consumer: tocsin.Consumer, limit: int = 100) -> list[int]:
    return [message.id for message in await consumer.dequeue(limit)]


@pytest.fixture
async def queue(store: tocsin.Store) -> str:
    await store.queues.ensure("q", retry_base=0)
    return "q"


async def test_at_most_n_messages_of_a_limit_are_claimed(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    ids = [await enqueue(store_dsn, limit("smtp", 2)) for _ in range(5)]
    assert [state for _, state in await states(store_dsn)] == ["held"] * 5
    async with store.consumer(queue) as consumer:
        messages = await consumer.dequeue(5)
        assert [message.id for message in messages] == ids[:2]
        assert await claimed(consumer) == []
        await messages[1].archive()
        assert await claimed(consumer) == ids[2:3]
        await messages[0].delete()
        assert await claimed(consumer) == ids[3:4]


async def test_each_key_has_its_slots(store: tocsin.Store, store_dsn: str, queue: str) -> None:
    a, _, b = [await enqueue(store_dsn, limit("host", 1, key)) for key in ("a", "a", "b")]
    async with store.consumer(queue) as consumer:
        assert await claimed(consumer) == [a, b]


async def test_a_message_takes_all_of_its_limits_or_none(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    both = limit("x", 1), limit("y", 1)
    first = await enqueue(store_dsn, both[0])
    blocked = await enqueue(store_dsn, *both)
    other = await enqueue(store_dsn, both[1])
    async with store.consumer(queue) as consumer:
        (message, second) = await consumer.dequeue(5)
        assert [message.id, second.id] == [first, other]
        await message.archive()
        assert await claimed(consumer) == []
        await second.archive()
        assert await claimed(consumer) == [blocked]


async def test_a_retry_gives_the_slot_back(store: tocsin.Store, store_dsn: str, queue: str) -> None:
    first = await enqueue(store_dsn, limit("smtp", 1))
    second = await enqueue(store_dsn, limit("smtp", 1))
    async with store.consumer(queue) as consumer:
        (message,) = await consumer.dequeue()
        assert message.id == first
        await message.release(delay=0.001)
        (message,) = await consumer.dequeue()
        assert message.id == second
        await message.archive()
        assert [m.id for m in await consumer.dequeue(wait=10)] == [first]


async def test_an_ordered_key_keeps_its_place_for_a_retry(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    line = {"key": "customer-7", "ordered": True}
    ids = [await enqueue(store_dsn, line, priority=str(-n)) for n in range(3)]
    free = await enqueue(store_dsn, {"key": "customer-8", "ordered": True})
    async with store.consumer(queue) as consumer:
        first, other = await consumer.dequeue(9)
        assert [first.id, other.id] == [ids[0], free]
        await first.release(delay=0.01)
        for message_id in ids:
            (message,) = await consumer.dequeue(9, wait=10)
            assert message.id == message_id
            await message.archive()


async def test_a_delayed_message_holds_no_slot_until_it_is_due(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    later = await enqueue(store_dsn, limit("smtp", 1), delay="1 hour")
    now = await enqueue(store_dsn, limit("smtp", 1))
    async with store.consumer(queue) as consumer:
        (message,) = await consumer.dequeue(9)
        assert message.id == now
        await query(store_dsn, "select tocsin.reschedule(%s, delay => '0 s')", later)
        assert await claimed(consumer) == []
        await message.archive()
        assert await claimed(consumer) == [later]


async def test_a_rate_gives_due_times(store: tocsin.Store, store_dsn: str, queue: str) -> None:
    for _ in range(4):
        await enqueue(store_dsn, limit("api", 2, per=60))
    async with store.consumer(queue) as consumer:
        assert len(await claimed(consumer)) == 1
    gaps = await query(
        store_dsn,
        "select extract(epoch from due - lag(due) over (order by id))::int from tocsin.messages"
        " where state = 'delayed' order by id",
    )
    assert gaps == [(None,), (30,), (30,)]
