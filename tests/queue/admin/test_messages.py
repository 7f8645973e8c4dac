"""Reading messages: in every state, page by page, and which rows that reads."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import tocsin
from tests.support import connect_blocking, failed_with, move_clock, nodes, query
from tests.support.sweeps import sweep


async def test_lists_and_metrics_say_the_same_of_what_has_become_due(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A delayed message whose time has come, and one whose lease has expired, are
    ready, although no process has claimed since."""
    await store.queues.ensure("q", vt=30)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        due, late = await producer.enqueue(1, delay=50), await producer.enqueue(2, delay=5000)
        expired, held = await producer.enqueue_many([3, 4])
        await consumer.dequeue()
        await consumer.dequeue(vt=5000)
        ready = await producer.enqueue(5)
        for seconds, expected in (
            (0, {"ready": [ready], "delayed": [due, late], "leased": [expired, held]}),
            (100, {"ready": [due, expired, ready], "delayed": [late], "leased": [held]}),
            (9000, {"ready": [due, late, expired, held, ready], "delayed": [], "leased": []}),
        ):
            await move_clock(store_dsn, seconds)
            metrics = await store.queues.metrics("q")
            for state in ("ready", "delayed", "leased"):
                listed = await store.messages.list("q", state=state)
                assert [m.id for m in listed] == expected[state]
                assert {m.state for m in listed} <= {state}
                assert len(listed) == getattr(metrics, state)
                assert [(await store.messages.get(i)).state for i in expected[state]] == [
                    state
                ] * len(listed)
            assert sorted(m.id for m in await store.messages.list("q")) == sorted(
                i for ids in expected.values() for i in ids
            )
            assert [m.id for m in await store.messages.list("q", worker=consumer.worker_id)] == [
                expired,
                held,
            ]
            assert (await consumer.info()).held == 2


async def test_get_tells_all_in_every_state(store: tocsin.Store, store_dsn: str) -> None:
    queue = await store.queues.ensure("q", retry_base=0, retry_jitter=0)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        message_id = await producer.enqueue(
            {"n": 1},
            headers={"h": [1]},
            priority=-2,
            key="k",
            expires_in=100,
            max_deliveries=9,
            delay=timedelta(seconds=10),
        )
        info = await store.messages.get(message_id)
        assert (info.id, info.queue, info.queue_id, info.state) == (
            message_id,
            "q",
            queue.id,
            "delayed",
        )
        assert (info.payload, info.headers, info.priority, info.key) == (
            {"n": 1},
            {"h": [1]},
            -2,
            "k",
        )
        assert (info.payload_text, info.headers_text) == ('{"n": 1}', '{"h": [1]}')
        assert info.due == info.vt == info.enqueued_at + timedelta(seconds=10)
        assert info.expires_at == info.enqueued_at + timedelta(seconds=100)
        assert (info.read_ct, info.max_deliveries, info.dequeued_at, info.consumer_worker_id) == (
            0,
            9,
            None,
            None,
        )
        assert info.producer_worker_id == producer.worker_id
        assert (info.archived_at, info.died_at, info.reason, info.last_error, info.history) == (
            None,
            None,
            None,
            None,
            (),
        )

        await move_clock(store_dsn, 11)
        (message,) = await consumer.dequeue(vt=20)
        info = await store.messages.get(message_id)
        assert (info.state, info.read_ct, info.consumer_worker_id) == (
            "leased",
            1,
            consumer.worker_id,
        )
        assert (info.dequeued_at, info.vt) == (message.dequeued_at, message.vt)

        await consumer._parts.settler.fail([message], [failed_with("it failed")])
        info = await store.messages.get(message_id)
        assert (info.state, info.last_error, [d.outcome for d in info.history]) == (
            "ready",
            "it failed",
            ["handler_failed"],
        )

        await consumer.archive_many(await consumer.dequeue())
        info = await store.messages.get(message_id)
        assert (info.state, info.read_ct, info.due, info.vt, info.expires_at) == (
            "archived",
            2,
            None,
            None,
            None,
        )
        assert (info.payload, info.headers, info.priority, info.key, info.last_error) == (
            {"n": 1},
            {"h": [1]},
            -2,
            "k",
            "it failed",
        )
        assert (info.producer_worker_id, info.consumer_worker_id) == (
            producer.worker_id,
            consumer.worker_id,
        )
        assert info.archived_at is not None
        assert [d.outcome for d in info.history] == ["handler_failed"]

        dead_id = await producer.enqueue(2, expires_in=1)
        await move_clock(store_dsn, 20)
        await consumer.dequeue()
        info = await store.messages.get(dead_id)
        assert (info.state, info.reason, info.due, info.expires_at) == (
            "dead",
            "expired",
            None,
            None,
        )
        assert info.died_at is not None

        (deleted,) = await producer.enqueue_many([3])
        await consumer.delete_many(await consumer.dequeue())
        with pytest.raises(
            tocsin.MessageNotFound, match=f"message {deleted} does not exist"
        ) as gone:
            await store.messages.get(deleted)
        assert gone.value.message_id == deleted


