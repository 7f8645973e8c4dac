"""The jobs of programs without a store, which wait on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import psycopg
import trio

from tocsin._arguments import check_text
from tocsin._concurrency.grace import GRACE
from tocsin._database.caller_connection import Async, Blocking, call_rows, call_rows_async
from tocsin._database.schema import Schema
from tocsin._durations import Duration
from tocsin._queue.process.outcome_lookup import OUTCOMES
from tocsin.driver import TrioConnection
from tocsin.errors import JobNotFound, TocsinError

from .attempts import ATTEMPTS, Attempt
from .connections import AsyncTarget, BlockingTarget, check_idle, unwrap_async, unwrap_blocking
from .control import CANCEL, job_not_found
from .definition import Definition
from .job import Job
from .job_info import JobInfo, read_outcome, read_row
from .packing import run_packing
from .session_wait import Listen, SessionWait, Statement

R = TypeVar("R")


class AsyncRows:
    """Runs Tocsin's statements on the async connection of a target."""

    def __init__(self, target: AsyncTarget, schema: Schema) -> None:
        self._target = target
        self._schema = schema

    async def fetch(
        self, statement: str, parameters: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement in the connection's transaction, and return its rows."""
        connection = await unwrap_async(self._target)
        return await call_rows_async(connection, self._schema, statement, parameters)

    async def wait(self, job_id: int, timeout: Duration | None) -> JobInfo:  # noqa: ASYNC109 - as in Job
        """Take the steps of a wait, with each statement in a transaction of its own."""
        connection = await unwrap_async(self._target)
        check_idle(connection)
        wait = SessionWait(job_id, connection.info.backend_pid, timeout)
        steps = wait.steps()
        answer: object = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, Listen):
                    async for _ in connection.notifies(timeout=step.seconds, stop_after=1):
                        pass
                else:
                    answer = await self._commit(connection, step)
        except StopIteration as end:
            info: JobInfo = end.value
            return info
        finally:
            if (leaving := wait.leaving()) is not None:
                await self._leave(connection, leaving)

    async def _commit(self, connection: Async, step: Statement) -> list[tuple[Any, ...]]:
        async with connection.transaction():
            return await call_rows_async(connection, self._schema, step.text, step.parameters)

    async def _leave(self, connection: Async, leaving: Statement) -> None:
        # A session that cannot do it has ended, or is about to.
        with suppress(TocsinError, psycopg.Error):
            if not isinstance(connection, TrioConnection):
                await self._commit(connection, leaving)
                return
            with trio.move_on_after(GRACE, shield=True):
                await self._commit(connection, leaving)


class SessionJob(Job[R]):
    """A job that was submitted on an async connection, by a program without a store."""

    def __init__(self, rows: AsyncRows, job_id: int, definition: Definition[R]) -> None:
        super().__init__(rows, None, job_id, definition)
        self._rows = rows

    async def result(self, *, timeout: Duration | None = None) -> R:  # noqa: ASYNC109 - as in Job
        """Wait until the job is finished, and return what its function returned.

        The connection that the job was submitted on waits, and serves no other call
        until then.

        Args:
            timeout: The longest wait in seconds; None: any time.

        Raises:
            TimeoutError: The time is over. The job goes on.
            RuntimeError: The connection is in a transaction.
            ConfigError: The connection leads through a pooler.
            TocsinError: What `Job.result` raises.

        Cancellation:
            The job goes on.
        """
        info = await self._rows.wait(self.id, timeout)
        return await run_packing(self._definition.packing, self.read, info)


class BlockingJob(Generic[R]):
    """A job that was submitted on a blocking connection; see `Task.submit_blocking`."""

    def __init__(
        self, target: BlockingTarget, schema: Schema, job_id: int, definition: Definition[R]
    ) -> None:
        self.id: int = job_id
        """Id of the job, which is that of its message."""
        self._target = target
        self._schema = schema
        self._definition = definition

    def __repr__(self) -> str:
        return f"<tocsin.BlockingJob {self.id} of task {self._definition.name}>"

    def info(self) -> JobInfo:
        """Return the state of the job.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.
        """
        rows = self._fetch(OUTCOMES, [[self.id]])
        if not rows:
            raise JobNotFound(self.id)
        return read_row(rows[0])

    def attempts(self) -> Sequence[Attempt]:
        """Return the attempts of the job: see `Jobs.attempts`.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.
        """
        with job_not_found(self.id):
            return [Attempt(*row) for row in self._fetch(ATTEMPTS, [self.id])]

    def result(self, *, timeout: Duration | None = None) -> R:
        """Wait until the job is finished, and return what its function returned.

        Args:
            timeout: The longest wait in seconds; None: any time.

        Raises:
            TimeoutError: The time is over. The job goes on.
            RuntimeError: The connection is in a transaction.
            ConfigError: The connection leads through a pooler.
            TocsinError: What `Job.result` raises.
        """
        connection = unwrap_blocking(self._target)
        check_idle(connection)
        wait = SessionWait(self.id, connection.info.backend_pid, timeout)
        outcome = read_outcome(self._wait(connection, wait))
        return self._definition.read_result(outcome)

    def cancel(self, reason: str = "cancelled") -> None:
        """Cancel the job, in the transaction of the connection: see `Jobs.cancel`.

        Args:
            reason: The reason, which `JobCancelled` has.

        Raises:
            MessageNotWaiting: The job is finished.
            JobNotFound: No job has this id, or it was deleted.
        """
        with job_not_found(self.id):
            self._fetch(CANCEL, [self.id, check_text(reason, "reason")])

    def _fetch(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        return call_rows(unwrap_blocking(self._target), self._schema, statement, parameters)

    def _wait(self, connection: Blocking, wait: SessionWait) -> JobInfo:
        steps = wait.steps()
        answer: object = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, Listen):
                    for _ in connection.notifies(timeout=step.seconds, stop_after=1):
                        pass
                else:
                    answer = self._commit(connection, step)
        except StopIteration as end:
            info: JobInfo = end.value
            return info
        finally:
            if (leaving := wait.leaving()) is not None:
                with suppress(TocsinError, psycopg.Error):
                    self._commit(connection, leaving)

    def _commit(self, connection: Blocking, step: Statement) -> list[tuple[Any, ...]]:
        with connection.transaction():
            return call_rows(connection, self._schema, step.text, step.parameters)
