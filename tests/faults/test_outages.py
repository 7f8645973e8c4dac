"""The database goes away: restarts, killed backends. All comes back by itself, and
nothing is lost."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Literal

import psycopg
import pytest
import trio
import trio.testing
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import tocsin
from bench import proxy
from tests.support import (
    PATIENCE,
    Handled,
    open_connection,
    query,
    until,
    until_idle,
    until_query,
)
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin._database.client import REPEATS
from tocsin.embedded import EmbeddedServer

pytestmark = pytest.mark.fault

OTHERS = (
    "pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"
)


@pytest.fixture
async def mortal(own_server: EmbeddedServer) -> AsyncIterator[tocsin.Store]:
    """A store on a server that may be stopped."""
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q", vt=3600)
        yield store


async def test_restart_while_idle(mortal: tocsin.Store, own_server: EmbeddedServer) -> None:
    modes: tuple[Literal["fast", "immediate"], ...] = ("fast", "immediate")
    handled = Handled()

    async def wait_for(payload: object) -> None:
        while payload not in handled.payloads:
            await handled.wait(len(handled.messages) + 1)

    async with mortal.consumer("q") as consumer, running(consumer, handled):
        await mortal.produce("q", "before")
        await wait_for("before")
        for n, mode in enumerate(modes):
            await own_server.restart(mode)
            async with open_connection(own_server.dsn) as connection:  # not from our own pool
                await connection.execute("select tocsin.enqueue('q', to_jsonb(%s::int))", [n])
            await wait_for(n)
        await mortal.produce("q", "after")
        await wait_for("after")
    # after the crash perhaps again what had just been claimed
    assert set(handled.payloads) == {"before", 0, 1, "after"}
    assert await query(
        own_server.dsn, "select count(*)::int, count(distinct id)::int from tocsin.archive"
    ) == [(4, 4)]


@sweep("mode", ["fast", "immediate"], quick=1)
async def test_running_handlers_survive_a_restart_and_settle(
    mortal: tocsin.Store, own_server: EmbeddedServer, mode: str
) -> None:
    go_on = trio.Event()
    async with (
        mortal.producer("q") as producer,
        mortal.consumer("q") as consumer,
        running(consumer, lambda _: go_on.wait(), concurrency=3) as run,
    ):
        ids = await producer.enqueue_many(range(3))
        await run.handled.wait(3)
        await own_server.stop(mode)  # type: ignore[arg-type]
        go_on.set()  # the handlers finish while there is no server
        await trio.testing.wait_all_tasks_blocked(0.05)
        await own_server.start()
        await until_query(
            own_server.dsn, "select id from tocsin.archive order by id", gives=[(i,) for i in ids]
        )
    # after a crash the server may have forgotten the claims of the last moment; then
    # they were delivered again
    if mode == "fast":
        assert len(run.handled.messages) == 3


@pytest.mark.slow
async def test_producers_raise_during_an_outage_and_continue_after_it(
    mortal: tocsin.Store, own_server: EmbeddedServer
) -> None:
    async with mortal.producer("q") as producer:
        await producer.enqueue(1)
        await own_server.stop()
        with pytest.raises(tocsin.ConnectionLost):
            await producer.enqueue(2)
        with pytest.raises(tocsin.ConnectionLost):
            await mortal.queues.list()
        await own_server.start()
        await producer.enqueue(3)
    assert await query(own_server.dsn, "select payload from tocsin.messages") == [(1,), (3,)]


async def test_interrupt_ends_the_run_even_without_a_server(
    mortal: tocsin.Store, own_server: EmbeddedServer
) -> None:
    async with mortal.consumer("q") as consumer, running(consumer) as run:
        await trio.testing.wait_all_tasks_blocked(0.05)
        await own_server.stop()
        with pytest.raises(tocsin.ConnectionLost):
            await consumer.interrupt()
        assert (await run.wait()).reason == "interrupted"
    await own_server.start()


async def test_a_run_that_waits_for_a_handler_does_not_say_that_an_outage_is_over(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tocsin.consumer")

    def said() -> list[str]:
        return [m for r in caplog.records if (m := r.getMessage()).startswith("handling: ")]

    go_on = trio.Event()
    async with (
        proxy.running(store_dsn) as between,
        tocsin.connect(between.dsn(), listen_dsn=store_dsn) as store,
    ):
        await store.queues.ensure("q", vt=3600)
        await store.produce("q", 1)
        async with store.consumer("q") as consumer:
            handled = Handled(lambda _: go_on.wait())
            async with running(consumer, handled, concurrency=2) as run:
                await handled.wait(1)
                await until_idle(store)
                between.refuse()
                await query(store_dsn, "select tocsin.enqueue('q', '2')")
                await until(said)  # the claim that this has rung for fails
                with pytest.raises(tocsin.ConnectionLost):
                    await consumer.interrupt()
                loop = consumer._state.run
                assert loop is not None
                waiter = loop.waiter
                await until(lambda: waiter._parked)  # for the handler
                go_on.set()
                errors = store.statistics().pool.errors
                await until(lambda: store.statistics().pool.errors > errors)
                assert len(said()) == 1
                between.restore()
                await run.wait()
        assert await query(store_dsn, "select payload from tocsin.archive") == [(1,)]
    begin, end = said()
    assert "trying again" in begin
    assert "works again" in end


async def test_every_backend_is_killed_while_busy(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=3600)
    enough, killed = trio.Event(), 0
    handled = Handled()

    async def produce() -> None:
        n = 0
        async with store.producer("q") as producer:
            while not enough.is_set():
                try:
                    await producer.enqueue_many(range(n, n + 20))
                except tocsin.ConnectionLost:
                    continue  # all of them are there or none
                n += 20
                await handled.wait(n - 200)  # so that what is left at the end is little

    async with (
        store.consumer("q") as a,
        store.consumer("q") as b,
        running(a, handled, concurrency=10),
        running(b, handled, concurrency=10),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(produce)
        for count in range(10):
            await handled.wait(100 * (count + 1))
            ((terminated,),) = await query(
                store_dsn,
                "select count(pg_terminate_backend(pid))::int from pg_stat_activity where"
                f" {OTHERS}",
            )
            killed += terminated
        enough.set()
        await until_query(store_dsn, "select id from tocsin.messages limit 1", gives=[])
    assert killed >= 20
    assert await query(
        store_dsn, "select count(*)::int, count(distinct id)::int from tocsin.archive"
    ) == [(len({m.id for m in handled.messages}),) * 2]


async def test_a_claim_whose_answer_was_lost_is_requeued(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The server claims, and the connection ends before the client hears of it: the
    message must not wait for its visibility timeout."""
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await query(
            store_dsn,
            "select * from tocsin.claim(%s, %s, 1)",  # what the lost answer would have said
            consumer.worker_id,
            consumer._registration.token,
        )
        consumer._parts.claimer._unknown.possible = True
        (message,) = await consumer.dequeue()
        assert (message.payload, message.read_ct) == (1, 1)
        await message.archive()


