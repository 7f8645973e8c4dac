"""Transaction blocks that end in a cancelled scope, too."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg
import trio
from psycopg import pq

from . import _connecting as connecting
from ._persistence import persist

if TYPE_CHECKING:
    from ._driven import DrivenConnection

__all__ = ["TrioTransaction"]


class TrioTransaction(psycopg.AsyncTransaction):
    """psycopg's transaction block, which ends its transaction in a cancelled scope too.

    When the block ends, the transaction (or savepoint) has ended or the connection is
    closed. BEGIN, ROLLBACK and the savepoint commands are completed, because they take
    no time worth a cancellation; see `persist`.

    Cancellation:
        In the block, or before COMMIT is sent, the transaction is rolled back. While
        COMMIT is under way, it is committed or rolled back, and the caller cannot know
        which.
    """

    _conn: DrivenConnection[Any]

    async def __aenter__(self) -> Self:
        """Begin the transaction, or set the savepoint."""
        async with self._conn.lock:
            self._check_enter()
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                await self._conn.complete(self._enter_gen())
            except BaseException as error:
                await self._roll_back(error)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        """Commit, or roll back after an error."""
        if self._lost():
            return False
        await persist(self.pgconn, self._conn.grace, self._conn.lock.acquire)
        try:
            if exc_val is not None or self.force_rollback:
                return await self._roll_back(exc_val)
            try:
                return await self._commit()
            except BaseException as error:
                if self.status is self.Status.ACTIVE:
                    # The task was cancelled before a statement was sent.
                    await self._roll_back(error)
                raise
        finally:
            self._conn.lock.release()

    async def _commit(self) -> bool:
        gen = self._exit_gen(None, None, None)
        if self._outer_transaction:
            return await self._conn.wait(gen)
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._conn.complete(gen)

    async def _roll_back(self, error: BaseException | None) -> bool:
        if self._lost():
            return False
        kind, traceback = (type(error), error.__traceback__) if error is not None else (None, None)
        swallow = await self._conn.complete(self._exit_gen(kind, error, traceback))
        # psycopg logs a ROLLBACK that fails, and continues.
        ended = self.pgconn.transaction_status == pq.TransactionStatus.IDLE
        if self._outer_transaction and not ended and not self.pgconn.pipeline_status:
            connecting.finish(self.pgconn)
        return swallow

    def _lost(self) -> bool:
        if lost := self.pgconn.status != pq.ConnStatus.OK:
            self.status = self.Status.FAILED
        return lost
