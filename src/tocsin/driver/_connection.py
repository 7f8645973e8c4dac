"""A psycopg connection on trio.

Why subclassing works --------------------- `psycopg.AsyncConnection` is asyncio's in
four places only: how it waits for the socket, its lock, how it connects, and how it
asks the server to cancel. All the rest (cursors, rows, types, prepared statements,
pipelines, COPY, transactions) is made of generators that are handed to
`AsyncConnection.wait`. So `TrioConnection` overrides these four, and everything else of
psycopg works as its documentation says.

No thread, no event loop besides trio's. (One exception: trio resolves host names in a
thread of its own, see ``_connecting.py``.) The private names of psycopg this relies on
are listed and checked in ``tests/driver/test_contract.py``.

What cancellation does ---------------------- A connection in the middle of a statement
is of no use to anyone, and trio's cancellation is level-triggered: once a scope is
cancelled, everything awaited in it is, including what psycopg would do to clean up. So
every operation leaves the connection in one of two states, never in between: *usable*,
with nothing in flight, or *closed*.

- Cancelled before anything was sent: nothing is sent.
- Cancelled while a statement runs: the server is asked to cancel it, and the answer is
  awaited, shielded, for `GRACE` seconds at most (``_grace.py``). The statement has
  failed then, or it won the race and has taken effect; the caller cannot know, as with
  any operation that is cut short. The connection is usable. A server that does not
  answer in time costs the connection.
- Cancelled in pipeline mode: the running statement is cancelled and the connection is
  closed, since which of the statements have been executed cannot be told, and there is
  no way to leave pipeline mode before it has been. The server rolls back.
  (`TrioConnection.run_together`, which knows what it has sent, does leave it.)
- Cancelled during COPY: it is ended with an error, as a whole. The connection is
  usable.
- Cancelled in a transaction: see `TrioTransaction`.

`KeyboardInterrupt` is treated like a cancellation.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self, cast

import psycopg
import trio
from psycopg import generators, pq, sql
from psycopg.abc import RV, AdaptContext, ConnParam, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.rows import AsyncRowFactory, Row, tuple_row
from psycopg.waiting import Wait

from . import _connecting as connecting
from . import _waiting as waiting
from ._cursors import StatementLock, check_writer, closes_server_cursor
from ._grace import Grace
from ._persistence import persist
from ._prepared import Prepared, Rows, Statement
from ._watch import Session, Watch

__all__ = ["TrioConnection", "TrioTransaction"]

_ASK_AGAIN: Final = 0.25
"""After how long, in seconds, the server is asked once more to cancel. A request that
overtakes the statement that it is meant for is lost, and on a busy machine that
happens.
"""

_RESET: Final = (
    b"close all; set session authorization default; reset role; reset all; unlisten *; select"
    b" pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences"
)

_ACTIVE = pq.TransactionStatus.ACTIVE
_IDLE = pq.TransactionStatus.IDLE
_FATAL = frozenset(("FATAL", "PANIC"))
_TUPLES = cast(AsyncRowFactory[Any], tuple_row)


class TrioTransaction(psycopg.AsyncTransaction):
    """psycopg's transaction block, which keeps its promise in a cancelled scope too.

    When the block is left, by whatever, the transaction (or savepoint) has ended or the
    connection is closed. Cancelled in the block, or before COMMIT was sent: it is
    rolled back. Cancelled while COMMIT is under way: it is either committed or rolled
    back, and the caller cannot know. BEGIN, ROLLBACK and the savepoint commands take no
    time worth cancelling, so they are seen through; see `persist`.
    """

    _conn: TrioConnection[Any]

    async def __aenter__(self) -> Self:
        async with self._conn.lock:
            self._check_enter()
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                await self._conn._see_through(self._enter_gen())
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
                    # Cancelled before anything was sent.
                    await self._roll_back(error)
                raise
        finally:
            self._conn.lock.release()

    async def _commit(self) -> bool:
        gen = self._exit_gen(None, None, None)
        if self._outer_transaction:
            return await self._conn.wait(gen)
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._conn._see_through(gen)

    async def _roll_back(self, error: BaseException | None) -> bool:
        if self._lost():
            return False
        kind, traceback = (type(error), error.__traceback__) if error is not None else (None, None)
        swallow = await self._conn._see_through(self._exit_gen(kind, error, traceback))
        # psycopg logs a ROLLBACK that fails and goes on.
        ended = self.pgconn.transaction_status == _IDLE
        if self._outer_transaction and not ended and not self.pgconn.pipeline_status:
            connecting.finish(self.pgconn)
        return swallow

    def _lost(self) -> bool:
        if lost := self.pgconn.status != pq.ConnStatus.OK:
            self.status = self.Status.FAILED
        return lost


class TrioConnection(psycopg.AsyncConnection[Row]):
    """A connection to PostgreSQL for trio: all of `psycopg.AsyncConnection`, natively.

    May be shared by tasks, whose statements then take turns.
    """

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Row] = _TUPLES) -> None:
        super().__init__(pgconn, row_factory)
        self.grace: Grace = Grace()
        """How long cleaning up may take. Read only; see `share_grace`."""
        self.lock: Any = StatementLock(pgconn, self.grace)
        self._turn = waiting.Turn()
        self._without_cursor = Prepared(pgconn)
        self._given_up: str | None = None
        self.suspect = False
        """Whether another connection of the same age has fallen silent: it is not to be
        used for anything new."""
        self.session: Session | None = None
        """The session on the server; None while that is not known, or if it is not
        ours."""
        self.session_is_ours: bool = False
        """Whether `take_session` has found that there is no pooler in between."""
        self.settings_before: dict[str, str] = {}
        """What the settings that `take_session` has applied were before."""
        self._reset = _RESET

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
        """Connect to a server; the parameters are those of
        `psycopg.AsyncConnection.connect`, and ``hosts``.

        Where the connection string names several hosts, one that did not answer in time
        is tried last for half a minute by each connection that is opened with the same
        `Hosts`.

        Raises `psycopg.OperationalError`, which tells of every host that was tried, and
        whose ``pgconn`` tells of the last one. Cancellation leaves nothing open.
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
        """Close the connection. A checkpoint; also when cancelled the connection is
        closed. Raises nothing else."""
        self.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the connection, as `close` does; the name that `contextlib.aclosing`
        and `trio.aclose_forcefully` call.

        A checkpoint; also when cancelled the connection is closed. Raises nothing else.
        """
        await self.close()

    def finish(self) -> None:
        """Close the connection at once, without a checkpoint.

        A task that is waiting for it gets a `psycopg.OperationalError`. A connection
        that the server or a cancelled operation has ended before stays ``broken``.
        """
        self._closed = self._closed or not self.closed
        connecting.finish(self.pgconn)

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 (psycopg's signature)
    ) -> RV:
        """Drive one of psycopg's generators; everything that psycopg does passes
        through here.

        ``timeout`` is in seconds; ``interval`` is psycopg's, and has no meaning here.
        Raises what the generator raises. Cancellation is described at the top of this
        module.
        """
        if self.pgconn.transaction_status != _ACTIVE:
            if closes_server_cursor(gen):
                return await self._see_through(gen)
            check_writer(gen)
            await trio.lowlevel.checkpoint_if_cancelled()
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        try:
            return await self._drive(gen, deadline)
        except BaseException as error:
            # An Exception is the protocol's own, which psycopg handles; but not the end
            # of its patience in the middle of a statement.
            if not isinstance(error, Exception) or isinstance(error, psycopg.errors._WaitTimeout):
                await self._call_off(gen)
            raise

    async def run_prepared(self, statement: bytes, parameters: Sequence[bytes | None]) -> Rows:
        """Run a statement with text parameters (``$1``, ``$2``, ...) and return its
        rows, without a cursor.

        For short statements that are run over and over; see ``_prepared.py``. Not in a
        transaction or pipeline, where a statement cannot be prepared anew if somebody
        has discarded it. Raises psycopg's errors. Cancelled, it has taken effect as a
        whole or not at all.
        """
        async with self.lock:
            return Rows(await self.wait(self._without_cursor.run(statement, parameters)), self)

    async def run_together(
        self, statements: Sequence[Statement], answer: int, settled: int
    ) -> Rows:
        """Run statements that go to the server in one request, and return the rows of
        the one with the index ``answer``.

        The server answers when it has run all of them; it runs none after one that has
        failed. What is between BEGIN and COMMIT is a transaction, as is what follows
        the last COMMIT; one that has failed is rolled back. For short statements that
        are run over and over, with `session_is_ours`; not in a transaction or pipeline.
        Raises psycopg's errors, and `psycopg.errors.TransactionResolutionUnknown` when
        one has failed behind the one with the index ``settled``. Cancelled, as many of
        the transactions as were committed by then have taken effect.
        """
        async with self.lock:
            return Rows(
                (await self.wait(self._without_cursor.run_together(statements, settled)))[answer],
                self,
            )

    @property
    def waits_since(self) -> float:
        """Since when a statement waits for the server, as a `trio.current_time`;
        infinity when none does."""
        return self._turn.since if self.pgconn.transaction_status == _ACTIVE else math.inf

    def be_watched(self, watch: Watch) -> None:
        """Have this watch know of each statement; see ``_watch.py``."""
        self._turn.watch = watch

    def give_up(self, reason: str) -> None:
        """Close the connection at once, and drop what is still to be sent. A task that
        waits for it gets the reason as an error."""
        self._given_up = reason
        with (
            suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as copy,
        ):
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.finish()

    def share_grace(self, grace: Grace) -> None:
        """Have cleaning up take no longer than for the other connections that share
        this."""
        self.grace = cast(StatementLock, self.lock).grace = grace

    async def take_session(self, settings: Mapping[str, str]) -> None:
        """Apply those of these settings that the server knows to the session, if it is
        ours. There is at least one that it knows.

        It is not ours when a pooler stands in between, such as PgBouncer, which may run
        each transaction on another session of the server than the one it claimed to be
        when we connected. Then nothing is set, for the next client of that session
        would have it. Raises psycopg's errors. Cancelled, it is set or not.
        """
        statement = (
            "select s.name, s.was, set_config(s.name, s.value, false), a.pid, extract(epoch from"
            " a.backend_start)::text from (select name, value, current_setting(name, true) as was"
            " from unnest(%s::text[], %s::text[]) given (name, value)) s,"
            " pg_stat_get_activity(pg_backend_pid()) a where pg_backend_pid() = %s and s.was is not"
            " null"
        )
        cursor = psycopg.AsyncCursor(self, row_factory=_TUPLES)
        await cursor.execute(
            statement, [list(settings), list(settings.values()), self.info.backend_pid]
        )
        rows = await cursor.fetchall()
        self.settings_before = {name: was for name, was, *_ in rows}
        self.session_is_ours = bool(rows)
        for *_, pid, began in rows[:1]:
            self.session = None if began is None else (pid, began)
        taken = [
            sql.SQL("set_config({}, {}, false)").format(name, settings[name])
            for name in self.settings_before
        ]
        self._reset = (
            _RESET + b"; select " + sql.SQL(", ").join(taken).as_bytes(self) if taken else _RESET
        )

    async def reset_session(self) -> None:
        """Undo what was set in the session: settings, role, temporary tables, LISTEN,
        advisory locks, cursors. Prepared statements stay.

        As DISCARD ALL does, which drops those, too. What `take_session` has applied is
        applied again, in the same request. Not in a transaction or pipeline. Raises
        psycopg's errors. Cancelled, all of it is done or nothing.
        """
        async with self.lock:
            await self.wait(self._reset_session())

    def _reset_session(self) -> PQGen[None]:
        self.pgconn.send_query(self._reset)
        for result in (yield from generators.execute(self.pgconn)):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)

    async def _call_off(self, gen: PQGen[Any]) -> None:
        """Bring the connection into order after `gen` was interrupted."""
        pipeline = bool(self.pgconn.pipeline_status) and not self._without_cursor.together
        if not self.pgconn.pipeline_status and self.pgconn.transaction_status != _ACTIVE:
            return
        rest = _resumable(_rest_of_pipeline(self.pgconn) if pipeline else _rest(self.pgconn, gen))
        try:
            with self.grace.scope():
                over = False
                while not over:
                    with suppress(psycopg.Error):
                        await self._request_cancel()
                    over = await self._proceed(rest)
                if not self.closed:
                    self.grace.answered()
        finally:
            # What psycopg believes to be in the pipeline cannot be put right.
            if self.pgconn.pipeline_status or self.pgconn.transaction_status == _ACTIVE:
                connecting.finish(self.pgconn)

    async def _proceed(self, rest: PQGen[None]) -> bool:
        """Drive `rest` for a while and return whether it is over."""
        deadline = trio.current_time() + _ASK_AGAIN
        # However it ends: as a rule with QueryCanceled, maybe with an error of its own
        # or a lost connection.
        with suppress(Exception):
            try:
                await waiting.wait(rest, self.pgconn.socket, self._turn, deadline)
            except psycopg.errors._WaitTimeout:
                return False
        return True

    async def _see_through(self, gen: PQGen[RV]) -> RV:
        resumable = _resumable(gen)
        return await persist(self.pgconn, self.grace, lambda: self._drive(resumable))

    async def _drive(self, gen: PQGen[RV], deadline: float = math.inf) -> RV:
        try:
            result = await waiting.wait(gen, self.pgconn.socket, self._turn, deadline)
        except psycopg.OperationalError as error:
            if self._given_up is None:
                raise
            raise psycopg.OperationalError(self._given_up) from error
        self.grace.answered()
        return result

    async def _request_cancel(self) -> None:
        request = self.pgconn.cancel_conn()
        try:
            request.start()
            if await connecting.drive(request, request.poll) != pq.PollingStatus.OK:
                raise psycopg.OperationalError(
                    f"cancellation failed: {request.get_error_message()}"
                )
        finally:
            connecting.finish(request)

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 (psycopg's signature)
        """Ask the server to cancel what the connection is doing, from another task.

        Raises `psycopg.errors.CancellationTimeout` if the server cannot be asked within
        ``timeout`` seconds (0: no limit). Cancelled, the request may or may not have
        been made.
        """
        if not self._should_cancel():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(timeout or math.inf) as scope:
            await self._request_cancel()
        if scope.cancelled_caught:
            raise psycopg.errors.CancellationTimeout("cancellation timeout expired")

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109 (psycopg's signature)
        # psycopg's cleanup of COPY and stream(), which must work in a cancelled scope.
        with self.grace.scope():
            await super()._try_cancel(timeout=timeout)

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """Pipeline mode; raises what psycopg's does. Cancelled in the block, the
        connection is closed."""
        try:
            async with super().pipeline() as pipeline:
                yield pipeline
        except BaseException as error:
            if not isinstance(error, Exception):
                # Statements may be queued in psycopg that were never sent, a COMMIT
                # among them.
                connecting.finish(self.pgconn)
            raise

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A transaction block, or with a transaction open a savepoint, as in psycopg.

        Raises what psycopg's does. Cancelled before COMMIT is sent, everything is
        rolled back.
        """
        transaction = TrioTransaction(self, savepoint_name, force_rollback)
        if self.pgconn.pipeline_status:
            async with self.pipeline(), transaction, self.pipeline():
                yield transaction
        else:
            async with transaction:
                yield transaction

    async def wait_for_notifications(self) -> None:
        """Wait until the server has sent something, and hand notifications to the
        handlers (``add_notify_handler``).

        Returns at once if notifications were there already; may return without one,
        when the server sent something else. Without a handler they are kept for
        ``notifies()``. No timer takes part in it. The connection's lock is held
        meanwhile: other statements on it wait until this is over or cancelled. Raises
        `psycopg.OperationalError` when the connection is lost. Cancellation loses no
        notification and leaves the connection usable.
        """
        async with self.lock:
            await self.wait(self._receive())

    def _receive(self) -> PQGen[None]:
        if not self._deliver():
            while not (yield Wait.R):
                pass
            self.pgconn.consume_input()
            self._deliver()

    def _deliver(self) -> bool:
        delivered = False
        while (notification := self.pgconn.notifies()) is not None:
            delivered = True
            if self.pgconn.notify_handler:
                self.pgconn.notify_handler(notification)
        return delivered

    def is_broken(self) -> bool:
        """Whether the connection is closed or suspect or, while it was idle, the server
        has gone away.

        Asks only the operating system, not the server, so a silent network failure goes
        unnoticed. Notifications that turn up go to their handlers. On a connection in
        use it tells only if it is closed.
        """
        if self.suspect:
            return True
        if self.closed or self.lock.locked() or self.pgconn.transaction_status == _ACTIVE:
            return self.closed
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        if not poll.poll(0):
            return False
        last_words: list[str | None] = []
        self.add_notice_handler(
            listen := lambda notice: last_words.append(notice.severity_nonlocalized)
        )
        try:
            # Readable for as long as there is something to read, and at its end for
            # ever.
            while poll.poll(0):
                self.pgconn.consume_input()
                self._deliver()
        except psycopg.OperationalError:
            return True
        finally:
            self.remove_notice_handler(listen)
        # A session that is ended from outside says so first, a moment before its end
        # can be seen.
        return not _FATAL.isdisjoint(last_words)


