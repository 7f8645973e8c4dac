"""A silent connection is given up, and one with a slow statement is not."""

from __future__ import annotations

import math
import os
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import make_conninfo

from bench import proxy
from tests import support
from tests.driver.helpers import SAFETY_NET, Connection, until, value
from tests.support import servers
from tocsin.driver import TrioConnection, _watch
from tocsin.driver._watch import Watch
from tocsin.embedded import EmbeddedServer

LONG = 1000.0
"""Seconds of a limit that is not what a test is about."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "ASK_AFTER": 0.05,
        "CONFIRM_AFTER": 0.05,
        "ASK_AGAIN": 0.05,
        "PATIENCE": LONG,
        "LONGEST": LONG,
    }.items():
        monkeypatch.setattr(f"tocsin.driver._watch.{name}", seconds)


async def open_session(dsn: str) -> Connection:
    connection: Connection = await TrioConnection.connect(dsn, autocommit=True)
    try:
        await connection.apply_settings({"application_name": "watched"})
    except BaseException:
        connection.finish()
        raise
    assert connection.session is not None
    return connection


@asynccontextmanager
async def watching(
    connect: Callable[[], Awaitable[Connection]], *connections: Connection
) -> AsyncIterator[Watch]:
    watch = Watch(connect)
    for connection in connections:
        watch.add(connection)
    with trio.fail_after(SAFETY_NET):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            yield watch
            nursery.cancel_scope.cancel()


async def test_a_silent_connection_is_given_up_and_its_session_terminated(
    dsn: str, observer: Connection
) -> None:
    """The request arrives; the answer does not. What the session holds is free when the
    error comes."""
    async with proxy.running(dsn) as network:
        connection = await open_session(network.dsn())
        await value(connection, "select pg_advisory_lock(1)::text")
        network.silence(1)
        async with watching(lambda: open_session(network.dsn()), connection) as watch:
            with pytest.raises(psycopg.OperationalError, match="no answer for"):
                await connection.execute("select 1")
            assert connection.closed
            assert watch.dropped == 1
            assert not watch.has_abandoned
        assert await value(observer, "select pg_try_advisory_lock(1)")


async def test_a_transaction_on_a_silent_connection_fails(dsn: str) -> None:
    async with proxy.running(dsn) as network:
        connection = await open_session(network.dsn())
        async with watching(lambda: open_session(network.dsn()), connection):
            with pytest.raises(psycopg.OperationalError, match="no answer for"):
                async with connection.transaction():
                    await connection.execute("select 1")
                    network.silence(1)  # COMMIT is not answered


@pytest.mark.parametrize("in_pipeline", [False, True])
async def test_a_statement_that_waits_for_a_lock_is_slow_not_silent(
    dsn: str, observer: Connection, in_pipeline: bool
) -> None:
    asked = 0
    enough = trio.Event()

    async def ask() -> Connection:
        nonlocal asked
        asked += 1
        if asked > 3:
            enough.set()
        return await open_session(dsn)

    async def hold_on() -> None:
        if in_pipeline:
            async with connection.pipeline():
                await connection.execute("select pg_advisory_lock(1)")
        else:
            await connection.execute("select pg_advisory_lock(1)")

    connection = await open_session(dsn)
    await value(observer, "select pg_advisory_lock(1)::text")
    async with watching(ask, connection) as watch, trio.open_nursery() as nursery:
        nursery.start_soon(hold_on)
        await enough.wait()
        assert watch.waiting_since < math.inf
        await value(observer, "select pg_advisory_unlock(1)")
    assert watch.dropped == 0
    assert await value(connection, "select 1") == 1
    await connection.close()


async def test_a_client_that_cannot_send_is_silent(dsn: str) -> None:
    """In the middle of a COPY the server waits for the client, and the client for the
    socket."""
    async with proxy.running(dsn) as network:
        connection = await open_session(network.dsn())
        await connection.execute("create table t (text text)")
        async with watching(lambda: open_session(network.dsn()), connection):
            with pytest.raises(psycopg.OperationalError, match="no answer for"):
                async with connection.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
                    await copy.write("x\n")
                    network.silence(1)


async def test_a_connection_that_nothing_answers_is_given_up_and_terminated_later(
    dsn: str, observer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.2)
    async with proxy.running(dsn) as network:
        connection = await open_session(network.dsn())
        assert connection.session is not None
        async with watching(lambda: open_session(network.dsn()), connection) as watch:
            network.silence_all()
            with pytest.raises(psycopg.OperationalError, match="no answer for"):
                await connection.execute("select 1")
            assert watch.has_abandoned
            gone = "select not exists (select from pg_stat_activity where pid = %s)"
            assert not await value(observer, gone, (connection.session[0],))
            await watch.terminate_abandoned(observer)
            await until(observer, gone, (connection.session[0],))
            assert not watch.has_abandoned


async def test_a_server_that_cannot_be_reached(
    connection: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.2)

    async def ask() -> Connection:
        return await TrioConnection.connect(f"host=127.0.0.1 port={servers.free_port()}")

    async with watching(ask, connection) as watch:
        with pytest.raises(psycopg.OperationalError, match="no answer for"):
            await connection.execute("select pg_sleep(600)")
        assert watch.dropped == 1


async def test_behind_a_pooler_the_server_does_not_tell_and_there_is_more_time(
    connection: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is not known."""
    asked = 0

    async def ask() -> Connection:
        nonlocal asked
        asked += 1
        if asked > 2:
            monkeypatch.setattr("tocsin.driver._watch.LONGEST", 0.0)
        return await open_session(dsn)

    async with watching(ask, connection):
        with pytest.raises(psycopg.OperationalError, match="no answer for"):
            await connection.execute("select pg_sleep(600)")
    assert asked == 3


