"""The schema as PostgreSQL's catalogs describe it, and as a fresh installation has it.

The latter is in ``sql/catalog``, which ``python -m tools.catalog`` writes from an
installation. It is the same for each supported version of PostgreSQL and for each name
of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql

from .schema import Schema, load

Definitions: TypeAlias = dict[tuple[str, str], str]
"""The definition of each thing by its kind and name."""

_SETTINGS: Final = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
}
"""What the text of an expression depends on."""


async def read_catalog(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Definitions:
    """Return what is in the schema.

    The connection is in a transaction, which may be read-only. The privileges of a
    thing are one definition, with the names of the roles.

    Cancellation:
        Changes nothing.
    """
    path = sql.SQL("set local search_path = pg_catalog, {}, pg_temp").format(
        sql.Identifier(schema.name)
    )
    await connection.execute(path)
    for name, value in _SETTINGS.items():
        await connection.execute(
            sql.SQL("set local {} = {}").format(sql.SQL(name), sql.Literal(value))
        )
    cursor = await connection.execute(load("verify.sql").encode(), {"schema": schema.name})
    return _collect(await cursor.fetchall())


def _collect(rows: Iterable[tuple[str, str, str]]) -> Definitions:
    found: Definitions = {}
    privileges: dict[str, list[str]] = {}
    for kind, name, definition in rows:
        if kind == "privilege":
            privileges.setdefault(name, []).append(definition)
        else:
            found[kind, name] = definition
    return found | {
        ("privileges", name): join_privileges(granted) for name, granted in privileges.items()
    }


def join_privileges(granted: Iterable[str]) -> str:
    """Return the privileges of a thing as one definition."""
    return ", ".join(sorted(set(granted)))


def write_definitions(definitions: Definitions) -> dict[str, str]:
    """Return definitions as the texts of the files in ``sql/catalog``, by file name."""
    texts = dict.fromkeys((*_FILES.values(), _OTHERS), "")
    for (kind, name), definition in sorted(definitions.items()):
        texts[_FILES.get(kind, _OTHERS)] += f"{kind}\t{name}\t{definition}\n"
    return texts


_FILES: Final = {"function": "functions.tsv", "privileges": "privileges.tsv"}
_OTHERS: Final = "tables.tsv"


def expected(roles: dict[str, str], encoding: str) -> Definitions:
    """Return what is in a fresh installation.

    Args:
        roles: Name of each role by its kind.
        encoding: Encoding of the database.
    """
    return dict(_expected(roles, encoding))


def _expected(roles: dict[str, str], encoding: str) -> Iterator[tuple[tuple[str, str], str]]:
    texts = [load(f"catalog/{name}") for name in (*_FILES.values(), _OTHERS)]
    for line in "".join(texts).splitlines():
        kind, name, definition = line.split("\t")
        if kind == "privileges":
            granted = [privilege.split(" to ") for privilege in definition.split(", ")]
            definition = join_privileges(
                f"{p} to {roles[role]}" for p, role in granted if role in roles
            )
        if definition and (name != _ONLY_IN_SQL_ASCII or encoding == "SQL_ASCII"):
            yield (kind, name), definition


_ONLY_IN_SQL_ASCII: Final = "messages.messages_utf8"
