"""Doing what must not stay undone in a cancelled scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from psycopg import pq

from .connecting import finish

__all__ = ["GRACE", "persist"]

GRACE: Final = 5.0
"""How long, in seconds, a cancelled operation may take to bring its connection into order before the
connection is closed instead.
"""

T = TypeVar("T")


async def persist(pgconn: pq.abc.PGconn, step: Callable[[], Awaitable[T]]) -> T:
    """Do `step`; cancelled, do it once more, shielded, and return as if nothing had happened.

    For what takes no time worth cancelling, and must not stay undone. Raises `trio.Cancelled`, with the
    connection closed, only if it is not done `GRACE` seconds after the cancellation.
    """
    try:
        try:
            return await step()
        except trio.Cancelled:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE):
                return await step()
            raise
    except BaseException as error:
        if not isinstance(error, Exception):
            finish(pgconn)
        raise
