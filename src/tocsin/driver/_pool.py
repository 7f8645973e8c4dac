"""A bounded pool of connections.

It opens, lends, resets and closes connections, and knows nothing of what they are used
for. Five decisions:

**Slots, not connections, are waited for.** There are `max_size` slots. A task takes
one, first come first served, and only then looks for a connection: the one that was
given back last, or a new one, which it opens itself. So a task that is cancelled while
it opens a connection has a slot to give back and nothing else, and at no time are there
more than `max_size` connections. Those used last are used first, which leaves the
surplus at the other end of the list, unused.

**A slot that no connection can be had for is withheld.** A server has its own limits
(``max_connections``, a role's ``connection limit``), and they may be lower than
`max_size`. A task that cannot open a connection while the pool has others gives its
slot up and waits for one of those. The slot returns after a while, or when the last
connection is gone; the task that gets it tries again. libpq tells the reason of a
refusal in the server's language only, so the reason does not matter. A pool without any
connection tries again for a while, and then the task gets the error.

**Idle connections are not watched.** Nothing wakes up to ask the server "are you
there?". A connection is looked at when it is taken: a server that went away has closed
the socket, which the operating system tells for free. Broken ones are dropped, and a
new one is opened instead. So are those that are too old.

**The surplus goes by a deadline that moves.** One task sleeps until the connection that
was unused longest expires; taking and returning connections moves its deadline without
waking it. With nothing to expire it sleeps for ever.

**A loan is a checkpoint, but not twice.** A borrower's statement lets the other tasks
run. Only a loan without one makes a checkpoint of its own.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, NoReturn

import attrs
import psycopg
import trio
from psycopg import pq
from psycopg.rows import Row
from trio.lowlevel import Abort, RaiseCancelT, Task, enable_ki_protection

from tocsin._concurrency.backoff import delays
from tocsin._concurrency.nursery import open_nursery_bare

from ._attributes import Attributes
from ._connection import TrioConnection

__all__ = ["Loan", "Pool", "PoolClosed", "PoolStatistics", "PoolTimeout", "open_pool"]

logger = logging.getLogger("tocsin.driver")


class PoolClosed(Exception):
    """The pool's block has been left: it lends no more connections."""


class PoolTimeout(psycopg.OperationalError):
    """No connection came back, and none could be opened, for as long as a borrower
    waits."""


@attrs.frozen
class PoolStatistics:
    """What a pool has and did, at one moment."""

    size: int
    """Connections, lent, idle or being opened."""
    idle: int
    """Connections ready to be lent."""
    in_use: int
    """Slots that are taken: connections lent or being opened for a task, or on their
    way to one."""
    withheld: int
    """Slots that are not given out for a moment, because no connection could be opened
    for them."""
    waiting: int
    """Tasks that wait for a slot."""
    min_size: int
    """Connections that are never closed for being unused."""
    max_size: int
    """The most connections there can be."""
    opened: int
    """Connections opened since the start."""
    broken: int
    """Connections dropped since the start because they turned out closed or could not
    be brought into order.
    """
    expired: int
    """Connections closed since the start because they were not used."""
    retired: int
    """Connections closed since the start because they had reached their greatest age.
    """
    waits: int
    """How many times a task has had to wait for a slot since the start."""
    waited: float
    """How many seconds those waits have taken together."""
    timeouts: int
    """Loans that have failed since the start because no connection came in time."""
    errors: int
    """Attempts to open a connection that have failed since the start."""


class _Member(Generic[Row]):
    """A connection of a pool."""

    __slots__ = ("attributes", "connection", "expires", "retires")

    def __init__(self, connection: TrioConnection[Row], retires: float) -> None:
        self.connection = connection
        self.attributes = Attributes(connection)
        self.retires = retires
        self.expires = math.inf


