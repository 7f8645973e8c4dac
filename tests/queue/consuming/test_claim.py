"""Claiming: order, leases, what a claim reads, and what it must not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tocsin
from tests.support import connect_blocking, move_clock, nodes, open_connection, query
from tests.support.sweeps import sweep


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=30),
    batch=st.integers(1, 7),
)
def test_order_is_priority_due_id(store_dsn: str, data: list[tuple[int, int]], batch: int) -> None:
    with connect_blocking(store_dsn) as connection:
        connection.execute("truncate tocsin.messages, tocsin.queues, tocsin.workers cascade")
        connection.execute("select tocsin.create_queue('q')")
        worker = connection.execute(
            "select id, registration from tocsin.register_worker('q', 'consumer', 'w', null, 'h',"
            " 1, 'v')"
        ).fetchone()
        expected = []
        for priority, minutes_ago in data:
            row = connection.execute(
                "select tocsin.enqueue('q', '1', priority => %s, at => date_trunc('hour', now()) -"
                " make_interval(mins => %s))",
                [priority, minutes_ago],
            ).fetchone()
            assert row is not None
            expected.append((priority, -minutes_ago, row[0]))
        claimed: list[int] = []
        claim = "select id from tocsin.claim(%s, %s, %s) where kind = 'message'"
        while rows := connection.execute(claim.encode(), [*(worker or ()), batch]).fetchall():
            claimed += [row[0] for row in rows]
        assert claimed == [i for _, _, i in sorted(expected)]


async def test_every_claim_gives_a_larger_token(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many([1, 2, 3])
        leases = [message.lease_token for _ in range(3) for message in await consumer.dequeue()]
        assert leases == sorted(set(leases))
        await consumer.release(1)
        (again,) = await consumer.dequeue()
        assert again.lease_token > leases[-1]


async def test_expired_lease_keeps_its_place_in_the_queue(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        first, second, third = await producer.enqueue_many([1, 2, 3])
        await consumer.dequeue(2, vt=10)
        await move_clock(store_dsn, 11)
        assert [m.id for m in await consumer.dequeue(9)] == [first, second, third]


async def test_exhausted_lease_becomes_a_dead_letter(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", max_deliveries=2, vt=10)
    await store.produce("q", "poison")
    async with store.consumer("q") as consumer:
        for seconds in (11, 22):
            assert len(await consumer.dequeue()) == 1
            await move_clock(store_dsn, seconds)
        assert await consumer.dequeue() == []
    assert await query(store_dsn, "select read_ct, reason from tocsin.dead_letters") == [
        (2, "lease_expired")
    ]


@pytest.mark.parametrize("state", ["delayed", "leased"])
async def test_a_claim_after_a_long_night_gets_on_under_a_short_statement_timeout(
    store: tocsin.Store, store_dsn: str, state: str
) -> None:
    """All of it at once takes several times as long as the timeout; each claim does a
    part."""
    await store.queues.ensure("q")
    await query(
        store_dsn,
        "insert into tocsin.messages (queue_id, state, read_ct, due, vt, enqueued_at, lease,"
        f" payload) select 1, '{state}', 1, now(), now() - interval '1 hour', now(), 1, '1' from"
        " generate_series(1, 40000)",
    )
    left = f"select count(*)::int from tocsin.messages where state = '{state}' and vt <= now()"
    async with open_connection(store_dsn) as connection:
        await connection.execute(
            "create temp table w as select * from tocsin.register_worker('q', 'consumer', 'w',"
            " null, 'h', 1, '0')"
        )
        await connection.execute("set statement_timeout = '1 s'")
        before = 40000
        for _ in range(3):
            cursor = await connection.execute(
                "select count(c.id)::int from w, tocsin.claim(w.id, w.registration, 5, '1 hour') c"
            )
            assert await cursor.fetchall() == [(5,)]
            ((after,),) = await query(store_dsn, left)
            assert after < before
            before = after
        if state == "leased":
            cursor = await connection.execute("select messages > 0, more from tocsin.reclaim()")
            assert await cursor.fetchall() == [(True, True)]
    if state == "leased":
        assert (await store.reclaim()).messages > 0
        assert await query(store_dsn, left) == [(0,)]


async def test_next_due_is_null_when_nothing_is_known_to_come(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.ensure("q")
    assert await query(store_dsn, "select tocsin._next_due(%s)", queue.id) == [(None,)]
    await store.produce("q", 1, delay=3600)
    ((seconds,),) = await query(store_dsn, "select tocsin._next_due(%s)", queue.id)
    assert 3500 < seconds <= 3600
    await store.produce("q", 1)
    assert await query(store_dsn, "select tocsin._next_due(%s)", queue.id) == [(0,)]
    # the clock was ahead
    await query(
        store_dsn, "update tocsin.messages set due = due + interval '1 year' where state = 'ready'"
    )
    assert await query(store_dsn, "select tocsin._next_due(%s)", queue.id) == [(0,)]
    await store.queues.pause("q")
    assert await query(store_dsn, "select tocsin._next_due(%s)", queue.id) == [(None,)]


# The plans of the hot statements. They are read from auto_explain, since they run
# inside functions.

SETUP = """
insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, payload)
select 1 + n %% 2, n %% 3,
       (case when n %% 10 = 0 then 'delayed' else 'ready' end)::tocsin.message_state,
       now() + case when n %% 10 = 0 then interval '1 day' else interval '-1 day' end,
       now(), now(), '1'
