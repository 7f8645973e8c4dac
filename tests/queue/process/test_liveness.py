"""How a process shows that it is alive and well: with a LISTEN connection, without one,
and with one that is silent."""

from __future__ import annotations

import logging
import secrets
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import tocsin
from bench import proxy
from tests.support import (
    PATIENCE,
    open_connection,
    query,
    until,
    until_blocked,
    until_idle,
    until_true,
)
from tests.support.runs import running
from tocsin.driver import TrioConnection

HOW = "select lifeline is not null, detached from tocsin.processes"
"""Whether a process has a lifeline, and whether it has said that it has none."""


# The pool


@pytest.mark.parametrize(
    "condition",
    ["lock_not_available", "query_canceled", "deadlock_detected", "serialization_failure"],
)
async def test_a_statement_that_is_ended_alone_is_no_failure_of_the_pool(
    store: tocsin.Store, condition: str
) -> None:
    with pytest.raises(tocsin.ConnectionLost):
        await store._database.fetch(f"do $$ begin raise {condition}; end $$")
    assert store.statistics().failing_for is None


async def test_a_lent_connection_that_fails_is_a_failure_of_the_pool(store_dsn: str) -> None:
    async with proxy.running(store_dsn) as between, tocsin.connect(between.dsn()) as store:
        between.refuse()
        with pytest.raises(tocsin.ConnectionLost):
            async with store.transaction():
                pass
        assert store.statistics().failing_for is not None
        between.restore()
        async with store.transaction():
            pass
        assert store.statistics().failing_for is None
        with pytest.raises(tocsin.ConnectionLost):
            async with store.transaction() as connection:
                between.refuse()
                await connection.execute("select")
        assert store.statistics().failing_for is not None


async def test_a_lent_connection_that_its_user_leaves_idle_is_no_failure_of_the_pool(
    store: tocsin.Store,
) -> None:
    with pytest.raises(tocsin.ConnectionLost):
        async with store.transaction() as connection:
            await connection.execute(
                "do $$ begin raise idle_in_transaction_session_timeout; end $$"
            )
    assert store.statistics().failing_for is None


async def test_an_idle_process_whose_pool_failed_once_recovers(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.2) as store:
        await store.queues.create("q")
        async with store.consumer("q"), open_connection(store_dsn) as other:
            await other.execute("begin")
            await other.execute("lock table tocsin.queues")
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    with pytest.raises(tocsin.ConnectionLost):
                        await store.queues.list()

                nursery.start_soon(fail)
                await until_blocked(store_dsn, "queue")
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and wait_event_type = 'Lock'",
                )
            await other.execute("rollback")
            assert store.statistics().failing_for is not None
            await until(lambda: store.statistics().failing_for is None)


# The lifeline


async def test_a_consumer_claims_without_a_lifeline_only_when_the_database_knows(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen heartbeats then count. With three, a handler that blocks the loop is
    declared dead, and its message delivered twice."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    async with (
        proxy.running(store_dsn) as way,
        tocsin.connect(store_dsn, listen_dsn=way.dsn()) as store,
    ):
        await store.queues.create("q")
        way.silence_all()
        with trio.fail_after(PATIENCE):
            async with store.consumer("q"):
                assert await query(store_dsn, HOW) == [(False, True)]
                assert not store.statistics().listening
                way.restore()
                await until(lambda: store.statistics().listening)
                assert await query(store_dsn, HOW) == [(True, False)]


async def test_a_process_that_registers_again_where_listen_does_not_work_says_so_again(
    store_dsn: str, database_factory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    elsewhere = database_factory()  # type: ignore[operator]
    async with tocsin.connect(store_dsn, listen_dsn=elsewhere, heartbeat=0.1) as store:
        await store.queues.create("q")
        async with store.consumer("q"):
            ((first, detached),) = await query(
                store_dsn, "select id, detached from tocsin.processes"
            )
            assert detached
            await query(store_dsn, "select tocsin.unregister_process(%s, died => true)", first)
            await until_true(
                store_dsn, "bool_or(id > %s and detached) from tocsin.processes", first
            )


async def test_a_request_brings_forward_a_heartbeat_through_the_pool(store_dsn: str) -> None:
    connecting = trio.Event()

    async def hang() -> TrioConnection[Any]:
        connecting.set()
        await trio.sleep_forever()
        raise AssertionError

    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.create("q")
        async with store.consumer("q"):
            store._process.listener._connect = hang
            await query(
                store_dsn,
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
                " and mode = 'ExclusiveLock' and database = (select oid from pg_database where"
                " datname = current_database())",
            )
            await connecting.wait()
            await until_idle(store)
            sent = store.statistics().heartbeats
            store._process.request_heartbeat()
            await until(lambda: store.statistics().heartbeats > sent)


# The proof of LISTEN


async def test_a_connection_that_is_silent_while_listen_is_proven_is_replaced(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    monkeypatch.setattr("tocsin._concurrency.grace.GRACE", 0.2)
    # The proof, not the watch, finds the silence, also where this process is slow.
    monkeypatch.setattr("tocsin.driver._watch.ASK_AFTER", 3600.0)
    async with (
        proxy.running(store_dsn) as way,
        tocsin.connect(store_dsn, listen_dsn=way.dsn()) as store,
    ):
        await store.queues.create("q")

        def draw_token_of_a_silent_connection(size: int) -> str:
            way.silence(1)
            if way.accepted > 1:  # this one is to be proven, however long that takes
                monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", PATIENCE)
            return secrets.token_hex(size)

        # The first connection falls silent before its notification is sent, so that it
        # never hears it.
        monkeypatch.setattr(
            "tocsin._queue.process.listener.secrets",
            SimpleNamespace(token_hex=draw_token_of_a_silent_connection),
        )
        with trio.fail_after(PATIENCE):
            async with store.consumer("q"):
                await until(lambda: store.statistics().listening)
    assert way.accepted > 1
    assert not [r for r in caplog.records if "LISTEN does not work" in r.message]
    assert [r for r in caplog.records if "does not answer" in r.message]


async def test_listen_that_did_not_work_is_proven_again(
    store_dsn: str,
    database_factory: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    monkeypatch.setattr("tocsin._queue.process.listener.PROVE_AGAIN_AFTER", 0.1)
    elsewhere = database_factory()  # type: ignore[operator]
    async with tocsin.connect(store_dsn, listen_dsn=elsewhere, heartbeat=3600) as store:
        await store.queues.create("q")
        listener = store._process.listener
        caplog.set_level(logging.DEBUG, "tocsin")
        async with store.consumer("q") as consumer, running(consumer) as run:
            assert not store.statistics().listen_works
            await until(lambda: len(_listen_failures(caplog)) >= 2)
            listener._connect = store._database._connect
            await until(lambda: store.statistics().listening)
            assert store.statistics().listen_works
            await store.produce("q", 1)
            await run.handled.wait(1)
    assert _listen_failures(caplog)[:2] == [logging.WARNING, logging.DEBUG]


def _listen_failures(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [r.levelno for r in caplog.records if "LISTEN does not work" in r.message]
