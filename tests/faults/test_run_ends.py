"""How runs, streams and handlers end when leases are lost or a cleanup fails."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, open_connection, query, until_idle
from tests.support.faults import SOON, hang
from tests.support.runs import running, running_call
from tocsin._queue.consuming.run import Run
from tocsin.embedded import EmbeddedServer

pytestmark = pytest.mark.fault


async def test_a_run_that_could_not_requeue_does_not_keep_its_leases_in_the_next(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q", vt=4)
        await store.produce("q", 1)
        async with store.consumer("q") as consumer:
            async with running(consumer, hang) as first:
                await first.handled.wait(1)
                await own_server.stop()
                first.cancel()
            await own_server.start()
            async with running(consumer) as second:
                with trio.move_on_after(2 * SOON):
                    await second.handled.wait(1)
                second.cancel()
    assert len(second.handled.messages) == 1


async def test_a_consumer_has_one_run_at_a_time(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    refused = list[RuntimeError]()

    async def handle() -> None:
        try:
            await consumer.handle(hang)
        except RuntimeError as error:
            refused.append(error)

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(handle)
        nursery.start_soon(handle)
        await until_idle(store)
        nursery.cancel_scope.cancel()
    assert len(refused) == 1


async def test_redelivered_to_the_same_consumer_the_former_handler_is_cancelled(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The lease ended while this process could not extend it (its event loop was
    blocked), and the next claim is its own."""
    await store.queues.ensure("q", vt=3600)
    cancelled, is_cancelled = list[int](), trio.Event()

    async def handle(message: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if not ending:
                cancelled.append(message.read_ct)
                is_cancelled.set()
            raise

    ending = False
    async with store.consumer("q") as consumer, running(consumer, handle, concurrency=2) as run:
        await store.produce("q", 1)
        await run.handled.wait(1)
        await query(store_dsn, "update tocsin.messages set vt = now()")
        await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
        await run.handled.wait(2)
        with trio.move_on_after(SOON):
            await is_cancelled.wait()
        ending = True
        run.cancel()
    assert cancelled == [1]


async def test_a_stream_does_not_end_silently_when_a_lease_is_lost(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.5)
    went_on = error = None
    async with store.consumer("q") as consumer:
        await store.produce("q", 1)
        try:
            async with consumer.messages() as stream:
                async for _ in stream:
                    await query(store_dsn, "delete from tocsin.messages")
                    with trio.move_on_after(SOON):
                        await trio.sleep_forever()
                    went_on = True
                    break
        except tocsin.TocsinError as raised:
            error = raised
    assert went_on or error, "the block was left without a word"


async def test_a_stream_forgets_the_messages_it_has_settled(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(range(20))
        async with consumer.messages() as stream:
            run = consumer._state.run
            assert isinstance(run, Run)
            async for message in stream:
                await message.archive()
                if message.payload == 19:
                    break
            assert sum(len(call.messages) for call in run.calls) <= 1


async def test_draining_does_not_wait_for_leases_that_are_gone(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.1)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer, store.consumer("q") as other:
        assert await consumer.dequeue()
        (message,) = await other.dequeue(wait=PATIENCE)
        await other.archive(message)
        with trio.fail_after(SOON):
            await consumer.suspend(drain=True)


class AtStep(trio.abc.Instrument):
    """Calls a function when tasks other than the test's have made a number of steps."""

    def __init__(self, steps: int, act: Callable[[], object]) -> None:
        self._mine = trio.lowlevel.current_task()
        self._left = steps
        self._act = act

    @property
    def acted(self) -> bool:
        return self._left == 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._mine and self._left:
            self._left -= 1
            if self.acted:
                self._act()


@pytest.mark.parametrize("how", ["end_run", "close"])
async def test_a_run_ended_at_any_step_of_a_wake_up_ends(store_dsn: str, how: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:  # which would wake it once more
        await store.queues.ensure("q", vt=3600)
        for step in itertools.count(1):
            await query(store_dsn, "truncate tocsin.messages, tocsin.archive")
            async with store.consumer("q") as consumer:
                with trio.fail_after(PATIENCE):
                    async with running(consumer) as run:
                        await until_idle(store)
                        state = consumer._state
                        at_step = AtStep(
                            step,
                            (
                                state.end_run
                                if how == "end_run"
                                else functools.partial(state.close, store)
                            ),
                        )
                        trio.lowlevel.add_instrument(at_step)
                        await query(store_dsn, "select tocsin.enqueue('q', '1')")
                        async with open_connection(store_dsn) as observer:
                            while (
                                not at_step.acted
                                and not await (
                                    await observer.execute("select 1 from tocsin.archive")
                                ).fetchone()
                            ):
                                pass
                        trio.lowlevel.remove_instrument(at_step)
                        if not at_step.acted:
                            await consumer.interrupt()
                        await run.wait()
            states = (
                "select state::text from tocsin.messages union all select 'archived' from"
                " tocsin.archive"
            )
            assert await query(store_dsn, states) in ([("ready",)], [("archived",)])
            if not at_step.acted:
                break
    assert step > 5


async def test_tasks_of_a_handler_that_raise_while_they_are_cancelled_do_not_end_the_loop(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", vt=0.5)

    async def fail_to_clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the file is gone")

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_to_clean_up)
                nursery.start_soon(trio.sleep_forever)
                await query(store_dsn, "delete from tocsin.messages where id = %s", message.id)

    async with store.consumer("q") as consumer, running(consumer, handle) as run:
        await store.produce("q", 1)
        await run.handled.wait(1)
        await store.produce("q", 2)
        await run.handled.wait(2)
    assert "the file is gone" in caplog.text
    assert run.suspended.handled == 1


async def test_a_thread_left_behind_costs_no_other_message_its_delivery(
    store: tocsin.Store,
) -> None:
    """A blocking handler that hangs is left behind at its timeout. The next message's
    time must not run out before it is handled."""
    await store.queues.ensure("q", max_deliveries=1)
    hung, handled = threading.Event(), list[object]()

    def handle(message: tocsin.Message) -> None:
        handled.append(message.payload)
        if message.payload == "hang":
            hung.wait()

    await store.produce_many("q", ["hang", 1, 2])
    async with (
        store.consumer("q") as consumer,
        running_call(consumer, functools.partial(consumer.handle, handle, timeout=0.2)) as run,
    ):
        with trio.move_on_after(SOON):
            await run.settled(3)
        hung.set()
        run.cancel()
    assert handled == ["hang", 1, 2]