from generate_series(1, 20000) n
"""


def find(plans: dict[str, dict[str, Any]], words: str) -> list[dict[str, Any]]:
    ((_, plan),) = [(text, plan) for text, plan in plans.items() if words in text]
    return nodes(plan)


@pytest.mark.parametrize("planned", ["on the empty table", "on the full table"])
def test_claim_reads_the_front_of_one_index_and_sorts_nothing(plans: Any, planned: str) -> None:
    if planned == "on the empty table":
        for _ in range(8):  # until the session keeps its plans
            plans("select * from tocsin.claim(1, 1, 10)")
    plans(SETUP.replace("%%", "%"))
    for _ in range(8):
        found = plans("select * from tocsin.claim(1, 1, 10)")
    claimed = find(found, "set state = 'leased'")
    ready = [n for n in claimed if n.get("Index Name") == "messages_ready"]
    assert ready
    assert all(n["Actual Rows"] <= 10 for n in ready)
    used = {n["Node Type"] for n in claimed}
    assert "Tid Scan" in used
    assert not used & {
        "Sort",
        "Incremental Sort",
        "Seq Scan",
        "Bitmap Heap Scan",
        "Hash Join",
        "Merge Join",
    }
    assert {
        n["Index Name"]
        for n in claimed
        if n.get("Relation Name") == "messages" and "Index Name" in n
    } == {"messages_ready"}
    due = [
        n
        for text, plan in found.items()
        if text.startswith("not over and exists")
        for n in nodes(plan)
    ]
    assert {n["Index Name"] for n in due if "Index Name" in n} == {
        "messages_expiring",
        "messages_timed",
    }
    assert not [n for n in due if n["Node Type"] in ("Sort", "Seq Scan")]


@sweep("planned", ["on the empty table", "on the full table"], quick=1)
@pytest.mark.parametrize(
    "statement",
    [
        "select tocsin.archive(array[1,2], array[7,8])",
        "select tocsin.delete(array[1,2], array[7,8])",
        "select tocsin.extend(array[1,2], array[7,8], '1 s')",
        "select tocsin.release(array[1,2], array[7,8])",
        "select tocsin.fail(array[1,2], array[7,8], array['a','b'], array['a','b'])",
        "select tocsin._next_due(1)",
        "select tocsin.enqueue('q', '1', key => 'k')",
        "select * from tocsin.heartbeat(1, array[1])",
    ],
)
def test_settling_and_reading_never_scan_the_table(
    plans: Any, statement: str, planned: str
) -> None:
    if planned == "on the empty table":
        for _ in range(8):
            plans(statement)
    plans(SETUP.replace("%%", "%"))
    for _ in range(8):
        found = plans(statement)
    assert found
    for text, plan in found.items():
        for node in nodes(plan):
            assert not (
                node["Node Type"] == "Seq Scan" and node.get("Relation Name") == "messages"
            ), (text, plan)
            if node.get("Relation Name") == "messages":
                assert node["Actual Rows"] * node["Actual Loops"] <= 2, (text, plan)


def test_a_resumed_scan_does_not_walk_over_what_was_claimed_before(
    plans: Any, store_dsn: str
) -> None:
    """The messages are all due at the same time, and a snapshot keeps vacuum from
    removing their index entries."""
    with connect_blocking(store_dsn) as old:
        plans(
            "insert into tocsin.messages (queue_id, due, vt, enqueued_at, payload) "
            "select 1, '2026-01-01', '2026-01-01', now(), '1' from generate_series(1, 2000)"
        )
        old.execute("begin isolation level repeatable read")
        old.execute("select count(*) from tocsin.messages")
        plans(
            "select tocsin.archive(array_agg(id), array_agg(lease)) from tocsin.claim(1, 1, 1900)"
        )

        def blocks_read(position: str) -> int:
            claimed = find(
                plans(f"select * from tocsin.claim(1, 1, 10, null, {position})"),
                "set state = 'leased'",
            )
            (ready,) = [n for n in claimed if n.get("Index Name") == "messages_ready"]
            assert ready["Actual Rows"] == 10
            return int(ready["Shared Hit Blocks"] + ready["Shared Read Blocks"])

        resumed = blocks_read("0, '2026-01-01', 1900")
        full = blocks_read("null, null, null")
        assert resumed < 30
        assert full > 10 * resumed


def test_the_bell_reads_the_rows_of_the_queues_that_were_inserted_into(plans: Any) -> None:
    """And for a single one, as most inserts have, it makes no set of queues."""
    plans("select count(tocsin.create_queue('other-' || n)) from generate_series(1, 1000) n")
    plans("analyze tocsin.queues")
    insert = (
        "insert into tocsin.messages (queue_id, due, vt, enqueued_at, payload) "
        "select {}, now(), now(), now(), '1' from generate_series(1, 50) n"
    )
    for queue_id, asked, queues in (("1", ["min("], 1), ("1 + n % 2", ["distinct", "min("], 2)):
        found = {
            text: nodes(plan)
            for text, plan in plans(insert.format(queue_id)).items()
            if "from inserted" in text
        }
        assert (
            sorted(word for text in found for word in ("min(", "distinct") if word in text) == asked
        )
        read = [
            n
            for parts in found.values()
            for n in parts
            if n.get("Relation Name") == "queues" and n["Actual Loops"]
        ]
        assert [(n["Index Name"], n["Actual Rows"], n["Actual Loops"]) for n in read] == [
            ("queues_pkey", 1, queues)
        ]


MANY_LEASED = """
insert into tocsin.messages (queue_id, state, due, vt, enqueued_at, lease, consumer_worker_id,
    read_ct, payload)
