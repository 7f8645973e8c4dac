"""Calling the contract: one place that runs the schema's functions and turns what the
database says into Tocsin's errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import psycopg
import trio

from tocsin._concurrency.backoff import delays
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin.driver import Pool, PoolClosed, Rows, TrioConnection
from tocsin.driver._grace import Grace
from tocsin.driver._prepared import Statement
from tocsin.driver._watch import Watch
from tocsin.errors import (
    ConnectionLost,
    PermissionDenied,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    TocsinError,
)

from . import install
from .error_mapping import is_read_only, is_undone, is_useless, translate
from .schema import Contract, Schema

Connection: TypeAlias = TrioConnection[Any]
Connect: TypeAlias = Callable[[], Awaitable[Connection]]
Row: TypeAlias = tuple[Any, ...]
T = TypeVar("T")

REPEATS = 3
"""How many more times a transaction of one statement is sent that had no effect: a
deadlock, a conflict, a full queue of notifications."""

_BEGIN: Statement = (b"begin", ())
_NEXT: Statement = (b"commit and chain", ())
_COMMIT: Statement = (b"commit", ())

# What ends one statement and says nothing of the next: a lock that was not free in
# time, a cancellation or a timeout of the statement.
_ENDED_ALONE = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)

# What PostgreSQL says where the schema, or a part of it, is not there.
_SOMETHING_MISSING = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidSchemaName,
)


class Database:
    """A pool of connections to one database, and the schema in it."""

    def __init__(
        self,
        pool: Pool[Any],
        schema: Schema,
        address: str,
        grace: Grace,
        watch: Watch,
        connect: Connect,
    ) -> None:
        self.pool = pool
        self.grace = grace
        """How long cleaning up after a cancellation may take, which all connections to
        the database share."""
        self.schema = schema
        self.address = address
        self._watch = watch
        self._connect = connect
        self._failing_since: float | None = None
        self._is_served = False
        self._render = lru_cache(maxsize=None)(self._write)

    @asynccontextmanager
    async def connection(self, *, lent: bool = False) -> AsyncIterator[Connection]:
        """Lend a connection of the pool, and turn psycopg's errors into Tocsin's.

        ``lent`` says that a user runs statements there, so that the session is reset
        afterwards: Tocsin's own statements set nothing in it. An error of another
        connection, or one that only the user's statement has met, is raised as it is,
        and the connection is kept.

        Cancellation:
            The connection goes back to the pool.
        """
        foreign = False
        own = not lent
        try:
            async with self.pool.connection(reset=lent) as connection:
                try:
                    yield connection
                except psycopg.Error as error:
                    foreign = lent and not (connection.closed or connection.raised(error))
                    own = own or is_read_only(error, connection)
                    if not foreign:
                        self._drop_if_useless(connection, error, own=own)
                    raise
        except psycopg.Error as error:
            # A user's statement may lack a privilege on a table that is not Tocsin's.
            if foreign or (lent and isinstance(error, psycopg.errors.InsufficientPrivilege)):
                raise
            translated = await self._translate(error, own=own)
            if translated is error:
                raise
            raise translated from error
        except PoolClosed:
            raise _closed() from None

    async def terminate_abandoned(self) -> None:
        """Return when no session goes on that was given up when the server could not be
        told so.

        Raises Tocsin's errors. Cancelled, they have ended or not.
        """
        if self._watch.has_abandoned:
            async with self.connection() as connection:
                await self._watch.terminate_abandoned(connection)

    async def fetch(
        self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None
    ) -> list[Row]:
        """Run one statement, written for the schema ``tocsin``, and return its rows.

        On the connection ``on``, else on one of the pool, where it is a transaction of
        its own. Raises Tocsin's errors. Cancellation cancels the statement: it has
        taken effect as a whole or not at all.
        """
        if on is not None:
            try:
                return await self._execute(on, statement, parameters)
            except psycopg.Error as error:
                raise await self._translate(error) from error
        return await self._repeated(partial(self._fetch, statement, parameters))

    async def fetch_one(
        self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None
    ) -> Row:
        """Like `fetch`, for a statement that gives exactly one row."""
        (row,) = await self.fetch(statement, parameters, on=on)
        return row

    async def fetch_from_any(
        self, statement: str, parameters: Sequence[object], *, after: float
    ) -> list[Row]:
        """Run a statement like `fetch`, on a second connection if the first is silent.

        The statement may run twice. Without an answer ``after`` this many seconds it
        also runs on a new connection. The first answer counts, and the connection
        without an answer is closed. Raises Tocsin's errors.

        Cancellation:
            The statement has taken effect or not.
        """
        answers: list[list[Row]] = []
        failures: list[Exception] = []
        under_way: set[Connection] = set()
        first_over = trio.Event()

        @trio.lowlevel.enable_ki_protection
        async def attempt(lend: AbstractAsyncContextManager[Connection]) -> None:
            try:
                async with lend as connection:
                    under_way.add(connection)
                    try:
                        rows = await self._repeated(
                            partial(self._fetch_on, connection, statement, parameters)
                        )
                    finally:
                        under_way.discard(connection)
            except PoolClosed:
                failures.append(_closed())
            except (psycopg.Error, TocsinError) as error:
                failures.append(error)
            else:
                answers.append(rows)
                for other in under_way:
                    # to call it off could take as long as its answer
                    other.give_up("another connection was faster")
                nursery.cancel_scope.cancel()
            first_over.set()

        async with open_nursery_bare() as nursery:
            nursery.start_soon(attempt, self.pool.connection(reset=False))
            with trio.move_on_after(after):
                await first_over.wait()
            if not first_over.is_set():
                nursery.start_soon(attempt, self._new_connection())
        if answers:
            return answers[0]
        failure, *_ = failures
        raise await self._translate(failure) if isinstance(failure, psycopg.Error) else failure

    @asynccontextmanager
    async def _new_connection(self) -> AsyncIterator[Connection]:
        connection = await self._connect()
        try:
            yield connection
        finally:
            connection.finish()

    async def run(self, statement: str, parameters: Sequence[str | None]) -> Rows:
        """Run a statement whose parameters are ``$1`` and so on, as text, written for
        the schema ``tocsin``, and return its rows.

        It is a transaction of its own, on a connection of the pool. For statements
        where every tenth of a millisecond counts: there is less between the caller and
        the server. Raises Tocsin's errors. Cancelled, it has taken effect as a whole or
        not at all.
        """
        return await self._repeated(
            partial(self._run, self._render(statement), _encode(parameters))
        )

    async def run_pipelined(
        self, statements: Sequence[tuple[str, Sequence[str | None]]], answer: int, *, otherwise: str
    ) -> Rows:
        """Run statements like `run`, each a transaction of its own, in one request;
        return the rows of the one with this index.

        Where there is a pooler in between, only that one is run, written as in
        ``otherwise``. None behind a statement that has failed is run. Raises Tocsin's
        errors; `ConnectionLost`, whose outcome is unknown, also if one behind that one
        has failed. Cancelled, as many of them as were committed by then have taken
        effect.
        """
        encoded = [
            (self._render(statement), _encode(parameters)) for statement, parameters in statements
        ]
        return await self._repeated(
            partial(self._run_in_turn, encoded, answer, self._render(otherwise))
        )

    async def _repeated(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt a transaction, again while PostgreSQL says that the attempt had no
        effect and that the next may succeed."""
        waits = islice(delays(), REPEATS)
        while True:
            try:
                result = await attempt()
                self._failing_since = None
                return result
            except ConnectionLost:
                self._note_failure()
                raise
            except psycopg.Error as error:
                wait = next(waits, None) if is_undone(error) else None
                if wait is None:
                    translated = await self._translate(error)
                    if isinstance(translated, ConnectionLost) and not isinstance(
                        error, _ENDED_ALONE
                    ):
                        self._note_failure()
                    raise translated from error
            except PoolClosed:
                raise _closed() from None
            await trio.sleep(wait)

    def _note_failure(self) -> None:
        if self._failing_since is None:
            self._failing_since = trio.current_time()

    @property
    def failing_for(self) -> float | None:
        """For how many seconds no statement on a connection of the pool has succeeded
        and some have failed; None while they succeed."""
        return None if self._failing_since is None else trio.current_time() - self._failing_since

    async def _fetch(self, statement: str, parameters: Sequence[object]) -> list[Row]:
        async with self.pool.connection(reset=False) as connection:
            return await self._fetch_on(connection, statement, parameters)

    async def _fetch_on(
        self, connection: Connection, statement: str, parameters: Sequence[object]
    ) -> list[Row]:
        with self._dropped_if_useless(connection):
            return await self._execute(connection, statement, parameters)

    async def _run(self, statement: bytes, parameters: Sequence[bytes | None]) -> Rows:
        async with self.pool.connection(reset=False) as connection:
            try:
                return await connection.run_prepared(statement, parameters)
            except psycopg.Error as error:
                self._drop_if_useless(connection, error)
                raise

    async def _run_in_turn(
        self, statements: Sequence[Statement], answer: int, otherwise: bytes
    ) -> Rows:
        together: list[Statement] = [_BEGIN]
        for statement in statements[:-1]:
            together += statement, _NEXT
        together[-1] = _COMMIT  # the last one is a transaction anyway
        async with self.pool.connection(reset=False) as connection:
            with self._dropped_if_useless(connection):
                if not connection.has_own_session:
                    return await connection.run_prepared(otherwise, statements[answer][1])
                return await connection.run_together(
                    [*together, statements[-1]], 2 * answer + 1, settled=2 * answer + 2
                )

    async def _execute(
        self, connection: Connection, statement: str, parameters: Sequence[object]
    ) -> list[Row]:
        # In binary, since the text of times and intervals depends on the session's
        # settings, which behind a pooler are not ours.
        cursor = await connection.execute(self._render(statement), parameters, binary=True)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []

    @contextmanager
    def _dropped_if_useless(self, connection: Connection) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            self._drop_if_useless(connection, error)
            raise

    def _drop_if_useless(
        self, connection: Connection, error: psycopg.Error, *, own: bool = True
    ) -> None:
        """Close a connection after an error that makes a new one a better one, and the
        idle ones that have the same fault.

        Without ``own`` a transaction was read-only because the user has made it so.
        """
        read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        if is_useless(error) and (own or not read_only):
            connection.finish()
            if read_only:
                self.pool.drop_idle()

    def _write(self, statement: str) -> bytes:
        return self.schema.render(statement).encode()

    async def check_served(self) -> None:
        """Raise `SchemaNewer` or `SchemaOutdated` unless the schema serves this package.

        Only the first call asks the database. A role that may not read the contract
        goes on, and meets a missing function if there is one. Raises Tocsin's errors.
        Cancellation leaves nothing behind.
        """
        if self._is_served:
            return
        try:
            rows = await self.fetch("select version, serves, digest from tocsin.contract")
        except PermissionDenied:
            rows = []
        for row in rows:
            install.refuse_unserved(self.schema, Contract(*row))
        self.note_served()

    async def explain_missing(self, missing: SchemaMissing) -> TocsinError:
        """Return what a function that is missing on a caller's connection means.

        That transaction has failed, so a connection of the pool is asked. Raises
        `ConnectionLost`. Cancellation leaves nothing behind.
        """
        self._is_served = False
        try:
            await self.check_served()
        except (SchemaMissing, SchemaNewer, SchemaOutdated) as explained:
            return explained
        return missing

    def note_served(self) -> None:
        """Note that the schema serves this package, which a statement has found."""
        self._is_served = True

    async def _translate(self, error: psycopg.Error, *, own: bool = True) -> Exception:
        if isinstance(error, _SOMETHING_MISSING):
            async with self.pool.connection(reset=False) as connection:
                try:
                    await install.check(connection, self.schema)
                except psycopg.Error:
                    return error
                except Exception as cause:
                    return cause
        return translate(error, self.address, own=own)


def _encode(parameters: Sequence[str | None]) -> list[bytes | None]:
    return [None if p is None else p.encode() for p in parameters]


def _closed() -> TocsinError:
    return TocsinError(
        "this store is closed: its `async with tocsin.connect(...)` block has been left"
    )
