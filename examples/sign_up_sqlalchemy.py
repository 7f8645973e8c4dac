"""Enqueue with SQLAlchemy, on any driver, by the SQL function.

    uv run examples/sign_up_sqlalchemy.py [DSN]

Start welcome.py first. It creates the table and the queue. With a Session, call
`session.execute(...)` in the same way.
"""

import sys

import psycopg
from sqlalchemy import BigInteger, Connection, Engine, cast, create_engine, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError


def enqueue(connection: Connection, queue: str, payload: object) -> int:
    """Enqueue a message in the connection's transaction, and return its id."""
    statement = select(func.tocsin.enqueue(queue, cast(payload, JSONB), type_=BigInteger))
    return connection.execute(statement).scalar_one()


def sign_up(engine: Engine, name: str) -> None:
    """Store a user and enqueue the welcome.

    Raises:
        IntegrityError: The name is taken, and nothing is enqueued.
    """
    with engine.begin() as connection:
        enqueue(connection, "welcome", {"name": name})
        connection.execute(text("insert into example_users (name) values (:name)"), {"name": name})


def main(dsn: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    for name in ("Ada", "Ada"):
        try:
            sign_up(engine, name)
            print(f"signed up: {name}")
        except IntegrityError:
            print(f"taken, rolled back: {name}")
    engine.dispose()


main(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
