"""Maintenance: which process does it, when, and what becomes of it."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator

import pytest
import trio

import tocsin
from tests.support import (
    connect_blocking,
    move_clock,
    next_event,
    open_connection,
    query,
    until,
    until_idle,
    until_true,
)
from tests.support.runs import running
from tocsin import telemetry
from tocsin._queue.process.maintenance import Maintenance

HOUR, DAY = 3600.0, 86400.0
HERE = (
    "pg_stat_statements s join pg_database d on d.oid = s.dbid where d.datname = current_database()"
    " and toplevel"
)
TIMES_RUN = f"(select coalesce(sum(calls), 0)::int from {HERE} and query like '%maintain()')"


async def until_heartbeats(*stores: tocsin.Store, more: int = 3) -> None:
    """Wait until each of these stores has sent this many more heartbeats."""
    before = [s.statistics().heartbeats for s in stores]
    await until(
        lambda: all(
            s.statistics().heartbeats >= b + more for s, b in zip(stores, before, strict=True)
        )
    )


@pytest.fixture
async def lively(store_dsn: str) -> AsyncIterator[tocsin.Store]:
    """A store with a heartbeat that tests can wait for."""
    async with tocsin.connect(store_dsn, heartbeat=0.05) as store:
        yield store


def dead_letter(queue_id: int, minutes_ago: int) -> str:
    return (
        "insert into tocsin.dead_letters (id, queue_id, priority, read_ct, enqueued_at, died_at,"
        f" payload, reason) select nextval('tocsin.registrations'), {queue_id}, 0, 1, now(), now()"
        f" - interval '{minutes_ago} min', '{minutes_ago}', 'r'"
    )


async def test_of_two_sessions_at_once_one_does_the_maintenance(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    async with open_connection(store_dsn) as connection, connection.transaction():
        cursor = await connection.execute(
            "select elected, partitions_created from tocsin.maintain()"
        )
        assert await cursor.fetchall() == [(True, 2)]
        done = await store.maintain()
        assert done == tocsin.MaintenanceResult(elected=False)
    assert await store.maintain() == tocsin.MaintenanceResult(elected=True)


async def put_off(dsn: str) -> None:
    """Have it due in a minute: on a slow machine it is due already, and may be under
    way when a test begins to count."""
    await query(dsn, "update tocsin.maintenance set due_at = tocsin._clock() + interval '1 minute'")


async def test_one_process_with_a_consumer_does_the_maintenance_once_a_minute(
    dsn_of_quiet_store: str,
) -> None:
    dsn = dsn_of_quiet_store
    await put_off(dsn)
    async with (
        tocsin.connect(dsn, heartbeat=0.05) as one,
        tocsin.connect(dsn, heartbeat=0.05) as two,
    ):
        await one.queues.create("q")
        async with one.consumer("q"), two.consumer("q"):
            await until_idle(one, two)
            await one.maintain()
            await query(dsn, "select pg_stat_statements_reset()")
            for minute in (1, 2, 3):
                await move_clock(dsn, minute * 70)
                await until_heartbeats(one, two)
                await until_true(dsn, f"{TIMES_RUN} >= {minute}")
                await until_heartbeats(one, two)
                assert await query(dsn, f"select {TIMES_RUN}") == [(minute,)]


async def test_the_heartbeat_is_the_only_statement_until_maintenance_is_due(
    dsn_of_quiet_store: str,
) -> None:
    async with tocsin.connect(dsn_of_quiet_store, heartbeat=0.05) as store:
        await store.queues.create("q")
        async with store.consumer("q") as consumer, running(consumer):
            await until_idle(store)
            await until_heartbeats(store)
            await put_off(dsn_of_quiet_store)
            await query(dsn_of_quiet_store, "select pg_stat_statements_reset()")
            await until_heartbeats(store, more=10)
            ran = await query(dsn_of_quiet_store, f"select query from {HERE}")
            assert [
                text
                for (text,) in ran
                if ".heartbeat(" not in text and "pg_stat_statements" not in text
            ] == []


async def test_a_process_that_only_produces_does_no_maintenance(
    lively: tocsin.Store, store_dsn: str
) -> None:
    await lively.queues.create("q")
    async with lively.producer("q"):
        await move_clock(store_dsn, DAY)
        await until_heartbeats(lively)
        assert await query(
            store_dsn, "select due_at < tocsin._clock() from tocsin.maintenance"
        ) == [(True,)]
        async with lively.consumer("q"):
            # A heartbeat through the pool is cancelled when the LISTEN connection is
            # up, and its answer is lost.
            await until(lambda: lively.statistics().listening)
            await query(store_dsn, "update tocsin.maintenance set due_at = tocsin._clock()")
            await until_true(store_dsn, "count(*) = 2 from tocsin._archive_partitions()")


async def test_maintenance_reports_what_it_has_done(
    lively: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tocsin")
    await lively.queues.create("q")
    with lively.events.subscribe(telemetry.MaintenanceEnded) as ended:
        async with lively.consumer("q"):
            await move_clock(store_dsn, 70)
            await next_event(ended, lambda e: e.result.partitions_created)
    assert "maintenance: 2 partitions created" in caplog.messages


async def test_a_failing_maintenance_ends_no_consumer_is_reported_once_and_tried_again(
    lively: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tocsin")
    await lively.queues.create("q")
    await query(store_dsn, "alter function tocsin._roll_up_count_deltas() rename to spare")
    await put_off(store_dsn)

    def failures() -> list[int]:
        return [r.levelno for r in caplog.records if "maintenance failed" in r.message]

    with lively.events.subscribe(telemetry.MaintenanceEnded) as ended:
        async with lively.consumer("q") as consumer, running(consumer) as run:
            for attempt in (1, 2):
                await move_clock(store_dsn, attempt * 70)
                assert len((await next_event(ended)).result.problems) == 1
                assert len(failures()) == attempt
                await lively.produce("q", attempt)
                await run.handled.wait(attempt)
            await query(store_dsn, "alter function tocsin.spare() rename to _roll_up_count_deltas")
            await move_clock(store_dsn, 210)
            assert (await next_event(ended)).result.problems == ()
    assert failures() == [logging.WARNING, logging.DEBUG]


async def test_maintenance_by_another_session_does_not_end_a_reported_failure(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tocsin")
    await query(store_dsn, "alter function tocsin._roll_up_count_deltas() rename to spare")
    maintenance = Maintenance(store._database, store.events)

    def failures() -> list[int]:
        return [r.levelno for r in caplog.records if "maintenance failed" in r.message]

    with store.events.subscribe(telemetry.MaintenanceEnded) as ended:
        async with trio.open_nursery() as nursery, open_connection(store_dsn) as other:
            nursery.start_soon(maintenance.run)
            maintenance.request()
            await next_event(ended)
            assert len(failures()) == 1
            await other.execute("select pg_advisory_lock(tocsin._lock_key('maintain', 0))")
            maintenance.request()
            await until_idle(store)
            await other.execute("select pg_advisory_unlock_all()")
            maintenance.request()
            await next_event(ended)
            nursery.cancel_scope.cancel()
    assert failures() == [logging.WARNING, logging.DEBUG]


async def test_leaving_the_store_does_not_wait_for_maintenance(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.05) as store:
        await store.queues.create("q", dead_letter_retention=60)
        with connect_blocking(store_dsn) as other:
            other.execute("begin")
            other.execute("lock table tocsin.dead_letters")
            async with store.consumer("q"):
                await move_clock(store_dsn, 70)
                await until_true(
                    store_dsn,
                    "count(*) = 1 from pg_stat_activity where query like '%maintain()' and"
                    " wait_event_type = 'Lock'",
                )
    assert await query(store_dsn, "select count(*)::int from tocsin.processes") == [(0,)]


async def test_dead_letters_go_when_their_queues_retention_is_over(
    store: tocsin.Store, store_dsn: str
) -> None:
    short = await store.queues.create("short", dead_letter_retention=HOUR)
    long = await store.queues.create("long", dead_letter_retention=DAY)
    ever = await store.queues.create("ever")
    for queue in (short, long, ever):
        for minutes in (30, 90, 3000):
            await query(store_dsn, dead_letter(queue.id, minutes))
    assert (await store.maintain()).dead_letters_purged == 3
    left = await query(
        store_dsn,
        "select q.name, d.payload from tocsin.dead_letters d join tocsin.queues q on q.id ="
        " d.queue_id order by 1, 2",
    )
    assert left == [
        ("ever", 30),
        ("ever", 90),
        ("ever", 3000),
        ("long", 30),
        ("long", 90),
        ("short", 30),
    ]
    assert (await store.queues.get("ever")).dead_letter_retention == math.inf


async def test_dead_letters_are_purged_in_batches(store: tocsin.Store, store_dsn: str) -> None:
    for name in ("q", "r"):
        queue = await store.queues.create(name, dead_letter_retention=HOUR)
        await query(store_dsn, dead_letter(queue.id, 90) + " from generate_series(1, 6000)")
    await query(store_dsn, "select tocsin.maintain()")
    assert await query(store_dsn, "select count(*)::int from tocsin.dead_letters") == [(2000,)]
    assert (await store.maintain()).dead_letters_purged == 2000


async def test_maintaining_without_a_schema_says_what_to_run(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        with pytest.raises(tocsin.SchemaMissing, match="tocsin admin install"):
            await store.maintain()


# In other people's databases


async def test_a_part_that_fails_stops_no_other(store: tocsin.Store, store_dsn: str) -> None:
    queue = await store.queues.create("q", dead_letter_retention=60)
    await query(store_dsn, dead_letter(queue.id, 5))
    await query(
        store_dsn,
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception"
        " 'kept for the auditors'; end $$",
    )
    await query(
        store_dsn,
        "create trigger kept before delete on tocsin.dead_letters for each row execute function"
        " refuse()",
    )
    done = await store.maintain()
    assert done.problems == ("expired dead letters are not deleted: kept for the auditors",)
    assert done.dead_letters_purged == 0
    assert done.partitions_created == 2
    await query(store_dsn, "drop trigger kept on tocsin.dead_letters")
    assert await store.maintain() == tocsin.MaintenanceResult(elected=True, dead_letters_purged=1)


async def test_where_ddl_is_refused_archiving_continues_without_partitions(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q", dead_letter_retention=60, retention=HOUR)
    await query(store_dsn, dead_letter(queue.id, 5))
    await query(
        store_dsn,
        "create function no_ddl() returns event_trigger language plpgsql as $$ begin raise"
        " exception 'ask the DBA'; end $$",
    )
    await query(
        store_dsn,
        "create event trigger no_ddl on ddl_command_start when tag in ('CREATE TABLE', 'DROP"
        " TABLE') execute function no_ddl()",
    )
    done = await store.maintain()
    assert done.problems == ("a partition of the archive cannot be created: ask the DBA",)
    assert done.dead_letters_purged == 1
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await consumer.archive_many(await consumer.dequeue())
    assert await query(store_dsn, "select tableoid::regclass::text from tocsin.archive") == [
        ("tocsin.archive_rest",)
    ]
    await query(store_dsn, "drop event trigger no_ddl")
    assert (await store.maintain()).partitions_created == 2
    await query(
        store_dsn,
        "create event trigger no_ddl on ddl_command_start when tag in ('CREATE TABLE', 'DROP"
        " TABLE') execute function no_ddl()",
    )
    await move_clock(store_dsn, 3 * DAY)
    done = await store.maintain()
    assert done.archived_deleted == 1
    assert done.partitions_dropped == 0
    assert set(done.problems) == {
        f"a partition of the archive cannot be {what}: ask the DBA"
        for what in ("created", "dropped")
    }
    await query(store_dsn, "drop event trigger no_ddl")


async def test_a_problem_is_logged_once_and_the_process_continues(
    lively: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await lively.queues.create("q", dead_letter_retention=60)
    await query(store_dsn, dead_letter(queue.id, 5))
    await query(
        store_dsn,
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception"
        " 'kept'; end $$",
    )
    await query(
        store_dsn,
        "create trigger kept before delete on tocsin.dead_letters for each row execute function"
        " refuse()",
    )
    await put_off(store_dsn)
    with lively.events.subscribe(telemetry.MaintenanceEnded) as ended:
        async with lively.consumer("q"):
            for minute in (1, 2, 3):
                await query(store_dsn, "update tocsin.maintenance set due_at = '-infinity'")
                await until_true(store_dsn, "due_at > now() from tocsin.maintenance")
                assert len((await next_event(ended)).result.problems) == 1
                await until_heartbeats(lively, more=minute)
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "a part of the maintenance failed and will be tried again: expired dead letters are not"
        " deleted: kept"
    ]


async def test_workers_that_were_stopped_long_ago_are_forgotten(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    for number in range(5):
        async with store.producer("q", name=f"job {number}") as producer:
            await producer.enqueue(number)
    async with store.consumer("q", name="mine") as consumer, store.producer("q", name="lasting"):
        message = (await consumer.dequeue())[0]
        assert (await store.maintain()).workers_purged == 0
        await move_clock(store_dsn, 25 * HOUR)
        assert (await store.maintain()).workers_purged == 5
        assert message.producer_worker_id is not None
        assert {w.name for w in await store.workers.list()} == {"mine", "lasting"}
        assert (
            await store.messages.get(message.id)
        ).producer_worker_id == message.producer_worker_id
    await move_clock(store_dsn, 60 * HOUR)
    assert (await store.maintain()).workers_purged == 1
    await move_clock(store_dsn, 40 * DAY)
    assert (await store.maintain()).workers_purged == 1
    assert await store.workers.list() == []


# A clock that was ahead


YEAR = 365 * DAY


async def test_what_was_written_while_the_clock_was_a_year_ahead_comes_back_to_its_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", vt=60)
    async with store.consumer("q", name="w") as consumer:
        await move_clock(store_dsn, YEAR)
        await store.maintain()
        await store.produce("q", "leased")
        (leased,) = await consumer.dequeue()
        await store.produce("q", "ready")
        await store.produce("q", "delayed", delay=HOUR, expires_in=2 * HOUR)
        await query(store_dsn, "update tocsin.processes set heartbeat_at = tocsin._clock()")
        await query(store_dsn, "update tocsin.workers set heartbeat_at = tocsin._clock()")
        await move_clock(store_dsn, 0)
        await store.maintain()
        await store.produce("q", "later")
        assert await query(
            store_dsn,
            "select payload #>> '{}', state::text, due < now() + interval '61 min', vt < now() +"
            " interval '61 min', coalesce(expires_at < now() + interval '121 min', true) from"
            " tocsin.messages order by id",
        ) == [
            ("leased", "leased", True, True, True),
            ("ready", "ready", True, True, True),
            ("delayed", "delayed", True, True, True),
            ("later", "ready", True, True, True),
        ]
        assert await query(
            store_dsn, "select bool_and(heartbeat_at <= now()) from tocsin.workers"
        ) == [(True,)]
        assert await query(
            store_dsn,
            "select due_at < now() + interval '2 min', clock_was_ahead from tocsin.maintenance",
        ) == [(True, False)]
        assert [m.payload for m in await consumer.dequeue(2)] == ["ready", "later"]
        await consumer.archive(leased)


async def test_a_retry_made_while_the_clock_was_a_year_ahead_comes_back_to_its_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Claimed before the jump, and failed, or claimed and released after it. The next
    jump finds nothing of the first."""
    await store.queues.create("q", retry_base=HOUR, retry_max=HOUR, retry_jitter=0)
    due = (
        "select payload #>> '{}', state::text, round(extract(epoch from vt - now()) / 60)::int,"
        " round(extract(epoch from due - now()) / 60)::int from tocsin.messages order by id"
    )
    async with store.consumer("q") as consumer:
        for payload in ("failed", "kept its place", "released"):
            await store.produce("q", payload)
        failed, kept = await consumer.dequeue(2)
        await move_clock(store_dsn, YEAR)
        await query(
            store_dsn,
            "select tocsin.fail(array[%s]::bigint[], array[%s]::bigint[], array['x'], array[null])",
            failed.id,
            failed.lease_token,
        )
        await query(
            store_dsn,
            "select tocsin.fail(array[%s]::bigint[], array[%s]::bigint[], array['x'], array[null],"
            " keep_place => true)",
            kept.id,
            kept.lease_token,
        )
        (released,) = await consumer.dequeue()
        await consumer.release(released, delay=2 * HOUR)
        await query(store_dsn, "update tocsin.processes set heartbeat_at = tocsin._clock()")
        await move_clock(store_dsn, 0)
        expected = [
            ("failed", "delayed", 60, 60),
            ("kept its place", "delayed", 60, 0),
            ("released", "delayed", 120, 120),
        ]
        for _ in range(2):
            await store.maintain()
            assert await query(store_dsn, due) == expected
            await query(store_dsn, "update tocsin.maintenance set clock_was_ahead = true")
        ((ended,),) = await query(
            store_dsn,
            "select bool_and((history -> -1 ->> 'ended_at')::timestamptz <= now())"
            " from tocsin.messages",
        )
        assert ended


