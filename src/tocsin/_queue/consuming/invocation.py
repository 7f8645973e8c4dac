"""Noticing an async handler that blocks the event loop.

While one task computes without awaiting, no other runs: not the heartbeat, and not the
extension of leases. Other processes do not take this process for dead (its lifeline is
held by the connection, not by this loop), but a block longer than half a visibility
timeout costs the leases held here: their messages are delivered again elsewhere, and
what the handler does with them afterwards is refused.

So each step of an async handler is timed, and a long one is reported by the handler's
name. Only the handler's own coroutine is watched, not the tasks it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from time import perf_counter
from types import CoroutineType, FrameType
from typing import Any, cast

import trio

from .failure import Escaped

logger = logging.getLogger("tocsin.handler")

LONG_STEP = 0.1
"""Seconds that an async handler may compute without awaiting before it is reported."""


@trio.lowlevel.disable_ki_protection
async def invoke_watched(
    handler: Callable[[Any], Awaitable[object]],
    work: Any,
    when_waiting: Callable[[], None],
    name: str,
) -> object:
    """Call an async handler, return what it does, and report each step that blocked the
    event loop. A cancellation is the handler's, and so is a `KeyboardInterrupt` that
    arrives while it computes.

    It has a context (``contextvars``) of its own, so that what it sets there is not
    seen by the next call. ``when_waiting`` is called when it waits for the first time,
    if it ever does. A `GeneratorExit` of the handler's is raised as `Escaped`.
    """
    context = copy_context()
    awaitable = context.run(handler, work)
    coroutine = awaitable if isinstance(awaitable, CoroutineType) else _as_coroutine(awaitable)
    begun = perf_counter()
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as end:
        return end.value
    except GeneratorExit as raised:
        raise Escaped(raised) from None
    finally:
        taken = perf_counter() - begun
        if taken > LONG_STEP:
            context.run(_report, name, taken)
    when_waiting()
    return await _Rest(coroutine, context, awaited, name)


def _as_coroutine(awaitable: Awaitable[object]) -> CoroutineType[Any, Any, object]:
    async def wait() -> object:
        return await awaitable

    return cast(CoroutineType[Any, Any, object], wait())


def _report(name: str, taken: float) -> None:
    logger.warning(
        "handler %s blocked the event loop for %.2f s; its process could neither extend leases nor"
        " answer meanwhile. Make it a plain function, which runs in a thread, or await"
        " trio.to_thread.run_sync for the long part.",
        name,
        taken,
    )


_NOTHING: Any = object()


class _Rest:
    """Awaits the rest of a coroutine, step by step.

    Trio's `Task.iter_await_frames` takes it for the coroutine that it awaits, so a dump
    of all tasks shows where a handler hangs.
    """

    __slots__ = ("_awaited", "_coroutine", "_name", "_run", "_send")

    def __init__(
        self, coroutine: CoroutineType[Any, Any, object], context: Context, awaited: Any, name: str
    ) -> None:
        self._coroutine = coroutine
        self._send = coroutine.send
        self._run = context.run
        self._awaited = awaited
        self._name = name

    @property
    def cr_frame(self) -> FrameType | None:
        return self._coroutine.cr_frame

    @property
    def cr_await(self) -> Any:
        return self._coroutine.cr_await

    def __await__(self) -> _Rest:
        return self

    def __iter__(self) -> _Rest:
        return self

    def __next__(self) -> Any:
        if self._awaited is not _NOTHING:  # the first step has been taken
            awaited, self._awaited = self._awaited, _NOTHING
            return awaited
        return self.send(None)

    def send(self, value: Any) -> Any:
        begun = perf_counter()
        try:
            return self._run(self._send, value)
        except GeneratorExit as raised:
            raise Escaped(raised) from None
        finally:
            if perf_counter() - begun > LONG_STEP:
                self._run(_report, self._name, perf_counter() - begun)

    def throw(self, *error: Any) -> Any:
        begun = perf_counter()
        try:
            return self._run(self._coroutine.throw, *error)
        except GeneratorExit as raised:
            raise Escaped(raised) from None
        finally:
            if perf_counter() - begun > LONG_STEP:
                self._run(_report, self._name, perf_counter() - begun)

    def close(self) -> None:
        self._run(self._coroutine.close)
