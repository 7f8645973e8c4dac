"""Installing and removing what ``sql/`` defines, and checking which version of it is
there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import psycopg
import trio
from psycopg import sql

from tocsin.errors import SchemaBusy, SchemaMissing, SchemaNewer, SchemaOutdated, TocsinError

from .roles import Roles
from .schema import Contract, Schema, load, migrations, ours

# Whoever installs is as a rule a superuser or the database's owner, and others may have
# put functions into `public` that fit better than PostgreSQL's own.
SAFE_PATH = "set local search_path = pg_catalog, pg_temp"
# PostgreSQL refuses a partitioned table in the database's own tablespace where
# ``default_tablespace`` names that.
PLAIN_TABLESPACE = (
    "select set_config('default_tablespace', '', true) from pg_database d join pg_tablespace t on"
    " t.oid = d.dattablespace where d.datname = current_database() and t.spcname ="
    " current_setting('default_tablespace')"
)
_LOCK_WITHIN_MS = 250
"""Milliseconds that a change of the schema waits for a lock. Sessions that want the
same table queue behind it for as long."""
_PAUSE = 0.5
"""Seconds between two attempts, in which those sessions go on."""
_ATTEMPTS = 40
"""After that many a change of the schema is refused; it has then taken about half a
minute."""


async def installed(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Contract:
    """Return the contract that is installed. Raises `SchemaMissing`. Cancellation
    leaves nothing behind."""
    try:
        cursor = await connection.execute(
            schema.render("select version, serves, digest from tocsin.contract").encode()
        )
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(schema.name) from None
    row = await cursor.fetchone()
    if row is None:
        raise SchemaMissing(schema.name)
    return Contract(*row)


async def check(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Raise `SchemaMissing`, `SchemaOutdated` or `SchemaNewer` unless this package can
    go on with what is installed.

    Cancellation leaves nothing behind.
    """
    found = await installed(connection, schema)
    if not found.serves_us():
        refuse_newer(schema, found)
        raise SchemaOutdated(schema.name, found.version, ours().version)


def refuse_newer(schema: Schema, found: Contract) -> None:
    """Raise `SchemaNewer` for a contract of a later version than ours."""
    if found.version > ours().version:
        raise SchemaNewer(schema.name, found.version, ours().version, found.serves)


async def install(
    connection: psycopg.AsyncConnection[Any], schema: Schema, roles: Roles | None = None
) -> None:
    """Bring the schema to this version: create it if missing, apply the pending
    migrations, load the functions, let the roles in.

    Without ``roles``, those that were let in before stay so. Idempotent, and safe when
    many processes do it at once. Never goes back: a newer schema is left as it is when
    it serves this version, and refused with `SchemaNewer` when it does not, or when
    there are ``roles``. Raises `TocsinError` when the schema holds something else,
    `SchemaBusy` and `PermissionDenied`. All happens in one transaction: cancelled or
    failed, nothing has changed.
    """
    try:
        if (await installed(connection, schema)).serves_us() and roles is None:
            return
    except SchemaMissing:
        pass

    async def bring() -> None:
        found: Contract | None = None
        try:
            async with connection.transaction():
                found = await installed(connection, schema)
        except SchemaMissing:
            await create_schema(connection, schema)
        if found is not None:
            if roles is None and found.serves_us():  # another session was faster
                return
            refuse_newer(schema, found)
        async with _as_owner(connection, schema):
            await apply(connection, schema, found)
        if roles is not None:
            await connection.execute(
                schema.render("select tocsin.install_roles(%s, %s, %s)").encode(),
                [roles.producer, roles.consumer, roles.admin],
            )

    await _change(connection, schema, bring)


