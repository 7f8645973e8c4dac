"""Verifying that what is installed is what this version installs.

`verify` has no list of what must be there, which would have to be kept in step by hand.
It installs a second copy under a scratch name in a transaction, compares what
PostgreSQL's catalogs say of the two, and rolls back.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import attrs
import psycopg

from .install import PLAIN_TABLESPACE, SAFE_PATH, apply, check, create_schema
from .schema import Schema, catalog_query


@attrs.frozen
class SchemaDifference:
    """Something that is not as this version of Tocsin installs it."""

    kind: str
    """column, constraint, index, trigger, function, enum, sequence, table, partition,
    statistics, role, owner or privileges."""
    name: str
    """Its name within the schema."""
    expected: str | None
    """Its definition as it must be; None when there must be no such thing."""
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
    """Compare what is installed with what this version of Tocsin installs, and return
    each difference; none when all is well.

    Raises `SchemaMissing`, `SchemaOutdated`, `SchemaNewer`. Needs the right to create a
    schema. Changes nothing, cancelled or not.
    """
    await check(connection, schema)
    async with connection.transaction(force_rollback=True):
        await connection.execute(SAFE_PATH)
        await connection.execute(PLAIN_TABLESPACE)
        await connection.execute("set local client_min_messages = warning")
        scratch = await _invent_name(connection, schema)
        await create_schema(connection, scratch)
        await apply(connection, scratch, None)
        cursor = await connection.execute(
            schema.render("select kind, role::oid from tocsin.roles").encode()
        )
        roles = await cursor.fetchall()
        for role in roles:
            await connection.execute(
                scratch.render(
                    "insert into tocsin.roles (kind, role) values (%s, %s::oid)"
                ).encode(),
                role,
            )
        await connection.execute(scratch.render("select tocsin.secure()").encode())
        # Only the copy's name is replaced, which occurs nowhere else; the schema's own
        # may be that of a table, an alias or a function.
        expected = {
            key: text.replace(scratch.name, schema.name)
            for key, text in (await _describe(connection, scratch)).items()
        }
        found = await _describe(connection, schema)
    # Roles that were dropped since are gone from the copy.
    expected |= {("role", kind): "a role of this server" for kind, _ in roles}
    # The partitions that come and go (functions/queue/maintenance.sql) are made like the one
    # that stays, and secured like it.
    model = {
        kind: expected[kind, "archive_rest"]
        for kind in ("partition", "privileges")
        if (kind, "archive_rest") in expected
    }
    for _, name in filter(_is_passing_partition, found):
        expected |= {(kind, name): text for kind, text in model.items()}
    return tuple(
        SchemaDifference(kind, name, expected.get((kind, name)), found.get((kind, name)))
        for kind, name in sorted(expected.keys() | found.keys())
        if expected.get((kind, name)) != found.get((kind, name))
    )


def _is_passing_partition(thing: tuple[str, str]) -> bool:
    kind, name = thing
    return kind == "partition" and re.fullmatch("archive_[0-9]+h_[0-9]{10}", name) is not None


async def _invent_name(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Schema:
    """Return a name for a copy of the schema, which PostgreSQL quotes where it quotes
    the schema's own."""
    cursor = await connection.execute("select quote_ident(%s) = %s", [schema.name, schema.name])
    (plain,) = await cursor.fetchone() or (True,)
    return Schema(f"{'tocsin' if plain else 'Tocsin'}_verify_{secrets.token_hex(6)}")


async def _describe(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> dict[tuple[str, str], str]:
    """Return the definition of each thing in the schema, by kind and name."""
    cursor = await connection.execute(catalog_query().encode(), {"schema": schema.name})
    things = {(kind, name): definition async for kind, name, definition in cursor}
    cursor = await connection.execute(
        schema.render(
            "select kind from tocsin.roles where exists (select from pg_catalog.pg_roles where oid"
            " = role)"
        ).encode()
    )
    return things | {("role", kind): "a role of this server" for (kind,) in await cursor.fetchall()}
