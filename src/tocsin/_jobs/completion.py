"""The completion of a job in a transaction of its function.

The transaction archives the job's message with its result, if this attempt still has
the lease. So the effects of the function and the end of the job are committed together,
or neither is: a later attempt begins only if the effects of this one are undone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Connection
from tocsin._queue.message import Message
from tocsin.errors import ResultInvalid

from .definition import Definition
from .packing import run_packing

logger = logging.getLogger("tocsin.job")

BeginTransaction: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]


class Completion:
    """The completion of one attempt's job by its function."""

    def __init__(
        self, message: Message, definition: Definition[Any], begin: BeginTransaction
    ) -> None:
        self.message: Message = message
        """The message of the job."""
        self.result: str | None = None
        """The result that `done` was given, as JSON; None: it was not called."""
        self._definition = definition
        self._begin = begin
        self._open: Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Open a transaction: see `CurrentJob.transaction`."""
        if self._open is not None:
            raise RuntimeError("a transaction of this job is open; one job has one at a time")
        try:
            async with self._begin() as connection:
                self._open = connection
                yield connection
        except BaseException:
            self.result = None
            raise
        finally:
            self._open = None

    async def done(self, result: object, connection: AnyConnection | None) -> None:
        """Finish the job: see `CurrentJob.done`."""
        if connection is None:
            connection = self._open
        if connection is None:
            raise RuntimeError(
                "call done() in a transaction: within `async with job.transaction():`, or with"
                " connection="
            )
        if self.result is not None:
            raise RuntimeError("the job is done; done() is called once")
        written = self._definition.signature.write_result(result)
        packing = self._definition.packing
        kept = written if packing is None else await run_packing(packing, packing.pack, written)
        self.message.keep_result(kept)
        await self.message.archive(connection=connection)
        self.result = written

    def warn_of_another(self, result: object) -> None:
        """Log when the function has returned another result than it was done with."""
        if result is None:
            return
        try:
            same = self._definition.signature.write_result(result) == self.result
        except ResultInvalid:
            same = False
        if not same:
            logger.warning(
                "the function of job %d has returned another result than it gave to done();"
                " the result of done() is stored",
                self.message.id,
            )