def _resumable(gen: PQGen[RV], *, started: bool = False) -> PQGen[RV]:
    """Drive `gen` so that it can be left where it waits, and gone on with: then nothing
    is ready, which psycopg writes as 0, not None."""
    try:
        want = gen.send(0) if started else next(gen)
        while True:
            want = gen.send((yield want) or 0)
    except StopIteration as end:
        result: RV = end.value
        return result


def _rest(pgconn: pq.abc.PGconn, gen: PQGen[Any]) -> PQGen[None]:
    """What is still to come of a statement that was called off: `gen`, other results,
    the rest of a COPY."""
    with suppress(Exception):
        yield from _resumable(gen, started=True)
    while (result := (yield from generators.fetch(pgconn))) is not None:
        if result.status == pq.ExecStatus.COPY_IN:
            yield from generators.copy_end(pgconn, b"cancelled")
        elif result.status == pq.ExecStatus.COPY_OUT:
            while isinstance((yield from generators.copy_from(pgconn)), memoryview):
                pass
        elif result.status == pq.ExecStatus.COPY_BOTH:
            # Replication has no end that could be waited for.
            return


def _rest_of_pipeline(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """What is still to come of a pipeline; when it is over, the server has nothing left
    to execute.

    The pipeline's end commits what has been executed since the last one, if the request
    to cancel came too late. So an error comes first.
    """
    pgconn.send_query_params(
        b"do $$ begin raise exception 'the client has cancelled this pipeline'; end $$", None
    )
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    while pgconn.transaction_status == _ACTIVE:
        yield from generators.fetch(pgconn)
