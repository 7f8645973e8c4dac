"""Claims that meet locks, expired messages, and messages that cannot move."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, query, until_blocked, until_idle
from tests.support.faults import SOON, holding
from tests.support.runs import running

pytestmark = pytest.mark.fault


async def test_suspend_with_release_against_a_claim_that_archives(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A claim that archives locks message rows and the worker; suspend, complete_poll,
    unregister lock the worker and then the rows."""
    await store.queues.ensure("q")
    first, go_on = trio.Event(), trio.Event()

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            first.set()
            await go_on.wait()

    async with store.consumer("q") as consumer, running(consumer, handle) as run:
        await store.produce("q", 1)
        await first.wait()
        await store.produce("q", 2)
        async with holding(
            store_dsn,
            "select pg_advisory_xact_lock(tocsin._lock_key('worker', %s))",
            consumer.worker_id,
        ) as other:
            go_on.set()
            await until_blocked(store_dsn, "tocsin%.claim(")
            await other.execute("select tocsin.suspend(%s, release => true)", [consumer.worker_id])
        await consumer.resume()
        await run.settled(2, "archived")
        assert await query(store_dsn, "select count(*) from tocsin.archive") == [(2,)]


async def test_extend_waits_for_no_message_that_another_transaction_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many([1, 2, 3])
        one, two, three = await consumer.dequeue(3)
        await three.archive()
        async with holding(
            store_dsn, "select 1 from tocsin.messages where id = %s for update", two.id
        ):
            with trio.fail_after(PATIENCE):
                assert await consumer._parts.keeper.extend([one, two, three], 30) == [
                    True,
                    None,
                    False,
                ]
        assert await consumer.extend_many([one, two, three], 30) == [True, True, False]


async def test_a_row_locked_by_another_session_is_not_claimed_without_pause(
    dsn_of_quiet_store: str,
) -> None:
    async with tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as store:
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with (
            holding(dsn_of_quiet_store, "select from tocsin.messages for update"),
            store.consumer("q") as consumer,
        ):
            assert await consumer.dequeue(wait=1) == []
        (calls,) = await query(
            dsn_of_quiet_store,
            "select sum(calls)::int from pg_stat_statements s join pg_database d on d.oid = s.dbid "
            "where d.datname = current_database() and query like '%%claim(%%'",
        )
    assert calls[0] < 100


async def test_expired_messages_in_a_claim_do_not_hide_ready_ones(store_dsn: str) -> None:
    """A claim that finds expired messages among the first returns fewer than asked for,
    although more are ready."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.producer("q") as producer, store.consumer("q") as consumer:
            await producer.enqueue_many(range(9), expires_in=0.001)
            await producer.enqueue_many(range(21))
            async with running(consumer, concurrency=10) as run:
                with trio.move_on_after(SOON):
                    await run.handled.wait(21)
    assert len(run.handled.messages) == 21


@pytest.mark.parametrize("at", ["-infinity", "0044-03-15 BC", "infinity"])
async def test_a_time_that_python_does_not_know_stops_no_consumer(
    store: tocsin.Store, store_dsn: str, at: str
) -> None:
    await store.queues.ensure("q")
    with suppress(psycopg.Error):
        await query(store_dsn, "select tocsin.enqueue('q', '1', at => %s)", at)
    with suppress(psycopg.Error):
        await query(store_dsn, "select tocsin.enqueue_many('q', '[1]', at => %s)", at)
    await query(
        store_dsn,
        "select tocsin.enqueue_each('q', jsonb_build_array(jsonb_build_object('payload', 1, 'at',"
        " %s::text)))",
        at,
    )
    await store.produce("q", 2)
    async with store.consumer("q") as consumer:
        assert 2 in [m.payload for m in await consumer.dequeue(9)]


async def test_an_expired_message_that_cannot_become_a_dead_letter_stops_no_consumer(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q")
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    async with store.consumer("q") as consumer:
        for payload in (12, 13, 14):
            await store.produce("q", payload, expires_in=0.000001)
        await store.produce("q", 1)
        async with running(consumer) as run:
            await run.handled.wait(1)
            await until_idle(store)
    assert run.handled.payloads == [1]
    assert await query(store_dsn, "select payload from tocsin.dead_letters order by id") == [
        (12,),
        (14,),
    ]
