"""The archive: its partitions, its retention, its counts."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, connect_blocking, move_clock, open_connection, query
from tests.support.sweeps import sweep

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@pytest.fixture
async def store(store_dsn: str) -> AsyncIterator[tocsin.Store]:
    """A store that does no maintenance of its own accord."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        yield store


async def archive(store: tocsin.Store, queue: str, *payloads: object) -> None:
    async with store.consumer(queue) as consumer:
        for payload in payloads:
            await store.produce(queue, payload)
        assert await consumer.archive_many(await consumer.dequeue(len(payloads))) == [True] * len(
            payloads
        )


async def places(dsn: str) -> dict[Any, str]:
    """The partition that each payload is in."""
    return dict(await query(dsn, "select payload, tableoid::regclass::text from tocsin.archive"))


async def partitions(dsn: str) -> set[str]:
    return {name for (name,) in await query(dsn, "select name from tocsin._archive_partitions()")}


async def check_counts(dsn: str) -> dict[str, int]:
    """The counts of all queues, having held them against the rows."""
    rows = await query(
        dsn,
        "select q.name, tocsin.archived_count(q.id), (select count(*) from tocsin.archive a where"
        " a.queue_id = q.id) from tocsin.queues q order by q.name",
    )
    for name, told, there in rows:
        assert told == there, name
    return {name: told for name, told, _ in rows}


# Retention


@sweep("begins", ["now", "as a slot of each length begins"], quick=1)
async def test_retention_drops_the_partitions_of_what_is_kept_no_longer_and_no_other(
    store: tocsin.Store, store_dsn: str, begins: str
) -> None:
    start = 0 if begins == "now" else 360 * DAY - time.time() % (360 * DAY)
    await move_clock(store_dsn, start)
    for name, retention in {
        "hour": HOUR,
        "day": DAY,
        "month": 30 * DAY,
        "years": 900 * DAY,
        "decade": 3650 * DAY,
    }.items():
        await store.queues.create(name, retention=retention)
    made = (await store.maintain()).partitions_created
    assert made == 10  # for each queue that which takes a message now, and the next
    for name in ("hour", "day", "month", "years", "decade"):
        await archive(store, name, name)
    assert len(set((await places(store_dsn)).values())) == 5
    assert "tocsin.archive_rest" not in (await places(store_dsn)).values()
    left = ["day", "decade", "hour", "month", "years"]
    for name, passed, latest in (
        ("hour", HOUR, HOUR + HOUR),
        ("day", DAY, DAY + HOUR),
        ("month", 30 * DAY, 31 * DAY),
        ("years", 900 * DAY, 930 * DAY),
        ("decade", 3650 * DAY, (3650 + 360) * DAY),
    ):
        await move_clock(store_dsn, start + passed - 1)
        await store.maintain()
        assert sorted(await places(store_dsn)) == left
        # what is archived at that time may still be on its way
        await move_clock(store_dsn, start + latest + MINUTE)
        with trio.fail_after(PATIENCE):
            while not (await store.maintain()).partitions_dropped:  # not while autovacuum is at it
                pass
        left.remove(name)
        assert sorted(await places(store_dsn)) == left
        counts = await check_counts(store_dsn)
        assert sorted(name for name, n in counts.items() if n) == left
    assert await query(store_dsn, "select n from tocsin.archived_counts") == []


async def test_a_queue_with_retention_0_keeps_nothing(store: tocsin.Store, store_dsn: str) -> None:
    queue = await store.queues.create("q", retention=0)
    await archive(store, "q", 1, 2, 3)
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]
    assert await places(store_dsn) == {}
    assert await check_counts(store_dsn) == {"q": 0}
    assert await query(store_dsn, "select tocsin.settle_rate(%s)", queue.id) == [(3 / 60,)]
    await move_clock(store_dsn, 120)
    await store.maintain()
    assert await check_counts(store_dsn) == {"q": 0}


