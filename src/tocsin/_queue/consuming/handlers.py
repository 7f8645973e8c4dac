"""Handlers: the check of a handler, its options, and its caller."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Final, TypeAlias, cast

import attrs
import trio

from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Message, is_tick
from tocsin.telemetry.instruments import Instruments

from .calls import CallScope
from .failure import Escaped
from .failure_log import name_handler
from .handler_kind import is_async_handler
from .instrumented import instrument
from .verdicts import Snooze
from .worker_options import WorkerOptions

Caller: TypeAlias = Callable[[Any], Awaitable[object]]
"""A function that calls a handler with its argument, and returns its result."""

TICK_AGAIN_AFTER: Final = 10.0
"""Seconds after which a tick that a plain consumer has claimed may be claimed again."""


@attrs.frozen(kw_only=True)
class HandlerOptions:
    """The handler of a run, and the options of its calls."""

    call: Callable[[CallScope], Awaitable[object]]
    """The function that calls the handler with the messages of a call."""
    name: str
    """The handler's name."""
    concurrency: int
    """The most calls that go on at a time."""
    size: int = 1
    """The most messages in one call."""
    batches: bool = False
    """Whether the handler takes a list of messages."""
    vt: float | None
    """Length of the leases in seconds; None: the queue's."""
    timeout: float | None
    """The most seconds of a call; None: no limit."""
    once: bool
    """Whether the run ends when nothing is left to do."""
    worker: WorkerOptions = attrs.field(factory=WorkerOptions)
    """What the run has in common with the other runs of its worker."""
    ordered: bool = False
    """Whether a message waits until those ahead of it in the queue are finished."""

    def name_for(self, messages: Sequence[Message]) -> str:
        """Return how the log names the handler of these messages."""
        return name_handler(self.name, messages)


def make_options(
    handler: Callable[[Any], object],
    *,
    instruments: Instruments,
    batches: bool,
    size: int = 1,
    concurrency: int,
    vt: Duration | None,
    timeout: Duration | None,
    once: bool,
    ordered: bool = False,
) -> HandlerOptions:
    """Check a handler and its options, and return them.

    Ticks of schedules are left to the consumers of workers.
    """
    check_handler(handler)
    call = make_caller(instrument(handler, instruments, list if batches else _as_list))

    async def call_with_batch(scope: CallScope) -> object:
        _leave_ticks(scope.messages)
        # the handler may remove messages from its list
        return await call(list(scope.messages))

    def call_with_first(scope: CallScope) -> Awaitable[object]:
        _leave_ticks(scope.messages)
        return call(scope.messages[0])

    return HandlerOptions(
        call=call_with_batch if batches else call_with_first,
        name=describe_handler(handler),
        concurrency=concurrency,
        size=size,
        batches=batches,
        vt=None if vt is None else to_seconds(vt, "vt"),
        timeout=None if timeout is None else to_seconds(timeout, "timeout"),
        once=once,
        ordered=ordered,
    )


def _as_list(message: Message) -> list[Message]:
    return [message]


def _leave_ticks(messages: list[Message]) -> None:
    """Leave the ticks of schedules to workers.

    The other messages of a batch come again with them.

    Raises:
        Snooze: A message is a tick.
    """
    if any(map(is_tick, messages)):
        raise Snooze(TICK_AGAIN_AFTER)


def describe_handler(handler: Callable[..., object]) -> str:
    """Return the handler's name for messages."""
    name = getattr(handler, "__qualname__", None)
    return f"{handler.__module__}.{name}" if name else repr(handler)


def check_handler(handler: Callable[[Any], object]) -> None:
    """Refuse an object that cannot be a handler.

    Raises:
        TypeError: It cannot be called, or is a generator function, whose call runs none
            of its code.
    """
    if not callable(handler):
        raise TypeError(f"a handler is a function of one argument, not {handler!r}")
    for function in (handler, type(handler).__call__):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"handler {describe_handler(handler)} is a generator function: a call runs none of"
                " its code; it must not yield"
            )


def check_that_it_ran(returned: object, name: str) -> None:
    """Check that a handler has not returned code that has yet to run.

    Raises:
        TypeError: It has, so its message has not been handled.
    """
    if (
        inspect.isawaitable(returned)
        or inspect.isgenerator(returned)
        or inspect.isasyncgen(returned)
    ):
        if inspect.iscoroutine(returned):
            returned.close()  # otherwise Python logs a warning, too
        kind = type(returned).__name__
        raise TypeError(
            f"handler {name} returned {kind}, which has not run. Does a decorator hide an async"
            " function, or a yield?"
        )


def make_caller(handler: Callable[[Any], object]) -> Caller:
    """Return the caller of a handler.

    It calls an async function in the calling task, and any other function in a thread.
    """
    check_handler(handler)
    if is_async_handler(handler):
        return _make_async_caller(cast(Callable[[Any], Awaitable[object]], handler))

    # The handler tasks limit the threads. An abandoned thread does not count: otherwise
    # the next message would wait for it until its own timeout.
    threads = trio.CapacityLimiter(math.inf)

    @wraps(handler)
    def run(work: Any) -> object:
        try:
            return handler(work)
        except BaseException as raised:
            # A thread receives no signal and no cancellation, so the handler itself has
            # raised this.
            raise Escaped(raised) from None

    async def call_in_thread(work: Any) -> object:
        # A thread cannot be stopped: when the handler's scope is cancelled, the thread
        # is abandoned. Another consumer may get the message then, and the thread cannot
        # settle it. A long handler can call trio.from_thread.check_cancelled().
        return await trio.to_thread.run_sync(run, work, abandon_on_cancel=True, limiter=threads)

    return call_in_thread


def _make_async_caller(handler: Callable[[Any], Awaitable[object]]) -> Caller:
    @trio.lowlevel.disable_ki_protection
    async def call(work: Any) -> object:
        """Call the handler, unprotected from `KeyboardInterrupt` and cancellation.

        A cancellation is the handler's, and so is a `KeyboardInterrupt` that arrives
        while it computes.
        """
        try:
            return await handler(work)
        except GeneratorExit as raised:
            raise Escaped(raised) from None

    return call
