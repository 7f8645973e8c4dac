"""Whatever a handler raises is a failed delivery: it counts, the error is kept and
logged, and the run goes on."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import stackscope
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, query, until
from tests.support.bad_errors import BadSyntax, Unspeakable
from tests.support.runs import running, running_call
from tests.support.sweeps import sweep


class Opaque(Exception):
    """Each of its attributes raises."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError


class Hollow(ExceptionGroup[Exception]):
    """A group that does not tell its errors."""

    @property
    def exceptions(self) -> Any:
        raise ZeroDivisionError


class Rude(BaseException):
    """No `Exception`."""


def nested(depth: int) -> BaseException:
    """A group in a group, and so on: deeper than Python recurses."""
    error: Exception = ValueError("deep")
    for _ in range(depth):
        error = ExceptionGroup("outer", [error])
    return error


RAISED: dict[str, Callable[[], BaseException]] = {
    "asyncio": asyncio.CancelledError,
    "generator exit": lambda: GeneratorExit("g"),
    "base exception": lambda: Rude("r"),
    "unspeakable": Unspeakable,
    "opaque": Opaque,
    "hollow": lambda: Hollow("h", [ValueError("v")]),
    "syntax": BadSyntax,
    "stop iteration": lambda: StopIteration("s"),
    "stop async iteration": lambda: StopAsyncIteration("s"),
    "group": lambda: ExceptionGroup("g", [ValueError("v"), Unspeakable()]),
    "base group": lambda: BaseExceptionGroup(
        "g", [ValueError("v"), asyncio.CancelledError(), GeneratorExit(), Rude()]
    ),
    "nested": lambda: nested(5000),
    "nul": lambda: ValueError("a\0b\ud800"),
    "lease lost": lambda: tocsin.LeaseLost(1, "archive"),
    "suspended": lambda: tocsin.Suspended("by the handler", handled=0, released=0),
    "stopped": lambda: tocsin.WorkerStopped(
        "stopped", from_="a", to="b", code="c", reason="r", worker_id=1
    ),
    "no connection": lambda: tocsin.ConnectionLost("host", "gone"),
}


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("batches", [False, True], ids=["handle", "batches"])
@sweep("name", RAISED, quick=["generator exit", "hollow"])
async def test_whatever_a_handler_raises_is_a_failed_delivery(
    store: tocsin.Store, name: str, batches: bool, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=2, retry_base=0)
    poison = await store.produce("q", "poison")
    good = await store.produce("q", "good")

    def act(work: Any) -> None:
        for message in work if batches else [work]:
            if message.payload == "poison":
                raise RAISED[name]()

    async def act_async(work: Any) -> None:
        act(work)

    async def act_later(work: Any) -> None:
        await trio.lowlevel.checkpoint()
        act(work)

    for handler in [act] if plain else [act_async, act_later]:
        caplog.clear()
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended) as ended:
                if batches:
                    await consumer.handle_batches(handler, size=1, once=True)
                else:
                    await consumer.handle(handler, once=True)
        assert (ended.value.failed, ended.value.released) == (2, 0)
        states = [(await store.messages.get(i)).state for i in (poison, good)]
        assert states == ["dead", "archived"]
        lines = [r.getMessage() for r in caplog.records if "failed with message" in r.getMessage()]
        assert [line.rpartition("; ")[2] for line in lines] == [
            "it is delivered again at once",
            "it is a dead letter now",
        ]
        assert await store.dead_letters.replay(poison) == [poison]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, trio.Cancelled])
