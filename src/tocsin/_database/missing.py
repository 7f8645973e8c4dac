"""What it means that PostgreSQL misses a function or a table of the schema."""

from __future__ import annotations

from typing import Any

import psycopg

from tocsin.driver import Pool, PoolClosed
from tocsin.errors import ConnectionLost

from . import install
from .attempts import store_closed
from .error_mapping import is_replaced
from .schema import Schema

SOMETHING_MISSING = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidSchemaName,
)
"""What PostgreSQL raises where the schema, or a part of it, is missing."""


async def find_cause(
    error: psycopg.Error, pool: Pool[Any], schema: Schema, address: str
) -> Exception | None:
    """Ask on a connection of the pool why something was missing.

    Returns the error to raise; None where the schema is as this package needs it.

    Cancellation:
        Changes nothing.
    """
    try:
        async with pool.connection(reset=False) as connection:
            await install.check(connection, schema)
    except psycopg.Error:
        return error
    except PoolClosed:
        return store_closed()
    except Exception as cause:
        return cause
    if is_replaced(error, schema.name):
        return ConnectionLost(
            address,
            "an upgrade replaced the function during the statement, which had no effect;"
            " call it again",
        )
    return None
