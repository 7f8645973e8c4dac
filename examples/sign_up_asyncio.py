"""Enqueue from asyncio: psycopg's AsyncConnection, without a store.

    uv run examples/sign_up_asyncio.py [DSN]

Start welcome.py first. It creates the table and the queue.
"""

import asyncio
import sys

import psycopg

import tocsin


async def sign_up(connection: psycopg.AsyncConnection, name: str) -> None:
    """Store a user and enqueue the welcome.

    Raises:
        UniqueViolation: The name is taken, and nothing is enqueued.
    """
    async with connection.transaction():
        await tocsin.enqueue_async(connection, "welcome", {"name": name})
        await connection.execute("insert into example_users (name) values (%s)", [name])


async def main(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        for name in ("Ada", "Ada"):
            try:
                await sign_up(connection, name)
                print(f"signed up: {name}")
            except psycopg.errors.UniqueViolation:
                print(f"taken, rolled back: {name}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///"))
