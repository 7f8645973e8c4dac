"""The process: its LISTEN connection, its heartbeat, its death and what follows; waking
without polling."""

from __future__ import annotations

import json
import logging
import math
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    Handled,
    move_clock,
    open_connection,
    query,
    until,
    until_idle,
    until_true,
)
from tests.support.child import run_script
from tests.support.runs import running
from tocsin.driver import TrioConnection

OWN = "pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"


# The LISTEN connection

WAITING = """(
    select count(*)::int from pg_locks l join pg_database d on d.oid = l.database
    where d.datname = current_database() and l.locktype = 'advisory' and l.mode = 'ShareLock'
        and l.granted
      and (l.classid::bigint << 32) + l.objid::bigint = tocsin._lock_key('waiting', queues.id)
)"""
"""The number of processes that hold the waiter lock of a queue."""


async def test_one_listen_connection_for_all_consumers_none_for_producers(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        for n in range(10):
            await store.queues.ensure(f"q{n}")
        async with store.producer("q0"):
            assert not store.statistics().listening
            assert await query(
                store_dsn,
                f"select count(*)::int from pg_stat_activity where {OWN} and query ilike"
                " 'listen%%'",
            ) == [(0,)]
        async with trio.open_nursery() as nursery:
            handled = [Handled() for _ in range(10)]

            async def consume(n: int) -> None:
                async with store.consumer(f"q{n}") as consumer:
                    await consumer.handle(handled[n])

            for n in range(10):
                nursery.start_soon(consume, n)
            for n in range(10):
                await store.produce(f"q{n}", n)
                await handled[n].wait(1)
            assert store.statistics().listening
            locks = await query(
                store_dsn,
                "select count(distinct pid)::int from pg_locks where locktype = 'advisory' and"
                " granted",
            )
            assert locks == [(1,)]
            nursery.cancel_scope.cancel()
    # the server takes a moment to notice
    await until_true(store_dsn, f"count(*) = 0 from pg_stat_activity where {OWN}")
    assert await query(store_dsn, "select count(*)::int from tocsin.processes") == [(0,)]


async def test_a_waiting_consumer_is_rung_for_also_when_a_transaction_had_decided_not_to_ring(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Two transactions are open since before any consumer waited. One ends while the
    other is still open."""
    await store.queues.ensure("q")
    async with (
        open_connection(store_dsn) as early,
        open_connection(store_dsn) as long,
        store.consumer("q") as consumer,
    ):
        await early.execute("begin")
        await early.execute("select tocsin.enqueue('q', '\"early\"')")
        await long.execute("begin")
        await long.execute("select tocsin.enqueue('q', '\"long\"')")
        async with running(consumer) as run:
            await until_true(store_dsn, f"{WAITING} = 1 from tocsin.queues")
            await early.execute("commit")
            await run.handled.wait(1)
            assert store._process._waits.locks._unconfirmed == {consumer.queue_id}
            await store.produce("q", "rung")
            await run.handled.wait(2)
            await long.execute("commit")
            await run.handled.wait(3)
            await until_idle(store)
            assert store._process._waits.locks._unconfirmed == set()
    assert run.handled.payloads == ["early", "rung", "long"]


async def test_a_consumer_that_has_enough_to_do_is_not_rung_for(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the consumer that was rung for is busy
    monkeypatch.setattr("tocsin._queue.producing.batcher.AT_REST", math.inf)
    go_on = trio.Event()
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("q")
        async with (
            store.consumer("q") as consumer,
            running(consumer, lambda _: go_on.wait()) as run,
        ):
            await until_idle(store)
            assert await query(store_dsn, f"select {WAITING} from tocsin.queues") == [(1,)]
            await store.produce("q", 1)
            await run.handled.wait(1)
            assert store.statistics().notifications == 1
            await until_true(store_dsn, f"{WAITING} = 0 from tocsin.queues")
            for n in range(5):
                await store.produce("q", n)
            assert store.statistics().notifications == 1
            go_on.set()
            await run.handled.wait(6)
            await until_idle(store)
            assert store.statistics().notifications == 1
            await store.produce("q", 7)
            await run.handled.wait(7)
            assert store.statistics().notifications == 2


async def test_an_expired_lease_is_redelivered_without_polling(dsn_of_quiet_store: str) -> None:
    """From the moment when the consumer waits until it has the message, its one claim
    is the only statement that runs."""
    statements = (
        "select query, calls from pg_stat_statements s join pg_database d on d.oid = s.dbid "
        "where d.datname = current_database() and toplevel and query !~ 'pg_stat_statements'"
    )
    ran = list[tuple[str, int]]()

    async def read_statements(_: tocsin.Message) -> None:
        # Once the consumer has the message, it ends its wait in the database, before or
        # after this query.
        ran.extend(
            row
            for row in await query(dsn_of_quiet_store, statements)
            if "end_waiting(" not in row[0]
        )

    async with (
        tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as store,
        tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as other,
    ):
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with other.consumer("q") as holder, store.consumer("q") as consumer:
            (held,) = await holder.dequeue(vt=2)
            async with running(consumer, read_statements) as run:
                await until_idle(store, other)
                assert not run.handled.messages
                await query(dsn_of_quiet_store, "select pg_stat_statements_reset()")
                await run.settled(1, "archived")
    (message,) = run.handled.messages
    assert (message.id, message.read_ct) == (held.id, 2)
    assert [calls for _, calls in ran] == [1]
    assert "claim(" in ran[0][0]


async def test_one_message_for_many_idle_consumers_costs_few_claims(
    dsn_of_quiet_store: str,
) -> None:
    claims = (
        "select coalesce(sum(calls), 0)::int from pg_stat_statements s join pg_database d on d.oid"
        " = s.dbid where d.datname = current_database() and query like '%%claim(%%'"
    )
    async with (
        tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as store,
        AsyncExitStack() as stack,
    ):
        await store.queues.ensure("q")
        handled = Handled()
        for _ in range(30):
            consumer = await stack.enter_async_context(store.consumer("q"))
            await stack.enter_async_context(running(consumer, handled))
        await until_idle(store)
        ((before,),) = await query(dsn_of_quiet_store, claims)
        for n in range(10):
            await store.produce("q", n)
            await handled.wait(n + 1)
            await until_idle(store)
        ((after,),) = await query(dsn_of_quiet_store, claims)
        # for each message: the claim that finds it, up to two that find no further one,
        # and those of another consumer that it woke
        assert after - before <= 50


async def test_one_ring_for_each_queue_and_transaction_and_none_for_settling(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", notify="always")
    await store.queues.ensure("r", notify="always")
    async with (
        open_connection(store_dsn) as listener,
        store.producer("q") as producer,
        store.consumer("q") as consumer,
    ):
        await listener.execute('listen "tocsin.q"')
        await listener.execute('listen "tocsin.r"')
        heard: list[str] = []
        listener.add_notify_handler(lambda n: heard.append(n.channel))

        async def rung() -> list[str]:
            await listener.execute("select 1")
            rang, heard[:] = sorted(heard), []
            return rang

        await producer.enqueue_many(range(100))
        assert await rung() == ["tocsin.q"]
        async with store.transaction() as connection:
            for n in range(5):
                await store.produce("q", n, connection=connection)
                await store.produce("r", n, connection=connection)
        assert await rung() == ["tocsin.q", "tocsin.r"]
        messages = await consumer.dequeue(10)
        await consumer.archive_many(messages[:3])
        await consumer.delete_many(messages[3:5])
        await consumer.extend(messages[5], 60)
        assert await rung() == []
        await consumer.release(messages[5])
        assert await rung() == ["tocsin.q"]
        await store.queues.resume("r")
        assert await rung() == ["tocsin.r"]


async def test_channels_come_and_go_with_their_consumers(store: tocsin.Store) -> None:
    for name in ("q", "r"):
        await store.queues.ensure(name)

    def listens_on() -> list[str]:
        channels = store._process.listener._channels.items()
        return sorted(channel for channel, queue_id in channels if queue_id)

    async def wait_for(*channels: str) -> None:
        await until(lambda: listens_on() == list(channels))

    async with store.consumer("q"):
        async with store.consumer("r"), store.consumer("r"):
            await wait_for("tocsin.q", "tocsin.r")
        await wait_for("tocsin.q")
        async with store.consumer("q"):
            pass
        await wait_for("tocsin.q")
    await wait_for()


async def test_long_names_have_channels_too(store: tocsin.Store, store_dsn: str) -> None:
    name = "ein sehr langer Name 🔔 " * 9
    await store.queues.ensure(name)
    async with store.consumer(name, name=name) as consumer, running(consumer) as run:
        await until_idle(store)
        await store.produce(name, 1)
        await run.handled.wait(1)
    assert await query(
        store_dsn, "select octet_length(tocsin.queue_channel(name)) <= 63 from tocsin.queues"
    ) == [(True,)]


async def test_a_process_where_listen_does_not_work_says_so_and_lives_by_its_heartbeat(
    store_dsn: str,
    database_factory: object,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A LISTEN connection that receives no notification, as through a pooler in
    transaction mode: here, one to another database."""
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    elsewhere = database_factory()  # type: ignore[operator]
    async with tocsin.connect(store_dsn, listen_dsn=elsewhere, heartbeat=0.1) as store:
        await store.queues.ensure("q", vt=3600)
        with caplog.at_level(logging.WARNING, "tocsin"):
            async with store.consumer("q") as consumer, running(consumer) as run:
                assert not store.statistics().listen_works
                await store.produce("q", 1)
                await run.handled.wait(1)
                await store.produce("q", 2, delay=0.3)
                await run.handled.wait(2)
                await (await store.workers.get(consumer.worker_id)).interrupt()
                await run.wait()
        (warning,) = [r.message for r in caplog.records if "LISTEN does not work" in r.message]
        assert "listen_dsn" in warning
    assert await query(store_dsn, "select count(*)::int from tocsin.processes") == [(0,)]


# Life and death


async def test_lifeline_is_held_by_the_listen_connection(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    free = (
        "select pg_try_advisory_xact_lock_shared(tocsin._lock_key('lifeline', lifeline)) from"
        " tocsin.processes"
    )
    async with store.consumer("q"):
        assert await query(store_dsn, free) == [(False,)]
        await query(
            store_dsn,
            f"select pg_terminate_backend(pid) from pg_stat_activity where {OWN} and query like"
            " '%%heartbeat%%attach%%'",
        )
    async with store.producer("q"):
        assert await query(store_dsn, "select count(*)::int from tocsin.processes") == [(1,)]


async def test_dead_workers_are_not_those_that_only_missed_heartbeats(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    await query(store_dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        await query(
            store_dsn, "update tocsin.processes set heartbeat_at = now() - interval '1 hour'"
        )
        assert await query(store_dsn, "select tocsin._reap_dead_processes(0)") == [(None,)]
        assert await consumer.status() == "ready"
        await message.archive()


async def test_a_young_server_declares_no_process_dead(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        await _be_declared_dead_when_the_server_is_old_enough(store, store_dsn)


async def _be_declared_dead_when_the_server_is_old_enough(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with store.producer("q") as producer:
        await query(
            store_dsn,
            "update tocsin.processes set heartbeat_at = now() - interval '1 day', every = '1 s'",
        )
        await query(store_dsn, "update tocsin.uptime set since = now() - interval '1 s'")
        await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        assert await producer.status() == "ready"
        await query(store_dsn, "update tocsin.uptime set since = now() - interval '1 hour'")
        await until_true(store_dsn, "pg_postmaster_start_time() < now() - interval '12 s'")
        await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        assert await producer.status() == "stopped"


async def _dead(dsn: str, *names: str, held: int = 0) -> list[int]:
    """Register consumers of the queue q in a process that is dead and not yet declared
    dead; each holds this number of messages."""
    await until_true(dsn, "pg_postmaster_start_time() < now() - interval '10 s'")
    await query(
        dsn,
        "insert into tocsin.uptime (since) values (now() - interval '1 hour') on conflict do"
        " nothing",
    )
    ((process,),) = await query(dsn, "select tocsin.register_process('host', 1, 'v', '1 s')")
    register = (
        "select id, registration from tocsin.register_worker('q', 'consumer', %s, %s, 'host', 1,"
        " 'v')"
    )
    workers = [(await query(dsn, register, name, process))[0] for name in names]
    for worker in workers:
        if held:
            await query(dsn, "select count(*) from tocsin.claim(%s, %s, %s)", *worker, held)
    await query(
        dsn,
        "update tocsin.processes set heartbeat_at = now() - interval '1 day' where id = %s",
        process,
    )
    return [worker for worker, _ in workers]


async def _ring(dsn: str, holder: TrioConnection[Any], alive: list[bool]) -> list[int]:
    """Register processes one after the other; the session of ``holder`` holds the
    lifelines of the living ones."""
    await query(dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    await until_true(dsn, "pg_postmaster_start_time() < now() - interval '10 s'")
    ids = list[int]()
    for lives in alive:
        ((process,),) = await query(dsn, "select tocsin.register_process('host', 1, 'v', '1 s')")
        if lives:
            await holder.execute("select tocsin.attach_process(%s)", [process])
        else:
            await query(dsn, "select tocsin.attach_process(%s)", process)
        ids.append(process)
    await query(
        dsn,
        "update tocsin.processes set heartbeat_at = tocsin._clock() - interval '1 day' where id ="
        " any (%s)",
        ids,
    )
    return ids


async def test_a_heartbeat_reaps_the_dead_up_to_the_next_eight_living_and_all_are_some_heartbeats(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with open_connection(store_dsn) as holder:
        alive = [number not in (0, *range(10, 15), 29) for number in range(30)]
        ids = await _ring(store_dsn, holder, alive)

        async def left_by(number: int) -> list[int]:
            await query(store_dsn, "select * from tocsin.heartbeat(%s, '{}')", ids[number])
            return [
                ids.index(p)
                for (p,) in await query(store_dsn, "select id from tocsin.processes order by id")
            ]

        living = [number for number in range(30) if alive[number]]
        # the five after it, but none after the next eight living
        assert await left_by(9) == sorted([0, *living, 29])
        assert await left_by(28) == living  # after the last and, round the ring, the first
        for number in living:
            assert await left_by(number) == living


async def test_a_heartbeat_of_the_future_keeps_no_process_alive(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The server's clock was a year ahead for a moment."""
    async with open_connection(store_dsn) as holder:
        living, _ = await _ring(store_dsn, holder, [True, False])
        await query(
            store_dsn, "update tocsin.processes set heartbeat_at = now() + interval '1 year'"
        )
        ((wait,),) = await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        assert 0 < wait <= 1.25
        assert await query(
            store_dsn, "select bool_and(heartbeat_at <= now()) from tocsin.processes"
        ) == [(True,)]
        await move_clock(store_dsn, 60)
        await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        assert await query(store_dsn, "select id from tocsin.processes") == [(living,)]


async def test_an_uptime_of_the_future_keeps_no_process_alive(
    store: tocsin.Store, store_dsn: str
) -> None:
    async with open_connection(store_dsn) as holder:
        await _ring(store_dsn, holder, [False])
        await query(store_dsn, "update tocsin.uptime set since = now() + interval '1 year'")
        await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        await move_clock(store_dsn, 60)
        await query(store_dsn, "select tocsin._reap_dead_processes(0)")
        assert await query(store_dsn, "select id from tocsin.processes") == []


async def _refusal(dsn: str, kind: str, process: int) -> float | None:
    """Register the worker w of the queue q. Return None if it is registered, else the
    seconds after which to try again."""
    try:
        await query(
            dsn, "select tocsin.register_worker('q', %s, 'w', %s, 'host', 2, 'v')", kind, process
        )
    except psycopg.DatabaseError as error:
        assert error.sqlstate == "TC005"
        return float(json.loads(error.diag.message_detail or "")["retry_after"])
    return None


@pytest.mark.parametrize(("kind", "within"), [("producer", 12.5), ("consumer", 13.0)])
async def test_a_name_is_free_seconds_after_a_power_cut(
    store: tocsin.Store, store_dsn: str, kind: str, within: float
) -> None:
    """A refusal rolls back its transaction. Another transaction has recorded before
    that the server is up."""
    await store.queues.ensure("q")
    register = "select tocsin.register_process('host', %s, 'v', '2 s')"
    ((before,),) = await query(store_dsn, register, 1)
    assert await _refusal(store_dsn, kind, before) is None
    await query(
        store_dsn,
        "update tocsin.processes set heartbeat_at = tocsin._clock() - interval '1 minute'",
    )
    await query(store_dsn, "truncate tocsin.uptime")  # as crash recovery does
    ((after,),) = await query(store_dsn, register, 2)
    wait = await _refusal(store_dsn, kind, after)
    assert wait is not None
    assert 0 < wait <= within
    await move_clock(store_dsn, wait)
    assert await _refusal(store_dsn, kind, after) is None


async def test_a_consumer_killed_before_its_listen_was_up_frees_its_name_within_seconds(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await query(store_dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    await until_true(store_dsn, "pg_postmaster_start_time() < now() - interval '10 s'")
    register = "select tocsin.register_process('host', %s, 'v', '2 s')"
    ((killed,),) = await query(store_dsn, register, 1)
    assert await _refusal(store_dsn, "consumer", killed) is None
    ((again,),) = await query(store_dsn, register, 2)
    wait = await _refusal(store_dsn, "consumer", again)
    assert wait is not None
    assert 0 < wait <= 6
    await move_clock(store_dsn, wait)
    assert await _refusal(store_dsn, "consumer", again) is None


async def test_reaping_does_not_wait_for_a_worker_that_another_session_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    workers = await _dead(store_dsn, "first", "second", "third", held=1)
    state = (
        "select status, process_id is null, tocsin._count_held(w)::int from tocsin.workers w order"
        " by id"
    )
    async with open_connection(store_dsn) as other, open_connection(store_dsn) as reaper:
        await other.execute("begin")
        await other.execute(
            "select pg_advisory_xact_lock(tocsin._lock_key('worker', %s))", [workers[1]]
        )
        await reaper.execute("begin")
        with trio.fail_after(PATIENCE):
            assert await (
                await reaper.execute("select tocsin._reap_dead_processes(0)")
            ).fetchall() == [(1,)]
        free = "select pg_try_advisory_xact_lock(tocsin._lock_key('worker', %s))"
        assert await query(store_dsn, free, workers[0]) == [(True,)]
        await reaper.execute("commit")
        assert await query(store_dsn, state) == [
            ("ready", False, 1),
            ("ready", False, 0),
            ("ready", False, 0),
        ]
        await other.execute("rollback")
        assert await (await reaper.execute("select tocsin._reap_dead_processes(0)")).fetchall() == [
            (None,)
        ]
    assert await query(store_dsn, state) == [("stopped", True, 0)] * 3


async def test_reclaim_ends_with_the_first_death_past_its_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    for name in ("first", "second"):
        await _dead(store_dsn, name)
    reap = "select tocsin._reap_dead_processes(0, stop_at => '-infinity')"
    for left in (1, 0):
        assert await query(store_dsn, reap) == [(0,)]
        assert await query(store_dsn, "select count(*)::int from tocsin.processes") == [(left,)]
    assert await query(store_dsn, reap) == [(None,)]


async def test_reclaim_comes_to_the_leases_when_other_messages_take_its_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The clock advances by more than a batch may take with each reading, so that the
    due message takes all the time of the first call."""
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await store.produce("q", "leased")
        await consumer.dequeue(vt=3600)
        await store.produce("q", "due", delay=3600)
        await query(store_dsn, "update tocsin.messages set vt = now() - interval '1 minute'")
        await query(store_dsn, "create sequence public.ticks")
        await query(
            store_dsn,
            "create or replace function tocsin._clock() returns timestamptz language sql volatile"
            " parallel safe as $$ select pg_catalog.clock_timestamp() + pg_catalog.nextval("
            "'public.ticks') * interval '30 ms' $$",
        )
        assert (await store.reclaim()).messages == 1
    assert await query(store_dsn, "select state::text from tocsin.messages") == [("ready",)] * 2


async def test_reclaim_passes_over_a_message_that_another_transaction_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    """It is requeued when its lease ends, the dead worker's other message at once."""
    await store.queues.ensure("q", vt=3600)
    ids = await store.produce_many("q", [1, 2])
    (dead,) = await _dead(store_dsn, "dead", held=2)
    async with open_connection(store_dsn) as other:
        await other.execute("begin")
        await other.execute("select from tocsin.messages where id = %s for update", [ids[0]])
        with trio.fail_after(PATIENCE):
            assert await store.reclaim() == tocsin.ReclaimResult(workers=1, messages=1)
        await other.execute("rollback")
    states = "select id, state::text, consumer_worker_id from tocsin.messages order by id"
    assert await query(store_dsn, states) == [(ids[0], "leased", dead), (ids[1], "ready", dead)]
    await query(store_dsn, "update tocsin.messages set vt = now() where state = 'leased'")
    assert await store.reclaim() == tocsin.ReclaimResult(workers=0, messages=1)


async def test_dead_workers_that_live_cancel_their_handlers_and_register_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600, max_deliveries=9)
    cancelled = trio.Event()

    async def hang(message: tocsin.Message) -> None:
        if message.read_ct == 1:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

    await store.produce("q", 1)
    async with store.consumer("q", name="phoenix") as consumer, running(consumer, hang) as run:
        await run.handled.wait(1)
        worker_id = consumer.worker_id
        await query(
            store_dsn, "select tocsin.unregister_process(id, died => true) from tocsin.processes"
        )
        await run.handled.wait(2)  # it has registered again, and claimed its own message again
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        await run.settled(1, "archived")
        assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(1,)]
        assert consumer.worker_id == worker_id
        assert await consumer.status() == "polling"
    assert [m.read_ct for m in run.handled.messages] == [1, 2]


async def test_declared_dead_and_replaced_ends_the_run(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with (
        tocsin.connect(store_dsn) as other,
        store.consumer("q", name="w") as consumer,
        running(consumer) as run,
    ):
        await until_idle(store)
        await query(
            store_dsn, "select tocsin.unregister_process(id, died => true) from tocsin.processes"
        )
        async with other.consumer("q", name="w"):
            ended = await run.wait()
    assert ended.reason == "its registration has ended"


@pytest.mark.slow
async def test_a_killed_process_that_restarts_alone_takes_its_name_over(store_dsn: str) -> None:
    """No other process is there to notice the death; the process that registers the
    name does."""
    await query(store_dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q", vt=3600)
        await store.produce("q", 1)
    async with run_script("consume.py", store_dsn, "q", "alone", "hold") as first:
        worker = await first.words("worker")
        message = await first.words("handling")
        first.process.kill()
        await first.process.wait()
    async with run_script("consume.py", store_dsn, "q", "alone", "go") as second:
        assert await second.words("worker") == worker
        assert await second.words("handling") == message


async def test_a_frozen_process_that_continues_is_fenced(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A process after SIGSTOP is like one whose loop is blocked: its connection lives,
    so it is not declared dead, but its lease expires."""
    await store.queues.ensure("q", vt=0.5)
    async with run_script("consume.py", store_dsn, "q", "frozen", "hold") as frozen:
        frozen_id = int((await frozen.words("worker"))[0])
        await store.produce("q", 1)
        await frozen.words("handling")
        frozen.process.send_signal(signal.SIGSTOP)
        async with store.consumer("q") as consumer, running(consumer) as run:
            await run.handled.wait(1)
            await run.settled(1, "archived")
        assert (await (await store.workers.get(frozen_id)).status()) == "polling"
        frozen.process.send_signal(signal.SIGCONT)
        await (await store.workers.get(frozen_id)).interrupt(grace=0)
        assert await frozen.words("suspended") == ["interrupted"]
    assert await query(store_dsn, "select read_ct from tocsin.archive") == [(2,)]


async def test_a_cancelled_registration_is_stopped(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q", name="other"):
        (process_id,) = (await query(store_dsn, "select id from tocsin.processes"))[0]
        await query(
            store_dsn,
            "select tocsin.register_worker('q', 'consumer', 'stranger', %s, 'h', 1, 'v')",
            process_id,
        )
        await query(store_dsn, "select pg_notify(tocsin.process_channel(%s), '')", process_id)
        store._process.request_heartbeat()
        await until_true(
            store_dsn, "status = 'stopped' from tocsin.workers where name = 'stranger'"
        )
        assert await query(store_dsn, "select status from tocsin.workers where name = 'other'") == [
            ("ready",)
        ]


async def test_a_moved_clock_wakes_a_consumer_that_waits_for_a_time(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, running(consumer) as run:
        await store.produce("q", 1, delay=3600)
        await until_idle(store)
        assert run.handled.messages == []
        await move_clock(store_dsn, 3601)
        await run.handled.wait(1)


# Connecting


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://ada:tops3cret@127.0.0.1:1/app", "127.0.0.1:1"),
        ("host=/nowhere user=ada password=tops3cret", "/nowhere"),
        ("postgresql://ada:tops3cret@no-such-host.invalid/app", "no-such-host.invalid:5432"),
        ("host=127.0.0.1,127.0.0.2 port=1,2 password=tops3cret", "127.0.0.1:1,127.0.0.2:2"),
    ],
)
async def test_a_failed_connection_is_one_line_without_secrets(dsn: str, says: str) -> None:
    with pytest.raises(tocsin.ConnectionLost) as lost:
        async with tocsin.connect(dsn):
            pass
    text = str(lost.value)
    assert says in text
    assert "tops3cret" not in text
    assert "\n" not in text


@pytest.mark.parametrize("dsn", ["tops3cret", "host=x nosuchkey=tops3cret", "http://x/tops3cret"])
async def test_bad_dsn_is_refused_without_repeating_it(dsn: str) -> None:
    for connect in (partial(tocsin.connect, dsn=dsn), partial(tocsin.connect, listen_dsn=dsn)):
        with pytest.raises(tocsin.ConfigError) as refused:
            async with connect():
                pass
        assert "tops3cret" not in str(refused.value)
        assert "\n" not in str(refused.value)


async def test_wrong_password_names_host_and_port_only(store_dsn: str, server: object) -> None:
    host, port = getattr(server, "host", None), getattr(server, "port", None)
    if host is None:
        pytest.skip("this server does not say where it listens on TCP")
    dsn = psycopg.conninfo.make_conninfo(store_dsn, host=host, port=port, password="tops3cret")
    with pytest.raises(tocsin.ConnectionLost, match=f"{host}:{port}") as lost:
        async with tocsin.connect(dsn):
            pass
    assert "tops3cret" not in str(lost.value)
    assert "\n" not in str(lost.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"heartbeat": 0}, "heartbeat"),
        ({"pool_size": 1}, "pool_size"),
        ({"heartbeat": -1}, "heartbeat"),
    ],
)
async def test_bad_numbers_name_the_argument(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        async with tocsin.connect("host=/nowhere", **options):  # type: ignore[arg-type]
            pass


async def test_a_notification_that_any_role_may_send_ends_no_process(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        (process_id,) = (await query(store_dsn, "select process_id from tocsin.workers"))[0]
        (channel,) = (await query(store_dsn, "select tocsin.process_channel(%s)", process_id))[0]
        for payload in ("leases x", "leases ", "leases 99999999999999999999", "x", "leases -1"):
            await query(store_dsn, "select pg_notify(%s, %s)", channel, payload)
        await store.produce("q", 1)
        with trio.fail_after(PATIENCE):
            (message,) = await consumer.dequeue(wait=PATIENCE)
        await message.archive()


async def test_a_process_cannot_register_with_a_heartbeat_interval_of_a_thousand_years(
    store_dsn: str,
) -> None:
    for every in ("200000 years", "61 min", "0 s", "-1 s"):
        with pytest.raises(psycopg.Error, match="at most an hour"):
            await query(store_dsn, "select tocsin.register_process('h', 1, 'v', %s)", every)
    with pytest.raises(ValueError, match="at most an hour"):
        async with tocsin.connect(store_dsn, heartbeat=3601):
            pass


async def test_a_worker_whose_process_has_ended_keeps_its_last_heartbeat(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    ((process_id,),) = await query(store_dsn, "select tocsin.register_process('h', 1, 'v', '1 h')")
    await query(
        store_dsn,
        "select tocsin.register_worker('q', 'consumer', 'w', %s, 'h', 1, 'v')",
        process_id,
    )
    await move_clock(store_dsn, 60)
    await query(store_dsn, "select tocsin.heartbeat(%s, '{}')", process_id)
    (alive,) = await store.workers.list("q")
    await query(store_dsn, "select tocsin._end_process(%s, true)", process_id)
    (ended,) = await store.workers.list("q")
    assert ended.heartbeat_at == alive.heartbeat_at > alive.started_at


# No loop without a pause


async def test_a_process_that_is_declared_dead_again_and_again_registers_with_pauses(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await query(  # no heartbeat finds its process
        store_dsn,
        "create function skip() returns trigger language plpgsql as $$ begin return null; end $$; "
        "create trigger skip before update on tocsin.processes for each row execute function"
        " skip()",
    )
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def consume() -> None:
            async with store.consumer("q"):
                await trio.sleep_forever()

        nursery.start_soon(consume)
        await until_true(store_dsn, "last_value >= 6 from tocsin.processes_id_seq")
        nursery.cancel_scope.cancel()
    # the shortest pauses that the jitter may draw
    assert trio.current_time() - began >= (0.05 + 0.1 + 0.2 + 0.4) / 2


async def test_a_listen_connection_that_never_works_for_long_is_made_with_pauses(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q")
    await query(
        store_dsn,
        "create sequence attempts; create or replace function tocsin.begin_waiting(queue_ids"
        " integer[]) returns integer[] language plpgsql security definer set search_path ="
        " pg_catalog, pg_temp as $$ begin perform nextval('public.attempts'); raise out_of_memory"
        " using message = 'no memory for locks'; end $$",
    )
    began = trio.current_time()
    async with store.consumer("q") as consumer, running(consumer) as run:
        await until_true(store_dsn, "last_value >= 5 from attempts")
        run.cancel()
    assert trio.current_time() - began >= (0.05 + 0.1 + 0.2 + 0.4) / 2
    assert (
        len(
            [r for r in caplog.records if r.levelno >= logging.WARNING and "no memory" in r.message]
        )
        == 1
    )
