"""Run a job: call the task's function with the arguments of a message.

Each attempt ends in one of these ways. The function has returned: its result is
archived with the message. It has raised, or has taken too long: the task's retry policy
says when the next attempt is, or that there is none. It has raised `Retry`, `Snooze` or
`Reject`: they mean what they mean to a handler. The worker ends: the function is
cancelled, and the attempt does not count. The lease was lost: the function is
cancelled, and what it does has no effect on the job.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn

import trio

from tocsin._queue.consuming.failure import Escaped, find_leaves, split
from tocsin._queue.consuming.handlers import check_that_it_ran, make_caller
from tocsin._queue.consuming.verdicts import AttemptFailed, Reject, Snooze, Verdict
from tocsin._queue.message import TICK, JobData, Message
from tocsin._queue.payload import encode
from tocsin.errors import ArgumentsInvalid, ResultInvalid, ValueUnreadable

from .completion import BeginTransaction, Completion
from .current import CurrentJob, Running
from .elsewhere import Written
from .judging import judge
from .packing import Packing, run_packing
from .places import Places
from .progress import Reporter
from .task import Task
from .ticking import handle_tick

logger = logging.getLogger("tocsin.job")

UNKNOWN_AGAIN_AFTER: Final = 10.0
"""Seconds after which a job that this worker does not know may be claimed again."""


MOST_UNKNOWN: Final = 1000
"""The most unknown tasks that the log names."""


class TaskRunner:
    """Runs jobs of these tasks; the handler of a worker's consumers."""

    def __init__(
        self,
        tasks: dict[str, Task[..., Any]],
        begin_transaction: BeginTransaction,
        places: Places,
    ) -> None:
        self.tasks = tasks
        """The tasks by name."""
        self.state: Any = None
        """The value of the worker's lifespan."""
        self._begin_transaction = begin_transaction
        self._places = places
        self._callers = {name: _make_caller(task) for name, task in self.tasks.items()}
        self.called: int = 0
        """How many messages it was given."""
        self.begun: int = 0
        """How many jobs of its tasks it was given."""
        self._unknown: set[str | None] = set()

    async def __call__(self, message: Message) -> None:
        """Run the job of a message.

        Raises:
            Verdict: The attempt has failed, or decides itself what becomes of the job.

        Cancellation:
            The function is cancelled.
        """
        self.called += 1
        job = message.job
        if job is not None and job.task == TICK:
            await handle_tick(message)
            return
        task = None if job is None else self.tasks.get(job.task)
        if job is None or task is None:
            self._leave(message, job)
        self.begun += 1
        try:
            payload = message.payload
            if task.definition.packing is not None:
                payload = await self._unpack(task, task.definition.packing, message)
            arguments = task.definition.signature.read_arguments(payload)
        except ArgumentsInvalid as invalid:
            raise Reject(str(invalid)) from invalid
        signature = task.definition.signature
        completion = Completion(message, task.definition, self._begin_transaction)
        work = encode(payload) if task.options.runs == "process" else arguments
        returned = await self._run(task, message, job, work, completion)
        if completion.result is not None:
            completion.warn_of_another(returned)
            return
        try:
            text = (
                returned.text if isinstance(returned, Written) else signature.write_result(returned)
            )
            if task.definition.packing is not None:
                text = await self._pack(task, task.definition.packing, message, text)
            message.keep_result(text)
        except ResultInvalid as invalid:
            raise AttemptFailed("handler_failed", math.inf) from invalid

    async def _unpack(self, task: Task[..., Any], packing: Packing, message: Message) -> object:
        """Return the arguments from what is stored; an attempt without them fails."""
        try:
            return await run_packing(packing, packing.unpack, task.name, message.payload)
        except ValueUnreadable as unreadable:
            delay = judge(task, message.read_ct, unreadable)
            raise AttemptFailed("handler_failed", delay) from unreadable

    async def _pack(
        self, task: Task[..., Any], packing: Packing, message: Message, text: str
    ) -> str:
        """Return what is stored of a result; an attempt without it fails."""
        try:
            return await run_packing(packing, packing.pack, text)
        except Exception as error:  # a codec and a store raise what they like
            delay = judge(task, message.read_ct, error)
            raise AttemptFailed("handler_failed", delay) from error

    def _leave(self, message: Message, job: JobData | None) -> NoReturn:
        """Leave a message to other workers, and say so once."""
        name = None if job is None else job.task
        if name not in self._unknown and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(name)
            logger.warning(
                "%s of queue %r is left to other workers: this one runs %s",
                "a plain message" if name is None else f"task {name!r}",
                message.queue,
                ", ".join(sorted(self.tasks)),
            )
        raise Snooze(UNKNOWN_AGAIN_AFTER)

    async def _run(
        self,
        task: Task[..., Any],
        message: Message,
        job: JobData,
        work: dict[str, Any] | str,
        completion: Completion,
    ) -> object:
        timeout: float | None = job.options.get("timeout", task.options.timeout)
        raised: BaseException | None = None
        async with self._places.place_for(task):
            deadline = math.inf if timeout is None else trio.current_time() + timeout
            current = CurrentJob(
                message, task.name, timeout, deadline, self.state, completion, Reporter(message)
            )
            try:
                with trio.move_on_at(deadline) as scope, Running(current):
                    if isinstance(work, str):
                        return await self._places.run_elsewhere(task, message, work, timeout)
                    returned = await self._callers[task.name](work)
                    check_that_it_ran(returned, task.name)
                    return returned
            except Escaped as escaped:
                raised = escaped.error
            except BaseException as error:
                if split(error)[1]:  # a cancellation is none of the function's errors
                    raise
                raised = error
        if scope.cancelled_caught:
            late = trio.TooSlowError(f"the attempt has taken longer than {timeout:g} s")
            late.__cause__ = raised  # what the function raised while it was cancelled
            raise AttemptFailed("timed_out", judge(task, message.read_ct, late)) from late
        assert raised is not None
        leaves = find_leaves(raised)
        if len(leaves) == 1 and isinstance(leaves[0], Verdict):
            raise raised
        raise AttemptFailed("handler_failed", judge(task, message.read_ct, raised)) from raised


def find_tasks(tasks: Iterable[Task[..., Any]]) -> dict[str, Task[..., Any]]:
    """Return a worker's tasks by name.

    Raises:
        ValueError: There is none, or two have one name.
        TypeError: Something is not a task.
    """
    found: dict[str, Task[..., Any]] = {}
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"a worker runs tasks, not {task!r}; put @tocsin.task before it")
        if found.setdefault(task.name, task) is not task:
            raise ValueError(f"two tasks have the name {task.name!r}; give one another name")
    if not found:
        raise ValueError("a worker needs at least one task")
    return found


def _make_caller(task: Task[..., Any]) -> Callable[[dict[str, Any]], Awaitable[object]]:
    """Return how to call a task's function: in the calling task, or in a thread."""
    function: Any = task.function
    if task.is_async:

        @functools.wraps(function)
        async def call_async(arguments: dict[str, Any]) -> object:
            try:
                return await function(**arguments)
            except KeyboardInterrupt as interrupt:
                if _comes_from_a_signal(interrupt):
                    raise
                raise Escaped(interrupt) from None

        return make_caller(call_async)

    @functools.wraps(function)
    def call(arguments: dict[str, Any]) -> object:
        return function(**arguments)

    return make_caller(call)


def _comes_from_a_signal(interrupt: KeyboardInterrupt) -> bool:
    """Return whether trio's signal handler has raised this, and not the function."""
    trace = interrupt.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == "trio._core._ki"
