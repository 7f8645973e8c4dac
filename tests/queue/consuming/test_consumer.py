"""Consuming: by hand, with handlers, in batches, as a stream; and how runs end."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, Handled, move_clock, query, until, until_idle, until_query
from tests.support.runs import running, running_call
from tests.support.sweeps import sweep
from tocsin._queue.consuming import step_watch

# By hand


async def test_wait_for_messages_with_a_deadline_ends_as_soon_as_there_is_one(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    got = list[tocsin.Message]()

    async def dequeue() -> None:
        got.extend(await consumer.dequeue(5, wait=PATIENCE))

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(dequeue)
        await trio.testing.wait_all_tasks_blocked()
        await store.produce("q", "at last")
    assert [m.payload for m in got] == ["at last"]


async def test_wait_for_messages_with_a_deadline_is_empty_when_that_comes(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        assert await consumer.dequeue(wait=0.01) == []


async def test_cancelled_dequeue_takes_nothing(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with trio.move_on_after(0.01):
            await consumer.dequeue(wait=PATIENCE)
        await store.produce("q", 1)
        assert len(await consumer.dequeue()) == 1


async def test_settling_many_tells_which(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(list("abcdefg"))
        a, b, c, d, e, f, g = await consumer.dequeue(9)
        await consumer.archive(a)
        await consumer.delete(b.id)
        assert await consumer.archive_many([a, c, b]) == [False, True, False]
        assert await consumer.delete_many([c, d]) == [False, True]
        assert await consumer.release_many([d, e], delay=100) == [False, True]
        await f.delete()
        await g.release()
        with pytest.raises(tocsin.LeaseLost) as lost:
            await g.extend(10)
        assert (lost.value.message_id, lost.value.operation) == (g.id, "extend")
        with pytest.raises(tocsin.LeaseLost):
            await consumer.archive(4711)
        assert await consumer.archive_many([]) == []
    assert await query(store_dsn, "select payload from tocsin.archive order by id") == [
        ("a",),
        ("c",),
    ]
    assert await query(
        store_dsn, "select payload, state::text, read_ct from tocsin.messages order by id"
    ) == [
        ("e", "delayed", 1),
        ("g", "ready", 1),
    ]


async def test_extend_goes_by_the_servers_now(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=30)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        await move_clock(store_dsn, 20)
        await message.extend(30)
        await move_clock(store_dsn, 40)
        assert await consumer.dequeue() == []
        await move_clock(store_dsn, 51)
        assert [m.id for m in await consumer.dequeue()] == [message.id]


# Handlers


async def test_plain_function_runs_in_a_thread_and_keeps_its_lease(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.4)
    await store.produce("q", 1)
    go_on, threads = threading.Event(), list[int]()

    def handle(message: tocsin.Message) -> None:
        threads.append(threading.get_ident())
        assert go_on.wait(PATIENCE)

    async with (
        store.consumer("q") as consumer,
        running_call(consumer, functools.partial(consumer.handle, handle)) as run,
    ):
        assert await until_query(
            store_dsn, "select read_ct from tocsin.messages where vt - dequeued_at > '1.2 s'"
        ) == [(1,)]
        go_on.set()
        await run.settled(1, "archived")
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_concurrency_is_reached_and_not_exceeded(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    active = most = 0
    full, go_on = trio.Event(), trio.Event()

    async def handle(_: tocsin.Message) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        if active == 5:
            full.set()
        await go_on.wait()
        active -= 1

    await store.produce_many("q", range(20))
    async with store.consumer("q") as consumer, running(consumer, handle, concurrency=5) as run:
        with trio.fail_after(PATIENCE):
            await full.wait()
        await until_idle(store)
        go_on.set()
        await run.handled.wait(20)
    assert most == 5
    assert sorted(run.handled.payloads) == list(range(20))


async def test_loop_with_a_handler_goes_on_after_errors_and_moves_what_always_fails(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=3, retry_base=0, retry_jitter=0)

    async def fail(message: tocsin.Message) -> None:
        if message.payload == "bad":
            raise ValueError(f"no\0 good \ud800 {message.read_ct}")

    await store.produce_many("q", ["bad", "good"])
    async with store.consumer("q") as consumer, running(consumer, fail) as run:
        await run.handled.wait(4)
        await run.settled(1, "archived")
        await run.settled(3, "failed")
    ((payload, reason, error, traceback, read_ct),) = await query(
        store_dsn, "select payload, reason, error, traceback, read_ct from tocsin.dead_letters"
    )
    assert (payload, reason, read_ct) == ("bad", "handler_failed", 3)
    assert error == "ValueError: no\\0 good \\ud800 3"
    assert "in fail" in traceback


async def test_backoff_grows_as_the_queue_says(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure(
        "q", retry_base=10, retry_factor=2, retry_max=60, retry_jitter=0.5, max_deliveries=99
    )
    rows = await query(
        store_dsn,
        "select n, extract(epoch from tocsin._backoff(q, n))::float8 from tocsin.queues q,"
        " generate_series(1, 200) n",
    )
    for deliveries, delay in rows:
        exact = min(60, 10 * 2 ** (deliveries - 1))
        assert exact * 0.5 <= delay <= exact * 1.5
    assert len({delay for _, delay in rows}) > 100  # jitter


async def test_handler_timeout_cancels_and_counts_as_a_failure(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)
    cancelled = trio.Event()

    async def hang(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with store.consumer("q") as consumer, running(consumer, hang, timeout=0.01) as run:
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        await run.settled(1, "failed")
    ((error,),) = await query(store_dsn, "select error from tocsin.dead_letters")
    assert error.startswith("TooSlowError")


async def test_handler_that_lost_its_lease_is_cancelled_and_cannot_settle(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.2)
    await store.produce("q", 1)
    cancelled = trio.Event()

    async def hang(message: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True), pytest.raises(tocsin.LeaseLost):
                await message.archive()
            cancelled.set()
            raise

    async with store.consumer("q") as consumer, running(consumer, hang) as run:
        await run.handled.wait(1)
        # as a claim by another would
        await query(store_dsn, "update tocsin.messages set lease = lease + 1")
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
        run.cancel()
    assert await query(store_dsn, "select id from tocsin.archive") == []


async def test_what_a_handler_sets_in_its_context_is_not_seen_by_the_next_call(
    store: tocsin.Store,
) -> None:
    mark: ContextVar[int | None] = ContextVar("mark", default=None)
    seen: list[int | None] = []

    async def note(message: tocsin.Message) -> None:
        seen.append(mark.get())
        mark.set(message.id)
        await trio.lowlevel.checkpoint()
        assert mark.get() == message.id

    await store.queues.create("q")
    await store.produce_many("q", [1, 2, 3])
    async with store.consumer("q") as consumer, running(consumer, note) as run:
        for count in (4, 5):
            await run.handled.wait(count - 1)
            await until_idle(store)
            await store.produce("q", count)
        await run.handled.wait(5)
    assert seen == [None] * 5


async def test_what_a_handler_leaves_in_its_context_is_not_seen_without_a_checkpoint(
    store: tocsin.Store,
) -> None:
    """Several calls without a checkpoint share a task, unless one of them has changed
    the context."""
    mark: ContextVar[int | None] = ContextVar("mark", default=None)
    seen: list[int | None] = []

    async def handler(message: tocsin.Message) -> None:
        seen.append(mark.get())
        if message.payload % 2:
            mark.set(message.id)
        else:
            mark.reset(mark.set(message.id))

    await store.queues.ensure("q")
    await store.produce_many("q", range(20))
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True, concurrency=3)
    assert seen == [None] * 20


async def test_what_a_cancelled_handler_leaves_in_its_context_is_not_seen(
    store: tocsin.Store, store_dsn: str
) -> None:
    mark: ContextVar[int | None] = ContextVar("mark", default=None)
    seen: list[int | None] = []

    async def handler(message: tocsin.Message) -> None:
        seen.append(mark.get())
        mark.set(message.id)
        if message.payload == "hang":
            await trio.sleep_forever()

    await store.queues.ensure("q", vt=0.2)
    await store.produce("q", "hang")
    async with store.consumer("q") as consumer, running(consumer, handler) as run:
        await run.handled.wait(1)
        # as a claim by another consumer would
        await query(
            store_dsn, "update tocsin.messages set lease = lease + 1, vt = now() + '1 hour'"
        )
        await until(lambda: not consumer._parts.leases.all())
        await until_idle(store)
        await store.produce("q", "next")
        await run.handled.wait(2)
    assert seen == [None, None]


async def test_failures_are_logged_with_the_handlers_name(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", retry_base=3600)
    await store.produce("q", 1)

    async def always_fails(_: tocsin.Message) -> None:
        raise ValueError("no good")

    with caplog.at_level(logging.WARNING, "tocsin"):
        async with store.consumer("q") as consumer, running(consumer, always_fails) as run:
            await run.handled.wait(1)
    (record,) = caplog.records
    assert record.message.startswith(
        f"{run.handled!r} failed with message 1, delivery 1: ValueError: no good; it is"
        " delivered again in "
    )


async def test_a_batch_handler_may_take_messages_out_of_its_list(store: tocsin.Store) -> None:
    await store.queues.create("q", max_deliveries=1)
    ids = await store.produce_many("q", range(4))

    async def handler(messages: list[tocsin.Message]) -> None:
        await messages.pop().archive()
        messages.clear()
        raise ValueError("no good")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle_batches(handler, size=4, once=True)
        assert [(await store.messages.get(i)).state for i in ids] == [
            "dead",
            "dead",
            "dead",
            "archived",
        ]


async def test_a_stream_whose_worker_is_stopped_says_so(store: tocsin.Store) -> None:
    await store.queues.create("q")
    await store.produce("q", 1)

    async def stop(worker_id: int) -> None:
        await (await store.workers.get(worker_id)).stop()

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        with (
            pytest.raises(tocsin.Suspended, match="stopped by a command"),
            trio.fail_after(PATIENCE),
        ):
            async with consumer.messages() as stream:
                async for _ in stream:
                    nursery.start_soon(stop, consumer.worker_id)
                    await trio.sleep_forever()


async def test_a_failure_after_settling_is_logged_too(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.create("q")
    message_id = await store.produce("q", 1)

    async def handler(message: tocsin.Message) -> None:
        await message.archive()
        raise ValueError("too late")

    with caplog.at_level(logging.WARNING, "tocsin"):
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended):
                await consumer.handle(handler, once=True)
    (record,) = caplog.records
    assert record.message.endswith(
        "failed with message 1, delivery 1: ValueError: too late; nothing was left to settle"
    )
    assert (await store.messages.get(message_id)).state == "archived"


async def test_what_cannot_be_called_is_refused_before_it_costs_a_message(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        for run in (
            consumer.handle(42),  # type: ignore[arg-type]
            consumer.handle_batches(None, size=2),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match="a handler is a function"):
                await run
    assert await query(store_dsn, "select read_ct from tocsin.messages") == [(0,)]


async def test_generator_functions_are_refused_before_they_cost_a_message(
    store: tocsin.Store, store_dsn: str
) -> None:
    def generates(_: object) -> Iterator[None]:
        yield

    async def generates_async(_: object) -> AsyncIterator[None]:
        yield

    class Generates:
        def __call__(self, _: object) -> Iterator[None]:
            yield

    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        for handler in (generates, generates_async, Generates(), functools.partial(generates)):
            for run in (
                consumer.handle(handler, once=True),
                consumer.handle_batches(handler, size=2, once=True),
            ):
                with pytest.raises(TypeError, match="is a generator function"):
                    await run
    assert await query(store_dsn, "select read_ct from tocsin.messages") == [(0,)]


async def _work(_: object) -> None:
    raise AssertionError


async def _generate(_: object) -> AsyncIterator[None]:
    raise AssertionError
    yield


def _plain(returned: Callable[[object], object]) -> Callable[[object], object]:
    return lambda message: returned(message)


def _async(returned: Callable[[object], object]) -> Callable[[object], object]:
    async def handle(message: object) -> object:
        return returned(message)

    return handle


@pytest.mark.parametrize(
    "handler",
    [_plain(_generate), _plain(lambda m: (m for _ in ())), _async(_generate), _async(_work)],
    ids=["async generator", "generator", "async generator from async", "coroutine from async"],
)
@sweep("timeout", [None, 3600], quick=1)
async def test_a_handler_that_returns_code_that_has_not_run_has_failed(
    store: tocsin.Store,
    store_dsn: str,
    handler: Callable[[object], object],
    timeout: float | None,  # noqa: ASYNC109 - of the handler
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, timeout=timeout, once=True)
    ((error,),) = await query(store_dsn, "select error from tocsin.dead_letters")
    assert "which has not run" in error


async def test_handler_may_settle_by_itself(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")

    async def handle(message: tocsin.Message) -> None:
        if message.read_ct == 1:
            await (message.delete() if message.payload == "delete" else message.release(delay=0))

    await store.produce_many("q", ["delete", "release"])
    async with store.consumer("q") as consumer, running(consumer, handle) as run:
        await run.handled.wait(3)
        await run.settled(1, "archived")
    assert await query(store_dsn, "select payload, read_ct from tocsin.archive") == [("release", 2)]
    assert run.suspended.handled == 3


async def test_async_handler_that_blocks_is_named(
    store: tocsin.Store,
    store_dsn: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_watch, "LONG_STEP", 0.1)
    await store.queues.ensure("q")
    await store.produce("q", 1)

    async def blocks_the_loop(_: tocsin.Message) -> None:
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.15:
            pass

    with caplog.at_level(logging.WARNING, "tocsin"):
        async with (
            store.consumer("q") as consumer,
            running_call(consumer, functools.partial(consumer.handle, blocks_the_loop)) as run,
        ):
            await run.settled(1, "archived")
    record = next(r for r in caplog.records if "blocked the event loop" in r.message)
    assert "blocks_the_loop" in record.message
    assert " s;" in record.message


async def test_plain_function_that_returns_an_awaitable_fails_clearly(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)

    async def work(_: tocsin.Message) -> None:
        raise AssertionError

    async with (
        store.consumer("q") as consumer,
        running_call(consumer, functools.partial(consumer.handle, lambda m: work(m))) as run,
    ):
        await run.settled(1, "failed")
    ((error,),) = await query(store_dsn, "select error from tocsin.dead_letters")
    assert "appears to be asynchronous" in error


async def test_undecodable_payload_fails_its_message_only(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    # more digits than Python converts
    await query(store_dsn, "select tocsin.enqueue('q', repeat('9', 5000)::jsonb)")
    await store.produce("q", "fine")

    async def read(message: tocsin.Message) -> None:
        assert message.payload == "fine"

    async with store.consumer("q") as consumer, running(consumer, read) as run:
        await run.settled(1, "archived")
        await run.settled(1, "failed")
    assert len(await query(store_dsn, "select id from tocsin.dead_letters")) == 1


async def test_handlers_in_transactions_leave_a_connection_for_settling(store_dsn: str) -> None:
    """More handlers than connections, each in a transaction, each settling its own
    message within it."""
    async with tocsin.connect(store_dsn, pool_size=2) as store:
        await store.queues.ensure("q")

        async def handle(message: tocsin.Message) -> None:
            async with store.transaction() as connection:
                await connection.execute("select 1")
                await message.archive()

        await store.produce_many("q", range(10))
        async with (
            store.consumer("q") as consumer,
            running(consumer, handle, concurrency=10) as run,
        ):
            await run.settled(10, "archived")
    assert run.suspended.handled == 10


# Batches


async def test_loop_with_a_batch_handler_that_settles_each_on_its_own(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", retry_base=0)
    sizes, finished, failed = list[int](), set[int](), set[int]()

    async def handle(messages: list[tocsin.Message]) -> None:
        sizes.append(len(messages))
        for message in messages:
            if message.payload == 3:
                await message.delete()
            if message.payload == 4 and message.read_ct == 1:
                await message.release()
            elif message.payload == 6 and message.read_ct == 1:
                failed.update(m.payload for m in messages)
                raise RuntimeError("this batch")
        finished.update(m.payload for m in messages if m.payload != 4 or m.read_ct > 1)
        if len(finished) == 9:
            await consumer.interrupt()

    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(range(9))
        with pytest.raises(tocsin.Suspended) as suspended:
            with trio.fail_after(PATIENCE):
                await consumer.handle_batches(handle, size=6)
    assert sizes[0] == 6
    assert max(sizes) <= 6
    archived = dict(await query(store_dsn, "select payload, read_ct from tocsin.archive"))
    # a batch takes what there is: it is open which messages fail together with 6
    assert archived == {p: 1 + (p in failed) + (p == 4) for p in range(9) if p != 3}
    assert 6 in failed
    assert failed.isdisjoint({0, 1, 2, 5})
    assert suspended.value.released == 0


# Streams


async def test_async_iterator_releases_what_was_not_settled(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(["first", "second", "third"])
        async with consumer.messages() as stream:
            async for message in stream:
                if message.payload == "second":
                    break
                await message.archive()
        assert await consumer.status() == "ready"
        assert await query(
            store_dsn, "select payload, state::text, read_ct from tocsin.messages order by id"
        ) == [
            ("second", "ready", 0),
            ("third", "ready", 0),
        ]
        with pytest.raises(ZeroDivisionError):
            async with consumer.messages() as stream:
                async for message in stream:
                    assert message.payload == "second"
                    raise ZeroDivisionError
        assert await query(
            store_dsn, "select count(*)::int from tocsin.messages where state = 'ready'"
        ) == [(2,)]


async def test_interrupted_stream_raises_suspended(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    seen = list[tocsin.Message]()
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            async with consumer.messages() as stream:
                async for message in stream:
                    seen.append(message)
                    await message.archive()
                    await consumer.interrupt()
        assert (len(seen), suspended.value.handled, suspended.value.released) == (1, 1, 0)
        assert await consumer.status() == "suspended"


async def test_interrupt_with_grace_cancels_the_stream_s_block(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            async with consumer.messages() as stream:
                async for _ in stream:
                    await consumer.interrupt(grace=0)
                    await trio.sleep_forever()
        assert (suspended.value.handled, suspended.value.released) == (0, 1)
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
        ("ready", 0)
    ]


async def test_stream_waits_for_what_comes(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with (
        store.consumer("q") as consumer,
        consumer.messages() as stream,
        trio.open_nursery() as nursery,
    ):

        async def produce() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await store.produce("q", "later")

        nursery.start_soon(produce)
        message = await anext(stream)
        assert message.payload == "later"
        await message.archive()


# How runs end


async def test_interrupt_with_grace_cancels_what_still_runs(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    cancelled = trio.Event()

    async def hang(message: tocsin.Message) -> None:
        if message.payload == "hang":
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

    await store.produce_many("q", ["hang", "quick"])
    async with store.consumer("q") as consumer, running(consumer, hang, concurrency=2) as run:
        await run.handled.wait(2)
        await run.settled(1, "archived")
        await consumer.interrupt(grace=0)
        with trio.fail_after(PATIENCE):
            await cancelled.wait()
    assert (run.suspended.handled, run.suspended.released) == (1, 1)
    assert await query(store_dsn, "select payload, state::text, read_ct from tocsin.messages") == [
        ("hang", "ready", 0)
    ]


async def test_of_two_interruptions_the_shorter_grace_counts(store: tocsin.Store) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)

    async def hang(_: tocsin.Message) -> None:
        await trio.sleep_forever()

    async with store.consumer("q") as consumer, running(consumer, hang) as run:
        await run.handled.wait(1)
        await (await store.workers.get(consumer.worker_id)).interrupt()
        with pytest.raises(tocsin.StateTransitionError):
            await consumer.interrupt(grace=0)
        consumer._state.end_run(3600)
        consumer._state.end_run(0)
    assert run.suspended.released == 1


async def test_interrupt_before_the_run_begins(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        await consumer.interrupt()
        with pytest.raises(tocsin.Suspended, match="before it began"):
            await consumer.handle(Handled())
        assert await consumer.status() == "suspended"
        with pytest.raises(tocsin.StateTransitionError) as refused:
            await consumer.handle(Handled())
        assert (refused.value.from_, refused.value.to) == ("suspended", "polling")
        with pytest.raises(tocsin.StateTransitionError):
            await consumer.interrupt()
        await consumer.resume()
        await consumer.interrupt()


async def test_cancelled_run_releases_and_is_ready_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)

    async def hang(message: tocsin.Message) -> None:
        if message.payload == "hang":
            await trio.sleep_forever()

    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(["hang", "quick"])
        async with running(consumer, hang, concurrency=2) as run:
            await run.handled.wait(2)
            await run.settled(1, "archived")
            run.cancel()
        assert await consumer.status() == "ready"
        assert await query(
            store_dsn, "select payload, state::text, read_ct from tocsin.messages"
        ) == [("hang", "ready", 0)]


async def test_finished_messages_are_archived_even_when_cancelled_at_that_moment(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)

    async def cancel(_: tocsin.Message) -> None:
        nursery.cancel_scope.cancel()

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.handle, cancel)
    assert await query(store_dsn, "select payload from tocsin.archive") == [(1,)]


async def test_one_run_at_a_time(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, consumer.messages():
        with pytest.raises(RuntimeError, match="running already"):
            await consumer.handle(Handled())
        with pytest.raises(RuntimeError, match="running already"):
            async with consumer.messages():
                pass


async def test_what_was_dequeued_by_hand_survives_a_run(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(["mine", "the run's"])
        (mine,) = await consumer.dequeue()
        handled = Handled(lambda _: consumer.interrupt(grace=0))
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handled)
        assert handled.payloads == ["the run's"]
        await mine.archive()


@sweep(
    ("call", "named"),
    [
        (lambda c: c.dequeue(0), "limit"),
        (lambda c: c.dequeue(vt=0), "vt"),
        (lambda c: c.dequeue(wait=-1), "wait"),
        (lambda c: c.handle(print, concurrency=0), "concurrency"),
        (lambda c: c.handle(print, vt=-1), "vt"),
        (lambda c: c.handle(print, timeout=0), "timeout"),
        (lambda c: c.handle_batches(print, size=0), "size"),
        (lambda c: c.interrupt(grace=-1), "grace"),
        (lambda c: c.is_healthy(-1), "max_age"),
    ],
    quick=1,
)
async def test_bad_numbers_name_the_argument(store: tocsin.Store, call: object, named: str) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(ValueError, match=named):
            await call(consumer)  # type: ignore[operator]


async def test_a_run_that_ends_when_nothing_is_left_also_handles_what_failed_and_is_due_at_once(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q", max_deliveries=3, retry_base=0)
    await store.produce("q", "ends")
    await store.produce("q", "fails")

    async def handle(message: tocsin.Message) -> None:
        if message.payload == "fails":
            raise ValueError(message.payload)

    async with store.consumer("q") as consumer:
        with (
            trio.fail_after(PATIENCE),
            pytest.raises(tocsin.Suspended, match="nothing is left to do"),
        ):
            await consumer.handle(handle, concurrency=10, once=True)
    assert await store.messages.list("q") == []
    assert [letter.read_ct for letter in await store.dead_letters.list("q")] == [3]