select 1, 'leased', tocsin._clock(), tocsin._clock() + interval '1 h', tocsin._clock(), 1, 1, 1,
    '1' from generate_series(1, 500)
"""


@pytest.mark.parametrize(
    "settle",
    [
        "archive(ids, leases)",
        "delete(ids, leases)",
        "extend(ids, leases, '1 s')",
        "release(ids, leases)",
    ],
)
def test_settling_reads_each_message_once_by_its_id_however_many_are_leased(
    plans: Any, settle: str
) -> None:
    """The connection planned the statement when no message was leased and the index of
    leases had the lowest cost."""
    statement = (
        f"select tocsin.{settle} from (select array_agg(id) ids, array_agg(lease) leases from"
        " tocsin.messages where state = 'leased') g"
    )
    for _ in range(8):
        plans(statement)
    plans(MANY_LEASED)
    found = plans(statement)
    readings = [
        (n["Index Name"], n["Actual Rows"], n["Actual Loops"])
        for text, plan in found.items()
        if "m.lease = g.lease" in text
        for n in nodes(plan)
        if n.get("Relation Name") == "messages" and "Index Name" in n and n["Actual Rows"]
    ]
    assert set(readings) == {("messages_pkey", 500, 1)}


async def test_a_message_that_another_claim_has_locked_is_not_claimed_again_at_once(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with (
        store.consumer("q") as a,
        store.consumer("q") as b,
        open_connection(store_dsn) as connection,
        connection.transaction(force_rollback=True),
    ):
        await connection.execute(
            "select * from tocsin.claim(%s, %s, 1)", [a.worker_id, a._registration.token]
        )
        rows = await query(
            store_dsn,
            "select id, next_due from tocsin.claim(%s, %s, 1)",
            b.worker_id,
            b._registration.token,
        )
        assert rows == [(None, None)]
        # An expired lease whose row is locked: soon, but not at once, and the later the
        # longer it has been locked.
        await query(store_dsn, "select tocsin.enqueue('q', '2')")
        await query(
            store_dsn,
            "select * from tocsin.claim(%s, %s, 1, '1 us')",
            b.worker_id,
            b._registration.token,
        )
        async with open_connection(store_dsn) as settler, settler.transaction(force_rollback=True):
            await settler.execute("select * from tocsin.messages where state = 'leased' for update")
            for seconds, least, most in ((0, 0.01, 0.25), (0.4, 0.1, 0.25), (100, 0.25, 0.25)):
                await move_clock(store_dsn, seconds)
                rows = await query(
                    store_dsn,
                    "select id, next_due from tocsin.claim(%s, %s, 1)",
                    b.worker_id,
                    b._registration.token,
                )
                assert rows == [(None, rows[0][1])]
                assert least <= rows[0][1] <= most
