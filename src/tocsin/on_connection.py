"""Statements of Tocsin's on a connection of the caller's, in the caller's transaction, from a task of trio's.

Tocsin's own connections are driven by trio. A blocking psycopg connection is used in a thread. The statement is the same, and so are the
errors; ``transactional.py`` has both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import psycopg

from . import transactional
from .database import Connection
from .driver import TrioConnection
from .schema import Schema
from .threaded import run_blocking

AnyConnection: TypeAlias = Connection | psycopg.Connection[Any]
"""What a statement can be run on in the caller's transaction."""


async def fetch_value(connection: AnyConnection, schema: Schema, statement: str, parameters: Sequence[object]) -> Any:
    """Run a statement that gives one value, written for the schema ``tocsin``, and return the value.

    Raises Tocsin's errors, `TypeError`. Cancelled, the statement has failed or taken effect within the transaction.
    """
    if isinstance(connection, psycopg.Connection):
        return await run_blocking(connection, partial(transactional.call, connection, schema, statement, parameters))
    return await transactional.call_async(check_driven_by_trio(connection), schema, statement, parameters)


def check_connection(connection: AnyConnection) -> None:
    """Raise `TypeError` for a connection that cannot be used from trio."""
    if not isinstance(connection, psycopg.Connection):
        check_driven_by_trio(connection)


def check_driven_by_trio(connection: Connection) -> Connection:
    """Return the connection; raises `TypeError` for one that trio cannot drive."""
    if not isinstance(connection, TrioConnection):
        raise TypeError(
            f"connection must be one of Tocsin's (Store.transaction, tocsin.driver) or a blocking psycopg.Connection, "
            f"not {type(connection).__name__}"
        )
    return connection
