"""SIGINT and SIGTERM within `drain_on_signals`, at every moment that a service may be
in."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, Handled, query, until, until_idle, until_query
from tests.support.runs import running
from tocsin._queue.consuming import lease_clock, signals
from tocsin.embedded import EmbeddedServer


async def hang(_: object) -> None:
    await trio.sleep_forever()


async def test_a_signal_ends_a_suspended_run(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with (
        store.consumer("q") as consumer,
        tocsin.drain_on_signals(consumer),
        running(consumer) as run,
    ):
        await (await store.workers.get(consumer.worker_id)).suspend()
        signal.raise_signal(signal.SIGTERM)
        await run.wait()


async def test_a_signal_does_not_interrupt_the_next_owner_of_the_name(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tocsin")
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as store,
        tocsin.connect(store_dsn) as other,
    ):
        await store.queues.create("q")
        async with store.consumer("q", name="w") as old, tocsin.drain_on_signals(old):
            await query(
                store_dsn,
                "select tocsin.unregister_process(id, died => true) from tocsin.processes",
            )
            async with other.consumer("q", name="w") as new:
                assert new.worker_id == old.worker_id
                signal.raise_signal(signal.SIGTERM)
                await until(
                    lambda: (
                        "its registration has ended" in caplog.text
                        or "has been registered by" in caplog.text
                    )
                )
                assert await new.status() == "ready"


async def test_a_signal_between_two_runs_while_the_database_is_away_ends_the_next(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer):
            await own_server.stop()
            signal.raise_signal(signal.SIGTERM)
            # what it had, it has found broken
            await until(
                lambda: not store.statistics().pool.opened or store.statistics().pool.broken
            )
            await trio.testing.wait_all_tasks_blocked(0.05)
            await own_server.start()
            with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
                while True:
                    with trio.move_on_after(0.5):
                        await consumer.handle(hang)


async def test_a_signal_is_not_forgotten_when_a_suspension_ends_before_the_next_run(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, tocsin.drain_on_signals(consumer):
        handle = await store.workers.get(consumer.worker_id)
        await handle.suspend()
        signal.raise_signal(signal.SIGTERM)  # the registry refuses to interrupt a suspended worker
        await trio.testing.wait_all_tasks_blocked(0.05)
        await handle.resume()
        with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
            await consumer.handle(hang)


async def test_a_signal_ends_a_wait_for_messages_by_hand(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with trio.fail_after(PATIENCE):
        async with (
            store.consumer("q") as consumer,
            tocsin.drain_on_signals(consumer),
            trio.open_nursery() as nursery,
        ):

            async def take() -> None:
                with pytest.raises(tocsin.Suspended):
                    await consumer.dequeue(wait=3600)

            nursery.start_soon(take)
            await until_idle(store)
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("command", ["interrupt", "suspend"])
async def test_a_command_ends_a_wait_for_messages_by_hand(
    store: tocsin.Store, command: str
) -> None:
    await store.queues.ensure("q")
    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(tocsin.StateTransitionError):
                    await consumer.dequeue(wait=3600)

            nursery.start_soon(take)
            await until_idle(store)
            handle = await store.workers.get(consumer.worker_id)
            commands: dict[str, Callable[[], Awaitable[object]]] = {
                "interrupt": handle.interrupt,
                "suspend": handle.suspend,
            }
            await commands[command]()


@pytest.mark.slow
async def test_a_loop_that_begins_again_when_the_connection_is_lost_does_not_forget_a_signal(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended) as caught:
                async with tocsin.drain_on_signals(consumer):
                    await own_server.stop()
                    signal.raise_signal(signal.SIGTERM)
                    await trio.testing.wait_all_tasks_blocked()
                    await consumer.suspend()
    assert isinstance(caught.value.__cause__, tocsin.ConnectionLost)


@pytest.mark.slow
async def test_without_a_signal_a_lost_connection_is_what_it_is(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.ConnectionLost):
                async with tocsin.drain_on_signals(consumer):
                    await own_server.stop()
                    await consumer.suspend()


async def test_after_the_block_a_consumer_may_run_again(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            async with tocsin.drain_on_signals(consumer):
                signal.raise_signal(signal.SIGTERM)
                await trio.testing.wait_all_tasks_blocked()
                await consumer.handle(hang)
        await consumer.resume()
        assert await consumer.dequeue() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_drain_and_a_second_one_cancels(
    store: tocsin.Store, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "ONE_SIGNAL_WITHIN", 0)
    await store.queues.ensure("q")
    await store.produce("q", 1)
    began = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        began.set()
        await trio.sleep_forever()

    async def signal_twice(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await began.wait()
        for _ in range(2):
            signal.raise_signal(number)
            await trio.testing.wait_all_tasks_blocked()

    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(signal_twice)
            with pytest.raises(KeyboardInterrupt):
                async with tocsin.drain_on_signals(consumer):
                    await consumer.handle(handle)
    async with store.consumer("q") as consumer:
        assert [m.read_ct for m in await consumer.dequeue()] == [1]


async def test_a_signal_ends_a_run_whose_handlers_have_ended_while_the_database_is_away(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._concurrency.grace.GRACE", 0.1)
    began, away = trio.Event(), trio.Event()

    async def handle(_: tocsin.Message) -> None:
        began.set()
        await away.wait()

    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:

            async def serve() -> None:
                with pytest.raises(tocsin.Suspended):
                    async with tocsin.drain_on_signals(consumer):
                        await consumer.handle(handle)

            nursery.start_soon(serve)
            with trio.fail_after(PATIENCE):
                await began.wait()
                await own_server.stop()
                signal.raise_signal(signal.SIGTERM)
                away.set()
                await until(lambda: not nursery.child_tasks)


# Several consumers


async def signal_when(began: trio.Event) -> None:
    await began.wait()
    signal.raise_signal(signal.SIGTERM)


class Slow:
    """A handler that is at work when the signal comes, and goes on until what it waits
    for has happened."""

    def __init__(self, until: Callable[[], Awaitable[object]]) -> None:
        self.began = trio.Event()
        self.handled = list[object]()
        self._until = until

    async def __call__(self, message: tocsin.Message) -> None:
        self.began.set()
        await self._until()
        self.handled.append(message.payload)


@pytest.fixture
async def queues(store: tocsin.Store) -> tocsin.Store:
    """A store with two queues, one of which has a message."""
    await store.queues.ensure("idle")
    await store.queues.ensure("busy")
    await store.produce("busy", "slow")
    return store


def until_suspended(dsn: str, name: str) -> Callable[[], Awaitable[None]]:
    """Return when this worker's run has ended in the registry."""

    async def wait() -> None:
        await until_query(
            dsn, "select 1 from tocsin.workers where name = %s and status = 'suspended'", name
        )

    return wait


