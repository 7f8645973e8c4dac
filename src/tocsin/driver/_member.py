"""A connection of a pool, and how it is made ready for the next checkout."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeAlias

import psycopg
from psycopg import pq
from psycopg.rows import Row

from ._attributes import Attributes
from ._connection import TrioConnection

__all__ = ["Member", "Reset"]

logger = logging.getLogger("tocsin.driver")

Reset: TypeAlias = Callable[[TrioConnection[Row]], Awaitable[None]]
"""What resets the session of a connection that was checked out."""


class Member(Generic[Row]):
    """A connection of a pool."""

    __slots__ = ("attributes", "connection", "expires", "retires")

    def __init__(self, connection: TrioConnection[Row], retires: float) -> None:
        self.connection = connection
        self.attributes = Attributes(connection)
        self.retires = retires
        self.expires = math.inf

    async def make_ready(self, reset: bool, reset_session: Reset[Row] | None) -> bool:
        """Return whether the connection can be checked out again.

        A ROLLBACK and a reset come first, where they are needed.

        Args:
            reset: Whether the task may have set something.
            reset_session: The pool's reset; None leaves the session as it is.

        Cancellation:
            The connection cannot be used again if the server does not answer.
        """
        connection = self.connection
        if connection.pgconn.transaction_status in (
            pq.TransactionStatus.INTRANS,
            pq.TransactionStatus.INERROR,
        ):
            with connection.grace.scope(), suppress(psycopg.Error):
                await connection.rollback()
        if reset and connection.is_idle():
            self.attributes.put_back(connection)
            if reset_session is not None and not await self._reset(reset_session):
                return False
        return connection.is_idle()

    async def _reset(self, reset_session: Reset[Row]) -> bool:
        with self.connection.grace.scope() as scope:
            try:
                await reset_session(self.connection)
            except Exception as error:
                logger.warning(
                    "the session of a connection could not be reset: %s; the connection is closed",
                    error,
                )
                return False
        if scope.cancelled_caught:
            return False
        self.connection.grace.answered()
        return True