async def fill(store: tocsin.Store, store_dsn: str) -> dict[str, list[int]]:
    """Three messages in each state in the queue q, among as many in r; the worker a
    holds two of those leased, b one."""
    ids: dict[str, list[int]] = {
        s: [] for s in ("ready", "delayed", "leased", "dead", "archived", "held by a")
    }
    await store.queues.ensure("q")
    await store.queues.ensure("r")

    async def both(into: str, **options: Any) -> None:
        for _ in range(3):
            await store.produce("r", "other", **options)
            ids[into].append(await store.produce("q", into, **options))

    await both("archived")
    for queue in ("q", "r"):
        async with store.consumer(queue) as consumer:
            await consumer.archive_many(await consumer.dequeue(3))
    await both("dead", expires_in=1)
    await move_clock(store_dsn, 2)
    async with store.consumer("q", name="a") as a, store.consumer("q", name="b") as b:
        await a.dequeue()
        await both("leased", priority=-1)
        ids["held by a"] = [m.id for m in await a.dequeue(2)]
        await b.dequeue()
        # so that they keep them
        await query(store_dsn, "update tocsin.workers set process_id = null, status = 'suspended'")
        await query(store_dsn, "update tocsin.workers set registration = registration + 100")
    await both("delayed", delay=3600)
    await both("ready", priority=5)
    await both("ready", priority=4)  # before the rest in the queue, behind them in a list
    return ids


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_list_by_state_goes_by_pages_in_the_order_of_ids(
    store: tocsin.Store, store_dsn: str, limit: int
) -> None:
    ids = await fill(store, store_dsn)
    unfinished = sorted(ids["ready"] + ids["delayed"] + ids["leased"])
    listed: dict[tocsin.MessageState | None, list[int]] = {
        "ready": ids["ready"],
        "delayed": ids["delayed"],
        "leased": ids["leased"],
        "dead": ids["dead"],
        "archived": ids["archived"],
        None: unfinished,
    }
    for state, expected in listed.items():
        seen: list[tocsin.MessageInfo] = []
        while page := await store.messages.list(
            "q", state=state, limit=limit, after=seen[-1].id if seen else None
        ):
            assert len(page) <= limit
            seen += page
        assert [m.id for m in seen] == expected
        assert {m.queue for m in seen} == {"q"}
        if state is not None:
            assert {(m.state, m.payload) for m in seen} == {(state, state)}


async def test_list_of_what_a_worker_holds(store: tocsin.Store, store_dsn: str) -> None:
    ids = await fill(store, store_dsn)
    a, b = [w.id for w in await store.workers.list("q") if w.name in "ab"]
    assert [m.id for m in await store.messages.list("q", worker=a)] == ids["held by a"]
    assert [
        m.id for m in await store.messages.list("q", worker=a, after=ids["held by a"][0])
    ] == ids["held by a"][1:]
    assert len(await store.messages.list("q", worker=b, state="leased")) == 1
    assert await store.messages.list("q", worker=b + 100) == []
    assert await store.messages.list("r", worker=a) == []


@sweep(
    "payload",
    [
        {"a\"'%\\": "\N{SNOWMAN}\U0001f600"},
        None,
        "",
        2**80,
        1e23,
        0.1,
        [[[]]],
        "'; drop table tocsin.messages; --",
    ],
    quick=2,
    ids=str,
)
async def test_payload_comes_back_exactly(store: tocsin.Store, payload: object) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", payload, headers=[payload])
    (listed,) = await store.messages.list("q")
    assert listed == await store.messages.get(message_id)
    for message in (listed, await store.messages.get(message_id)):
        assert (message.payload, message.headers) == (payload, [payload])
        assert type(message.payload) is type(payload)


