"""Installing and removing what ``sql/`` defines, and checking its installed version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import psycopg
import trio
from psycopg import sql

from tocsin._concurrency.backoff import delays
from tocsin.errors import (
    DependentObjects,
    SchemaBusy,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    TocsinError,
)

from .roles import Roles
from .schema import READ_CONTRACT, Contract, Schema, ours
from .script import INSTALL_LOCK, PLAIN_TABLESPACE, SAFE_PATH, reload, unload

_LOCK_WITHIN_MS = 250
"""Milliseconds that a change of the schema waits for a lock. Sessions that want the
same table queue behind it for as long."""
_ATTEMPTS = 22
"""After this many attempts the change is refused. With the pauses, they take about half
a minute."""

_DEPENDENTS_ADVICE = "Drop the dependent objects, upgrade, and create them again."


async def installed(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Contract:
    """Return the contract that is installed.

    Raises:
        SchemaMissing: Tocsin is not installed.

    Cancellation:
        Changes nothing.
    """
    try:
        cursor = await connection.execute(schema.render(READ_CONTRACT).encode())
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(schema.name) from None
    row = await cursor.fetchone()
    if row is None:
        raise SchemaMissing(schema.name)
    return Contract(*row)


async def check(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Check that this package can go on with what is installed.

    Raises:
        SchemaMissing: Tocsin is not installed.
        SchemaOutdated: The schema is older than this version of Tocsin.
        SchemaNewer: The schema is newer, and does not serve this version.

    Cancellation:
        Changes nothing.
    """
    found = await installed(connection, schema)
    if not found.serves_us():
        refuse_newer(schema, found)
        raise SchemaOutdated(schema.name, found.version, ours().version)


def refuse_unserved(schema: Schema, found: Contract) -> None:
    """Check that the installed contract is no older than ours, and serves it.

    Raises:
        SchemaOutdated: The contract is older than ours.
        SchemaNewer: The contract is newer, and does not serve ours.
    """
    known = ours().version
    if found.version < known:
        raise SchemaOutdated(schema.name, found.version, known)
    if known < found.serves:
        raise SchemaNewer(schema.name, found.version, known, found.serves)


def refuse_newer(schema: Schema, found: Contract) -> None:
    """Check that the installed contract is no newer than ours.

    Raises:
        SchemaNewer: The contract is of a later version.
    """
    if found.version > ours().version:
        raise SchemaNewer(schema.name, found.version, ours().version, found.serves)


async def install(
    connection: psycopg.AsyncConnection[Any], schema: Schema, roles: Roles | None = None
) -> None:
    """Bring the schema to this version of Tocsin.

    A missing schema is created. The pending migrations are applied, the functions are
    loaded, and the roles are let in. All happens in one transaction. The call is
    idempotent, and safe when many processes make it at once. It never goes back: a
    newer schema that serves this version is left as it is.

    Args:
        connection: A connection outside of a transaction.
        schema: The schema.
        roles: The roles to let in. Without, those that were let in before stay so.

    Raises:
        SchemaNewer: The schema does not serve this version, or is newer and ``roles``
            are given.
        SchemaBusy: Transactions that use the schema do not end.
        PermissionDenied: The role may not create the ``roles``.
        DependentObjects: Objects outside of the schema depend on what the upgrade
            changes.
        TocsinError: The schema holds something else.

    Cancellation:
        Changes nothing.
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
            pass
        if found is not None:
            if roles is None and found.serves_us():  # another session has installed it
                return
            refuse_newer(schema, found)
        if found != ours():
            async with _as_owner(connection, schema):
                await apply(
                    connection,
                    schema,
                    after=0 if found is None else await _last_migration(connection, schema),
                )
        if roles is not None:
            await connection.execute(
                schema.render("select tocsin.install_roles(%s, %s, %s)").encode(),
                [roles.producer, roles.consumer, roles.admin],
            )

    await _change(connection, schema, bring)


async def _change(
    connection: psycopg.AsyncConnection[Any], schema: Schema, change: Callable[[], Awaitable[None]]
) -> None:
    """Run a change of the schema in a transaction, while no other session makes one.

    The change locks tables that are in use, and PostgreSQL makes later sessions wait
    behind a lock request that waits. So each request ends soon, and then the
    transaction is rolled back and tried again.

    Raises:
        SchemaBusy: Other transactions never let it through.
    """
    for pause in (0, *islice(delays(), _ATTEMPTS - 1)):
        await trio.sleep(pause)  # lets those sessions continue
        try:
            async with connection.transaction():
                await connection.execute(SAFE_PATH)
                await connection.execute(PLAIN_TABLESPACE)
                # The next statement waits for another installation, and holds no lock.
                await connection.execute("set local lock_timeout = 0")
                await connection.execute(INSTALL_LOCK)
                await connection.execute(f"set local lock_timeout = {_LOCK_WITHIN_MS}".encode())
                await change()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            busy = error
        else:
            return
    raise SchemaBusy(schema.name) from busy


@asynccontextmanager
async def _as_owner(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> AsyncIterator[None]:
    """Act as the role that has installed Tocsin, in a transaction.

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


