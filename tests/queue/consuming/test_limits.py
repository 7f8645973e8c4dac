"""Limits: how many messages of a key run at a time, and in which order."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import nodes, query


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
    one, other = limit("x", 1), limit("y", 1)
    first = await enqueue(store_dsn, one)
    async with store.consumer(queue) as consumer:
        (message,) = await consumer.dequeue(5)
        assert message.id == first
        blocked = await enqueue(store_dsn, one, other)
        assert await claimed(consumer) == []
        assert await query(
            store_dsn, "select message_id from tocsin.slots where slot is not null"
        ) == [(first,)]
        await message.archive()
        (message,) = await consumer.dequeue(5)
        assert message.id == blocked
        last = [await enqueue(store_dsn, either) for either in (one, other)]
        assert await claimed(consumer) == []
        await message.archive()
        assert await claimed(consumer) == last


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


def rows_read(found: dict[str, dict[str, Any]], *relations: str) -> int:
    """How many rows of these tables the statements within a claim have read."""
    return sum(
        node["Actual Rows"] * node["Actual Loops"]
        for text, plan in found.items()
        if not text.startswith("select * from tocsin.claim")
        for node in nodes(plan)
        if node.get("Relation Name") in relations
    )


def test_a_claim_reads_as_little_with_many_blocked_messages(plans: Any) -> None:
    claim = "select * from tocsin.claim(1, 1, 10)"
    for _ in range(8):  # until the session keeps its plans
        plans(claim)
    plans(
        "select count(tocsin.enqueue('q', '1', options =>"
        """ '{"limits": [{"name": "smtp", "n": 1}]}')) from generate_series(1, 200)"""
    )
    for _ in range(3):
        plans(claim)  # one message is leased, and the rest is blocked
    found = plans(claim)
    assert rows_read(found, "slots", "limit_checks", "limit_queues") == 0
    assert rows_read(found, "messages") == 1  # the leased one, for the next due time
    settles = (
        "select * from tocsin.claim(1, 1, 10, finished_ids => array(select id from"
        " tocsin.messages where state = 'leased'), finished_leases => array(select lease from"
        " tocsin.messages where state = 'leased'))"
    )
    for _ in range(3):
        found = plans(settles)
    assert 0 < rows_read(found, "messages", "slots", "limit_checks", "limit_queues") < 40


async def test_due_times_of_a_rate_are_exact_with_concurrent_producers(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    """With a burst of two, two are due at once, and the others evenly behind."""
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(enqueue, store_dsn, limit("api", 1, per=3600, burst=2))
    async with store.consumer(queue) as one, store.consumer(queue) as other:
        async with trio.open_nursery() as nursery:
            got: list[tocsin.Message] = []
            for consumer in one, other:
                nursery.start_soon(dequeue_all, consumer, got)
        assert len(got) == 2
    gaps = await query(
        store_dsn,
        "select round(extract(epoch from due - lag(due) over (order by due)))::int"
        " from tocsin.messages where state = 'delayed' order by due",
    )
    assert gaps == [(None,), *[(3600,)] * 9]


async def test_a_rate_forgets_the_keys_whose_time_is_over(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    async with store.consumer(queue) as consumer:
        for key in range(20):
            await enqueue(store_dsn, limit("api", 1000, f"k{key}", per=0.001))
            assert len(await claimed(consumer)) == 1
    assert len(await query(store_dsn, "select key from tocsin.rates")) < 3


async def dequeue_all(consumer: tocsin.Consumer, got: list[tocsin.Message]) -> None:
    """Claim until no message waits for a scan."""
    while found := await consumer.dequeue(20):
        got += found


async def test_ordered_keys_keep_their_order_with_failures_and_several_consumers(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    async with store.producer(queue) as producer:
        for number in range(24):
            await producer.enqueue(number, ordered_by=f"customer-{number % 3}", priority=-number)
    handled: list[int] = []
    failed: set[int] = set()
    done = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        await trio.lowlevel.checkpoint()
        if message.payload % 5 == 0 and message.payload not in failed:
            failed.add(message.payload)
            raise tocsin.Retry(0.001)
        handled.append(message.payload)
        if len(handled) == 24:
            done.set()

    async with trio.open_nursery() as nursery:

        async def consume() -> None:
            async with store.consumer(queue) as consumer:
                await consumer.handle(handle, concurrency=4)

        nursery.start_soon(consume)
        nursery.start_soon(consume)
        with trio.fail_after(60):
            await done.wait()
        nursery.cancel_scope.cancel()
    for key in range(3):
        assert [n for n in handled if n % 3 == key] == list(range(key, 24, 3))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x", "must be an object"),
        ({"n": 1}, "must have a name"),
        ({"name": "x", "n": 1.5}, "integers"),
        ({"name": "x", "n": "2"}, "integers"),
        ({"name": "x", "n": 1_000_001}, "integers"),
        ({"name": "x", "n": 1, "per": 1, "burst": 0.5}, "integers"),
        ({"name": "x", "n": 1, "per": "soon"}, "interval of a rate"),
        ({"name": "x", "ordered": 1}, "ordered must be true or false"),
        ({"name": "x", "ordered": True, "n": 2}, "an ordered limit has n = 1"),
        ({"name": "x", "ordered": True, "per": 2}, "an ordered limit has n = 1"),
    ],
)
async def test_limits_that_no_consumer_could_read_are_refused(
    store_dsn: str, queue: str, spec: Any, said: str
) -> None:
    limits = json.dumps([spec])
    task = f'[{{"name": "t", "queue": "q", "max_deliveries": 1, "limits": {limits}}}]'
    for call in (
        f"""enqueue('q', '1', options => '{{"limits": {limits}}}')""",
        f"register_tasks('{task}')",
    ):
        with pytest.raises(psycopg.Error, match=said):
            await query(store_dsn, f"select tocsin.{call}")


def test_a_grant_reads_few_rows_whatever_the_number_of_slots(plans: Any) -> None:
    limits = '{"limits": [{"name": "smtp", "n": 1000000}]}'
    claim = "select * from tocsin.claim(1, 1, 10)"
    for _ in range(8):  # until the session keeps its plans
        plans(f"select tocsin.enqueue('q', '1', options => '{limits}')")
        found = plans(claim)
    assert max(node["Actual Rows"] for plan in found.values() for node in nodes(plan)) < 100


@pytest.mark.slow
async def test_a_scan_of_many_lines_ends_after_a_while(
    store: tocsin.Store, store_dsn: str, queue: str
) -> None:
    """The clock moves with each question."""
    ids = [await enqueue(store_dsn, limit("host", 1, str(n))) for n in range(120)]
    async with store.consumer(queue) as consumer:
        await query(
            store_dsn,
            "create sequence public.asked;"
            " create or replace function tocsin._clock() returns timestamptz language sql volatile"
            " as $$ select pg_catalog.now() + pg_catalog.nextval('public.asked')"
            " * interval '30 ms' $$",
        )
        found = await claimed(consumer, 120)
        assert len(found) == 50
        while more := await claimed(consumer, 120):
            found += more
        assert sorted(found) == ids
