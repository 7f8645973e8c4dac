"""The handler tasks, which call a run's handler.

A handler task calls the handler for prefetched messages, one call after the other. When
a handler waits for something, another handler task begins, up to the concurrency.
Handlers that never wait need no second handler task. A handler task without work stays
as the idle one, since waking a task is faster than starting one.

Each call has a context (``contextvars``) of its own: a handler task whose handler has
changed its context calls no other.
"""

from __future__ import annotations

import logging
from contextvars import Context, copy_context
from functools import partial
from time import perf_counter

import trio

from tocsin._queue.message import Message

from .calls import CallScope
from .completer import Completer
from .handlers import HandlerOptions
from .lease_clock import lease_time
from .leases import Leases
from .prefetch import PrefetchBuffer
from .reporter import Reporter
from .run import Run
from .step_watch import Watched, step_watch

logger = logging.getLogger("tocsin.consumer")

MAX_TURN = 0.0003
"""Seconds for which a handler task calls handlers that never wait.

Then other tasks may run, above all the one that sends statements.
"""


class HandlerPool:
    """The handler tasks of one run."""

    def __init__(
        self,
        run: Run,
        leases: Leases,
        prefetch: PrefetchBuffer,
        completer: Completer,
        options: HandlerOptions,
        nursery: trio.Nursery,
        task_name: str,
        reporter: Reporter,
    ) -> None:
        self._run = run
        self._leases = leases
        self._prefetch = prefetch
        self._completer = completer
        self._options = options
        self._reporter = reporter
        self._tasks = _Tasks(nursery, task_name)

    @trio.lowlevel.enable_ki_protection
    def on_free_slot(self) -> None:
        """Take note that there is a slot: handle a message, or claim one."""
        self.start_task()
        self._run.waiter.wake()

    @trio.lowlevel.enable_ki_protection
    def start_task(self) -> None:
        """Have another handler task call handlers, if messages wait for one."""
        tasks, share = self._tasks, self._options.worker.share
        if (
            self._prefetch
            and tasks.working < self._options.concurrency
            and self._run.may_claim
            and (share is None or share.take())
        ):
            tasks.working += 1
            if tasks.idle:
                tasks.idle.unpark()
            else:
                start = partial(tasks.nursery.start_soon, self._run_task, name=tasks.name)
                tasks.context.run(start)

    @trio.lowlevel.enable_ki_protection
    async def _run_task(self) -> None:
        tasks = self._tasks
        with step_watch.get().watching(self._options.name_for, self.start_task) as watched:
            while True:
                clean = await self._call_handlers(watched)
                self.start_task()
                if tasks.idle or not clean:
                    return
                await tasks.idle.park()

    async def _call_handlers(self, watched: Watched) -> bool:
        """Call the handler for waiting messages, one call after the other.

        Returns:
            Whether the context of this task is unchanged.
        """
        run, prefetch, leases, completer = self._run, self._prefetch, self._leases, self._completer
        share = self._options.worker.share
        call = CallScope(run.calls)
        context = copy_context()
        turn_began = perf_counter()
        now = lease_time()
        invoke = self._reporter.invoke
        try:
            with run.calling(call), call.scope:
                while prefetch and run.may_claim and not call.scope.cancel_called:
                    call.messages = prefetch.take(self._options.size)
                    if over := leases.start(call, now):
                        completer.unsettled.to_release += over
                        _warn_of_expired([m for m in over if not leases.is_cancelled(m)])
                    if messages := call.messages:
                        watched.calling, watched.messages = True, messages
                        raised = await invoke(self._options, call)
                        watched.calling = False
                        prefetch.calls_ended += len(messages)
                        completer.add(messages, raised)
                        call.messages = []
                        run.waiter.wake()
                        if raised is not None and raised.exits is not None:
                            raise raised.exits
                    if perf_counter() - turn_began > MAX_TURN:
                        await trio.lowlevel.checkpoint()
                        turn_began = perf_counter()
                        now = lease_time()
                        invoke = self._reporter.invoke
                    if share is not None or _has_changed(context):
                        break  # another run may have waited for the slot for longer
        finally:
            if cancelled := leases.take_cancelled(call):
                completer.add(cancelled, None)
                run.waiter.wake()
            self._tasks.working -= 1
            if share is not None:
                share.release()
        return not _has_changed(context)  # a cancelled call may have changed the context


def _warn_of_expired(messages: list[Message]) -> None:
    if messages:
        logger.warning(
            "%d leases ended before a handler could begin; the process was stopped, or blocked",
            len(messages),
        )


class _Tasks:
    """The handler tasks of a pool."""

    def __init__(self, nursery: trio.Nursery, name: str) -> None:
        self.nursery = nursery
        self.name = name
        self.context = copy_context()
        """The context in which each handler task begins."""
        self.working = 0
        """The number of handler tasks that call handlers, or are about to."""
        self.idle = trio.lowlevel.ParkingLot()
        """The place where the idle handler task waits."""


def _has_changed(before: Context) -> bool:
    """Return whether the current context differs from this one."""
    try:
        # Two contexts in which no variable was set are equal without a comparison of
        # values.
        return copy_context() != before
    except Exception:  # the comparison of a program's values may raise
        return True
