"""Enqueue from blocking code, as in a Flask or Django application.

    uv run examples/sign_up_blocking.py [DSN]

The program uses plain psycopg, without a store and without an event loop. It enqueues
the message in the transaction that stores the user. Start welcome.py first. It creates
the table and the queue. (In Django the connection is `django.db.connection.connection`,
within `transaction.atomic()`.)
"""

import sys

import psycopg

import tocsin


def sign_up(connection: psycopg.Connection, name: str) -> None:
    """Store a user and enqueue the welcome.

    Raises:
        UniqueViolation: The name is taken, and nothing is enqueued.
    """
    with connection.transaction():
        tocsin.enqueue(connection, "welcome", {"name": name})
        connection.execute("insert into example_users (name) values (%s)", [name])


def main(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        for name in ("Ada", "Ada"):
            try:
                sign_up(connection, name)
                print(f"signed up: {name}")
            except psycopg.errors.UniqueViolation:
                print(f"taken, rolled back: {name}")


main(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
