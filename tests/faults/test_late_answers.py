"""Answers of the server that arrive after their subject has changed."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

import tocsin
from tests.support import Handled, query, until, until_blocked, until_idle, until_query
from tests.support.faults import SOON, hang, holding
from tests.support.runs import running
from tocsin._queue.consuming.run import Run

pytestmark = pytest.mark.fault


async def test_a_command_during_a_heartbeat_is_not_forgotten(store_dsn: str) -> None:
    """The heartbeat has read the workers already when the command comes. The
    notification of the command arrives with the answer of the heartbeat."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, running(consumer) as run:
            await until_idle(store)
            async with holding(store_dsn, "lock table tocsin.messages"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                await query(store_dsn, "select tocsin.interrupt(%s)", consumer.worker_id)
            with trio.fail_after(SOON):
                await run.wait()


async def test_a_heartbeat_requested_during_a_heartbeat_is_not_forgotten(store_dsn: str) -> None:
    """A worker is suspended and resumed while an earlier heartbeat is under way. The
    refused claim requests a heartbeat, which must follow."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        beats = store.statistics().heartbeats
        async with store.consumer("q"):
            await until_idle(store)
            async with holding(store_dsn, "select from tocsin.processes for update"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                beats = store.statistics().heartbeats
                store._process.request_heartbeat()
            with trio.fail_after(SOON):
                await until(lambda: store.statistics().heartbeats >= beats + 2)


async def test_a_heartbeat_that_was_sent_before_a_worker_was_registered(store_dsn: str) -> None:
    """Its answer does not contain the worker, although the worker was not shut down."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled = Handled()
        async with AsyncExitStack() as stack:
            early = await stack.enter_async_context(store.consumer("q"))
            run_of_early = await stack.enter_async_context(running(early, handled))
            await until_idle(store)
            async with holding(store_dsn, "lock table tocsin.messages"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                late = await stack.enter_async_context(store.consumer("q", name="late"))
                run_of_late = await stack.enter_async_context(running(late, handled))
                await until_blocked(store_dsn, ".claim(")
            await store.produce("q", 1)
            with trio.move_on_after(SOON):
                await handled.wait(1)
            assert not run_of_early.ended
            assert not run_of_late.ended
            run_of_early.cancel()
            run_of_late.cancel()


async def test_suspend_with_release_cancels_the_handlers_also_when_a_claim_noticed_first(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    cancelled = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with store.consumer("q") as consumer, running(consumer, handle, concurrency=2) as run:
        await store.produce("q", 1)
        await run.handled.wait(1)
        await until_idle(store)
        async with holding(store_dsn, "select from tocsin.processes for update"):
            await query(store_dsn, "select tocsin.suspend(%s, release => true)", consumer.worker_id)
            await until_blocked(store_dsn, ".heartbeat(")
            await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
            own = consumer._state.run
            assert isinstance(own, Run)
            with trio.fail_after(SOON):
                while own.may_claim:
                    await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
        with trio.move_on_after(SOON):
            await cancelled.wait()
        was_cancelled = cancelled.is_set()
        run.cancel()
    assert was_cancelled


async def test_suspend_with_release_and_resume_at_once_cancels_the_handlers(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The process sends its heartbeat after both, and its leases are gone."""
    await store.queues.ensure("q", vt=3600)
    cancelled = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with store.consumer("q") as consumer, running(consumer, handle) as run:
        await store.produce("q", 1)
        await run.handled.wait(1)
        await until_idle(store)
        await query(
            store_dsn,
            "select tocsin.suspend(%s, release => true), tocsin.resume(%s)",
            consumer.worker_id,
            consumer.worker_id,
        )
        with trio.move_on_after(SOON):
            await cancelled.wait()
        was_cancelled = cancelled.is_set()
        run.cancel()
    assert was_cancelled


async def test_a_heartbeat_between_the_end_of_a_run_and_its_cleanup(store: tocsin.Store) -> None:
    """The run's nursery has closed, and its task has not resumed yet. A change of the
    worker's status at this moment must not be an error."""
    await store.queues.ensure("q")
    errors = list[RuntimeError]()

    class Between(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            run = consumer._state.run
            if isinstance(run, Run) and run.nursery._closed:
                try:
                    consumer._state.on_worker_status("suspended", None)
                except RuntimeError as error:
                    errors.append(error)

    async with store.consumer("q") as consumer:
        between = Between()
        trio.lowlevel.add_instrument(between)
        with trio.move_on_after(0.2):
            await consumer.handle(hang)
        trio.lowlevel.remove_instrument(between)
    assert not errors


async def test_of_two_batches_with_the_same_message_the_later_lease_is_kept(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Neither batch is decoded when all leases are read."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        parts = consumer._parts
        first = await parts.claimer.claim(1, None)
        await query(
            store_dsn, "select tocsin.release(array[id], array[lease]) from tocsin.messages"
        )
        second = await parts.claimer.claim(1, None)
        parts.leases.messages()
        (former,), (message,) = first.batch.take_all(), second.batch.take_all()
        assert former.lease_token < message.lease_token
        assert parts.leases.find(message.id, "archive") is message


async def test_a_cancelled_claim_hides_its_messages_from_no_consumer(store_dsn: str) -> None:
    """During the claim, a consumer of another process claims, skips the locked rows,
    and waits."""
    await query(
        store_dsn,
        "create function public.hold() returns trigger language plpgsql as $$ begin perform"
        " pg_advisory_xact_lock(new.consumer_worker_id); return new; end $$; create trigger hold"
        " before update on tocsin.messages for each row execute function public.hold()",
    )
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as store,
        tocsin.connect(store_dsn, heartbeat=3600) as other_store,
    ):
        await store.queues.ensure("q")
        handled = Handled()
        async with (
            store.consumer("q") as consumer,
            other_store.consumer("q") as other,
            trio.open_nursery() as nursery,
            holding(store_dsn, "select pg_advisory_xact_lock(%s)", consumer.worker_id),
        ):
            await store.produce("q", 1)
            to_cancel = trio.CancelScope()

            async def dequeue() -> None:
                with to_cancel:
                    await consumer.dequeue()

            nursery.start_soon(dequeue)
            await until_blocked(store_dsn, "claim(")
            async with running(other, handled) as run:
                await until_idle(other_store)
                to_cancel.cancel()
                with trio.move_on_after(SOON):
                    await handled.wait(1)
                run.cancel()
    assert handled.payloads == [1]


async def test_a_lease_that_its_handler_has_made_shorter_is_extended_all_the_same(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    extended = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        await message.extend(1)
        extended.set()
        await trio.sleep_forever()

    async with store.consumer("q") as consumer, running(consumer, handle) as run:
        await store.produce("q", 1)
        await extended.wait()
        await until_query(
            store_dsn,
            "select 1 from tocsin.messages where vt > tocsin._clock() + interval '30 min'",
        )
        run.cancel()


async def test_a_lease_that_a_statement_under_way_has_settled_is_not_taken_for_lost(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to an extension may arrive before the answer to the settlement."""
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer, running(consumer, hang) as run:
        await run.handled.wait(1)
        (message,) = run.handled.messages
        leases, keeper = consumer._parts.leases, consumer._parts.keeper
        with leases.settling([message]):
            await query(
                store_dsn,
                "select tocsin.archive(array[%s], array[%s])",
                message.id,
                message.lease_token,
            )
            await keeper.refresh()
            assert message in leases
            assert not caplog.records
        await keeper.refresh()  # it was another process
        assert message not in leases
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        run.cancel()