async def test_a_function_in_a_thread_raises_nothing_that_is_meant_for_the_run(
    store: tocsin.Store, raised: type[BaseException]
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    message_id = await store.produce("q", 1)

    def handler(_: tocsin.Message) -> None:
        if raised is trio.Cancelled:
            trio.run(cancelled_elsewhere)
        raise raised

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert raised.__name__ in str((await store.dead_letters.get(message_id)).error)


async def cancelled_elsewhere() -> None:
    """Raise a cancellation that is none any more."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            caught = error
    raise caught


async def test_a_cancellation_that_is_none_any_more_is_the_handlers(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    message_id = await store.produce("q", 1)

    async def handler(_: tocsin.Message) -> None:
        await cancelled_elsewhere()

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert "Cancelled" in str((await store.dead_letters.get(message_id)).error)


async def test_after_a_system_exit_the_run_ends_and_the_delivery_counts(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", retry_base=3600)
    message_id = await store.produce("q", 1)

    async def handler(_: tocsin.Message) -> None:
        raise SystemExit(3)

    async with store.consumer("q") as consumer:
        with pytest.raises(SystemExit):
            await consumer.handle(handler)
    info = await store.messages.get(message_id)
    assert (info.state, info.read_ct, info.last_error, [d.outcome for d in info.history]) == (
        "delayed",
        1,
        "SystemExit: 3",
        ["handler_failed"],
    )
    assert (
        "failed with message 1, delivery 1: SystemExit: 3; it is delivered again in " in caplog.text
    )


@pytest.mark.parametrize("group", [False, True])
async def test_a_keyboard_interrupt_is_not_the_handlers(store: tocsin.Store, group: bool) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)

    async def handler(_: tocsin.Message) -> None:
        raise (
            BaseExceptionGroup("both", [ValueError("v"), KeyboardInterrupt()])
            if group
            else KeyboardInterrupt
        )

    async with store.consumer("q") as consumer:
        with pytest.raises(KeyboardInterrupt):
            await consumer.handle(handler)
    info = await store.messages.get(message_id)
    assert (info.state, info.read_ct, info.history) == ("ready", 0, ())


async def test_what_else_a_cancelled_handler_raises_does_not_count(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    began = trio.Event()

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("v")

    async def handler(_: tocsin.Message) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            began.set()

    async with store.consumer("q") as consumer, running(consumer, handler) as run:
        with trio.fail_after(PATIENCE):
            await began.wait()
            await trio.testing.wait_all_tasks_blocked()
        run.cancel()
    info = await store.messages.get(message_id)
    assert (info.state, info.read_ct) == ("ready", 0)
    assert "raised while it was cancelled: ValueError: v\n" in caplog.text


# What can be seen of a handler


def tasks_below(parent: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in parent.child_nurseries:
        for task in nursery.child_tasks:
            yield task
            yield from tasks_below(task)


def await_frames(task: trio.lowlevel.Task) -> list[str]:
    return [frame.f_code.co_name for frame, _ in task.iter_await_frames()]


def stackscope_frames(task: trio.lowlevel.Task) -> list[str]:
    return [frame.funcname for frame in stackscope.extract(task).frames]


def thread_frames(task: trio.lowlevel.Task) -> list[str]:
    """The names of the functions that run in a thread for this task, as
    ``sys._current_frames`` and the thread's name tell them."""
    (thread,) = [t for t in threading.enumerate() if t.name.endswith(f" from {task.name}")]
    assert thread.ident is not None
    stack = traceback.extract_stack(sys._current_frames()[thread.ident])
    return await_frames(task) + [frame.name for frame in stack]


async def frames_of_the_call(
    consumer: tocsin.Consumer,
    handler: Callable[[tocsin.Message], object],
    began: trio.Event,
    dump: Callable[[trio.lowlevel.Task], list[str]],
) -> list[str]:
    """What a dump shows of the task that calls a handler that hangs."""
    async with running_call(consumer, functools.partial(consumer.handle, handler)) as run:
        with trio.fail_after(PATIENCE):
            await began.wait()
        (task,) = [
            task
            for task in tasks_below(trio.lowlevel.current_task())
            if "_run_task" in await_frames(task)
        ]
        assert task.name == f"tocsin consumer {consumer.name} of q"
        await until(lambda: "hang_here" in dump(task))
        shown = dump(task)
        run.cancel()
    return shown


@pytest.mark.parametrize("dump", [await_frames, stackscope_frames])
async def test_a_task_dump_shows_where_a_handler_hangs(
    store: tocsin.Store, dump: Callable[[trio.lowlevel.Task], list[str]]
) -> None:
    """From the handler task down to the line in which the handler waits."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    began = trio.Event()

    async def handler(_: tocsin.Message) -> None:
        began.set()
        await hang_here()

    async def hang_here() -> None:
        await trio.sleep_forever()

    async with store.consumer("q") as consumer:
        shown = await frames_of_the_call(consumer, handler, began, dump)
    assert shown.index("_run_task") < shown.index("handler")
    below = shown[shown.index("handler") :]
    assert below[:3] == ["handler", "hang_here", "sleep_forever"]


@pytest.mark.parametrize("dump", [thread_frames, stackscope_frames])
async def test_a_dump_shows_where_a_handler_hangs_in_a_thread(
    store: tocsin.Store, dump: Callable[[trio.lowlevel.Task], list[str]]
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    began, go_on = trio.Event(), threading.Event()

    def handler(_: tocsin.Message) -> None:
        trio.from_thread.run_sync(began.set)
        hang_here()

    def hang_here() -> None:
        assert go_on.wait(PATIENCE)

    async with store.consumer("q") as consumer:
        try:
            shown = await frames_of_the_call(consumer, handler, began, dump)
        finally:
            go_on.set()
    assert shown.index("_run_task") < shown.index("handler")
    below = shown[shown.index("handler") :]
    assert below[:2] == ["handler", "hang_here"]


async def test_the_tasks_of_a_run_say_which_worker_and_queue_they_are_for(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("emails")
    await store.produce("emails", 1)
    names: list[str] = []

    async def handler(_: tocsin.Message) -> None:
        names.append(trio.lowlevel.current_task().name)

    async with store.consumer("emails", name="mailer-1") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert names == ["tocsin consumer mailer-1 of emails"]


# What a handler decides


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("batches", [False, True], ids=["handle", "batches"])
@sweep("grouped", [False, True], quick=1, ids=["bare", "grouped"])
async def test_a_handler_decides_what_becomes_of_its_message(
    store: tocsin.Store, batches: bool, plain: bool, grouped: bool
) -> None:
    await store.queues.ensure("q", max_deliveries=2)
    verdicts = [
        tocsin.Reject("no such\0account"),
        tocsin.Retry(3000),
        tocsin.Snooze(4000),
        tocsin.Retry(0),
    ]
    ids = await store.produce_many("q", range(4))

    def handler(work: Any) -> None:
        verdict = verdicts[work[0].payload if batches else work.payload]
        raise ExceptionGroup("g", [ExceptionGroup("h", [verdict])]) if grouped else verdict

    async def async_handler(work: Any) -> None:
        handler(work)

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as ended:
            if batches:
                await consumer.handle_batches(
                    handler if plain else async_handler, size=1, once=True
                )
            else:
                await consumer.handle(handler if plain else async_handler, once=True)
    assert (ended.value.handled, ended.value.failed, ended.value.released) == (0, 4, 0)
    rejected, retried, snoozed, exhausted = [await store.messages.get(i) for i in ids]
    assert (rejected.state, rejected.read_ct, rejected.last_error) == (
        "dead",
        1,
        "no such\\0account",
    )
    assert (rejected.reason, [d.outcome for d in rejected.history]) == ("rejected", ["rejected"])
    assert (retried.state, retried.read_ct, [d.outcome for d in retried.history]) == (
        "delayed",
        1,
        ["handler_failed"],
    )
    assert (snoozed.state, snoozed.read_ct, snoozed.last_error, snoozed.history) == (
        "delayed",
        0,
        None,
        (),
    )
    assert (exhausted.state, exhausted.read_ct, exhausted.reason) == ("dead", 2, "handler_failed")
    assert retried.due is not None
    assert snoozed.due is not None
    assert 800 < (snoozed.due - retried.due).total_seconds() < 1200


async def test_a_verdict_keeps_the_error_it_was_raised_from(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    first, second = await store.produce_many("q", [1, 2])

    async def handler(message: tocsin.Message) -> None:
        try:
            raise OSError("no route")
        except OSError as error:
            if message.id == first:
                raise tocsin.Retry(1) from error
            raise tocsin.Reject("for good") from error

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    retried, rejected = await store.dead_letters.get(first), await store.dead_letters.get(second)
    assert (retried.error, rejected.error) == ("OSError: no route", "for good")
    assert "no route" in str(rejected.traceback)
    assert (
        f"rejected message {second}, delivery 1: for good; it is a dead letter now" in caplog.text
    )


async def test_a_verdict_among_other_errors_is_an_error(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    message_id = await store.produce("q", 1)

    async def handler(_: tocsin.Message) -> None:
        raise ExceptionGroup("g", [tocsin.Snooze(1), ValueError("v")])

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert (await store.dead_letters.get(message_id)).reason == "handler_failed"


async def test_a_failed_batch_says_in_one_line_what_becomes_of_its_messages(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", retry_base=3600)
    await store.produce_many("q", range(2))
    await store.produce("q", 2, max_deliveries=1)

    async def handler(_: list[tocsin.Message]) -> None:
        raise ValueError("no good")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle_batches(handler, size=3, once=True)
    (record,) = [r for r in caplog.records if "failed with" in r.getMessage()]
    assert (
        "failed with messages 1, 2, 3: ValueError: no good; 2 are delivered again in "
        in record.getMessage()
    )
    assert record.getMessage().endswith(" s, 1 are dead letters now")


async def test_a_letter_that_is_refused_comes_back_in_a_minute_and_the_log_says_so(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)
    await query(store_dsn, "alter table tocsin.dead_letters add check (queue_id < 0) not valid")

    async def handler(_: tocsin.Message) -> None:
        raise ValueError("no good")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert "ValueError: no good; it is delivered again in 60.0 s" in caplog.text


# In a stream


@sweep(
    "error",
    [ValueError("v"), SystemExit(1), asyncio.CancelledError(), Rude()],
    quick=2,
    ids=lambda e: type(e).__name__,
)
async def test_an_error_in_a_streams_block_fails_what_it_has_not_settled(
    store: tocsin.Store, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    settled, failed, waiting = await store.produce_many("q", range(3))
    async with store.consumer("q") as consumer:
        with caplog.at_level(logging.WARNING, "tocsin"), pytest.raises(type(error)):
            async with consumer.messages() as stream:
                async for message in stream:
                    if message.id == failed:
                        raise error
                    await message.archive()
    states = [(await store.messages.get(i)).state for i in (settled, failed, waiting)]
    assert states == ["archived", "dead", "ready"]
    assert (
        f"the block of messages() failed with message {failed}, delivery 1: {type(error).__name__}"
        in caplog.text
    )


async def test_a_stream_that_is_left_or_interrupted_fails_nothing(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    message_id = await store.produce("q", 1)

    async def relay(consumer: tocsin.Consumer) -> Any:
        async with consumer.messages() as stream:
            async for message in stream:
                yield message

    async with store.consumer("q") as consumer:
        with pytest.raises(KeyboardInterrupt):
            async with consumer.messages() as stream:
                async for _ in stream:
                    raise KeyboardInterrupt
        relayed = relay(consumer)
        assert (await anext(relayed)).id == message_id
        await relayed.aclose()
    assert (await store.messages.get(message_id)).state == "ready"


async def test_fails_twice_then_succeeds(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks", retry_base=0.2, retry_factor=3, retry_jitter=0)

    async def handle(message: tocsin.Message) -> None:
        if message.payload == "difficult" and message.read_ct < 3:
            raise RuntimeError(f"attempt {message.read_ct}")

    async with (
        store.producer("tasks") as producer,
        store.consumer("tasks") as consumer,
        running(consumer, handle) as run,
    ):
        difficult = await producer.enqueue("difficult")
        await producer.enqueue_many(["easy"] * 5)
        await run.handled.wait(8)
    assert run.handled.payloads[-1] == "difficult"  # the other messages were not held up
    attempts = [m for m in run.handled.messages if m.id == difficult]
    assert [m.read_ct for m in attempts] == [1, 2, 3]
    assert [m.last_error for m in attempts] == [
        None,
        "RuntimeError: attempt 1",
        "RuntimeError: attempt 2",
    ]
    waits = [(b.dequeued_at - a.dequeued_at).total_seconds() for a, b in pairwise(attempts)]
    assert waits[0] >= 0.2
    assert waits[1] >= 0.6
    assert await query(
        store_dsn, "select read_ct from tocsin.archive where id = %s", difficult
    ) == [(3,)]