async def test_maintenance_that_was_put_off_by_a_clock_ahead_is_due(
    lively: tocsin.Store, store_dsn: str
) -> None:
    await lively.queues.create("q")
    async with lively.consumer("q"):
        # A heartbeat through the pool is cancelled when the LISTEN connection is up,
        # and its answer is lost.
        await until_heartbeats(lively)
        await query(store_dsn, "update tocsin.maintenance set due_at = now() + interval '1 year'")
        await until_true(
            store_dsn,
            "due_at < now() + interval '2 min' and not clock_was_ahead from tocsin.maintenance",
        )


# Triggers that are off


async def test_with_triggers_off_a_queue_archives_and_messages_are_found_by_the_heartbeat(
    lively: tocsin.Store, store_dsn: str
) -> None:
    async with open_connection(store_dsn) as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute("select tocsin.create_queue('q')")
    assert [h.problems for h in await lively.workers.health("q")] == [()]
    async with lively.consumer("q") as consumer, running(consumer) as run:
        await until_idle(lively)
        await query(store_dsn, "alter table tocsin.messages disable trigger all")
        await query(store_dsn, "select tocsin.enqueue_many('q', '[1]')")
        await run.handled.wait(1)
        await run.settled(1, "archived")
        assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(1,)]
        (problem,) = (await lively.workers.health("q"))[0].problems
        assert "trigger" in problem
        assert ("trigger", "messages.ring") in [(d.kind, d.name) for d in await lively.verify()]
        run.cancel()


async def test_maintenance_registers_a_queue_that_the_archive_does_not_know(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    await query(store_dsn, "delete from tocsin.archive_policies")
    await store.maintain()
    assert await query(store_dsn, "select count(*) from tocsin.archive_policies") == [(1,)]