async def _change(
    connection: psycopg.AsyncConnection[Any], schema: Schema, change: Callable[[], Awaitable[None]]
) -> None:
    """Run a change of the schema in a transaction of its own, in which no other session
    installs or uninstalls.

    The change locks tables that are in use, and PostgreSQL makes later sessions wait
    behind a lock request that waits. So each request ends soon, and then the
    transaction is rolled back and tried again. Raises `SchemaBusy` when other
    transactions never let it through.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            await trio.sleep(_PAUSE)
        try:
            async with connection.transaction():
                await connection.execute(SAFE_PATH)
                await connection.execute(PLAIN_TABLESPACE)
                # for another installation it waits, and holds nothing meanwhile
                await connection.execute("set local lock_timeout = 0")
                await connection.execute(
                    "select pg_advisory_xact_lock(hashtextextended('tocsin:install', 0))"
                )
                await connection.execute(f"set local lock_timeout = {_LOCK_WITHIN_MS}".encode())
                await change()
        except psycopg.errors.LockNotAvailable as error:
            busy = error
        else:
            return
    raise SchemaBusy(schema.name) from busy


@asynccontextmanager
async def _as_owner(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> AsyncIterator[None]:
    """In a transaction: be whoever has installed Tocsin.

    Its functions run with their owner's rights. An upgrade by a superuser must not
    leave some of them with a superuser's.
    """
    cursor = await connection.execute(
        "select pg_get_userbyid(relowner), current_user = pg_get_userbyid(relowner),"
        " current_setting('role') from pg_class where oid = to_regclass(format('%%I.migrations',"
        " %s::text))",
        [schema.name],
    )
    owner, is_owner, role = await cursor.fetchone() or ("", True, "")
    if not is_owner:
        await connection.execute("select set_config('role', %s, true)", [owner])
    yield
    if not is_owner:
        await connection.execute("select set_config('role', %s, true)", [role])


async def create_schema(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """In a transaction: create the schema, unless it is there and empty. Raises
    `TocsinError` when it holds something."""
    cursor = await connection.execute(
        "select oid from pg_namespace where nspname = %s", [schema.name]
    )
    if row := await cursor.fetchone():
        cursor = await connection.execute(
            "select count(*) from pg_class where relnamespace = %s", row
        )
        if (await cursor.fetchone() or (0,))[0]:
            raise TocsinError(
                f"schema {schema.name!r} holds something that is not Tocsin's; choose another name"
            )
    else:
        await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema.name)))


async def apply(
    connection: psycopg.AsyncConnection[Any], schema: Schema, found: Contract | None
) -> None:
    """In a transaction: bring a schema that holds this contract (None: an empty one) to
    ours."""
    applied: set[int] = set()
    if found is not None:
        cursor = await connection.execute(
            schema.render("select number from tocsin.migrations").encode()
        )
        applied = {number for (number,) in await cursor.fetchall()}
    for migration in migrations():
        if migration.number not in applied:
            await connection.execute(schema.render(migration.text).encode())
            await connection.execute(
                schema.render(
                    "insert into tocsin.migrations (number, name) values (%s, %s)"
                ).encode(),
                [migration.number, migration.name],
            )
    if found is None or found.digest != ours().digest:
        before = await _functions(connection, schema)
        # Functions call each other, whatever the order of their files.
        await connection.execute("set local check_function_bodies = off")
        await connection.execute(schema.render(load("functions")).encode())
        # A function that is not there any more, or takes other parameters now, would be
        # left behind, and calls of it be ambiguous.
        for signature in before & await _functions(connection, schema):
            await connection.execute(f"drop function {signature[0]}".encode())
        await connection.execute(schema.render(load("security")).encode())
    await connection.execute(
        schema.render(
            "insert into tocsin.contract (version, serves, digest) values (%s, %s, %s) on conflict"
            " (only_row) do update set version = excluded.version, serves = excluded.serves, digest"
            " = excluded.digest"
        ).encode(),
        attrs.astuple(ours()),
    )


async def _functions(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> set[tuple[str, str]]:
    """The functions there are, each with a mark that changes when it is replaced."""
    cursor = await connection.execute(
        "select oid::regprocedure::text, xmin::text from pg_proc where pronamespace ="
        " to_regnamespace(quote_ident(%s))",
        [schema.name],
    )
    return set(await cursor.fetchall())


async def uninstall(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Drop the schema with all queues and messages.

    Raises `SchemaMissing`, `SchemaBusy`. One transaction: cancelled or failed, nothing
    has changed.
    """

    async def drop() -> None:
        await installed(connection, schema)
        await connection.execute(
            sql.SQL("drop schema {} cascade").format(sql.Identifier(schema.name))
        )

    await _change(connection, schema, drop)