async def test_one_payload_that_python_cannot_read_spoils_no_list(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    # more digits than Python converts
    await query(store_dsn, "select tocsin.enqueue('q', repeat('9', 5000)::jsonb)")
    await store.produce("q", "fine")
    unreadable, fine = await store.messages.list("q")
    assert fine.payload == "fine"
    assert unreadable.payload_text == "9" * 5000
    with pytest.raises(ValueError, match="digits"):
        _ = unreadable.payload


@sweep(
    ("call", "raises", "named"),
    [
        (lambda s: s.messages.list("q", state="scheduled"), ValueError, "state"),
        (lambda s: s.messages.list("q", state="ready", worker=1), ValueError, "worker"),
        (lambda s: s.messages.list("q", worker="1"), TypeError, "worker"),
        (lambda s: s.messages.list("q", limit=0), ValueError, "limit"),
        (lambda s: s.messages.list("q", after=2**63), ValueError, "after"),
        (lambda s: s.messages.list("it's; not there"), tocsin.QueueNotFound, "it's; not there"),
        (lambda s: s.messages.get("1"), TypeError, "message_id"),
        (lambda s: s.messages.get(2**63), ValueError, "message_id"),
        (lambda s: s.messages.get(-1), tocsin.MessageNotFound, "-1"),
    ],
    quick=2,
)
async def test_bad_arguments_name_themselves(
    store: tocsin.Store,
    call: Callable[[Any], Awaitable[object]],
    raises: type[Exception],
    named: str,
) -> None:
    await store.queues.ensure("q")
    with pytest.raises(raises, match=named):
        await call(store)


async def test_sql_refuses_the_same(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    with connect_blocking(store_dsn) as connection:
        for arguments, code in (
            ("'q', 'scheduled'", "TC022"),
            ("'q', state => 'dead', worker_id => 1", "TC022"),
            ("'nothing'", "TC001"),
        ):
            with pytest.raises(psycopg.DatabaseError) as refused:
                connection.execute(f"select * from tocsin.list_messages({arguments})".encode())
            assert refused.value.sqlstate == code


# Large tables: q has every tenth of the unfinished messages, and half of the finished
# ones; the archive has two partitions.
LARGE = """
insert into tocsin.messages
       (queue_id, priority, state, due, vt, enqueued_at, lease, consumer_worker_id, payload)
select case when n % 10 = 0 then 1 else 2 end, n % 7,
       (array['ready', 'delayed', 'leased'])[1 + n % 3]::tocsin.message_state,
       now(), now() + case when n % 3 > 0 and n % 160 > 0 then interval '1 day' else '0 s' end,
       now(), 1, n % 5, to_jsonb(repeat('x', 100))
from generate_series(1, 30000) n;
create table tocsin.archive_24h_test partition of tocsin.archive
    for values from (24, minvalue) to (24, maxvalue);
insert into tocsin.archive
       (id, queue_id, priority, read_ct, enqueued_at, archived_at, span, payload)
select 100000 + n, 1 + n % 2, 0, 1, now(), now(), case when n % 3 = 0 then 24 else 0 end,
    to_jsonb(repeat('x', 100))
from generate_series(1, 20000) n;
insert into tocsin.dead_letters
       (id, queue_id, priority, read_ct, enqueued_at, died_at, payload, reason, error)
select 200000 + n, 1 + n % 2, 0, 1, now(), now(), to_jsonb(repeat('x', 100)), 'handler_failed',
    'error ' || n
from generate_series(1, 20000) n;
analyze tocsin.messages, tocsin.archive, tocsin.dead_letters;
"""
LISTS = [
    *(
        f"select * from tocsin.list_messages('q', '{s}', max_messages => 10)"
        for s in ("ready", "delayed", "leased", "dead", "archived")
    ),
    "select * from tocsin.list_messages('q', max_messages => 10)",
    "select * from tocsin.list_messages('q', max_messages => 10, after => 15000)",
    "select * from tocsin.list_messages('q', 'archived', max_messages => 10, after => 110000)",
    "select * from tocsin.get_message(17)",
    "select * from tocsin.get_message(100017)",
    "select * from tocsin.get_message(200017)",
    "select * from tocsin.list_dead_letters('q', max_letters => 10)",
    (
        "select * from tocsin.list_dead_letters('q', 'handler_failed', max_letters => 10, after =>"
        " 210000)"
    ),
    "select * from tocsin.get_dead_letter(200017)",
    "select tocsin.replay(array[200017, 200018])",
    "select tocsin.replay(queue => 'q', max_letters => 10)",
    "select tocsin.archive_dead_letters(queue => 'q', max_letters => 10)",
    "select tocsin.purge_dead_letters(queue => 'q', max_letters => 10)",
    "select tocsin.purge_dead_letters(queue => 'q', max_letters => 10, dry_run => true)",
]


def test_a_page_reads_a_page_and_not_the_table(plans: Any) -> None:
    for statement in LISTS:
        for _ in range(8):  # also on a session that has known the tables empty
            plans(statement)
    plans(LARGE)
    for statement in LISTS:
        plans("begin")
        found = plans(statement)
        plans("rollback")
        read = 0
        for text, plan in found.items():
            for node in nodes(plan):
                if re.fullmatch(
                    r"messages|dead_letters|archive(_\d+h_.*|_rest)?",
                    node.get("Relation Name", ""),
                ):
                    assert node["Node Type"] != "Seq Scan", (statement, text, plan)
                    read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node[
                        "Actual Loops"
                    ]
        assert 0 < read < 500, (statement, found)


def test_few_messages_of_a_queue_are_not_searched_for_among_all(plans: Any) -> None:
    plans(LARGE)
    plans("insert into tocsin.queues (name, created_at, channel) values ('small', now(), 'c')")
    plans("select tocsin.enqueue('small', '1') from generate_series(1, 20)")
    plans("analyze tocsin.messages")
    found = plans("select * from tocsin.list_messages('small', max_messages => 100)")
    read = [
        n for plan in found.values() for n in nodes(plan) if n.get("Relation Name") == "messages"
    ]
    assert (
        sum(
            (n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"]
            for n in read
        )
        < 100
    )


# What the options of a message do


async def test_priority_smaller_numbers_come_first_also_within_a_batch(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    priorities = [0, 5, -(2**31), 2**31 - 1, 0, -1, 5]
    for priority in priorities:
        await store.produce("q", priority, priority=priority)
    async with store.consumer("q") as consumer:
        messages = [*await consumer.dequeue(3), *await consumer.dequeue(9)]
    assert [m.payload for m in messages] == [m.priority for m in messages] == sorted(priorities)
    assert [m.id for m in messages if m.payload == 5] == [2, 7]


@sweep(
    "headers", [{"traceparent": "00-1-2-01"}, [1, None], "text", 0, False, {}], quick=2, ids=repr
)
async def test_headers_are_any_json_value(store: tocsin.Store, headers: object) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue(1, headers=headers)
        await producer.enqueue_many([2, 3], headers=headers)
        await producer.enqueue(4)
        messages = await consumer.dequeue(9)
        assert [m.headers for m in messages] == [headers, headers, headers, None]
        await consumer.archive_many(messages)
    assert [m.headers for m in await store.messages.list("q", state="archived")] == [
        headers,
        headers,
        headers,
        None,
    ]


async def test_expiry_is_for_what_has_not_been_delivered_in_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=1000)
    ids = [
        await store.produce("q", name, expires_in=10)
        for name in ("in time", "in time, but requeued", "never delivered")
    ]
    delayed = await store.produce("q", "due too late", expires_in=10, delay=20)
    lasting = await store.produce("q", "lasting")
    async with store.consumer("q") as consumer:
        in_time, requeued = await consumer.dequeue(2)
        await move_clock(store_dsn, 30)
        await requeued.release()
        assert [m.id for m in await consumer.dequeue(9)] == [lasting]
        await in_time.archive()
    assert [(d.id, d.reason) for d in await store.dead_letters.list("q")] == [
        (i, "expired") for i in (*ids[1:], delayed)
    ]
    assert [len(d.history) for d in await store.dead_letters.list("q")] == [1, 0, 0]


async def test_release_with_a_delay_and_with_a_lost_lease(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        first, second = await producer.enqueue_many([1, 2])
        (message,) = await consumer.dequeue()
        await message.release(delay=60)
        assert (await store.messages.get(first)).state == "delayed"
        (other,) = await consumer.dequeue()
        await other.archive()
        with pytest.raises(tocsin.LeaseLost):
            await other.release()
        info = await store.messages.get(second)
        assert (info.state, info.consumer_worker_id) == ("archived", consumer.worker_id)
        await move_clock(store_dsn, 61)
        assert [(m.id, m.read_ct) for m in await consumer.dequeue(2)] == [(first, 2)]
