"""A job's function in another process than the worker's.

Only texts, numbers and times cross the border: the row of the message, and the result
as JSON or the description of the error. So errors need not be pickled. The retry policy
is asked in the function's process, where the error is.
"""

from __future__ import annotations

import importlib
import math
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NoReturn, TypeAlias, cast

import attrs

from tocsin._database.client import Connection
from tocsin._queue.consuming.failure import describe_failure, find_leaves
from tocsin._queue.consuming.handlers import check_that_it_ran
from tocsin._queue.consuming.verdicts import AttemptFailed, FailedInProcess, Verdict
from tocsin._queue.message import Message, Row, Source, SupportsSettling
from tocsin._queue.payload import decode
from tocsin.errors import ResultInvalid

from .completion import Completion
from .current import CurrentJob, Running
from .executor import Executor
from .retry_delay import find_retry_delay
from .task import Task

Origin: TypeAlias = tuple[str, int, int]
"""Name and id of the queue, and the id of the worker."""
Verdicts: TypeAlias = Literal["handler_failed", "timed_out", "rejected", "snoozed"]
Answer: TypeAlias = tuple[str | None, tuple[Verdicts, float | None, str | None, str | None] | None]
"""The result as JSON; or the failure's verdict, delay, text and traceback."""


@attrs.frozen
class WrittenResult:
    """A result that its process has written as JSON."""

    text: str
    """The JSON text."""


async def run_in_process(
    executor: Executor,
    task: Task[..., Any],
    message: Message,
    arguments: str,
    seconds: float | None,
) -> WrittenResult:
    """Run a job's function in another process, and return its result.

    Raises:
        FailedInProcess: The function has raised.
        Exception: The process has ended.

    Cancellation:
        The process is killed.
    """
    module, name = task.function.__module__, task.name
    origin = message.queue, message.queue_id, message.consumer_worker_id
    result, failure = await executor.run_sync(
        _run, module, name, message._row, origin, arguments, seconds
    )
    if failure is not None:
        raise FailedInProcess(*failure)
    assert result is not None
    return WrittenResult(result)


def _run(
    module: str, name: str, row: Row, origin: Origin, arguments: str, seconds: float | None
) -> Answer:
    """Run a job's function in this process."""
    message = Message(row, Source(*origin, settler=cast(SupportsSettling, _NotHere())))
    task: Task[..., Any] | None = None
    try:
        task = _find_task(module, name)
        signature = task.definition.signature
        completion = Completion(message, task.definition, _refuse_transaction)
        current = CurrentJob(message, name, seconds, math.inf, None, completion, _refuse_report)
        with Running(current):
            returned = task.function(**signature.read_arguments(decode(arguments)))
            check_that_it_ran(returned, name)
        return signature.write_result(returned), None
    except BaseException as raised:
        leaves = find_leaves(raised)
        failed: BaseException = raised
        if len(leaves) != 1 or not isinstance(leaves[0], Verdict):
            delay = math.inf
            if task is not None and not isinstance(raised, ResultInvalid):
                delay = find_retry_delay(task, message.read_ct, raised)
            failed = AttemptFailed("handler_failed", delay)
            failed.__cause__ = raised
        failure = describe_failure(failed)
        return None, (failure.verdict, failure.delay, failure.text, failure.trace)


def _find_task(module: str, name: str) -> Task[..., Any]:
    """Return the task of this name that the module defines.

    Raises:
        LookupError: It has none.
    """
    for value in vars(importlib.import_module(module)).values():
        if isinstance(value, Task) and value.name == name:
            return value
    raise LookupError(f"module {module} has no task {name!r} at its top")


class _NotHere:
    """Refuses to settle messages in a process that has no store."""

    def __getattr__(self, operation: str) -> NoReturn:
        raise RuntimeError(_REFUSED)


def _refuse_transaction() -> AbstractAsyncContextManager[Connection]:
    raise RuntimeError(_REFUSED)


def _refuse_report(report: dict[str, Any]) -> NoReturn:
    raise RuntimeError("a function that runs in another process cannot report progress")


_REFUSED = "a function that runs in another process cannot settle or finish its job"
