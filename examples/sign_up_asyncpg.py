"""Enqueue with asyncpg, or any other driver, by the SQL function.

    uv run examples/sign_up_asyncpg.py [DSN]

Start welcome.py first. It creates the table and the queue.
"""

import asyncio
import json
import sys

import asyncpg
from psycopg.conninfo import conninfo_to_dict


async def sign_up(connection: asyncpg.Connection, name: str) -> None:
    """Store a user and enqueue the welcome.

    Raises:
        UniqueViolationError: The name is taken, and nothing is enqueued.
    """
    async with connection.transaction():
        await connection.fetchval(
            "select tocsin.enqueue('welcome', $1)", json.dumps({"name": name})
        )
        await connection.execute("insert into example_users (name) values ($1)", name)


async def main(dsn: str) -> None:
    connection = await asyncpg.connect(**as_asyncpg_names_it(dsn))
    for name in ("Ada", "Ada"):
        try:
            await sign_up(connection, name)
            print(f"signed up: {name}")
        except asyncpg.UniqueViolationError:
            print(f"taken, rolled back: {name}")
    await connection.close()


def as_asyncpg_names_it(dsn: str) -> dict[str, str | int | None]:
    """Return a connection string as arguments of asyncpg, which reads only URLs."""
    return {
        "database" if name == "dbname" else name: value
        for name, value in conninfo_to_dict(dsn).items()
    }


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///"))
