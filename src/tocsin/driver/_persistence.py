"""Doing what must not stay undone in a cancelled scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from psycopg import pq

from ._connecting import finish
from ._grace import Grace

__all__ = ["persist"]

T = TypeVar("T")


async def persist(pgconn: pq.abc.PGconn, grace: Grace, step: Callable[[], Awaitable[T]]) -> T:
    """Do `step`; cancelled, do it once more, shielded, and return as if nothing had
    happened.

    For what takes no time worth cancelling, and must not stay undone. Raises
    `trio.Cancelled`, with the connection closed, only if it is not done within the
    `Grace`.
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
