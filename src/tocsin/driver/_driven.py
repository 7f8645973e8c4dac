"""psycopg's connection, driven by trio.

`psycopg.AsyncConnection` depends on asyncio in four places only: how it waits for the
socket, its lock, how it connects, and how it asks the server to cancel. All the rest
(cursors, rows, types, prepared statements, pipelines, COPY, transactions) is made of
generators that are handed to `AsyncConnection.wait`. So `DrivenConnection` overrides
these four, and everything else of psycopg works as its documentation says.

There is no thread and no event loop but trio's. The exception is the thread in which
trio resolves host names (``_connecting.py``). The private names of psycopg that this
needs are listed and checked in ``tests/driver/test_contract.py``. What a cancellation
does is told in ``_cancelling.py``. `KeyboardInterrupt` is treated like a cancellation.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, cast
from weakref import WeakSet

import psycopg
import trio
from psycopg import pq
from psycopg.abc import RV, AdaptContext, ConnParam, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.rows import AsyncRowFactory, Row, tuple_row

from tocsin._concurrency.grace import Grace

from . import _connecting as connecting
from . import _waiting as waiting
from ._cancelling import call_off, request_cancel, resumable
from ._cursors import StatementLock, check_writer, closes_server_cursor
from ._persistence import persist
from ._transaction import TrioTransaction

__all__ = ["TUPLES", "DrivenConnection"]

TUPLES = cast(AsyncRowFactory[Any], tuple_row)


class DrivenConnection(psycopg.AsyncConnection[Row]):
    """All of `psycopg.AsyncConnection`, driven by trio."""

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Row] = TUPLES) -> None:
        super().__init__(pgconn, row_factory)
        self.grace: Grace = Grace()
        """How long cleaning up may take. Read only; see `share_grace`."""
        self.lock: Any = StatementLock(pgconn, self.grace)
        self._turn = waiting.Turn()
        self._given_up: str | None = None
        self._raised: WeakSet[psycopg.Error] = WeakSet()

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Row]] | None = None,
        hosts: Any = None,  # a Hosts, or None; psycopg's own keywords have other types
        **kwargs: ConnParam,
    ) -> Self:
        """Connect to a server.

        The arguments are those of `psycopg.AsyncConnection.connect`, and ``hosts``.

        Args:
            hosts: A `Hosts`. Where the connection string names several hosts, each
                connection that is opened with it tries one that did not answer in time
                last, for half a minute.

        Raises:
            psycopg.OperationalError: No server could be connected to. The text tells of
                each host that was tried, and ``pgconn`` of the last one.
            psycopg.ProgrammingError: The connection string cannot be read.
            psycopg.NotSupportedError: libpq is older than 17.

        Cancellation:
            Nothing is left open.
        """
        if not psycopg.capabilities.has_cancel_safe():
            raise psycopg.NotSupportedError(
                "libpq 17 or newer is needed to cancel statements, not"
                f" {pq.version_pretty(pq.version())}: pip install 'psycopg[binary]', which brings"
                " its own"
            )
        self = cls(await connecting.open_pgconn(conninfo, kwargs, hosts))
        self._autocommit = bool(autocommit)
        if row_factory:
            self.row_factory = row_factory
        if cursor_factory:
            self.cursor_factory = cursor_factory
        if context:
            self._adapters = AdaptersMap(context.adapters)
        self.prepare_threshold = prepare_threshold
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit and close, or after an error just close: the server rolls back."""
        try:
            if exc_val is None and not self.closed:
                await self.commit()
        finally:
            self.finish()

    async def close(self) -> None:
        """Close the connection.

        The server's errors are not raised.

        Cancellation:
            The connection is closed.
        """
        self.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the connection, as `close` does.

        `contextlib.aclosing` and `trio.aclose_forcefully` call it by this name. The
        server's errors are not raised.

        Cancellation:
            The connection is closed.
        """
        await self.close()

    def finish(self) -> None:
        """Close the connection at once, without a checkpoint.

        A task that is waiting for it gets a `psycopg.OperationalError`. A connection
        that the server or a cancelled operation has ended before stays ``broken``.
        """
        self._closed = self._closed or not self.closed
        connecting.finish(self.pgconn)

    def give_up(self, reason: str) -> None:
        """Close the connection at once, and drop what is still to be sent.

        A task that waits for the connection gets the reason as an error.
        """
        self._given_up = reason
        with (
            suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as copy,
        ):
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.finish()

    def raised(self, error: psycopg.Error) -> bool:
        """Return whether the error is of a statement on this connection."""
        return error in self._raised

    def share_grace(self, grace: Grace) -> None:
        """Have cleanup end by the deadline of the connections that share ``grace``."""
        self.grace = cast(StatementLock, self.lock).grace = grace

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 (psycopg's signature)
    ) -> RV:
        """Drive one of psycopg's generators.

        Everything that psycopg does passes through here.

        Args:
            gen: The generator.
            interval: psycopg's; it has no meaning here.
            timeout: Seconds after which the generator is called off.

        Raises:
            psycopg.Error: What the generator raises.

        Cancellation:
            See ``_cancelling.py``.
        """
        if self.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            if closes_server_cursor(gen):
                return await self.complete(gen)
            check_writer(gen)
            await trio.lowlevel.checkpoint_if_cancelled()
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        try:
            return await self._drive(gen, deadline)
        except BaseException as error:
            # An Exception is an error of the protocol, which psycopg handles, except
            # for a timeout in the middle of a statement.
            if not isinstance(error, Exception) or isinstance(error, psycopg.errors._WaitTimeout):
                await call_off(
                    self.pgconn,
                    gen,
                    self._turn,
                    self.grace,
                    leaves_pipeline=self._leaves_pipeline(),
                )
            raise

    def _leaves_pipeline(self) -> bool:
        """Return whether the running generator ends the pipeline that it has begun."""
        return False

    async def complete(self, gen: PQGen[RV]) -> RV:
        """Drive a generator to its end in a cancelled scope, too.

        Raises:
            psycopg.Error: What the generator raises.

        Cancellation:
            The generator is at its end, or the connection is closed.
        """
        rest = resumable(gen)
        return await persist(self.pgconn, self.grace, lambda: self._drive(rest))

    async def _drive(self, gen: PQGen[RV], deadline: float = math.inf) -> RV:
        try:
            result = await waiting.wait(gen, self.pgconn.socket, self._turn, deadline)
        except psycopg.Error as error:
            self._raised.add(error)
            if self._given_up is None or not isinstance(error, psycopg.OperationalError):
                raise
            given_up = psycopg.OperationalError(self._given_up)
            self._raised.add(given_up)
            raise given_up from error
        self.grace.answered()
        return result

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """Open a block in pipeline mode, as in psycopg.

        Raises:
            psycopg.Error: What psycopg's pipeline raises.

        Cancellation:
            The connection is closed.
        """
        try:
            async with super().pipeline() as pipeline:
                yield pipeline
        except BaseException as error:
            if not isinstance(error, Exception):
                # psycopg may have queued statements that were never sent, for example a
                # COMMIT.
                connecting.finish(self.pgconn)
            raise

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Open a transaction block, or in a transaction a savepoint, as in psycopg.

        Raises:
            psycopg.Error: What psycopg's transaction raises.

        Cancellation:
            Everything is rolled back, unless COMMIT has been sent: then the transaction
            is committed or rolled back.
        """
        transaction = TrioTransaction(self, savepoint_name, force_rollback)
        if self.pgconn.pipeline_status:
            async with self.pipeline(), transaction, self.pipeline():
                yield transaction
        else:
            async with transaction:
                yield transaction

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 (psycopg's signature)
        """Ask the server to cancel what the connection does, from another task.

        Args:
            timeout: Seconds that the request may take; 0: no limit.

        Raises:
            psycopg.errors.CancellationTimeout: The server was not reached in time.
            psycopg.OperationalError: The server cannot be asked.

        Cancellation:
            The request was made or not.
        """
        if not self._should_cancel():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(timeout or math.inf) as scope:
            await request_cancel(self.pgconn)
        if scope.cancelled_caught:
            raise psycopg.errors.CancellationTimeout("cancellation timeout expired")

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109 (psycopg's signature)
        # psycopg cleans up COPY and stream() here, which must work in a cancelled
        # scope.
        with self.grace.scope():
            await super()._try_cancel(timeout=timeout)
