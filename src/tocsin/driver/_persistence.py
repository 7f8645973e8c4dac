"""Steps that are completed in a cancelled scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from psycopg import pq

from tocsin._concurrency.grace import Grace

from ._connecting import finish

__all__ = ["persist"]

T = TypeVar("T")


async def persist(pgconn: pq.abc.PGconn, grace: Grace, step: Callable[[], Awaitable[T]]) -> T:
    """Do ``step``; cancelled, do it once more, shielded, and return its result.

    It is for a step that takes no time worth a cancellation and must be done.

    Cancellation:
        The step is done, or the connection is closed because the `Grace` is over.
    """
    try:
        try:
            return await step()
        except trio.Cancelled:
            with grace.scope():
                return await step()
            raise
    except BaseException as error:
        if not isinstance(error, Exception):
            finish(pgconn)
        raise