@pytest.mark.parametrize("named", [True, False])
async def test_several_runs_in_one_nursery_end_together_with_one_suspended(
    queues: tocsin.Store, store_dsn: str, named: bool
) -> None:
    slow = Slow(until_suspended(store_dsn, "idle"))
    with trio.fail_after(PATIENCE):
        async with queues.consumer("idle", name="idle") as idle, queues.consumer("busy") as busy:
            with pytest.raises(tocsin.Suspended) as caught:
                async with (
                    tocsin.drain_on_signals(*([idle, busy] if named else [])),
                    trio.open_nursery() as nursery,
                ):
                    await nursery.start(idle.handle, hang)
                    await nursery.start(busy.handle, slow)
                    nursery.start_soon(signal_when, slow.began)
    assert slow.handled == ["slow"]
    assert (caught.value.reason, caught.value.handled, caught.value.released) == (
        "interrupted",
        1,
        0,
    )


async def test_the_one_suspended_has_the_sums_of_all_runs(store: tocsin.Store) -> None:
    for queue in "abc":
        await store.queues.ensure(queue, retry_base=3600)
        await store.produce(queue, "good")
        await store.produce(queue, "bad")

    async def refuse_bad(message: tocsin.Message) -> None:
        if message.payload == "bad":
            raise ValueError

    handled = Handled(refuse_bad)
    async with store.consumer("a") as a, store.consumer("b") as b, store.consumer("c") as c:
        with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as caught:
            async with tocsin.drain_on_signals(), trio.open_nursery() as nursery:
                for consumer in (a, b, c):
                    nursery.start_soon(consumer.handle, handled)
                await handled.wait(6)
                signal.raise_signal(signal.SIGTERM)
    assert (caught.value.handled, caught.value.failed, caught.value.released) == (3, 3, 0)


