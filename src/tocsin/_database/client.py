"""Calls of the schema's functions, with the database's errors as Tocsin's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import psycopg
import trio

from tocsin._concurrency.backoff import delays
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.grace import Grace
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin.driver import Pool, PoolClosed, Rows, Statement, TrioConnection
from tocsin.driver._watch import Watch
from tocsin.errors import ConnectionLost, TocsinError
from tocsin.telemetry.events import Events

from .attempts import Outage, drop_if_useless, encode, opened, store_closed
from .contract_check import ContractCheck
from .error_mapping import is_read_only, is_replaced, is_undone, translate
from .missing import SOMETHING_MISSING, find_cause
from .schema import Schema

Connection: TypeAlias = TrioConnection[Any]
Connect: TypeAlias = Callable[[], Awaitable[Connection]]
Row: TypeAlias = tuple[Any, ...]
T = TypeVar("T")

REPEATS = 3
"""How many more times a transaction of one statement is sent that had no effect, after
a deadlock, a conflict or a full queue of notifications."""

_BEGIN: Statement = (b"begin", ())
_NEXT: Statement = (b"commit and chain", ())
_COMMIT: Statement = (b"commit", ())


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
        events: Events,
    ) -> None:
        self.pool = pool
        self.grace = grace
        """The deadline of a cleanup, which all connections to the database share."""
        self.schema = schema
        self.address = address
        self._watch = watch
        self._connect = connect
        self._outage = Outage(events)
        self.contract: ContractCheck = ContractCheck(self.fetch, schema)
        """Whether the installed contract serves this package."""
        self._render = lru_cache(maxsize=None)(lambda text: schema.render(text).encode())

    @asynccontextmanager
    async def connection(self, *, for_user: bool = False) -> AsyncIterator[Connection]:
        """Check out a connection of the pool, and turn psycopg's errors into Tocsin's.

        ``for_user`` says that a user runs statements there, so that the session is
        reset afterwards: Tocsin's own statements set nothing in it. An error of another
        connection, or one that only the user's statement has met, is raised as it is,
        and the connection is kept.

        Cancellation:
            The connection goes back to the pool.
        """
        foreign = worked = False
        own = not for_user
        connection: Connection | None = None
        try:
            async with self.pool.connection(reset=for_user) as connection:
                try:
                    yield connection
                    worked = not connection.closed
                except psycopg.Error as error:
                    foreign = for_user and not (connection.closed or connection.raised(error))
                    own = own or is_read_only(error, connection)
                    if not foreign:
                        drop_if_useless(self.pool, connection, error, own=own)
                    raise
                except TocsinError as error:
                    # A statement in the block has raised Tocsin's error already.
                    cause = error.__cause__
                    if isinstance(cause, psycopg.Error) and connection.raised(cause):
                        own_fault = own or is_read_only(cause, connection)
                        drop_if_useless(self.pool, connection, cause, own=own_fault)
                        self._outage.failed(error, cause)
                    raise
        except psycopg.Error as error:
            # A user's statement may lack a privilege on a table that is not Tocsin's.
            if foreign or (for_user and isinstance(error, psycopg.errors.InsufficientPrivilege)):
                raise
            translated = await self._translate(error, own=own)
            self._outage.failed(translated, error)
            if translated is error:
                raise
            raise translated from error
        except ConnectionLost as lost:
            if connection is None:
                self._outage.failed(lost)
            raise
        except PoolClosed:
            raise store_closed() from None
        if worked:
            self._outage.succeeded()

    async def terminate_abandoned(self) -> None:
        """Terminate the sessions that were abandoned while the server did not answer.

        Raises:
            ConnectionLost: The server does not answer.

        Cancellation:
            They have ended or not.
        """
        if self._watch.has_abandoned:
            async with self.connection() as connection:
                await self._watch.terminate_abandoned(connection)

    async def fetch(
        self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None
    ) -> list[Row]:
        """Run one statement, written for the schema ``tocsin``, and return its rows.

        Args:
            on: The connection to run it on; None: one of the pool, where it is a
                transaction of its own.

        Raises:
            TocsinError: The database refuses the statement, or is not available.

        Cancellation:
            Atomic.
        """
        if on is not None:
            try:
                return await self._execute(on, statement, parameters)
            except psycopg.Error as error:
                translated = await self._translate(error)
                if translated is error:
                    raise
                raise translated from error
        return await self._repeated(partial(self._fetch, statement, parameters))

    async def fetch_one(
        self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None
    ) -> Row:
        """Run a statement like `fetch`, and return the one row that it gives."""
        (row,) = await self.fetch(statement, parameters, on=on)
        return row

    async def fetch_from_any(
        self, statement: str, parameters: Sequence[object], *, after: float
    ) -> list[Row]:
        """Run a statement like `fetch`, on a second connection if the first is silent.

        The statement may run twice. Without an answer ``after`` this many seconds it
        also runs on a new connection. The first answer counts, and the connection
        without an answer is closed.

        Raises:
            TocsinError: The database refuses the statement, or is not available.

        Cancellation:
            Atomic.
        """
        answers: list[list[Row]] = []
        failures: list[Exception] = []
        under_way: set[Connection] = set()
        first_over = trio.Event()

        @trio.lowlevel.enable_ki_protection
        async def attempt(checkout: AbstractAsyncContextManager[Connection]) -> None:
            try:
                async with checkout as connection:
                    under_way.add(connection)
                    try:
                        rows = await self._repeated(
                            partial(self._fetch_on, connection, statement, parameters)
                        )
                    finally:
                        under_way.discard(connection)
            except PoolClosed:
                failures.append(store_closed())
            except (psycopg.Error, TocsinError) as error:
                failures.append(error)
            else:
                answers.append(rows)
                for other in under_way:
                    # Do not cancel it, which could take as long as its answer.
                    other.give_up("another connection was faster")
                cancel(nursery.cancel_scope, "another connection was faster")
            first_over.set()

        async with open_nursery_bare() as nursery:
            nursery.start_soon(
                attempt, self.pool.connection(reset=False), name="tocsin: statement, first attempt"
            )
            with trio.move_on_after(after):
                await first_over.wait()
            if not first_over.is_set():
                nursery.start_soon(
                    attempt, opened(self._connect), name="tocsin: statement, second attempt"
                )
        if answers:
            return answers[0]
        failure, *_ = failures
        if isinstance(failure, psycopg.Error):
            failure = await self._translate(failure)
        self._outage.failed(failure, failure.__cause__)
        raise failure

    async def run(self, statement: str, parameters: Sequence[str | None]) -> Rows:
        """Run one hot statement, and return its rows.

        The statement is written for the schema ``tocsin``. Its parameters are ``$1``
        and so on, as text. It is a transaction of its own, on a connection of the pool,
        and is sent without psycopg's cursor.

        Raises:
            TocsinError: The database refuses the statement, or is not available.

        Cancellation:
            Atomic.
        """
        return await self._repeated(partial(self._run, self._render(statement), encode(parameters)))

    async def run_pipelined(
        self, statements: Sequence[tuple[str, Sequence[str | None]]], answer: int, *, otherwise: str
    ) -> Rows:
        """Run statements in one request, and return the rows of one of them.

        Each runs like a statement of `run`, in a transaction of its own. A statement
        that fails ends the request: none behind it is run.

        Args:
            statements: The statements and their parameters.
            answer: Index of the statement whose rows are returned.
            otherwise: What to run instead of all of them, with the parameters of that
                one, where a pooler stands in between.

        Raises:
            TocsinError: The database refuses a statement, or is not available. After a
                failure behind the answer this is `ConnectionLost`, whose outcome is
                unknown.

        Cancellation:
            The statements that were committed have taken effect.
        """
        encoded = [
            (self._render(statement), encode(parameters)) for statement, parameters in statements
        ]
        return await self._repeated(
            partial(self._run_in_turn, encoded, answer, self._render(otherwise))
        )

    async def run_pipelined_on(
        self, connection: Connection, statements: Sequence[tuple[str, Sequence[str | None]]]
    ) -> Rows:
        """Run statements in one request, and return the rows of the last one.

        Each is a transaction of its own, as with `run_pipelined`, and they are run one
        by one where a pooler stands in between.

        Raises:
            TocsinError: The database refuses a statement, or is not available.

        Cancellation:
            The statements that were committed have taken effect.
        """
        encoded = [
            (self._render(statement), encode(parameters)) for statement, parameters in statements
        ]
        try:
            if connection.has_own_session:
                return await _run_in_turn_on(connection, encoded, len(encoded) - 1)
            *others, last = encoded
            for statement in others:
                await connection.run_prepared(*statement)
            return await connection.run_prepared(*last)
        except psycopg.Error as error:
            translated = await self._translate(error)
            if translated is error:
                raise
            raise translated from error

    async def _repeated(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt a transaction, again after an error that says it had no effect."""
        waits = islice(delays(), REPEATS)
        while True:
            try:
                result = await attempt()
                self._outage.succeeded()
                return result
            except ConnectionLost as lost:
                self._outage.failed(lost)
                raise
            except psycopg.Error as error:
                undone = is_undone(error) or is_replaced(error, self.schema.name)
                wait = next(waits, None) if undone else None
                if wait is None:
                    translated = await self._translate(error)
                    self._outage.failed(translated, error)
                    if translated is error:
                        raise
                    raise translated from error
            except PoolClosed:
                raise store_closed() from None
            await trio.sleep(wait)

    @property
    def failing_for(self) -> float | None:
        """Seconds for which no statement has succeeded; None while they succeed.

        They count from the first failure for want of a connection of the pool.
        """
        return self._outage.duration

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
                drop_if_useless(self.pool, connection, error)
                raise

    async def _run_in_turn(
        self, statements: Sequence[Statement], answer: int, otherwise: bytes
    ) -> Rows:
        async with self.pool.connection(reset=False) as connection:
            with self._dropped_if_useless(connection):
                if not connection.has_own_session:
                    return await connection.run_prepared(otherwise, statements[answer][1])
                return await _run_in_turn_on(connection, statements, answer)

    async def _execute(
        self, connection: Connection, statement: str, parameters: Sequence[object]
    ) -> list[Row]:
        # Use the binary format. The text format of times and intervals depends on
        # settings of the session, which Tocsin does not set behind a pooler.
        cursor = await connection.execute(self._render(statement), parameters, binary=True)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []

    @contextmanager
    def _dropped_if_useless(self, connection: Connection) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            drop_if_useless(self.pool, connection, error)
            raise

    async def _translate(self, error: psycopg.Error, *, own: bool = True) -> Exception:
        if isinstance(error, SOMETHING_MISSING):
            cause = await find_cause(error, self.pool, self.schema, self.address)
            if cause is not None:
                return cause
        return translate(error, self.address, own=own)


async def _run_in_turn_on(
    connection: Connection, statements: Sequence[Statement], answer: int
) -> Rows:
    together: list[Statement] = [_BEGIN]
    for statement in statements[:-1]:
        together += statement, _NEXT
    together[-1] = _COMMIT  # the last statement is a separate transaction
    return await connection.run_together(
        [*together, statements[-1]], 2 * answer + 1, settled=2 * answer + 2
    )
