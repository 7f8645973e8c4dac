"""Noticing an async handler that blocks the event loop.

While one task computes without awaiting, no other runs: not the heartbeat, and not the extension of leases. Other processes do not take
this process for dead (its lifeline is held by the connection, not by this loop), but a block longer than half a visibility timeout costs
the leases held here: their messages are delivered again elsewhere, and what the handler does with them afterwards is refused.

So each step of an async handler is timed, and a long one is reported by the handler's name. Only the handler's own coroutine is watched,
not the tasks it starts.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from time import perf_counter
from typing import Any

logger = logging.getLogger("tocsin")

LONG_STEP = 0.1
"""Seconds that an async handler may compute without awaiting before it is reported."""


@types.coroutine
def call_and_watch(
    handler: Callable[[Any], Awaitable[object]], work: Any, when_waiting: Callable[[], None], name: str
) -> Generator[Any, Any, object]:
    """Call an async handler, return what it does, and report each step that blocked the event loop. A cancellation is the handler's.

    It has a context (``contextvars``) of its own, so that what it sets there is not seen by the next call. ``when_waiting`` is called when
    it waits for the first time, if it ever does.
    """
    in_context = copy_context().run
    steps = in_context(handler, work).__await__()
    resume: Callable[[Any], Any] = steps.send
    value: Any = None
    waiting_for_the_first_time = True
    while True:
        begun = perf_counter()
        try:
            awaited = in_context(resume, value)
        except StopIteration as end:
            return end.value
        finally:
            taken = perf_counter() - begun
            if taken > LONG_STEP:
                in_context(
                    logger.warning,
                    "handler %s blocked the event loop for %.2f s; its process could neither extend leases nor answer meanwhile. "
                    "Make it a plain function, which runs in a thread, or await trio.to_thread.run_sync for the long part.",
                    name,
                    taken,
                )
        if waiting_for_the_first_time:
            waiting_for_the_first_time = False
            when_waiting()
        try:
            value = yield awaited
            resume = steps.send
        except BaseException as thrown:
            value = thrown
            resume = steps.throw
