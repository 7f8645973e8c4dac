"""The watch over the steps of the tasks that call handlers.

A step is what a task does between two checkpoints that yield. While one task computes,
no other task of the process runs: not the heartbeat, and not the extension of leases.
Other processes do not take this process for dead (its lifeline is held by the
connection, not by this loop), but a step longer than half a visibility timeout costs
the leases held here: their messages are delivered again elsewhere, and what the handler
does with them afterwards is refused. So a long step is reported with the handler's
name.

The first step of a call that does not end the call shows that the handler waits, and
that another handler task can go on.

One trio instrument watches the tasks of all consumers, while any of them runs. Only the
tasks that call handlers are watched, not those that a handler starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter

import attrs
import trio

from tocsin._concurrency.run_local import RunLocal
from tocsin._queue.message import Message

logger = logging.getLogger("tocsin.handler")

LONG_STEP = 0.1
"""The most seconds of an async handler without a checkpoint, before it is reported."""


@attrs.define(eq=False)
class Watched:
    """A task that calls handlers."""

    name_for: Callable[[Sequence[Message]], str]
    """Returns the name of the handler of these messages."""
    on_wait: Callable[[], None]
    """The function to call when a handler waits for the first time."""
    calling: bool = False
    """Whether a call is going on that has not waited yet."""
    messages: Sequence[Message] = ()
    """The messages of the last call."""


class StepWatch(trio.abc.Instrument):
    """The watch of one trio run."""

    def __init__(self) -> None:
        self._tasks: dict[trio.lowlevel.Task, Watched] = {}
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        watched = self._tasks.get(task)
        if watched is None:
            return
        taken = perf_counter() - self._began
        if watched.calling:
            watched.calling = False
            watched.on_wait()
        if taken > LONG_STEP:
            # trio removes an instrument that raises an error, and a logging filter may
            # raise one.
            with suppress(Exception):
                task.context.run(_report, watched.name_for(watched.messages), taken)

    @contextmanager
    def watching(
        self, name_for: Callable[[Sequence[Message]], str], on_wait: Callable[[], None]
    ) -> Iterator[Watched]:
        """Watch the current task within the block."""
        if not self._tasks:
            self._began = perf_counter()
            trio.lowlevel.add_instrument(self)
        task = trio.lowlevel.current_task()
        watched = self._tasks[task] = Watched(name_for, on_wait)
        try:
            yield watched
        finally:
            del self._tasks[task]
            if not self._tasks:
                # trio has removed the instrument if a logging filter has raised
                # `SystemExit`.
                with suppress(KeyError):
                    trio.lowlevel.remove_instrument(self)


def _report(handler: str, taken: float) -> None:
    logger.warning(
        "handler %s blocked the event loop for %.2f s; during that time its process could"
        " neither extend leases nor answer. Make it a plain function, which runs in a thread,"
        " or await trio.to_thread.run_sync for the long part.",
        handler,
        taken,
    )


step_watch = RunLocal("tocsin.step_watch", StepWatch)
"""The watch of each trio run."""
