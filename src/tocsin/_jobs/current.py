"""The job whose function is running."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import attrs
import trio

from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Connection
from tocsin._queue.message import Message, options_of

from .completion import Completion
from .progress import Report, describe_progress

__all__ = ["CurrentJob", "current_job"]

logger = logging.getLogger("tocsin.job")


@attrs.frozen(eq=False)
class CurrentJob:
    """The job whose function is running: see `current_job`."""

    message: Message
    """The job's message: its lease token fences writes to other systems."""
    task: str
    """Name of the task."""
    timeout: float | None
    """Seconds that this attempt may take; None: any number."""
    deadline: float
    """When this attempt is ended (`trio.current_time`); infinity: never."""
    state: Any
    """What the worker's ``lifespan`` has yielded; None without, or in a process."""
    _completion: Completion = attrs.field(repr=False)
    _report: Report = attrs.field(repr=False)

    @property
    def id(self) -> int:
        """Id of the job."""
        return self.message.id

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first one is 1."""
        return self.message.read_ct

    @property
    def max_attempts(self) -> int:
        """After how many attempts a job that fails becomes a dead letter."""
        return self.message.max_deliveries

    @property
    def tick(self) -> datetime | None:
        """The tick for which a schedule has submitted the job, in UTC; None: none has.

        It stays the same when the job begins late, and for all its attempts.
        """
        tick = options_of(self.message).get("tick")
        return None if tick is None else datetime.fromisoformat(tick).astimezone(UTC)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records have the job's id, task and attempt."""
        fields = {"job_id": self.id, "task": self.task, "attempt": self.attempt}
        return logging.LoggerAdapter(logger.getChild(self.task), fields)

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Open a transaction for the effects of the function and for `done`.

        It is a transaction of `Store.transaction`. It commits at the end of the block,
        and rolls back when the block raises.

        Raises:
            RuntimeError: A transaction of this job is open.
            ConnectionLost: The database did not answer.

        Cancellation:
            The transaction is rolled back.
        """
        return self._completion.transaction()

    async def done(self, result: object = None, *, connection: AnyConnection | None = None) -> None:
        """Finish the job with this result when the open transaction commits.

        So what the function has written in the transaction and the end of the job are
        committed together. After a rollback the job is not finished; let the function
        raise then. After a commit it is finished, whatever the function still does:
        another result, an error or a timeout is only logged.

        A plain function calls it by ``trio.from_thread.run`` with its own connection.

        Args:
            result: What the function would return.
            connection: Finish the job in the transaction of this connection, as
                `Message.archive` does; without, in that of `transaction`.

        Raises:
            LeaseLost: The lease of this attempt has ended, or the job was cancelled. Do
                not catch the error within the transaction.
            ResultInvalid: The result is not what the return annotation says.
            RuntimeError: There is no transaction, or the job is done.
            TypeError: The connection cannot be used.

        Cancellation:
            Atomic.
        """
        await self._completion.done(result, connection)

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Report how far the function has come: see `JobInfo.progress`.

        The call is cheap, and a plain function may make it in its thread. The worker
        writes the last report at most once a second, together with an extension of the
        lease. A report that was not written when the attempt ends is lost, and so is
        what was written: progress is that of the attempt that runs.

        Args:
            done: How much is done.
            total: How much there is to do.
            text: What is being done, in up to 1,000 characters; the rest is cut off.

        Raises:
            TypeError: An argument has a wrong type.
            ValueError: A number is negative, or not finite.
            RuntimeError: The function runs in another process.
        """
        self._report(describe_progress(done, total, text))

    def check_cancelled(self) -> None:
        """Raise if this attempt is to end; for plain functions, which run in threads.

        A thread cannot be killed, so a plain function that takes long calls this method
        from time to time.

        Raises:
            trio.Cancelled: The attempt has timed out, the job was cancelled, or the
                worker ends.
            RuntimeError: The function does not run in a thread of a worker.
        """
        trio.from_thread.check_cancelled()


_CURRENT: ContextVar[CurrentJob] = ContextVar("tocsin.current_job")


def current_job() -> CurrentJob:
    """Return the job whose function is running.

    Raises:
        LookupError: No worker has called the function.
    """
    try:
        return _CURRENT.get()
    except LookupError:
        raise LookupError("no job is running here; only a worker runs jobs") from None


class Running:
    """Makes a job the current one for the length of a block."""

    __slots__ = ("_job", "_token")

    def __init__(self, job: CurrentJob) -> None:
        self._job = job

    def __enter__(self) -> None:
        self._token = _CURRENT.set(self._job)

    def __exit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)