async def test_what_is_kept_without_end_stays(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q", retention=math.inf)
    await store.queues.create("r", retention=timedelta(days=999_999_999))
    assert (await store.maintain()).partitions_created == 0
    await archive(store, "q", 1)
    await archive(store, "r", 2)
    await move_clock(store_dsn, 60 * 365 * DAY)
    await store.maintain()
    assert await places(store_dsn) == {1: "tocsin.archive_rest", 2: "tocsin.archive_rest"}
    assert await query(
        store_dsn, "select extract(year from keep_until)::int from tocsin.archive"
    ) == [(9999,), (9999,)]


async def test_what_is_archived_while_there_is_no_partition_is_deleted_in_its_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.queues.create("r", retention=30 * DAY)
    await archive(store, "q", 1)
    await archive(store, "r", 2)
    assert set((await places(store_dsn)).values()) == {"tocsin.archive_rest"}
    await store.maintain()
    await archive(store, "q", 3)
    assert (await places(store_dsn))[3].startswith("tocsin.archive_1h_")
    await move_clock(store_dsn, HOUR + 1)
    assert (await store.maintain()).archived_deleted == 1
    assert {1, 2} & set(await places(store_dsn)) == {2}
    assert (await check_counts(store_dsn))["r"] == 1


async def test_archiving_goes_on_when_no_maintenance_has_made_partitions_for_long(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.maintain()
    await move_clock(store_dsn, 2 * DAY)
    await archive(store, "q", "late")
    assert await places(store_dsn) == {"late": "tocsin.archive_rest"}
    await store.maintain()
    await archive(store, "q", "again")
    assert (await places(store_dsn))["again"].startswith("tocsin.archive_1h_")
    assert await check_counts(store_dsn) == {"q": 2}


async def test_there_is_always_a_partition_when_maintenance_runs_now_and_then(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.maintain()
    for half_hours in range(1, 12):
        await move_clock(store_dsn, half_hours * HOUR / 2)
        await archive(store, "q", half_hours)
        await store.maintain()
        assert len(await partitions(store_dsn)) <= 4
    assert "tocsin.archive_rest" not in (await places(store_dsn)).values()


async def test_a_change_of_retention_counts_for_what_is_archived_from_then_on(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=30 * DAY)
    await store.maintain()
    await archive(store, "q", "long")
    for retention, name in ((HOUR, "short"), (20 * DAY, "medium"), (0, "not"), (math.inf, "ever")):
        await store.queues.update("q", retention=retention)
        await archive(store, "q", name)
        await store.maintain()
    assert await check_counts(store_dsn) == {"q": 4}
    for days, gone in ((1, "short"), (22, "medium"), (32, "long")):
        await move_clock(store_dsn, days * DAY)
        await store.maintain()
        assert gone not in await places(store_dsn)
    assert list(await places(store_dsn)) == ["ever"]


async def test_expired_rows_without_a_partition_are_deleted_in_batches(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q", retention=HOUR)
    await query(
        store_dsn,
        "insert into tocsin.archive (id, queue_id, priority, read_ct, enqueued_at, archived_at,"
        " keep_until, payload) select n, %s, 0, 1, now(), now(), now() + interval '1 h', '1' from"
        " generate_series(1, 25000) n",
        queue.id,
    )
    await query(
        store_dsn,
        "insert into tocsin.archive_count_deltas select queue_id, 0, keep_until, archived_at,"
        " count(*) from tocsin.archive group by 1, 3, 4",
    )
    await store.maintain()
    await move_clock(store_dsn, 2 * HOUR)
    assert await query(store_dsn, "select archived_deleted, more from tocsin.maintain()") == [
        (10000, True)
    ]
    assert await check_counts(store_dsn) == {"q": 15000}
    assert (await store.maintain()).archived_deleted == 15000
    assert await check_counts(store_dsn) == {"q": 0}


@pytest.mark.parametrize(
    "settings",
    ["set timezone = 'America/St_Johns'", "set datestyle = 'SQL, DMY'", "set datestyle = 'German'"],
)
async def test_partitions_lie_on_the_same_grid_whatever_the_session_says_of_time(
    store: tocsin.Store, store_dsn: str, settings: str
) -> None:
    for retention in (HOUR, 30 * DAY, 400 * DAY):
        await store.queues.create(f"q{retention}", retention=retention)
    with connect_blocking(store_dsn) as connection:
        connection.execute(settings.encode())
        connection.execute("select tocsin.maintain()")
    starts = await query(
        store_dsn,
        "select span * 3600, extract(epoch from starts_at)::bigint, extract(epoch from"
        " ends_at)::bigint from tocsin._archive_partitions()",
    )
    assert len(starts) == 6
    assert all(start % seconds == 0 and end - start == seconds for seconds, start, end in starts)
    bounds = await query(
        store_dsn,
        "select pg_get_expr(relpartbound, oid) from pg_class where relname like 'archive\\_1h%%'"
        " and relkind = 'r'",
    )
    (expected,) = await query(
        store_dsn,
        "select min(starts_at)::text, max(ends_at)::text from tocsin._archive_partitions() where"
        " span = 1",
    )
    assert expected[0] in "".join(b for (b,) in bounds)
    assert expected[1] in "".join(b for (b,) in bounds)
    assert (await store.maintain()).partitions_created == 0


async def test_a_message_whose_queue_is_gone_cannot_be_archived(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        await query(store_dsn, "alter table tocsin.workers drop constraint workers_queue_id_fkey")
        await query(store_dsn, "delete from tocsin.queues")
        with pytest.raises(tocsin.LeaseLost):
            await consumer.archive(message)
    assert await query(
        store_dsn,
        "select (select count(*) from tocsin.archive), (select count(*) from"
        " tocsin.archive_count_deltas)",
    ) == [(0, 0)]


async def test_nothing_is_left_of_a_queue_that_is_deleted(
    store: tocsin.Store, store_dsn: str
) -> None:
    for name in ("q", "r"):
        await store.queues.create(name)
        await archive(store, name, 1)
    await move_clock(store_dsn, 100)
    await store.maintain()
    await archive(store, "q", 2)
    await query(store_dsn, "select tocsin.purge_archive(id) from tocsin.queues where name = 'q'")
    await query(store_dsn, "delete from tocsin.workers")
    await query(store_dsn, "delete from tocsin.queues where name = 'q'")
    await move_clock(store_dsn, 200)
    await store.maintain()
    for table, left in (
        ("archive_policies", 1),
        ("archived_counts", 1),
        ("archive_count_deltas", 0),
    ):
        assert await query(store_dsn, f"select count(*)::int from tocsin.{table}") == [(left,)], (
            table
        )
    assert await check_counts(store_dsn) == {"r": 1}


# No session waits


async def test_maintenance_does_not_wait_for_a_transaction_that_changes_or_deletes_a_queue(
    store: tocsin.Store, store_dsn: str
) -> None:
    for name in ("q", "r", "s"):
        await store.queues.create(name, retention=HOUR)
        await archive(store, name, 1)
    await query(store_dsn, "delete from tocsin.workers")
    await move_clock(store_dsn, 100)
    with connect_blocking(store_dsn) as other:
        other.execute("begin")
        other.execute("select tocsin.update_queue('q', retention => '1 day')")
        other.execute("delete from tocsin.queues where name = 'r'")
        with trio.fail_after(PATIENCE):
            assert (await store.maintain()).partitions_created == 2
        other.execute("commit")
    assert await check_counts(store_dsn) == {"q": 1, "s": 1}


async def test_a_long_reader_of_the_archive_stops_neither_archiving_nor_new_partitions(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.maintain()
    await archive(store, "q", "old")
    async with open_connection(store_dsn) as reader:
        await reader.execute("begin isolation level repeatable read")
        await reader.execute("select * from tocsin.archive")
        await move_clock(store_dsn, DAY)
        done = await store.maintain()
        assert (done.partitions_created, done.partitions_dropped) == (2, 0)
        await archive(store, "q", "new")
        assert {"old", "new"} == set(await places(store_dsn))
        await reader.execute("commit")
        assert (await store.maintain()).partitions_dropped == 2
    assert set(await places(store_dsn)) == {"new"}
    assert await check_counts(store_dsn) == {"q": 1}


async def test_a_partition_under_vacuum_is_dropped_later_and_the_other_partitions_now(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.maintain()
    await move_clock(store_dsn, DAY)
    first, second = sorted(await partitions(store_dsn))
    with connect_blocking(store_dsn) as other:
        other.execute("begin")
        other.execute(f"lock table only tocsin.{first} in share update exclusive mode".encode())
        assert (await store.maintain()).partitions_dropped == 1
        assert {first, second} & await partitions(store_dsn) == {first}
        other.execute("commit")
    assert (await store.maintain()).partitions_dropped == 1


async def test_an_old_transaction_goes_on_archiving_whatever_partitions_came_since(
    store: tocsin.Store, store_dsn: str
) -> None:
    """One that has used the archive before, and so may not hear of a partition that was
    attached since."""
    await store.queues.create("q", retention=HOUR)
    for n in range(3):
        await store.produce("q", n)
    async with store.consumer("q") as consumer:
        messages = await consumer.dequeue(3)
        with psycopg.connect(store_dsn) as old:
            settle = "select tocsin.archive(array[%s::bigint], array[%s::bigint])"
            assert old.execute(
                settle, [messages[0].id, messages[0].lease_token], prepare=True
            ).fetchone() == ([True],)
            await store.maintain()
            assert old.execute(
                settle, [messages[1].id, messages[1].lease_token], prepare=True
            ).fetchone() == ([True],)
            old.commit()
            assert old.execute(
                settle, [messages[2].id, messages[2].lease_token], prepare=True
            ).fetchone() == ([True],)
    found = await places(store_dsn)
    assert [found[n] == "tocsin.archive_rest" for n in range(3)] == [True, True, False]


async def test_a_partition_taken_away_by_hand_is_made_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", retention=HOUR)
    await store.maintain()
    before = await partitions(store_dsn)
    await query(store_dsn, f"drop table tocsin.{min(before)}")
    assert (await store.maintain()).partitions_created == 1
    await query(store_dsn, f"alter table tocsin.archive detach partition tocsin.{min(before)}")
    # its name is taken; then it goes without
    assert (await store.maintain()).partitions_created == 0
    await archive(store, "q", 1)
    assert await places(store_dsn) == {1: "tocsin.archive_rest"}


# Counts


async def test_counts_are_exact_after_archiving_purging_rolling_back_and_rolling_up(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q", retention=HOUR)
    await store.queues.create("r")
    await archive(store, "q", *range(5))
    await archive(store, "r", *range(4))
    assert await check_counts(store_dsn) == {"q": 5, "r": 4}
    await store.maintain()
    await archive(store, "q", *range(5))
    with psycopg.connect(store_dsn) as connection:
        assert connection.execute("select tocsin.purge_archive(%s)", [queue.id]).fetchone() == (10,)
        assert connection.execute("select tocsin.archived_count(%s)", [queue.id]).fetchone() == (0,)
        connection.rollback()
    assert await check_counts(store_dsn) == {"q": 10, "r": 4}
    for seconds in (10, 70, 100, 200):
        await move_clock(store_dsn, seconds)
        await store.maintain()
        await archive(store, "q", seconds)
        await check_counts(store_dsn)
    assert await query(
        store_dsn, "select sum(n)::int from tocsin.archived_counts where queue_id = %s", queue.id
    ) == [(13,)]
    assert await query(store_dsn, "select tocsin.purge_archive(%s)", queue.id) == [(14,)]
    assert await check_counts(store_dsn) == {"q": 0, "r": 4}
    await move_clock(store_dsn, 300)
    await store.maintain()
    assert await check_counts(store_dsn) == {"q": 0, "r": 4}
    assert await query(store_dsn, "select count(*)::int from tocsin.archive_count_deltas") == [(0,)]
    await archive(store, "q", "last")
    await move_clock(store_dsn, DAY)
    # drops the partition before what was archived last is counted anywhere else
    await store.maintain()
    assert await check_counts(store_dsn) == {"q": 0, "r": 4}


async def test_counts_stay_exact_when_a_partition_is_dropped_just_after_a_change(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q", retention=1)
    await store.queues.create("r", retention=1)
    await store.maintain()
    ((ends,),) = await query(
        store_dsn,
        "select extract(epoch from min(ends_at) - now())::float8 from tocsin._archive_partitions()",
    )
    await move_clock(store_dsn, ends - 20)
    await archive(store, "q", *range(3))
    await move_clock(store_dsn, ends - 2)
    await store.maintain()
    await query(store_dsn, "select tocsin.purge_archive(%s)", queue.id)
    await archive(store, "r", *range(5))
    assert await check_counts(store_dsn) == {"q": 0, "r": 5}
    await move_clock(store_dsn, ends + 60)
    assert (await store.maintain()).partitions_dropped == 1
    assert await check_counts(store_dsn) == {"q": 0, "r": 0}


async def test_purging_by_age_and_trying_it_first(store: tocsin.Store, store_dsn: str) -> None:
    queue = await store.queues.create("q")
    await archive(store, "q", "old", "older")
    await move_clock(store_dsn, 100)
    await archive(store, "q", "new")
    for dry_run in (True, False):
        assert await query(
            store_dsn, "select tocsin.purge_archive(%s, '99 s', %s)", queue.id, dry_run
        ) == [(2,)]
        assert await check_counts(store_dsn) == {"q": 3 if dry_run else 1}
    assert await query(store_dsn, "select tocsin.purge_archive(%s, dry_run => true)", queue.id) == [
        (1,)
    ]
    assert list(await places(store_dsn)) == ["new"]


async def test_one_statement_may_archive_messages_of_several_queues(
    store: tocsin.Store, store_dsn: str
) -> None:
    for name, retention in (("q", HOUR), ("r", 30 * DAY), ("s", 0.0)):
        await store.queues.create(name, retention=retention)
        await store.produce(name, name)
    await store.maintain()
    async with store.consumer("q") as q, store.consumer("r") as r, store.consumer("s") as s:
        held = [*await q.dequeue(), *await r.dequeue(), *await s.dequeue()]
        ids, leases = [m.id for m in held], [m.lease_token for m in held]
        settled = await query(store_dsn, "select tocsin.archive(%s, %s)", [*ids, 99], [*leases, 1])
    assert settled == [([True, True, True, False],)]
    assert sorted(await places(store_dsn)) == ["q", "r"]
    assert await check_counts(store_dsn) == {"q": 1, "r": 1, "s": 0}


async def test_the_settle_rate_is_that_of_the_last_minute(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q")
    await archive(store, "q", *range(30))
    await query(store_dsn, "select tocsin.purge_archive(%s)", queue.id)
    assert await query(store_dsn, "select tocsin.settle_rate(%s)", queue.id) == [(0.5,)]
    await store.maintain()
    assert await query(store_dsn, "select tocsin.settle_rate(%s)", queue.id) == [(0.5,)]
    await move_clock(store_dsn, 61)
    assert await query(store_dsn, "select tocsin.settle_rate(%s)", queue.id) == [(0,)]


@pytest.mark.slow
async def test_counts_are_exact_in_every_snapshot_while_sessions_archive_purge_and_maintain(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q", retention=HOUR, vt=1000 * DAY)
    await store.queues.create("r", retention=HOUR, vt=1000 * DAY)
    checks = 0

    async def keep_archiving(name: str) -> None:
        async with store.consumer(name) as consumer:
            for n in range(60):
                for _ in range(2):
                    await store.produce(name, n)
                assert all(await consumer.archive_many(await consumer.dequeue(2)))

    async def keep_maintaining(name: str) -> None:
        seconds = 0
        while True:
            seconds += 50
            await move_clock(store_dsn, seconds)
            await store.maintain()
            await query(store_dsn, "select tocsin.purge_archive(%s, '100 s')", queue.id)

    async def keep_checking(name: str) -> None:
        nonlocal checks
        while True:
            await check_counts(store_dsn)
            checks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_checking, "")
        nursery.start_soon(keep_maintaining, "")
        async with trio.open_nursery() as archiving:
            for name in ("q", "q", "r"):
                archiving.start_soon(keep_archiving, name)
        nursery.cancel_scope.cancel()
    assert checks > 1
    await check_counts(store_dsn)


# The schema


async def test_verify_and_uninstall_know_the_partitions(
    store: tocsin.Store, store_dsn: str
) -> None:
    for n, retention in enumerate((HOUR, DAY, 30 * DAY, 900 * DAY)):
        await store.queues.create(f"q{n}", retention=retention)
    await store.maintain()
    assert len(await partitions(store_dsn)) >= 7
    assert await store.verify() == ()
    await query(store_dsn, "drop index tocsin.archive_queue")
    await query(store_dsn, "alter table tocsin.archive_rest set unlogged")
    await query(store_dsn, "create table tocsin.archive_1h_mine ()")
    assert {d.name for d in await store.verify()} == {
        "archive_queue",
        "archive_rest",
        "archive_rest_queue_id_id_idx",
        "archive_1h_mine",
    }
    await store.uninstall()
    assert await query(
        store_dsn, "select count(*)::int from pg_class where relname like 'archive%%'"
    ) == [(0,)]


async def test_maintenance_works_in_any_schema(dsn: str) -> None:
    async with tocsin.connect(dsn, schema="Mixed", heartbeat=3600) as store:
        await store.install()
        await store.queues.create("q", retention=HOUR)
        assert (await store.maintain()).partitions_created == 2
        await archive(store, "q", 1)
        assert await store.verify() == ()
        await query(
            dsn,
            'create or replace function "Mixed"._clock() returns timestamptz language sql as $$'
            " select now() + interval '1 day' $$",
        )
        assert (await store.maintain()).partitions_dropped == 2
        assert await query(dsn, 'select count(*)::int from "Mixed".archive') == [(0,)]
