"""How many messages a run prefetches, and when it requeues them."""

from __future__ import annotations

import logging
import secrets

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, Handled, query, until_idle, until_query
from tests.support.runs import running
from tocsin._queue.consuming import prefetch


@pytest.mark.slow
async def test_a_consumer_with_nothing_to_do_wakes_for_nothing(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q", vt=3600)
        async with (
            store.producer("q") as producer,
            store.consumer("q") as consumer,
            running(consumer) as run,
        ):
            for n in range(3):
                await producer.enqueue_many(range(100))
                await run.handled.wait(100 * (n + 1))
                with trio.fail_after(PATIENCE):
                    await trio.testing.wait_all_tasks_blocked(2 * prefetch.PATIENCE)


async def claim_ahead(producer: tocsin.Producer, handled: Handled) -> None:
    """Let a consumer of one message at a time become fast; the handler then hangs at
    "hang" with more messages claimed behind it."""
    await producer.enqueue_many([*range(200), "hang", *range(20)])
    await handled.wait(201)
    assert handled.payloads[-1] == "hang"


async def hang(message: tocsin.Message) -> None:
    if message.payload == "hang":
        await trio.sleep_forever()


HELD = "select count(*)::int from tocsin.messages where state = 'leased'"


async def test_when_interrupted_it_requeues_at_once_what_no_handler_has_seen(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        running(consumer, hang) as run,
    ):
        await claim_ahead(producer, run.handled)
        await consumer.interrupt()  # the handler may go on
        await until_query(store_dsn, HELD, gives=[(1,)])
        assert not run.ended
        assert await query(
            store_dsn, "select max(read_ct) from tocsin.messages where state = 'ready'"
        ) == [(0,)]
        consumer._state.end_run(grace=0)
    assert run.suspended.handled == 200
    assert await query(
        store_dsn, "select count(*)::int, max(read_ct) from tocsin.messages where state = 'ready'"
    ) == [(21, 0)]


async def test_when_suspended_it_requeues_at_once_what_no_handler_has_seen(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "PATIENCE", 3600)
    await store.queues.ensure("q")
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        running(consumer, hang) as run,
    ):
        await claim_ahead(producer, run.handled)
        await until_idle(store)
        assert await query(store_dsn, HELD) > [(1,)]
        await (await store.workers.get(consumer.worker_id)).suspend(drain=True)
        await until_query(store_dsn, HELD, gives=[(1,)])
        run.cancel()


async def test_when_handlers_become_slow_another_consumer_gets_the_rest(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with (
        store.producer("q") as producer,
        store.consumer("q") as a,
        store.consumer("q") as b,
        running(a, hang) as slow,
    ):
        await claim_ahead(producer, slow.handled)
        async with running(b) as other:
            await until_query(store_dsn, "select count(*)::int from tocsin.archive", gives=[(220,)])
            slow.cancel()
    assert len(slow.handled.messages) + len(other.handled.messages) >= 221


async def test_a_handler_that_waits_does_not_hold_up_the_next_one_and_no_more_run_than_allowed(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    go_on, active, most = trio.Event(), 0, 0

    async def handle(_: tocsin.Message) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await go_on.wait()
        active -= 1

    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        running(consumer, handle, concurrency=7) as run,
    ):
        await producer.enqueue_many(range(30))
        await run.handled.wait(7)
        await until_idle(store)
        go_on.set()
        await run.handled.wait(30)
    assert most == 7


async def test_a_message_that_cannot_be_archived_fails_alone(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its neighbours are archived, and it is delivered again with the reason."""
    await store.queues.ensure("q", retry_base=0, max_deliveries=2)
    caplog.set_level(logging.CRITICAL)
    await query(store_dsn, "alter table tocsin.archive add check (payload <> '13')")
    await store.produce_many("q", range(50))
    async with store.consumer("q") as consumer, running(consumer, concurrency=20) as run:
        await run.settled(49, "archived")
        await run.settled(2, "failed")
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(49,)]
    ((payload, error),) = await query(store_dsn, "select payload, error from tocsin.dead_letters")
    assert payload == 13
    assert error.startswith(psycopg.errors.CheckViolation.__name__)


async def test_a_message_that_can_neither_be_archived_nor_fail_holds_up_no_other(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    caplog.set_level(logging.CRITICAL)
    await query(store_dsn, "alter table tocsin.archive add check (payload <> '13')")
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    await store.produce_many("q", range(50))
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        running(consumer, concurrency=20) as run,
    ):
        await run.handled.wait(50)
        await producer.enqueue("afterwards")
        await run.settled(50, "archived")
        run.cancel()
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(50,)]
    assert await query(store_dsn, "select payload from tocsin.messages") == [(13,)]


async def test_the_refused_message_does_not_keep_a_cancelled_run_from_its_end(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is handled, and cannot be archived, when the run is cancelled: its neighbours
    are archived, the rest requeued."""
    await store.queues.ensure("q", retry_base=0)
    caplog.set_level(logging.CRITICAL)
    await query(store_dsn, "alter table tocsin.archive add check (payload <> '13')")
    scope = trio.CancelScope()

    async def handle(message: tocsin.Message) -> None:
        if message.payload == "cancel":
            scope.cancel()
            await trio.sleep_forever()

    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many([1, 13, 2, "cancel"])
        with scope:
            await consumer.handle(handle, concurrency=9)
        assert await query(store_dsn, "select payload from tocsin.archive order by id") == [
            (1,),
            (2,),
        ]
        assert await query(
            store_dsn,
            "select payload, last_error is null from tocsin.messages where state = 'ready' order"
            " by id",
        ) == [
            (13, False),
            ("cancel", True),
        ]
        await consumer.dequeue()  # and has no run any more
        assert not consumer._state.running


async def test_a_message_too_large_for_an_index_of_the_archive_fails_alone(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For psycopg this error is an operational one, like a deadlock; but it does not
    pass by itself."""
    await store.queues.ensure("q", max_deliveries=1)
    caplog.set_level(logging.CRITICAL)
    await query(store_dsn, "create index on tocsin.archive ((payload #>> '{}'))")
    await store.produce_many("q", [1, secrets.token_hex(20_000), 2])
    async with store.consumer("q") as consumer, running(consumer, concurrency=20) as run:
        await run.settled(2, "archived")
        await run.settled(1, "failed")
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]
    assert await query(store_dsn, "select payload from tocsin.archive order by id") == [(1,), (2,)]


async def test_when_no_message_can_be_archived_the_run_ends_and_none_has_failed(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Something is wrong with the database, and not with the messages."""
    await store.queues.ensure("q", max_deliveries=1)
    await query(
        store_dsn,
        "create function public.refuse() returns trigger language plpgsql as $$ begin raise"
        " insufficient_privilege; end $$; create trigger refuse before insert on tocsin.archive for"
        " each row execute function public.refuse()",
    )
    handled = Handled()
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many([1, 2])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await consumer.handle(handled, concurrency=2)
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0),
            ("ready", 0),
        ]
        assert await consumer.status() == "ready"
        assert len(await consumer.dequeue(2)) == 2