async def test_a_server_without_a_connection_to_spare_does_not_tell_and_there_is_more_time(
    dsn: str, new_role: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    role = new_role("limited", options="login connection limit 1")
    limited = make_conninfo(dsn, user=role, password=servers.PASSWORD)
    refusals = 0

    async def ask() -> Connection:
        nonlocal refusals
        refusals += 1
        if refusals > 2:
            monkeypatch.setattr("tocsin.driver._watch.LONGEST", 0.0)
        return await open_session(limited)

    connection = await open_session(limited)
    async with watching(ask, connection):
        with pytest.raises(psycopg.OperationalError, match="no answer for"):
            await connection.execute("select pg_sleep(600)")
    assert refusals == 3


async def test_without_a_connection_to_spare_the_server_is_asked_on_an_idle_one(
    dsn: str, observer: Connection, new_role: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.driver._watch.LONGEST", 0.0)
    role = new_role("limited", options="login")
    limited = make_conninfo(dsn, user=role, password=servers.PASSWORD)
    busy, idle = [await open_session(limited) for _ in range(2)]
    await observer.execute(f"alter role {role} connection limit 2")
    refusals = 0
    enough = trio.Event()

    async def ask() -> Connection:
        nonlocal refusals
        refusals += 1
        if refusals > 3:
            enough.set()
        return await open_session(limited)

    await value(observer, "select pg_advisory_lock(1)::text")
    async with watching(ask, busy, idle) as watch, trio.open_nursery() as nursery:
        nursery.start_soon(busy.execute, "select pg_advisory_lock(1)")
        await enough.wait()
        await value(observer, "select pg_advisory_unlock(1)")
    assert watch.dropped == 0
    assert await value(busy, "select 1") == 1
    await busy.close()
    await idle.close()


async def test_an_idle_connection_that_is_silent_too_is_closed(
    dsn: str,
    new_role: Callable[..., str],
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock stands until the server has been asked on it."""
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.3)
    role = new_role("limited", options="login connection limit 2")
    async with proxy.running(dsn) as network:
        limited = network.dsn(user=role, password=servers.PASSWORD)
        silent, idle = [await open_session(limited) for _ in range(2)]
        async with (
            watching(lambda: open_session(limited), silent, idle) as watch,
            trio.open_nursery() as nursery,
        ):
            network.silence(1, 2)
            nursery.start_soon(fail_as_silent, silent)
            await support.until(lambda: watch.waiting_since < math.inf)
            mock_clock.jump(_watch.ASK_AFTER)
            await support.until(lambda: idle.waits_since < math.inf)
            mock_clock.jump(_watch.PATIENCE)
        assert idle.closed


async def test_a_session_that_cannot_be_terminated_is_forgotten_with_a_warning(
    dsn: str,
    observer: Connection,
    new_role: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server of a careful administrator."""
    monkeypatch.setattr("tocsin.driver._watch.PATIENCE", 0.2)
    role = new_role("limited")
    await observer.execute("revoke execute on function pg_terminate_backend from public")
    async with proxy.running(dsn) as network:
        limited = network.dsn(user=role, password=servers.PASSWORD)
        first, second = [await open_session(limited) for _ in range(2)]
        async with watching(lambda: open_session(limited), first, second) as watch:
            network.silence_all()
            async with trio.open_nursery() as nursery:
                for connection in (first, second):
                    nursery.start_soon(fail_as_silent, connection)
            assert watch.has_abandoned
            another = await open_session(make_conninfo(dsn, user=role, password=servers.PASSWORD))
            await watch.terminate_abandoned(another)
            assert not watch.has_abandoned
            assert await value(another, "select 1") == 1
            await another.close()
    assert caplog.text.count("could not be terminated") == 2


async def fail_as_silent(connection: Connection) -> None:
    with pytest.raises(psycopg.OperationalError, match="no answer for"):
        await connection.execute("select 1")


async def test_other_idle_connections_are_not_used_for_anything_new(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy.running(dsn) as network:
        silent, idle = [await open_session(network.dsn()) for _ in range(2)]
        async with watching(lambda: open_session(network.dsn()), silent, idle) as watch:
            suspect: list[bool] = []
            terminate = watch.terminate_abandoned

            async def see_and_terminate(asking: Connection) -> None:
                suspect.append(idle.is_broken())
                await terminate(asking)

            # the end of the session may be seen before the connection is given up
            monkeypatch.setattr(watch, "terminate_abandoned", see_and_terminate)
            network.silence(1)
            assert not idle.is_broken()
            with pytest.raises(psycopg.OperationalError):
                await silent.execute("select 1")
            assert suspect == [True]
            assert idle.is_broken()
            assert await value(idle, "select 1") == 1  # a task that has it goes on
        await idle.close()


async def test_a_connection_that_waits_for_notifications_is_not_asked_about(dsn: str) -> None:
    asked = False

    async def ask() -> Connection:
        nonlocal asked
        asked = True
        return await open_session(dsn)

    connection = await open_session(dsn)
    async with watching(ask, connection) as watch, trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_for_notifications)
        with trio.fail_after(SAFETY_NET):
            while not watch.idle:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert watch.waiting_since == math.inf
        nursery.cancel_scope.cancel()
    assert not asked
    await connection.close()


async def test_an_event_loop_that_was_blocked_has_its_answers(
    dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    """The answer has come during that time, and the loop has not seen it yet."""
    asked = 0

    async def ask() -> Connection:
        nonlocal asked
        asked += 1
        return await open_session(dsn)

    connection = await open_session(dsn)
    with support.connect_blocking(dsn) as holder:
        async with watching(ask, connection) as watch:
            for _ in range(5):
                holder.execute("select pg_advisory_lock(1)")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.execute, "select pg_advisory_xact_lock(1)")
                    await support.until(lambda: watch.waiting_since < math.inf)
                    await trio.testing.wait_all_tasks_blocked()
                    holder.execute("select pg_advisory_unlock(1)")
                    assert select.select([connection.fileno()], [], [], SAFETY_NET)[0]
                    mock_clock.jump(_watch.ASK_AFTER)
    assert asked == 0
    await connection.close()


async def test_a_request_that_is_still_on_its_way_is_not_executed_later(
    own_server: EmbeddedServer,
) -> None:
    """The session's process hangs, and goes on after its connection was given up."""
    silent, observer = await open_session(own_server.dsn), await open_session(own_server.dsn)
    await observer.execute("create table t (n int)")
    pid = silent.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        async with watching(lambda: open_session(own_server.dsn), silent):
            with pytest.raises(psycopg.OperationalError, match="no answer for"):
                await silent.execute("insert into t values (1)")
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(observer, "select not exists (select from pg_stat_activity where pid = %s)", (pid,))
    assert await value(observer, "select count(*) from t") == 0
    await observer.close()
