"""The connection of this package: psycopg's, and what psycopg does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from psycopg import pq
from psycopg.rows import AsyncRowFactory, Row

from ._driven import TUPLES, DrivenConnection
from ._notifications import has_ended, receive
from ._prepared import Prepared, Rows, Statement
from ._session import SessionId, SessionState
from ._watch import Watch

__all__ = ["TrioConnection"]


class TrioConnection(DrivenConnection[Row]):
    """A connection to PostgreSQL for trio: all of `psycopg.AsyncConnection`, natively.

    Tasks may share it: their statements take turns.
    """

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Row] = TUPLES) -> None:
        super().__init__(pgconn, row_factory)
        self.suspect = False
        """Whether another connection of the same age has fallen silent, so that this
        one is not used for anything new."""
        self.checked_out_by: object | None = None
        """What has given the connection to the code that uses it now, such as a store;
        None: nothing of that kind."""
        self._without_cursor = Prepared(pgconn)
        self._session = SessionState()

    def is_broken(self) -> bool:
        """Return whether the connection is of no use any more.

        It is closed or suspect, or the server has gone away while it was idle. The
        method asks only the operating system, so it does not notice a silent failure of
        the network. Notifications that have come go to their handlers. On a connection
        in use it tells only whether it is closed.
        """
        if self.suspect:
            return True
        if (
            self.closed
            or self.lock.locked()
            or self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        ):
            return self.closed
        return has_ended(self)

    def is_idle(self) -> bool:
        """Return whether no statement is under way, and no task holds the lock."""
        return (
            self.pgconn.transaction_status == pq.TransactionStatus.IDLE
            and not self.pgconn.pipeline_status
            and not self.lock.locked()
        )

    @property
    def waits_since(self) -> float:
        """Since when a statement waits for the server, as a `trio.current_time`.

        It is infinity when none does.
        """
        return (
            self._turn.since
            if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
            else math.inf
        )

    def set_watch(self, watch: Watch) -> None:
        """Have the watch know of each statement; see ``_watch.py``."""
        self._turn.watch = watch

    async def wait_for_notifications(self) -> None:
        """Wait until the server has sent something, and call the notification handlers.

        Handlers are set by ``add_notify_handler``. Without one, notifications are kept
        for ``notifies()``. The method returns at once when notifications are there
        already, and may return without one when the server has sent something else. No
        timer takes part in it. It holds the connection's lock, so other statements on
        the connection wait for its end.

        Raises:
            psycopg.OperationalError: The connection is lost.

        Cancellation:
            No notification is lost, and the connection is usable.
        """
        async with self.lock:
            await self.wait(receive(self.pgconn))

    # --- Statements without a cursor ---

    async def run_prepared(self, statement: bytes, parameters: Sequence[bytes | None]) -> Rows:
        """Run a statement with text parameters, and return its rows, without a cursor.

        Parameters are written ``$1``, ``$2`` and so on. The method is for short
        statements that are run many times. The statement is prepared at its first use,
        and the rows come in binary. Not in a transaction or pipeline, where a statement
        that was deallocated cannot be prepared again.

        Raises:
            psycopg.Error: What the server says of it.

        Cancellation:
            Atomic.
        """
        async with self.lock:
            return Rows(await self.wait(self._without_cursor.run(statement, parameters)), self)

    async def run_together(
        self, statements: Sequence[Statement], answer: int, settled: int
    ) -> Rows:
        """Run statements in one request, and return the rows of one of them.

        The server answers when it has run all of them; it runs none after one that has
        failed. What is between BEGIN and COMMIT is a transaction, as is what follows
        the last COMMIT; a transaction that has failed is rolled back. The method is for
        short statements that are run many times, with `has_own_session`. Not in a
        transaction or pipeline.

        Args:
            statements: Each is a statement and its parameters as text.
            answer: Index of the statement whose rows are returned.
            settled: Index of the last statement that the caller depends on.

        Raises:
            psycopg.Error: What the server says of a statement up to ``settled``.
            psycopg.errors.TransactionResolutionUnknown: A later statement has failed.

        Cancellation:
            The transactions that were committed by then have taken effect.
        """
        async with self.lock:
            return Rows(
                (await self.wait(self._without_cursor.run_together(statements, settled)))[answer],
                self,
            )

    def _leaves_pipeline(self) -> bool:
        return self._without_cursor.together

    # --- The session ---

    @property
    def session(self) -> SessionId | None:
        """The session on the server: its process id, and when it began.

        It is None before `apply_settings`, and behind a pooler.
        """
        return self._session.id

    @property
    def has_own_session(self) -> bool:
        """Whether each transaction runs in the same session.

        `apply_settings` finds it out: it is so where no pooler stands in between.
        """
        return self._session.is_own

    @property
    def settings_before(self) -> Mapping[str, str]:
        """The values that the settings of `apply_settings` had before."""
        return self._session.before

    async def apply_settings(self, settings: Mapping[str, str]) -> None:
        """Apply settings to the session, unless a pooler stands in between.

        The method takes one round trip. A setting that the server does not know is left
        out. `reset_session` applies them again. A pooler, such as PgBouncer, may run
        each transaction in another session of the server, and the next client of that
        session would have the settings. So nothing is set then, and `has_own_session`
        is False.

        Args:
            settings: Values by name; the server knows at least one.

        Raises:
            psycopg.Error: The server refuses a value, or the connection is lost.

        Cancellation:
            Atomic.
        """
        await self._session.apply(self, settings)

    async def reset_session(self) -> None:
        """Undo what was set in the session, and set again what `apply_settings` set.

        Settings, role, temporary tables, LISTEN, advisory locks and cursors are undone.
        Unlike DISCARD ALL the method keeps prepared statements. It takes one round
        trip. Not in a transaction or pipeline.

        Raises:
            psycopg.Error: The session cannot be reset, or the connection is lost.

        Cancellation:
            Atomic.
        """
        async with self.lock:
            await self.wait(self._session.reset(self.pgconn))