async def test_several_runs_in_tasks_with_a_block_each_end_together(
    queues: tocsin.Store, store_dsn: str
) -> None:
    slow = Slow(until_suspended(store_dsn, "idle"))

    async def consume(
        queue: str,
        handler: Callable[[tocsin.Message], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        async with (
            queues.consumer(queue, name=queue) as consumer,
            tocsin.drain_on_signals(consumer),
        ):
            await consumer.handle(handler, task_status=task_status)

    with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(consume, "idle", hang)
            await nursery.start(consume, "busy", slow)
            nursery.start_soon(signal_when, slow.began)
    assert slow.handled == ["slow"]
    assert {type(e) for e in caught.value.exceptions} == {tocsin.Suspended}
    # the same signal may arrive once more
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


async def test_blocks_may_end_in_any_order_and_the_rest_still_get_signals(
    queues: tocsin.Store,
) -> None:
    former = signal.getsignal(signal.SIGTERM)
    first_may_end, second_is_open = trio.Event(), trio.Event()

    async def first() -> None:
        async with tocsin.drain_on_signals():
            await first_may_end.wait()

    with trio.fail_after(PATIENCE):
        async with queues.consumer("idle") as idle, trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()

            async def second() -> None:
                with pytest.raises(tocsin.Suspended):
                    async with tocsin.drain_on_signals(idle):
                        second_is_open.set()
                        await idle.handle(hang)

            nursery.start_soon(second)
            await second_is_open.wait()
            first_may_end.set()
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
    async with tocsin.drain_on_signals():
        pass
    signals._receiver.get()._acted_at = -1e9
    async with tocsin.drain_on_signals():
        pass
    assert signal.getsignal(signal.SIGTERM) == former


async def test_a_wait_by_hand_ends_when_another_consumer_has_settled_what_it_holds(
    queues: tocsin.Store,
) -> None:
    handled, began, waits = list[object](), trio.Event(), trio.Event()

    async def consume(consumer: tocsin.Consumer) -> None:
        while True:
            for message in await consumer.dequeue(wait=3600):
                began.set()
                await waits.wait()
                await message.archive()
                handled.append(message.payload)

    async def release_when_drained() -> None:
        await signal_when(began)
        await trio.testing.wait_all_tasks_blocked(0.1)
        waits.set()

    with trio.fail_after(PATIENCE):
        async with queues.consumer("idle") as idle, queues.consumer("busy") as busy:
            with pytest.raises(tocsin.Suspended):
                async with tocsin.drain_on_signals(), trio.open_nursery() as nursery:
                    nursery.start_soon(consume, idle)
                    nursery.start_soon(consume, busy)
                    nursery.start_soon(release_when_drained)
    assert handled == ["slow"]


async def test_a_run_does_not_wait_for_messages_that_its_own_task_dequeued(
    store: tocsin.Store,
) -> None:
    """The task settles them when the run has ended."""
    await store.queues.ensure("q", vt=3600)
    await store.queues.ensure("other", vt=3600)
    await store.produce("q", 1)
    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as manual, store.consumer("other") as consumer:
            with pytest.raises(tocsin.Suspended):
                async with tocsin.drain_on_signals():
                    (message,) = await manual.dequeue()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_raise_when_idle, store)
                        with pytest.raises(tocsin.Suspended) as ended:
                            await consumer.handle(_do_nothing)
                    await message.archive()
                    raise ended.value


async def _raise_when_idle(store: tocsin.Store) -> None:
    await until_idle(store)
    signal.raise_signal(signal.SIGTERM)


async def _do_nothing(_: tocsin.Message) -> None:
    pass


async def test_consumers_by_hand_that_hold_messages_while_they_wait_do_not_wait_for_each_other(
    store: tocsin.Store,
) -> None:
    with trio.fail_after(PATIENCE):
        for queue in ("a", "b"):
            await store.queues.ensure(queue, vt=3600)
            await store.produce(queue, 1)
        async with store.consumer("a") as a, store.consumer("b") as b:
            with pytest.raises(tocsin.Suspended):
                async with tocsin.drain_on_signals(), trio.open_nursery() as nursery:
                    for consumer in (a, b):
                        assert len(await consumer.dequeue()) == 1
                        nursery.start_soon(lambda c: c.dequeue(wait=3600), consumer)
                    await until_idle(store)
                    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("end", ["the block is left", "the lease ends while the machine sleeps"])
async def test_a_run_does_not_wait_for_what_is_not_held_any_more(
    queues: tocsin.Store, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    began = trio.Event()
    began.set()
    async with AsyncExitStack() as block:
        manual_consumer = await block.enter_async_context(queues.consumer("busy"))
        assert len(await manual_consumer.dequeue(vt=3600)) == 1
        if end == "the block is left":
            await block.aclose()
        else:
            monkeypatch.setattr(lease_clock, "time_asleep", lambda: 4000.0)
        with trio.fail_after(PATIENCE):
            async with queues.consumer("idle") as idle:
                with pytest.raises(tocsin.Suspended):
                    async with tocsin.drain_on_signals(), trio.open_nursery() as nursery:
                        await nursery.start(idle.handle, hang)
                        nursery.start_soon(signal_when, began)


@pytest.mark.parametrize("named", [True, False])
async def test_a_signal_passes_over_a_consumer_whose_store_is_closed(
    queues: tocsin.Store, store_dsn: str, named: bool
) -> None:
    async with tocsin.connect(store_dsn) as closed, closed.consumer("idle") as left:
        pass
    slow = Slow(trio.testing.wait_all_tasks_blocked)
    with trio.fail_after(PATIENCE):
        async with queues.consumer("busy") as busy:
            with pytest.raises(tocsin.Suspended) as caught:
                async with (
                    tocsin.drain_on_signals(*([left, busy] if named else [])),
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(signal_when, slow.began)
                    await busy.handle(slow)
    assert slow.handled == ["slow"]
    assert caught.value.handled == 1


async def test_a_run_inside_of_a_handler_does_not_wait_for_that_handler(
    queues: tocsin.Store,
) -> None:
    began = trio.Event()
    async with queues.consumer("idle") as inner, queues.consumer("busy") as outer:

        async def handle(_: tocsin.Message) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(signal_when, began)
                with pytest.raises(tocsin.Suspended):
                    async with inner.messages() as stream:
                        began.set()
                        await anext(stream, None)

        with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as caught:
            async with tocsin.drain_on_signals():
                await outer.handle(handle)
        assert caught.value.handled == 1


async def test_a_consumer_that_is_opened_after_the_signal_begins_no_run(
    queues: tocsin.Store,
) -> None:
    async with tocsin.drain_on_signals():
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        async with queues.consumer("busy") as consumer:
            with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
                await consumer.handle(hang)


async def test_a_block_that_is_opened_while_another_one_drains_drains_too(
    queues: tocsin.Store,
) -> None:
    async with tocsin.drain_on_signals(), queues.consumer("busy") as consumer:
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(tocsin.Suspended), trio.fail_after(PATIENCE):
            async with tocsin.drain_on_signals(consumer):
                await consumer.handle(hang)


async def test_an_error_at_the_end_of_a_run_is_not_hidden(queues: tocsin.Store) -> None:
    began = trio.Event()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as caught:
        async with (
            queues.consumer("idle") as idle,
            tocsin.drain_on_signals(),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(fail)
            await nursery.start(idle.handle, hang)
            nursery.start_soon(signal_when, began)
            began.set()
    assert caught.group_contains(ZeroDivisionError)


# One signal that arrives more than once


async def test_a_signal_that_arrives_twice_is_one(queues: tocsin.Store, store_dsn: str) -> None:
    began, twice = trio.Event(), trio.Event()

    async def handle(_: tocsin.Message) -> None:
        began.set()
        await twice.wait()

    async def signal_twice() -> None:
        await began.wait()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
        twice.set()

    with trio.fail_after(PATIENCE):
        async with queues.consumer("busy") as busy, trio.open_nursery() as nursery:
            nursery.start_soon(signal_twice)
            with pytest.raises(tocsin.Suspended) as caught:
                async with tocsin.drain_on_signals(busy):
                    await busy.handle(handle)
        assert caught.value.handled == 1
        signal.raise_signal(signal.SIGTERM)  # and once more, when the block has ended
        await trio.testing.wait_all_tasks_blocked()


async def test_a_signal_reaches_a_forked_process_as_if_there_were_no_block(
    store: tocsin.Store,
) -> None:
    async with tocsin.drain_on_signals():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        status = await trio.to_thread.run_sync(lambda: os.waitpid(child, 0)[1])
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


async def test_in_another_thread_it_is_refused() -> None:
    async def main() -> None:
        async with tocsin.drain_on_signals():
            pass

    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(trio.run, main)


# Starting in a nursery


async def test_a_run_is_started_when_it_polls(queues: tocsin.Store) -> None:
    async with (
        queues.consumer("idle") as idle,
        queues.consumer("busy") as busy,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(idle.handle, hang)
        assert await idle.status() == "polling"
        await nursery.start(partial(busy.handle_batches, hang, size=2))
        assert await busy.status() == "polling"
        nursery.cancel_scope.cancel()


async def test_a_run_that_is_refused_raises_where_it_is_started(queues: tocsin.Store) -> None:
    async with queues.consumer("idle") as idle, trio.open_nursery() as nursery:
        await idle.suspend()
        with pytest.raises(tocsin.StateTransitionError):
            await nursery.start(idle.handle, hang)


# Ctrl-C without such a block

INTERRUPTED_IN_OUR_TASK = """
import logging, signal, sys
import tocsin, trio

class Interrupt(logging.Handler):
    def emit(self, record):
        logging.getLogger("tocsin").removeHandler(self)
        print("interrupted in", trio.lowlevel.current_task().name, flush=True)
        signal.raise_signal(signal.SIGINT)

async def main():
    async with tocsin.connect(sys.argv[1]) as store:
        await store.queues.ensure("q")
        async with store.consumer("q"):
            # What a task of ours logs is where it can be interrupted for sure.
            logging.getLogger("tocsin").addHandler(Interrupt())
            try:
                async with store.transaction() as connection:
                    await connection.execute(
                        "select pg_terminate_backend(pid) from pg_locks"
                        " where locktype = 'advisory' and pid <> pg_backend_pid()"
                    )
                await trio.sleep_forever()
            except KeyboardInterrupt:
                print("the main task has it", flush=True)

trio.run(main)
"""


async def test_a_keyboard_interrupt_in_a_task_of_ours_reaches_the_main_task(
    store: tocsin.Store, store_dsn: str
) -> None:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [sys.executable, "-c", INTERRUPTED_IN_OUR_TASK, store_dsn],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr.decode()
    first, *rest = ended.stdout.decode().splitlines()
    assert first == "interrupted in tocsin: registration, LISTEN and heartbeat"
    assert rest == ["the main task has it"]