class Pool(Generic[Row]):
    """Lends connections; made by `open_pool`."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[TrioConnection[Row]]],
        *,
        min_size: int,
        max_size: int,
        max_idle: float,
        max_lifetime: float,
        timeout: float,
        reconnect_timeout: float,
        reconnect_on: type[Exception],
        reset: Callable[[TrioConnection[Row]], Awaitable[None]] | None,
    ) -> None:
        if not 0 <= min_size <= max_size or max_size < 1:
            raise ValueError(f"a pool of {min_size} to {max_size} connections makes no sense")
        self._connect = connect
        self._min_size = min_size
        self._max_size = max_size
        self._max_idle = max_idle
        self._max_lifetime = max_lifetime
        self._timeout = timeout
        self._reconnect_timeout = reconnect_timeout
        self._reconnect_on = reconnect_on
        self._reset = reset
        self._idle = deque[_Member[Row]]()
        self._free_slots = max_size
        self._withheld = 0
        self._restore_at = math.inf
        self._pauses: Iterator[float] = delays()
        self._waiters = OrderedDict[Task, None]()
        # tasks that have had a slot before, but no connection
        self._ahead = OrderedDict[Task, None]()
        self._members = set[_Member[Row]]()
        self._size = 0
        self._closed = False
        self._idle_scope = trio.CancelScope()
        self._opened = self._broken = self._expired = self._retired = 0
        self._waits = self._timeouts = self._errors = 0
        self._waited = 0.0

    def __repr__(self) -> str:
        now = self.statistics()
        state = f"{now.size} of at most {now.max_size} connections, {now.idle} idle, {now.waiting} waiting"
        return f"<tocsin.driver.{type(self).__name__}: {'closed' if self._closed else state}>"

    def connection(self, *, reset: bool = True) -> Loan[Row]:
        """Lend a connection for the length of an ``async with`` block.

        One that comes back in a transaction is rolled back: committing is the
        borrower's business. One that comes back in the middle of something is closed.
        What the borrower has set comes to nothing: the attributes of the connection are
        as they were when it was new, and its session is reset by the pool's ``reset``.
        A borrower that sets nothing saves the round trip with ``reset=False``.

        Raises `PoolClosed`; `PoolTimeout` when no connection comes back in time; what
        opening a connection raises when none can be had. Cancelled while waiting,
        nothing was taken; whatever ends the block, the connection is given back.
        """
        return Loan(self, reset)

    async def grow(self, size: int) -> bool:
        """Open connections until there are ``size``, lent or not, and return whether
        there are.

        There may be no more to be had for the moment. No checkpoint where there are as
        many already. Raises `PoolClosed`, and what opening a connection raises if that
        does not pass or there is none at all. Cancelled, there are fewer.
        """
        while len(self._members) < size:
            self._check_open()
            if self._size >= self._max_size or self._free_slots <= len(self._idle):
                return False
            self._free_slots -= 1
            try:
                self._keep(await self._open())
            except self._reconnect_on:
                if not self._members:
                    self._free_slot()
                    raise
                self._withhold_slot()
                return False
            except BaseException:
                self._free_slot()
                raise
            self._free_slot()
        return True

    def statistics(self) -> PoolStatistics:
        """Tell what the pool has and did."""
        return PoolStatistics(
            size=self._size,
            idle=len(self._idle),
            in_use=self._max_size - self._free_slots - self._withheld,
            withheld=self._withheld,
            waiting=len(self._ahead) + len(self._waiters),
            min_size=self._min_size,
            max_size=self._max_size,
            opened=self._opened,
            broken=self._broken,
            expired=self._expired,
            retired=self._retired,
            waits=self._waits,
            waited=self._waited,
            timeouts=self._timeouts,
            errors=self._errors,
        )

    def drop_idle(self) -> None:
        """Close the connections that are not lent, since a new one may lead to a better
        server."""
        while self._idle:
            self._drop(self._idle.pop())
            self._broken += 1
        self._set_alarm()

    async def _take(self) -> _Member[Row]:
        # No pass through trio's loop where nothing has to be waited for: see `Loan`.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        deadline: float | None = None
        if self._free_slots:
            self._free_slots -= 1
        else:
            deadline = trio.current_time() + self._timeout
            await self._wait_for_slot(deadline, None)
        try:
            self._check_open()
            member = self._take_idle()
        except BaseException:
            self._free_slot()
            raise
        return member or await self._obtain(
            trio.current_time() + self._timeout if deadline is None else deadline
        )

    def _take_idle(self) -> _Member[Row] | None:
        while self._idle:
            member = self._idle.pop()
            self._set_alarm()
            broken = True
            try:
                broken = member.connection.is_broken()
            finally:  # a handler of notifications may have raised
                if broken:
                    self._drop(member)
                    self._broken += 1
            if not broken and not self._retire(member):
                return member
        return None

    async def _obtain(self, deadline: float) -> _Member[Row]:
        """Get a connection for a slot, which is given back if there is none."""
        give_up_at = min(deadline, trio.current_time() + self._reconnect_timeout)
        pauses = delays()
        failure: Exception | None = None
        while True:
            try:
                self._check_open()
                if (member := self._take_idle()) is not None:
                    return member
                with trio.CancelScope(deadline=deadline):
                    return await self._open()
            except self._reconnect_on as error:
                failure = error
            except BaseException:
                self._free_slot()
                raise
            if failure is None or trio.current_time() >= deadline:
                self._free_slot()
                raise self._time_out(failure)
            if self._idle:  # one came back meanwhile
                continue
            if self._members:
                self._withhold_slot()
                await self._wait_for_slot(deadline, failure)
            else:
                await self._pause(next(pauses), give_up_at, failure)

    async def _pause(self, seconds: float, give_up_at: float, failure: Exception) -> None:
        """Keep a slot until the next attempt to open a connection.

        When that would come too late, give the slot back and raise the ``failure``.
        """
        try:
            if trio.current_time() + seconds > give_up_at:
                raise failure
            await trio.sleep(seconds)
        except BaseException:
            self._free_slot()
            raise

    async def _open(self) -> _Member[Row]:
        self._size += 1
        try:
            connection = await self._connect()
        except BaseException as error:
            self._size -= 1
            self._errors += isinstance(error, Exception)
            raise
        self._opened += 1
        member = _Member(
            connection, trio.current_time() + self._max_lifetime * random.uniform(0.95, 1)
        )
        self._members.add(member)
        # The server gives connections again.
        self._pauses = delays()
        self._restore_slots()
        if self._closed:
            self._drop(member)
            self._check_open()
        return member

    async def _give_back(self, member: _Member[Row], reset: bool) -> None:
        in_order = False
        try:
            in_order = not self._closed and await self._brought_into_order(member, reset)
        finally:
            if self._closed or not in_order:
                self._broken += not self._closed
                self._drop(member)
            elif not self._retire(member):
                self._keep(member)
            self._free_slot()

    async def _brought_into_order(self, member: _Member[Row], reset: bool) -> bool:
        """Whether the connection can be lent to another task, after a ROLLBACK and a
        reset where they are needed."""
        connection = member.connection
        if connection.pgconn.transaction_status in (
            pq.TransactionStatus.INTRANS,
            pq.TransactionStatus.INERROR,
        ):
            with connection.grace.scope(), suppress(psycopg.Error):
                await connection.rollback()
        if reset and _is_idle(connection):
            member.attributes.put_back(connection)
            if self._reset is not None:
                with connection.grace.scope() as scope:
                    try:
                        await self._reset(connection)
                    except Exception as error:
                        logger.warning(
                            "the session of a connection could not be reset: %s; the connection is"
                            " closed",
                            error,
                        )
                        return False
                if scope.cancelled_caught:
                    return False
                connection.grace.answered()
        return _is_idle(connection)

    def _keep(self, member: _Member[Row]) -> None:
        member.expires = trio.current_time() + self._max_idle
        self._idle.append(member)
        self._set_alarm()

    def _retire(self, member: _Member[Row]) -> bool:
        """Drop the connection if it is too old, and return whether it was."""
        if too_old := member.retires <= trio.current_time():
            self._drop(member)
            self._retired += 1
        return too_old

    def _drop(self, member: _Member[Row]) -> None:
        self._members.remove(member)
        self._size -= 1
        member.connection.finish()
        if not self._members:
            # There is none left that could be waited for.
            self._restore_slots()

    async def _wait_for_slot(self, deadline: float, failure: Exception | None) -> None:
        """Wait for a slot, after a ``failure`` to open a connection ahead of the other
        tasks.

        At the deadline that failure is raised, or `PoolTimeout`.
        """
        task = trio.lowlevel.current_task()
        line = self._waiters if failure is None else self._ahead

        def leave(_: RaiseCancelT) -> Abort:
            del line[task]
            return Abort.SUCCEEDED

        line[task] = None
        self._waits += 1
        began = trio.current_time()
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                await trio.lowlevel.wait_task_rescheduled(leave)
        finally:
            self._waited += trio.current_time() - began
        if scope.cancelled_caught:
            raise self._time_out(failure)

    def _time_out(self, failure: Exception | None) -> Exception:
        self._timeouts += 1
        return failure or PoolTimeout(
            f"no connection came back or could be opened within {self._timeout:g} s; "
            f"{len(self._members)} of at most {self._max_size} are lent"
        )

    def _free_slot(self) -> None:
        # Handed over directly, so that a task that comes later cannot be faster than
        # one that waits.
        if not self._wake_first():
            self._free_slots += 1

    def _wake_first(self) -> bool:
        if line := self._ahead or self._waiters:
            task, _ = line.popitem(last=False)
            trio.lowlevel.reschedule(task)
            return True
        return False

    def _withhold_slot(self) -> None:
        """Withhold the slot of a task that could not open a connection, and the free
        ones: the next task would not fare better."""
        spare = max(0, self._free_slots - len(self._idle))
        self._free_slots -= spare
        self._withheld += 1 + spare
        if self._restore_at == math.inf:
            self._restore_at = trio.current_time() + next(self._pauses)
            self._set_alarm()

    def _restore_slot(self) -> None:
        self._restore_at = math.inf
        if self._withheld:
            self._withheld -= 1
            self._free_slot()

    def _restore_slots(self) -> None:
        while self._withheld:
            self._restore_slot()

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool is closed")

    async def _fill(self) -> None:
        """Open as many connections as there are at least, at the same time.

        Raises what opening them raises if it fails for all of them, or for a reason
        that stays.
        """
        failures: list[Exception] = []

        async def open_one() -> None:
            try:
                self._keep(await self._open())
            except Exception as error:
                failures.append(error)
                if not isinstance(error, self._reconnect_on):
                    nursery.cancel_scope.cancel()

        async with open_nursery_bare() as nursery:
            for _ in range(self._min_size):
                nursery.start_soon(open_one)
        lasting = [error for error in failures if not isinstance(error, self._reconnect_on)]
        if lasting or (failures and not self._members):
            raise [*lasting, *failures][0]

    def _set_alarm(self) -> None:
        surplus = self._size > self._min_size
        deadline = self._idle[0].expires if self._idle and surplus else math.inf
        if self._restore_at < deadline:
            deadline = self._restore_at
        if deadline != self._idle_scope.deadline:  # setting it is what costs
            self._idle_scope.deadline = deadline

    @trio.lowlevel.enable_ki_protection
    async def _keep_house(self) -> NoReturn:
        """Close connections that were not used, and give withheld slots out again."""
        while True:
            with trio.CancelScope() as self._idle_scope:
                self._set_alarm()
                await trio.sleep_forever()
            now = trio.current_time()
            while self._size > self._min_size and self._idle and self._idle[0].expires <= now:
                self._drop(self._idle.popleft())
                self._expired += 1
            if self._restore_at <= now:
                self._restore_slot()

    def _close(self) -> None:
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())
        self._restore_slots()
        # They find the pool closed, and give their slots back.
        while self._wake_first():
            self._free_slots -= 1


class Loan(Generic[Row]):
    """A loan of a connection, made by `Pool.connection`: an asynchronous context
    manager."""

    # Not a generator, since there is one for every statement.

    def __init__(self, pool: Pool[Row], reset: bool) -> None:
        self._pool = pool
        self._reset = reset
        self._member: _Member[Row] | None = None
        self._passes = 0

    @enable_ki_protection
    async def __aenter__(self) -> TrioConnection[Row]:
        if self._member is not None:
            raise RuntimeError("a loan is for one block at a time: call connection() for each")
        self._member = await self._pool._take()
        self._passes = self._member.connection._turn.passes
        return self._member.connection

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        member, self._member = self._member, None
        assert member is not None
        await self._pool._give_back(member, self._reset)
        if error is None and member.connection._turn.passes == self._passes:
            # The borrower has not let the other tasks run, at least not by this
            # connection.
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_pool(
    connect: Callable[[], Awaitable[TrioConnection[Row]]],
    *,
    min_size: int = 1,
    max_size: int = 8,
    max_idle: float = 10.0,
    max_lifetime: float = 3600.0,
    timeout: float = 30.0,  # noqa: ASYNC109 (for each loan, not for this call)
    reconnect_timeout: float = 30.0,
    reconnect_on: type[Exception] = psycopg.OperationalError,
    reset: Callable[[TrioConnection[Row]], Awaitable[None]] | None = TrioConnection.reset_session,
) -> AsyncIterator[Pool[Row]]:
    """Make a pool, with ``min_size`` connections opened by ``connect`` at the same
    time, for the length of the block.

    It grows to ``max_size`` connections when they are needed; those above ``min_size``
    are closed after ``max_idle`` seconds without use. A connection that is older than
    ``max_lifetime`` seconds (or up to a twentieth less, so that they do not all go at
    once) is replaced when it is borrowed or given back.

    A borrower waits ``timeout`` seconds at most. When a connection cannot be opened, by
    an error of the class ``reconnect_on``, it waits for one that is lent. While the
    pool has none at all, it tries again, with growing pauses, for ``reconnect_timeout``
    seconds; then it gets the error. ``reset`` brings the session of a connection that
    was lent into order again; None leaves it as it is.

    When the block is left all connections are closed, those in use as soon as they are
    given back. Raises what ``connect`` raises when no connection can be opened at the
    start. Cancellation leaves nothing open.
    """
    pool = Pool(
        connect,
        min_size=min_size,
        max_size=max_size,
        max_idle=max_idle,
        max_lifetime=max_lifetime,
        timeout=timeout,
        reconnect_timeout=reconnect_timeout,
        reconnect_on=reconnect_on,
        reset=reset,
    )
    try:
        await pool._fill()
        async with open_nursery_bare() as nursery:
            nursery.start_soon(pool._keep_house)
            yield pool
            nursery.cancel_scope.cancel()
    finally:
        pool._close()


def _is_idle(connection: TrioConnection[Any]) -> bool:
    # A lock that is still held belongs to a generator or a task that was left behind.
    return (
        connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        and not connection.pgconn.pipeline_status
        and not connection.lock.locked()
    )