async def _create_schema(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Create the schema in the current transaction, unless it is there and empty.

    Raises:
        TocsinError: The schema holds something.
    """
    cursor = await connection.execute(
        "select oid from pg_namespace where nspname = %s", [schema.name]
    )
    if row := await cursor.fetchone():
        cursor = await connection.execute(
            "select count(*) from pg_class where relnamespace = %s", row
        )
        if (await cursor.fetchone() or (0,))[0]:
            raise TocsinError(
                f"schema {schema.name!r} contains objects that are not Tocsin's; choose another"
                " name"
            )
    else:
        await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema.name)))


async def apply(connection: psycopg.AsyncConnection[Any], schema: Schema, *, after: int) -> None:
    """Load the migrations and functions of this package into the schema.

    The statements run in the current transaction.

    Args:
        connection: A connection in a transaction.
        schema: The schema.
        after: Number of the last migration that the schema has; 0 creates the schema.

    Raises:
        DependentObjects: Objects outside of the schema depend on what the upgrade
            changes.
        TocsinError: The schema was to be created, and holds something.
    """
    await connection.execute(unload(schema).encode())
    if not after:
        await _create_schema(connection, schema)
    try:
        async with connection.transaction():
            for statement in reload(schema, after=after):
                await connection.execute(statement.encode())
    except (
        psycopg.errors.InvalidFunctionDefinition,
        psycopg.errors.DependentObjectsStillExist,
    ) as error:
        raise await _name_dependents(connection, error) from error


async def _name_dependents(
    connection: psycopg.AsyncConnection[Any], error: psycopg.Error
) -> Exception:
    """Return the error for objects outside of Tocsin that depend on what was to change.

    It is the same error if there are none.
    """
    cursor = await connection.execute(
        "select e.key, e.value "
        "from jsonb_each(current_setting('bell.upgrade')::jsonb -> 'dependents') e"
    )
    dependents: dict[str, list[str]] = dict(await cursor.fetchall())
    # PostgreSQL's hint contains the signature of the function that cannot be replaced.
    changed = [function for function in dependents if function in (error.diag.message_hint or "")]
    objects = tuple(name for function in changed for name in dependents[function])
    if not objects and not isinstance(error, psycopg.errors.DependentObjectsStillExist):
        return error
    problem = (
        f"the upgrade changes function {changed[0]}, and {objects[0]} depends on it"
        if objects
        else error.diag.message_detail
    )
    return DependentObjects(problem or str(error), _DEPENDENTS_ADVICE, objects=objects)


async def _last_migration(connection: psycopg.AsyncConnection[Any], schema: Schema) -> int:
    cursor = await connection.execute(
        schema.render("select max(number) from tocsin.migrations").encode()
    )
    (number,) = await cursor.fetchone() or (None,)
    return number or 0


async def uninstall(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Drop the schema with all queues and messages, in one transaction.

    Raises:
        SchemaMissing: Tocsin is not installed.
        SchemaBusy: Transactions that use the schema do not end.

    Cancellation:
        Changes nothing.
    """

    async def drop() -> None:
        await installed(connection, schema)
        await connection.execute(
            sql.SQL("drop schema {} cascade").format(sql.Identifier(schema.name))
        )

    await _change(connection, schema, drop)
