"""Verifying that what is installed is what this version installs."""

from __future__ import annotations

import re
from typing import Any

import attrs
import psycopg

from tocsin.errors import SchemaBusy

from .catalog import expected, read_catalog
from .install import check
from .schema import Schema

_LOCK_WITHIN_MS = 30_000
"""Milliseconds that the call waits for the lock of a table.

PostgreSQL takes one to write the definition of an index or a trigger. Only a session
that wants a table for itself waits behind the call.
"""


@attrs.frozen
class SchemaDifference:
    """Something that is not as this version of Tocsin installs it."""

    kind: str
    """column, constraint, index, trigger, function, enum, sequence, table, partition,
    statistics, role, owner or privileges."""
    name: str
    """Its name within the schema."""
    expected: str | None
    """Its definition as it must be; None when there must be no such thing. Of a
    function's body it has a digest."""
    found: str | None
    """Its definition as it is; None when it is missing."""

    def __str__(self) -> str:
        problem = (
            "is missing"
            if self.found is None
            else "does not belong here"
            if self.expected is None
            else "is different"
        )
        return f"{self.kind} {self.name} {problem}"


async def verify(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> tuple[SchemaDifference, ...]:
    """Return each difference between the installed schema and that of this version.

    There is none when all is well. The call only reads, so a read-only session and a
    standby server will do.

    Raises:
        SchemaMissing: Tocsin is not installed.
        SchemaOutdated: The schema is older than this version of Tocsin.
        SchemaNewer: The schema is newer, and does not serve this version.
        SchemaBusy: A session has a table locked for itself for half a minute.

    Cancellation:
        Changes nothing.
    """
    try:
        return await _compare(connection, schema)
    except psycopg.errors.LockNotAvailable as error:
        raise SchemaBusy(schema.name) from error


async def _compare(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> tuple[SchemaDifference, ...]:
    async with connection.transaction():
        await connection.execute("set transaction isolation level repeatable read, read only")
        await connection.execute(f"set local lock_timeout = {_LOCK_WITHIN_MS}".encode())
        await check(connection, schema)
        cursor = await connection.execute(schema.render(_ROLES).encode())
        rows: list[tuple[str, str | None, bool]] = await cursor.fetchall()
        roles = {kind: role for kind, role, is_owner in rows if role and not is_owner}
        wanted = expected(roles, connection.info.parameter_status("server_encoding") or "")
        found = await read_catalog(connection, schema)
    wanted |= {("role", kind): _ROLE for kind, _, _ in rows}
    found |= {("role", kind): _ROLE for kind, role, _ in rows if role}
    # Maintenance creates the other partitions (functions/queue/maintenance.sql) with
    # the attributes and privileges of the permanent partition.
    model = {
        kind: wanted[kind, "archive_rest"]
        for kind in ("partition", "privileges")
        if (kind, "archive_rest") in wanted
    }
    for _, name in [thing for thing in found if _is_passing_partition(thing)]:
        wanted |= {(kind, name): definition for kind, definition in model.items()}
    return tuple(
        SchemaDifference(kind, name, wanted.get((kind, name)), found.get((kind, name)))
        for kind, name in sorted(wanted.keys() | found.keys())
        if wanted.get((kind, name)) != found.get((kind, name))
    )


_ROLE = "a role of this server"
_ROLES = (
    "select r.kind, x.oid::regrole::text, "
    "x.oid = (select c.relowner from pg_catalog.pg_class c"
    " where c.oid = 'tocsin.migrations'::regclass) "
    "from tocsin.roles r left join pg_catalog.pg_roles x on x.oid = r.role"
)
"""The roles that were let in: the kind, the name (null: it was dropped since), and
whether it is the owner."""


def _is_passing_partition(thing: tuple[str, str]) -> bool:
    kind, name = thing
    return kind == "partition" and re.fullmatch("archive_[0-9]+h_[0-9]{10}", name) is not None
