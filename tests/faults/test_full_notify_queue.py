"""PostgreSQL's queue of notifications is full, since a session that LISTENs stays in a
transaction: messages go on all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import psycopg
import pytest
import trio

import tocsin
from tests.support import Handled, open_connection, query, servers
from tests.support.runs import running
from tocsin.embedded import serve

pytestmark = pytest.mark.fault


@pytest.fixture
async def small_dsn() -> AsyncIterator[str]:
    """A server of its own with the smallest queue of notifications that there is, and
    Tocsin on it."""
    with servers.directory() as base:
        async with serve(
            base / "server", settings={**servers.SETTINGS, "max_notify_queue_pages": "64"}
        ) as server:
            async with tocsin.connect(server.dsn) as store:
                await store.install()
                await store.queues.ensure("q")
            yield server.dsn


FILL = "select pg_notify('elsewhere', repeat('x', 7000) || n) from generate_series(1, 1000) n"


async def fill(dsn: str) -> None:
    with suppress(psycopg.errors.ProgramLimitExceeded):
        while True:
            await query(
                dsn, "select pg_notify('elsewhere', repeat('x', 7000) || clock_timestamp())"
            )


@pytest.mark.slow
async def test_while_the_notification_queue_is_full_heartbeats_bring_the_messages(
    small_dsn: str,
) -> None:
    handled = Handled()
    async with tocsin.connect(small_dsn, heartbeat=0.2) as store:
        async with (
            store.consumer("q", name="a") as consumer,
            open_connection(small_dsn) as stuck,
            running(consumer, handled) as run,
        ):
            for statement in ("listen elsewhere", "begin", "select 1"):
                await stuck.execute(statement.encode())
            await fill(small_dsn)
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                await query(small_dsn, "select pg_notify('elsewhere', repeat('x', 7000))")
            await store.produce("q", 0)
            await store.produce("q", 1, key="k")
            await store.produce_many("q", [2, 3])
            async with trio.open_nursery() as producers:
                for n in range(4, 8):
                    producers.start_soon(store.produce, "q", n)
            await query(small_dsn, "select tocsin.enqueue('q', '8')")
            await handled.wait(9)
            assert sorted(handled.payloads) == list(range(9))
            # A process that starts now says so, and has no LISTEN connection for as
            # long as it lasts.
            async with (
                tocsin.connect(small_dsn, heartbeat=0.2) as late,
                late.consumer("q", name="b"),
            ):
                assert late.statistics().listen_works
            # What another process asks of a worker comes with its heartbeat, too.
            await (await store.workers.get(consumer.worker_id)).interrupt()
            await run.wait()
            await consumer.resume()
            await stuck.execute("commit")
        rings = store.statistics().notifications
        async with store.consumer("q", name="c") as consumer, running(consumer, handled):
            for n in range(100):  # the first ones may still come with a heartbeat
                await store.produce("q", n)
                await handled.wait(10 + n)
                if store.statistics().notifications > rings:
                    break
            assert store.statistics().notifications > rings


@pytest.mark.slow
async def test_an_enqueue_that_fails_for_a_full_queue_at_its_commit_is_sent_again(
    small_dsn: str,
) -> None:
    """Other sessions filled it after the function had asked."""
    await query(
        small_dsn,
        "create sequence attempts; create function fill() returns trigger language plpgsql as $$"
        f" begin if nextval('public.attempts') < 3 then perform n from ({FILL}) n; end if; return"
        " null; end $$; create constraint trigger fill after insert on tocsin.messages deferrable"
        " initially deferred for each row execute function fill()",
    )
    async with tocsin.connect(small_dsn) as store:
        first = await store.produce("q", 1)
        assert await query(
            small_dsn, "select id, (select last_value from attempts) from tocsin.messages"
        ) == [(first, 3)]
