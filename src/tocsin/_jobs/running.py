"""Run the jobs of a worker's tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from tocsin._queue.consuming.calls import CallScope
from tocsin._queue.consuming.verdicts import Snooze
from tocsin._queue.message import TICK, Message, task_of

from .attempt_runner import AttemptRunner
from .completion import BeginTransaction
from .function_callers import FunctionCallers
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
        callers: FunctionCallers,
    ) -> None:
        self.state: Any = None
        """The value of the worker's lifespan."""
        self.called: int = 0
        """How many messages it was given."""
        self.begun: int = 0
        """How many jobs of its tasks it was given."""
        self._runners = {
            name: AttemptRunner(task, callers, begin_transaction) for name, task in tasks.items()
        }
        self._unknown: set[str | None] = set()

    @property
    def names(self) -> str:
        """The names of the tasks."""
        return ", ".join(sorted(self._runners))

    async def __call__(self, call: CallScope) -> None:
        """Run the job of the message of a call.

        Raises:
            Verdict: The attempt has failed, or decides itself what becomes of the job.

        Cancellation:
            The function is cancelled.
        """
        self.called += 1
        message = call.messages[0]
        name = task_of(message)
        runner = None if name is None else self._runners.get(name)
        if runner is not None:
            self.begun += 1
            await runner.run(message, call, self.state)
        elif name == TICK:
            await handle_tick(message)
        else:
            self._leave(message, name)

    def _leave(self, message: Message, name: str | None) -> NoReturn:
        """Leave a message to other workers, and say so once."""
        if name not in self._unknown and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(name)
            logger.warning(
                "%s of queue %r is left to other workers: this one runs %s",
                "a plain message" if name is None else f"task {name!r}",
                message.queue,
                self.names,
            )
        raise Snooze(UNKNOWN_AGAIN_AFTER)


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
