"""A limit to users' transactions, so that one connection is left for all else.

A handler in a transaction may call the store, and its lease is extended. With every
connection of a transaction, both would wait for the transactions to end. The pool
may have ``pool_size`` connections, but a server may give fewer. So a store's second
transaction and those after it begin when there is one connection more than they need,
not when there may be one.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import trio

from tocsin._concurrency.backoff import delays
from tocsin.driver import Pool, PoolClosed

__all__ = ["TransactionLimit"]

INSIST_FOR: Final = 30.0
"""How long, in seconds, a transaction waits for a connection that the server does not
give, before it makes do without one left."""


class TransactionLimit:
    """The limit of a store's transactions, entered by each while it has a connection.

    It is an asynchronous context manager.
    """

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool
        self._most = pool.statistics().max_size - 1
        self._running = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        """Wait until a connection would be left.

        Raises:
            Exception: What opening a connection raises, if there is none at all.

        Cancellation:
            Nothing is held.
        """
        pauses = delays()
        deadline = trio.current_time() + INSIST_FOR
        while not await self._may_begin():
            full = self._running >= self._most
            if not full and trio.current_time() >= deadline:
                break
            with trio.move_on_after(float("inf") if full else next(pauses)):
                await self._waiting.park()
        self._running += 1

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running -= 1
        self._waiting.unpark()

    async def _may_begin(self) -> bool:
        # The first transaction gets the only connection if there is no other. Otherwise
        # no transaction could run at all.
        while (wanted := self._running + 2) > 2:
            if self._running >= self._most:
                return False
            try:
                if not await self._pool.grow(wanted):
                    return False
            except PoolClosed:
                return True  # the task gets this error when it requests a connection
            except BaseException:
                self._waiting.unpark()  # passes the turn to the next task
                raise
            if self._running + 2 <= wanted:
                return True
        return True
