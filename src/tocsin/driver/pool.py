"""A bounded pool of connections.

It opens, lends and closes connections, and knows nothing of what they are used for. Three decisions:

**Slots, not connections, are waited for.** There are `max_size` slots. A task takes one, first come first
served, and only then looks for a connection: the one that was given back last, or a new one, which it opens
itself. So a task that is cancelled while it opens a connection has a slot to give back and nothing else, an
error goes to the task that met it, and at no time are there more than `max_size` connections. Those used last
are used first, which leaves the surplus at the other end of the list, unused.

**Idle connections are not watched.** Nobody wakes up to ask the server "are you there?". A connection is
looked at when it is taken: a server that went away has closed the socket, which the operating system tells
for free. Broken ones are dropped, and a new one is opened instead.

**The surplus goes by a deadline that moves.** One task sleeps until the connection that was unused longest
expires; taking and returning connections moves its deadline without waking it. With nothing to expire it
sleeps for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeAlias

import attrs
import psycopg
import trio
from psycopg import pq

from tocsin.nursery import open_nursery_bare

from .connection import TrioConnection

__all__ = ["Pool", "PoolClosed", "PoolStatistics", "open_pool"]

Connection: TypeAlias = TrioConnection[Any]


class PoolClosed(Exception):
    """The pool's block has been left: it lends no more connections."""


@attrs.frozen
class PoolStatistics:
    """What a pool has and did, at one moment."""

    size: int
    """Connections, lent, idle or being opened."""
    idle: int
    """Connections ready to be lent."""
    in_use: int
    """Slots that are taken: connections lent or being opened for a task, or on their way to one."""
    waiting: int
    """Tasks that wait for a slot."""
    min_size: int
    """Connections that are never closed for being unused."""
    max_size: int
    """The most connections there can be."""
    opened: int
    """Connections opened since the start."""
    broken: int
    """Connections dropped since the start because they turned out closed or could not be brought into order.
    """
    expired: int
    """Connections closed since the start because nobody used them."""


class _Idle(NamedTuple):
    connection: Connection
    expires: float


class Pool:
    """Lends connections; made by `open_pool`."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], min_size: int, max_size: int, max_idle: float) -> None:
        if not 0 <= min_size <= max_size or max_size < 1:
            raise ValueError(f"a pool of {min_size} to {max_size} connections makes no sense")
        self._connect = connect
        self._min_size = min_size
        self._max_size = max_size
        self._max_idle = max_idle
        self._idle = deque[_Idle]()
        self._free_slots = max_size
        self._waiters = trio.lowlevel.ParkingLot()
        self._size = 0
        self._closed = False
        self._nap = trio.CancelScope()
        self._opened = self._broken = self._expired = 0

    def connection(self) -> Loan:
        """Lend a connection for the length of an ``async with`` block.

        One that comes back in a transaction is rolled back: committing is the borrower's business. One that
        comes back in the middle of something is closed. Raises `PoolClosed`, and what opening a connection
        raises. Cancelled while waiting, nothing was taken; whatever ends the block, the connection is given
        back.
        """
        return Loan(self)

    def statistics(self) -> PoolStatistics:
        """Tell what the pool has and did."""
        return PoolStatistics(
            size=self._size,
            idle=len(self._idle),
            in_use=self._max_size - self._free_slots,
            waiting=len(self._waiters),
            min_size=self._min_size,
            max_size=self._max_size,
            opened=self._opened,
            broken=self._broken,
            expired=self._expired,
        )

    async def _take(self) -> Connection:
        # No pass through trio's loop where nothing has to be waited for: what a connection is borrowed for makes one.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self._free_slots:
            self._free_slots -= 1
        else:
            await self._waiters.park()
        try:
            self._check_open()
            while self._idle:
                connection = self._idle.pop().connection
                self._set_alarm()
                if not connection.is_broken():
                    return connection
                self._drop(connection)
                self._broken += 1
            return await self._open()
        except BaseException:
            self._free_slot()
            raise

    async def _open(self) -> Connection:
        self._size += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._size -= 1
            raise
        self._opened += 1
        if self._closed:
            self._drop(connection)
            self._check_open()
        return connection

    async def _give_back(self, connection: Connection) -> None:
        try:
            usable = not self._closed and await _brought_into_order(connection)
            if self._closed:
                self._drop(connection)
            elif usable:
                self._keep(connection)
            else:
                self._drop(connection)
                self._broken += 1
        except BaseException:
            self._drop(connection)
            raise
        finally:
            self._free_slot()

    def _keep(self, connection: Connection) -> None:
        self._idle.append(_Idle(connection, trio.current_time() + self._max_idle))
        self._set_alarm()

    def _drop(self, connection: Connection) -> None:
        self._size -= 1
        connection.finish()

    def _free_slot(self) -> None:
        # Handed over directly, so that a task that comes later cannot be faster than one that waits.
        if self._waiters:
            self._waiters.unpark()
        else:
            self._free_slots += 1

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool is closed")

    async def _fill(self) -> None:
        for _ in range(self._min_size):
            self._keep(await self._open())

    def _set_alarm(self) -> None:
        surplus = self._size > self._min_size
        deadline = self._idle[0].expires if self._idle and surplus else math.inf
        if deadline != self._nap.deadline:  # setting it is what costs
            self._nap.deadline = deadline

    async def _close_unused(self) -> NoReturn:
        while True:
            with trio.CancelScope() as self._nap:
                self._set_alarm()
                await trio.sleep_forever()
            while self._size > self._min_size and self._idle and self._idle[0].expires <= trio.current_time():
                self._drop(self._idle.popleft().connection)
                self._expired += 1

    def _close(self) -> None:
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop().connection)
        # They find the pool closed, and give their slots back.
        self._free_slots -= len(self._waiters)
        self._waiters.unpark_all()


class Loan:
    """See `Pool.connection`. Not a generator, since it is there for every statement."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool._take()
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._pool._give_back(self._connection)


@asynccontextmanager
async def open_pool(
    connect: Callable[[], Awaitable[Connection]],
    *,
    min_size: int = 1,
    max_size: int = 8,
    max_idle: float = 10.0,
) -> AsyncIterator[Pool]:
    """Make a pool, with ``min_size`` connections opened by ``connect``, for the length of the block.

    It grows to ``max_size`` connections when they are needed; those above ``min_size`` are closed after
    ``max_idle`` seconds without use. When the block is left all connections are closed, those in use as soon as
    they are given back. Raises what ``connect`` raises. Cancellation leaves nothing open.
    """
    pool = Pool(connect, min_size, max_size, max_idle)
    try:
        await pool._fill()
        async with open_nursery_bare() as nursery:
            nursery.start_soon(pool._close_unused)
            yield pool
            nursery.cancel_scope.cancel()
    finally:
        pool._close()


async def _brought_into_order(connection: Connection) -> bool:
    """Whether the connection can be lent to another task, after a ROLLBACK where one is needed."""
    if connection.pgconn.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
        with connection.grace.scope(), suppress(psycopg.Error):
            await connection.rollback()
    # A lock that is still held belongs to a generator or a task that was left behind.
    return connection.pgconn.transaction_status == pq.TransactionStatus.IDLE and not connection.lock.locked()
