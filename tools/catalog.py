"""``python -m tools.catalog``: write ``sql/catalog`` from a new installation.

`verify` compares an installation with these files. The files come from a database in
SQL_ASCII, which has one constraint more than any other database.
"""

from __future__ import annotations

import trio

import tocsin
from tocsin._database.catalog import read_catalog, write_definitions
from tocsin._database.schema import Schema

from .scratch import SQL, database


async def write() -> None:
    """Write the file."""
    async with database("SQL_ASCII") as dsn, tocsin.connect(dsn) as store:
        await store.install(roles=tocsin.Roles("producer", "consumer", "admin"))
        async with store.transaction() as connection:
            definitions = await read_catalog(connection, Schema("tocsin"))
    for name, text in write_definitions(definitions).items():
        (SQL / "catalog" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    trio.run(write)