def settle_everything_fails(code: str) -> str:
    """SQL that makes each enqueue and settlement fail with this code while the table
    ``outage`` has a row."""
    return f"""
        create table outage ();
        create function fail() returns trigger language plpgsql security definer as $$
        begin
            if exists (select from public.outage) then
                raise exception using errcode = '{code}', message = 'an outage';
            end if;
            return null;
        end $$;
        create trigger fail before insert or delete on tocsin.messages for each statement
            execute function fail();
    """


# Disk full, no memory, cancelled by an administrator, no lock, deadlock, conflict,
# read-only, an error within the server.
@sweep("code", ["53100", "53200", "57014", "55P03", "40P01", "40001", "25006", "XX000"], quick=2)
async def test_a_consumer_waits_for_the_end_of_an_outage(
    store: tocsin.Store, store_dsn: str, code: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await query(store_dsn, settle_everything_fails(code))
    go_on = trio.Event()
    await store.produce("q", 1)
    async with store.consumer("q") as consumer, running(consumer, lambda _: go_on.wait()) as run:
        await run.handled.wait(1)
        await query(store_dsn, "insert into outage default values")
        go_on.set()
        if code != "XX000":  # what PostgreSQL says of itself, a caller is to see
            with pytest.raises(tocsin.ConnectionLost, match="an outage"):
                await store.produce("q", 2)
        # the attempt to archive has failed
        await until(lambda: not store.statistics().pool.in_use)
        assert await query(store_dsn, "select count(*) from tocsin.archive") == [(0,)]
        await query(store_dsn, "delete from outage")
        await run.settled(1, "archived")
        assert await query(store_dsn, "select count(*) from tocsin.archive") == [(1,)]
    assert len(run.handled.messages) == 1


@pytest.mark.parametrize(("code", "attempts"), [("40P01", 1 + REPEATS), ("40003", 1)])
async def test_a_statement_is_sent_again_only_if_it_had_no_effect(
    store: tocsin.Store, store_dsn: str, code: str, attempts: int
) -> None:
    await store.queues.ensure("q")
    await query(store_dsn, settle_everything_fails(code))
    await query(store_dsn, "insert into outage default values")
    await query(
        store_dsn,
        """
        create sequence attempts;
        create function count_attempt() returns trigger language plpgsql security definer
            as $$ begin perform nextval('public.attempts'); return null; end $$;
        create trigger count before insert on tocsin.messages for each statement
            execute function count_attempt();
        """,
    )
    with pytest.raises(tocsin.ConnectionLost, match="an outage"):
        await store.produce("q", 1)
    assert await query(store_dsn, "select last_value from attempts") == [(attempts,)]


async def test_a_read_only_database_is_an_outage(store_dsn: str) -> None:
    """The administrator's wish is respected; sessions that are read-only by it are
    dropped, so that later ones may write."""

    async def switch(value: str) -> None:
        name = sql.Identifier(str(conninfo_to_dict(store_dsn)["dbname"]))
        async with open_connection(store_dsn) as connection:
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute(
                sql.SQL("alter database {} set default_transaction_read_only = {}").format(
                    name, sql.SQL(value)
                )
            )
            await connection.execute(
                f"select pg_terminate_backend(pid) from pg_stat_activity where {OTHERS}".encode()
            )

    async with tocsin.connect(store_dsn) as store, open_connection(store_dsn) as observer:
        await observer.execute("select set_config('application_name', 'observer', false)")
        await store.queues.ensure("q", vt=3600)
        async with store.consumer("q") as consumer, running(consumer) as run:
            await switch("on")
            with trio.fail_after(PATIENCE):
                while True:
                    try:
                        await store.produce("q", 0)
                    except tocsin.ConnectionLost as lost:
                        if "read-only" in lost.reason:
                            break
            with pytest.raises(tocsin.ConnectionLost, match="read-only"):
                async with store.transaction() as connection:
                    await connection.execute("create table mine ()")
            with (
                psycopg.connect(store_dsn) as own,
                pytest.raises(tocsin.ConnectionLost, match="read-only"),
            ):
                tocsin.enqueue(own, "q", 0)
            await switch("off")
            with trio.fail_after(PATIENCE):
                while True:
                    try:
                        await store.produce("q", 1)
                        break
                    except tocsin.ConnectionLost:
                        pass
            await run.handled.wait(1)
    assert run.handled.payloads == [1]


async def test_one_session_that_is_read_only_has_all_of_them_replaced(store_dsn: str) -> None:
    name = sql.Identifier(str(conninfo_to_dict(store_dsn)["dbname"]))

    async def switch(value: str) -> None:
        async with open_connection(store_dsn) as connection:
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute(
                sql.SQL("alter database {} set default_transaction_read_only = {}").format(
                    name, sql.SQL(value)
                )
            )

    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        await switch("on")
        # sessions that are read-only, as those of a former primary are
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(store.transaction())
        await switch("off")
        async with store.transaction():  # on the one that is older
            with pytest.raises(tocsin.ConnectionLost, match="read-only"):
                await store.produce("q", 0)
            await store.produce("q", 1)


async def test_a_batch_on_a_session_that_is_read_only_has_it_replaced(store_dsn: str) -> None:
    """A statement in a block has Tocsin's error already when the block ends by it."""
    name = sql.Identifier(str(conninfo_to_dict(store_dsn)["dbname"]))
    async with open_connection(store_dsn) as connection:
        async with tocsin.connect(store_dsn) as store:
            await store.queues.ensure("q")
        change = "alter database {} set default_transaction_read_only = {}"
        await connection.execute(sql.SQL(change).format(name, sql.SQL("on")))
        async with tocsin.connect(store_dsn) as store:
            await store._database.contract.check()
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute(sql.SQL(change).format(name, sql.SQL("off")))
            with pytest.raises(tocsin.ConnectionLost, match="read-only"):
                await store.produce_many("q", [1, 2])
            assert len(await store.produce_many("q", [1, 2])) == 2


async def test_a_transaction_that_the_user_made_read_only_is_no_outage(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with store.transaction() as connection:
            await connection.execute("set transaction read only")
            await tocsin.enqueue_async(connection, "q", 0)


async def test_what_a_statement_of_the_users_meets_is_psycopgs_error(store: tocsin.Store) -> None:
    async with store.transaction() as connection:
        await connection.execute("set local statement_timeout = 1")
        with pytest.raises(psycopg.errors.QueryCanceled):
            async with connection.transaction():
                await connection.execute("select pg_sleep(60)")


async def test_a_deadlock_of_a_statement_of_its_own_is_repeated(
    store: tocsin.Store, store_dsn: str
) -> None:
    """It has had no effect, so its caller need not know."""
    await query(
        store_dsn,
        "create sequence attempts; create function fail() returns trigger language plpgsql security"
        " definer as $$ begin if nextval('public.attempts') < 3 then raise exception using errcode"
        " = '40P01'; end if; return null; end $$; create trigger fail before insert on"
        " tocsin.messages for each statement execute function fail()",
    )
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    assert await query(
        store_dsn, "select id, (select last_value from attempts) from tocsin.messages"
    ) == [(message_id, 3)]


async def test_a_prepared_statement_whose_result_has_changed_is_prepared_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    """An upgrade while a consumer runs does this: PostgreSQL refuses the plan of the
    session."""
    for kind, expected in (("integer", 1), ("bigint", 1), ("text", "1")):
        await query(store_dsn, "drop function if exists tocsin.changing()")
        await query(
            store_dsn,
            f"create function tocsin.changing() returns table (a {kind}) language plpgsql as $$"
            " begin a := 1; return next; end $$",
        )
        # the cursor's statement is prepared, too, when it has been run a few times
        for _ in range(8):
            assert (await store._database.run("select * from tocsin.changing()", [])).load(
                0, 1
            ) == [(expected,)]
            assert await store._database.fetch("select * from tocsin.changing()") == [(expected,)]
