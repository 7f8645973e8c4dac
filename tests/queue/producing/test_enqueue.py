"""Enqueueing: from Python and from SQL, with every option."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import connect_blocking, move_clock, open_connection, query
from tests.support.sweeps import sweep


async def test_one_sql_function_for_every_language(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("emails")
    with connect_blocking(store_dsn) as connection:
        first = connection.execute(
            "select tocsin.enqueue('emails', '{\"to\": \"ada@example.org\"}')"
        ).fetchone()
        second = connection.execute(
            "select tocsin.enqueue('emails', '{\"to\": \"ada@example.org\"}', delay => '5 s',"
            " priority => 1, key => 'welcome-ada')"
        ).fetchone()
        assert (first, second) == ((1,), (2,))
        with pytest.raises(
            psycopg.DatabaseError, match='queue "nothing" does not exist'
        ) as refused:
            connection.execute("select tocsin.enqueue('nothing', '1')")
        assert refused.value.sqlstate == "TC001"
    async with store.consumer("emails") as consumer:
        (message,) = await consumer.dequeue(2)
        assert (message.payload, message.producer_worker_id) == ({"to": "ada@example.org"}, None)
        await move_clock(store_dsn, 6)
        (message,) = await consumer.dequeue(2)
        assert (message.id, message.priority) == (2, 1)


async def test_message_says_all_about_itself(store: tocsin.Store) -> None:
    queue = await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        message_id = await producer.enqueue([1], headers={"trace": "abc"}, priority=-3)
        (message,) = await consumer.dequeue(vt=timedelta(seconds=20))
        assert (message.id, message.queue, message.queue_id) == (message_id, "q", queue.id)
        assert (message.payload, message.headers, message.priority, message.read_ct) == (
            [1],
            {"trace": "abc"},
            -3,
            1,
        )
        assert (message.producer_worker_id, message.consumer_worker_id) == (
            producer.worker_id,
            consumer.worker_id,
        )
        assert message.vt - message.dequeued_at == timedelta(seconds=20)
        assert message.enqueued_at <= message.dequeued_at
        assert message.last_error is None


async def test_batch_ids_are_in_the_order_of_the_payloads(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        assert await producer.enqueue_many([]) == []
        # more than one statement takes
        ids = await producer.enqueue_many(({"n": n} for n in range(11_000)), priority=2)
        assert ids == sorted(set(ids))
        assert len(ids) == 11_000
        messages = await consumer.dequeue(11_000)
        assert [(m.id, m.payload) for m in messages] == [(i, {"n": n}) for n, i in enumerate(ids)]


async def test_a_large_batch_is_all_or_nothing(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", max_payload=10)
    async with store.producer("q") as producer:
        with pytest.raises(tocsin.PayloadTooLarge):
            await producer.enqueue_many([*range(6000), "x" * 20])
        async with store.transaction() as connection:
            with pytest.raises(tocsin.PayloadTooLarge):
                await producer.enqueue_many([*range(6000), "x" * 20], connection=connection)
            # the caller's transaction goes on
            await producer.enqueue_many([1, 2], connection=connection)
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(2,)]


async def test_a_refusal_in_a_large_batch_names_the_index(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_payload=10)
    async with store.producer("q") as producer:
        with pytest.raises(tocsin.PayloadTooLarge, match="payload 6001 of 22 bytes") as large:
            await producer.enqueue_many([*range(6001), "x" * 20])
        assert large.value.index == 6001
        with pytest.raises(tocsin.PayloadInvalid) as invalid:
            await producer.enqueue_many([*range(6001), {1}])
        assert invalid.value.index == 6001


async def test_a_batch_is_taken_from_a_generator_as_it_is_sent(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    in_use: list[int] = []

    class Enough(Exception):
        pass

    def payloads() -> Iterator[str]:
        for _ in range(50):
            in_use.append(store.statistics().pool.in_use)
            yield "x" * (2**20 - 2)
        raise Enough

    async with store.producer("q") as producer:
        with pytest.raises(Enough):
            await producer.enqueue_many(payloads())
    # Sixteen of this size make a statement. The transaction begins when there is more
    # than one.
    assert in_use == [0] * 33 + [1] * 17
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]


async def test_each_for_itself_from_sql(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", max_payload=10)
    messages = """[{"payload": "a"}, {"payload": "too large for it"},
        {"payload": 1, "delay": "-1 s"},
        {"payload": 1, "max_deliveries": 0},
        {"payload": 1, "worker_id": 99}, {"payload": 1, "delay": "1 s", "at": "2030-01-01"},
        {"payload": 1, "expires_in": "0"},
        {"payload": null, "priority": -1, "delay": "1 h", "headers": {"h": 1}}]"""
    assert await query(store_dsn, "select tocsin.enqueue_each('q', %s)", messages) == [
        ([1, None, None, None, None, None, None, 8],)
    ]
    assert await query(
        store_dsn, "select payload, state::text, headers, priority from tocsin.messages order by id"
    ) == [
        ("a", "ready", None, 0),
        (None, "delayed", {"h": 1}, -1),
    ]
    assert await query(store_dsn, "select tocsin.enqueue_each('q', '[]')") == [([],)]


async def test_what_psycopg_cannot_send_is_refused(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with pytest.raises(tocsin.QueueNotFound):
        await store.produce("q\0r", 1)
    with pytest.raises(ValueError, match="NUL"):
        await store.produce("q", 1, key="k\0l")


async def test_null_is_no_payload_in_sql(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    with pytest.raises(psycopg.errors.NotNullViolation):
        await query(store_dsn, "select tocsin.enqueue('q', null)")


async def test_delay_and_at(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue("in an hour", delay=timedelta(hours=1))
        await producer.enqueue("at a time", at=datetime.now(UTC) + timedelta(minutes=30))
        await producer.enqueue("long ago", at=datetime(2020, 1, 1, tzinfo=UTC))
        await producer.enqueue("now", delay=0)
        assert [m.payload for m in await consumer.dequeue(9)] == ["long ago", "now"]
        await move_clock(store_dsn, 1900)  # the first two leases have expired
        assert [m.payload for m in await consumer.dequeue(9, vt=7200)] == [
            "long ago",
            "now",
            "at a time",
        ]
        await move_clock(store_dsn, 3700)
        assert [m.payload for m in await consumer.dequeue(9)] == ["in an hour"]


async def test_key_allows_one_unfinished_message(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        first = await producer.enqueue(1, key="k")
        assert await producer.enqueue(2, key="k") == first
        assert await store.produce("r", 3, key="k") != first
        (message,) = await consumer.dequeue(9)
        assert message.payload == 1
        assert await producer.enqueue(2, key="k") == first  # leased is not finished
        await message.archive()
        assert await producer.enqueue(2, key="k") > first


async def test_key_is_race_free(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    ids = list[int]()

    async def produce() -> None:
        for key in range(20):
            ids.append(await store.produce("q", 1, key=str(key)))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(produce)
    assert len(set(ids)) == 20
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(20,)]


async def test_key_held_by_an_invisible_transaction(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with open_connection(store_dsn) as connection, connection.transaction():
        await connection.execute("set transaction isolation level repeatable read")
        await connection.execute("select 1")
        await store.produce("q", 1, key="k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            await connection.execute("select tocsin.enqueue('q', '2', key => 'k')")


async def test_expired_message_becomes_a_dead_letter(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue("stale", expires_in=10)
        fresh = await producer.enqueue("fresh", expires_in=100)
        await move_clock(store_dsn, 11)
        assert [m.id for m in await consumer.dequeue(1)] == [fresh]
    assert await query(store_dsn, "select payload, reason from tocsin.dead_letters") == [
        ("stale", "expired")
    ]


async def test_max_deliveries_of_a_message_goes_before_the_queues(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=5)
    async with store.consumer("q") as consumer:
        await store.produce("q", 1, max_deliveries=1)
        (message,) = await consumer.dequeue()
        await message.release()
        assert await consumer.dequeue() == []
    assert await query(store_dsn, "select read_ct, reason from tocsin.dead_letters") == [
        (1, "released")
    ]


@sweep(
    ("options", "named"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": 1e20}, "delay"),
        ({"delay": 1, "at": datetime.now(UTC)}, "at"),
        ({"at": datetime(2026, 1, 1)}, "at"),
        ({"expires_in": 0}, "expires_in"),
        ({"max_deliveries": 0}, "max_deliveries"),
    ],
    quick=2,
)
async def test_bad_options_name_the_argument(
    store: tocsin.Store, options: dict[str, object], named: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        with pytest.raises(ValueError, match=named):
            await producer.enqueue(1, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=named):
            await producer.enqueue_many([1], **options)  # type: ignore[arg-type]


@sweep(
    ("arguments", "named"),
    [
        ("delay => '-1 s'", "delay"),
        ("delay => '1 s', at => now()", "at"),
        ("expires_in => '0'", "expires_in"),
        ("max_deliveries => 0", "max_deliveries"),
    ],
    quick=1,
)
async def test_sql_refuses_bad_options_too(
    store: tocsin.Store, store_dsn: str, arguments: str, named: str
) -> None:
    await store.queues.ensure("q")
    with connect_blocking(store_dsn) as connection:
        with pytest.raises(psycopg.DatabaseError, match=named) as refused:
            connection.execute(f"select tocsin.enqueue('q', '1', {arguments})".encode())
        assert refused.value.sqlstate == "TC022"


async def test_unknown_queue_is_named(store: tocsin.Store) -> None:
    for attempt in (
        store.produce("nothing", 1),
        store.queues.get("nothing"),
        store.queues.pause("nothing"),
    ):
        with pytest.raises(tocsin.QueueNotFound, match="nothing") as refused:
            await attempt
        assert refused.value.queue == "nothing"
    for context in (store.producer("nothing"), store.consumer("nothing")):
        with pytest.raises(tocsin.QueueNotFound):
            async with context:
                pass


async def test_duration_must_be_one(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with pytest.raises(TypeError, match="delay"):
        await store.produce("q", 1, delay="5 s")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="delay"):
        await store.produce("q", 1, delay=True)
    with pytest.raises(TypeError, match="priority"):
        await store.produce("q", 1, priority=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="priority"):
        await store.produce("q", 1, priority=2**40)
    with pytest.raises(TypeError, match="max_deliveries"):
        await store.produce("q", 1, max_deliveries=1.5)  # type: ignore[arg-type]


async def test_a_closed_store_says_so(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
    with pytest.raises(tocsin.TocsinError, match="store is closed"):
        await store.produce("q", 1)


async def test_delay_goes_by_the_servers_clock_only(store: tocsin.Store, store_dsn: str) -> None:
    """However far the client's is from it."""
    await store.queues.ensure("q")
    await move_clock(store_dsn, 100_000)
    messages = [
        await store.messages.get(await store.produce("q", 1, delay=60)),
        await store.messages.get(
            (await store.produce_many("q", [1], delay=timedelta(minutes=1)))[0]
        ),
    ]
    for message in messages:
        assert message.due is not None
        assert message.due - message.enqueued_at == timedelta(seconds=60)
        assert message.enqueued_at > datetime.now(UTC) + timedelta(seconds=90_000)
    at = await store.messages.get(
        await store.produce("q", 1, at=datetime.now(UTC) + timedelta(seconds=50_000))
    )
    assert at.state == "ready"  # that moment is over, there
    async with store.consumer("q") as consumer:
        assert [m.id for m in await consumer.dequeue(9, vt=3600)] == [at.id]
        await move_clock(store_dsn, 100_061)
        assert len(await consumer.dequeue(9)) == 2


async def test_enqueue_batch_and_delayed(store: tocsin.Store, store_dsn: str) -> None:
    """One message, a batch of any size, all of it or none, its ids in order, and both
    for later."""
    await store.queues.ensure("q", max_payload=20)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        first = await producer.enqueue("one")
        ids = await producer.enqueue_many(range(20_000))
        assert ids == sorted(set(ids))
        assert (len(ids), ids[0] > first) == (20_000, True)
        for bad in ({1}, "x" * 30):
            with pytest.raises((tocsin.PayloadInvalid, tocsin.PayloadTooLarge)) as refused:
                await producer.enqueue_many([*range(20_000), bad])
            assert getattr(refused.value, "index", None) == 20_000
        later = [
            await producer.enqueue("later", delay=60),
            *await producer.enqueue_many(["too"] * 2, delay=60),
        ]
        assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(20_004,)]
        messages = await consumer.dequeue(30_000, vt=3600)
        assert [(m.id, m.payload) for m in messages] == [
            (first, "one"),
            *zip(ids, range(20_000), strict=True),
        ]
        await move_clock(store_dsn, 61)
        assert [m.id for m in await consumer.dequeue(9)] == later
