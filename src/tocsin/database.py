"""Calling the contract: one place that runs the schema's functions and turns what the database says into Tocsin's errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

from . import schema as schemas
from .driver import Pool, PoolClosed, Rows, TrioConnection
from .driver.grace import Grace
from .driver.prepared import Statement
from .errors import ConfigError, TocsinError, translate
from .schema import Schema

Connection: TypeAlias = TrioConnection[Any]
Row: TypeAlias = tuple[Any, ...]

_BEGIN: Statement = (b"begin", ())
_NEXT: Statement = (b"commit and chain", ())
_COMMIT: Statement = (b"commit", ())

# What PostgreSQL says where the schema, or a part of it, is not there.
_SOMETHING_MISSING = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidSchemaName,
)


def describe_address(dsn: str) -> str:
    """Return host and port of a DSN for messages, without anything secret. Raises `ConfigError` for a DSN that is none."""
    try:
        parameters = None if "\0" in dsn else conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):
        parameters = None
    if parameters is None:  # outside the clause above, for libpq's own words quote the part it could not read, which may be the password
        raise ConfigError("dsn", "not a PostgreSQL connection string; expected postgresql://user@host:port/database")
    defaults = {d.keyword.decode(): d.val.decode() for d in psycopg.pq.Conninfo.get_defaults() if d.val}
    host = parameters.get("host") or parameters.get("hostaddr") or defaults.get("host") or "the default socket"
    port = parameters.get("port") or defaults.get("port") or "5432"
    hosts = str(host).split(",")
    ports = str(port).split(",")
    # What libpq takes for a host or a port is a part of the password when that has a / or an @ in it.
    if any("@" in h[1:] for h in hosts) or not all(p.isdecimal() for p in ports if p):
        raise ConfigError("dsn", "host or port make no sense; special characters in a password must be percent-encoded (%40 is an @)")
    if not str(parameters.get("connect_timeout") or 0).lstrip("-").isdecimal():
        raise ConfigError("dsn", "connect_timeout must be a number of seconds")
    return ",".join(f"{h}:{p}" for h, p in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False))


class Database:
    """A pool of connections to one database, and the schema in it."""

    def __init__(self, pool: Pool[Any], schema: Schema, address: str, grace: Grace) -> None:
        self.pool = pool
        self.grace = grace
        """How long cleaning up after a cancellation may take, which all connections to the database share."""
        self.schema = schema
        self.address = address
        self._render = lru_cache(maxsize=None)(self._write)

    @asynccontextmanager
    async def connection(self, *, lent: bool = False) -> AsyncIterator[Connection]:
        """Lend a connection of the pool; what psycopg raises meanwhile comes out as Tocsin's errors.

        ``lent`` says that it is a user who runs statements there, so that the session is reset afterwards: Tocsin's own set nothing in it.
        Cancellation gives the connection back.
        """
        try:
            async with self.pool.connection(reset=lent) as connection:
                yield connection
        except psycopg.Error as error:
            if lent and isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise  # of a table that Tocsin knows nothing of
            raise await self._translate(error) from error
        except PoolClosed:
            raise _closed() from None

    async def fetch(self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None) -> list[Row]:
        """Run one statement, written for the schema ``tocsin``, and return its rows.

        On the connection ``on``, else on one of the pool, where it is a transaction of its own. Raises Tocsin's errors. Cancellation
        cancels the statement: it has taken effect as a whole or not at all.
        """
        if on is not None:
            try:
                return await self._execute(on, statement, parameters)
            except psycopg.Error as error:
                raise await self._translate(error) from error
        async with self.connection() as connection:
            return await self._execute(connection, statement, parameters)

    async def fetch_one(self, statement: str, parameters: Sequence[object] = (), *, on: Connection | None = None) -> Row:
        """Like `fetch`, for a statement that gives exactly one row."""
        (row,) = await self.fetch(statement, parameters, on=on)
        return row

    async def run(self, statement: str, parameters: Sequence[str | None]) -> Rows:
        """Run a statement whose parameters are ``$1`` and so on, as text, written for the schema ``tocsin``, and return its rows.

        It is a transaction of its own, on a connection of the pool. For statements where every tenth of a millisecond counts: there is
        less between the caller and the server. Raises Tocsin's errors. Cancelled, it has taken effect as a whole or not at all.
        """
        try:
            encoded = _encode(parameters)
            async with self.pool.connection(reset=False) as connection:
                return await connection.run_prepared(self._render(statement), encoded)
        except psycopg.Error as error:
            raise await self._translate(error) from error
        except PoolClosed:
            raise _closed() from None

    async def run_in_turn(self, statements: Sequence[tuple[str, Sequence[str | None]]], answer: int, *, otherwise: str) -> Rows:
        """Run statements like `run`, each a transaction of its own, in one request; return the rows of the one with this index.

        Where there is a pooler in between, only that one is run, written as in ``otherwise``. None behind a statement that has failed is
        run. Raises Tocsin's errors; `ConnectionLost`, whose outcome is unknown, also if one behind that one has failed. Cancelled, as many
        of them as were committed by then have taken effect.
        """
        try:
            encoded = [(self._render(statement), _encode(parameters)) for statement, parameters in statements]
            async with self.pool.connection(reset=False) as connection:
                if not connection.session_is_ours:
                    return await connection.run_prepared(self._render(otherwise), encoded[answer][1])
                together: list[Statement] = [_BEGIN]
                for statement in encoded[:-1]:
                    together += statement, _NEXT
                together[-1] = _COMMIT  # the last one is a transaction anyway
                return await connection.run_together([*together, encoded[-1]], 2 * answer + 1, settled=2 * answer + 2)
        except psycopg.Error as error:
            raise await self._translate(error) from error
        except PoolClosed:
            raise _closed() from None

    async def _execute(self, connection: Connection, statement: str, parameters: Sequence[object]) -> list[Row]:
        # In binary, since the text of times and intervals depends on the session's settings, which behind a pooler are not ours.
        cursor = await connection.execute(self._render(statement), parameters, binary=True)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []

    def _write(self, statement: str) -> bytes:
        return self.schema.render(statement).encode()

    async def _translate(self, error: psycopg.Error) -> Exception:
        if isinstance(error, _SOMETHING_MISSING):
            async with self.pool.connection(reset=False) as connection:
                try:
                    await schemas.check(connection, self.schema)
                except psycopg.Error:
                    return error
                except Exception as cause:
                    return cause
        return translate(error, self.address)


def _encode(parameters: Sequence[str | None]) -> list[bytes | None]:
    return [None if p is None else p.encode() for p in parameters]


def _closed() -> TocsinError:
    return TocsinError("this store is closed: its `async with tocsin.connect(...)` block has been left")
