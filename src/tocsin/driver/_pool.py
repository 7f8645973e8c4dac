"""A bounded pool of connections.

It opens, checks out, resets and closes connections, and knows nothing of their use.

**Slots, not connections, are waited for**; see ``_slots.py``. The task that has a slot
gets the connection that was returned last, else it opens one. So the surplus gathers
at the other end of the list of idle connections and expires.

**Idle connections are not watched.** A connection is checked when it is taken: a server
that went away has closed the socket, which the operating system tells without a round
trip. A connection that is broken or too old is dropped, and a new one is opened
instead.

**The surplus expires by a deadline that moves.** One task waits until the connection
that was unused longest expires; taking and returning connections moves its deadline
without waking it. With nothing to expire the task has no deadline.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, NoReturn

import attrs
import psycopg
import trio
from psycopg.rows import Row
from trio.lowlevel import enable_ki_protection

from tocsin._concurrency.backoff import delays
from tocsin._concurrency.nursery import open_nursery_bare

from ._checkout import Checkout
from ._connection import TrioConnection
from ._member import Member, Reset
from ._slots import Slots
from ._statistics import Counters, PoolStatistics

__all__ = ["Pool", "PoolClosed", "PoolTimeout"]


class PoolClosed(Exception):
    """A pool whose block has ended, and which has no more connections."""


class PoolTimeout(psycopg.OperationalError):
    """No connection for a task within its timeout.

    None was returned, and none could be opened.
    """


class Pool(Generic[Row]):
    """A pool of connections, made by `open_pool`."""

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
        reset: Reset[Row] | None,
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
        self._idle = deque[Member[Row]]()
        self._members = set[Member[Row]]()
        self._slots = Slots(max_size)
        self._size = 0
        self._closed = False
        self._idle_scope = trio.CancelScope()
        self._counters = Counters()

    def __repr__(self) -> str:
        now = self.statistics()
        state = (
            f"{now.size} of at most {now.max_size} connections, {now.idle} idle,"
            f" {now.waiting} waiting"
        )
        return f"<tocsin.driver.{type(self).__name__}: {'closed' if self._closed else state}>"

    def connection(self, *, reset: bool = True) -> Checkout[Row]:
        """Check out a connection for an ``async with`` block.

        The block commits: a connection that is returned in a transaction is rolled
        back. One that is returned in the middle of something is closed. What the block
        has set is undone: the attributes of the connection are as they were when it was
        new, and the pool's ``reset`` resets its session.

        Args:
            reset: False saves the round trip for a block that sets nothing.

        Raises:
            PoolClosed: The pool's block has ended.
            PoolTimeout: No connection was returned in time.
            Exception: What opening a connection raises when there is none.

        Cancellation:
            Cancelled while it waits, the task has no connection. However the block
            ends, the connection is returned.
        """
        return Checkout(self, reset)

    async def grow(self, size: int) -> bool:
        """Open connections until there are ``size``, and return whether there are.

        Connections that are checked out count, too. The server may accept no more for
        the moment. There is no checkpoint where there are as many already.

        Raises:
            PoolClosed: The pool's block has ended.
            Exception: What opening a connection raises, if it is not of the class
                ``reconnect_on`` or there is no connection at all.

        Cancellation:
            There are fewer connections.
        """
        while len(self._members) < size:
            self._check_open()
            if self._size >= self._max_size or self._slots.free <= len(self._idle):
                return False
            self._slots.take()
            try:
                self._keep(await self._open())
            except self._reconnect_on:
                if not self._members:
                    self._slots.give_back()
                    raise
                self._withhold_slot()
                return False
            except BaseException:
                self._slots.give_back()
                raise
            self._slots.give_back()
        return True

    def statistics(self) -> PoolStatistics:
        """Return what the pool has and has done."""
        return PoolStatistics(
            size=self._size,
            idle=len(self._idle),
            in_use=self._slots.taken,
            withheld=self._slots.withheld,
            waiting=self._slots.waiting,
            min_size=self._min_size,
            max_size=self._max_size,
            waits=self._slots.waits,
            waited=self._slots.waited,
            **attrs.asdict(self._counters),
        )

    def drop_idle(self) -> None:
        """Close the connections that are not checked out.

        New ones may lead to a better server.
        """
        while self._idle:
            self._drop(self._idle.pop())
            self._counters.broken += 1
        self._set_alarm()

    async def _check_out(self) -> Member[Row]:
        # Do not yield to trio's loop if there is nothing to wait for: see `Checkout`.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        deadline: float | None = None
        if not self._slots.take():
            deadline = trio.current_time() + self._timeout
            await self._wait_for_slot(deadline, None)
        try:
            self._check_open()
            member = self._take_idle()
        except BaseException:
            self._slots.give_back()
            raise
        return member or await self._obtain(
            trio.current_time() + self._timeout if deadline is None else deadline
        )

    async def _return(self, member: Member[Row], reset: bool) -> None:
        ready = False
        try:
            ready = not self._closed and await member.make_ready(reset, self._reset)
        finally:
            if self._closed or not ready:
                self._counters.broken += not self._closed
                self._drop(member)
            elif not self._retire(member):
                self._keep(member)
            self._slots.give_back()

    def _take_idle(self) -> Member[Row] | None:
        while self._idle:
            member = self._idle.pop()
            self._set_alarm()
            broken = True
            try:
                broken = member.connection.is_broken()
            finally:  # a handler of notifications may have raised
                if broken:
                    self._drop(member)
                    self._counters.broken += 1
            if not broken and not self._retire(member):
                return member
        return None

    async def _obtain(self, deadline: float) -> Member[Row]:
        """Get a connection for a slot, which is returned if there is none."""
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
                self._slots.give_back()
                raise
            if failure is None or trio.current_time() >= deadline:
                self._slots.give_back()
                raise self._time_out(failure)
            if self._idle:  # another task has returned a connection
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
            self._slots.give_back()
            raise

    async def _open(self) -> Member[Row]:
        self._size += 1
        try:
            connection = await self._connect()
        except BaseException as error:
            self._size -= 1
            self._counters.errors += isinstance(error, Exception)
            raise
        self._counters.opened += 1
        member = Member(
            connection, trio.current_time() + self._max_lifetime * random.uniform(0.95, 1)
        )
        self._members.add(member)
        self._slots.connection_opened()
        if self._closed:
            self._drop(member)
            self._check_open()
        return member

    def _keep(self, member: Member[Row]) -> None:
        member.expires = trio.current_time() + self._max_idle
        self._idle.append(member)
        self._set_alarm()

    def _retire(self, member: Member[Row]) -> bool:
        """Drop the connection if it is too old, and return whether it was."""
        if too_old := member.retires <= trio.current_time():
            self._drop(member)
            self._counters.retired += 1
        return too_old

    def _drop(self, member: Member[Row]) -> None:
        self._members.remove(member)
        self._size -= 1
        member.connection.finish()
        if not self._members:
            # No connection is left to wait for.
            self._slots.restore_all()

    async def _wait_for_slot(self, deadline: float, failure: Exception | None) -> None:
        """Wait for a slot; after a failure, ahead of the other tasks.

        Args:
            deadline: The time at which the wait ends (`trio.current_time`).
            failure: What opening a connection has raised.

        Raises:
            Exception: The ``failure``, at the deadline.
            PoolTimeout: The deadline has come, and there was no failure.
        """
        if not await self._slots.wait(deadline, ahead=failure is not None):
            raise self._time_out(failure)

    def _time_out(self, failure: Exception | None) -> Exception:
        self._counters.timeouts += 1
        return failure or PoolTimeout(
            f"no connection was returned or could be opened within {self._timeout:g} s; "
            f"{len(self._members)} of at most {self._max_size} are checked out"
        )

    def _withhold_slot(self) -> None:
        self._slots.withhold(max(0, self._slots.free - len(self._idle)))
        self._set_alarm()

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool is closed")

    async def _fill(self) -> None:
        """Open the least number of connections, all at the same time.

        Raises:
            Exception: What opening them raises, if it fails for all of them, or for a
                reason that stays.
        """
        failures: list[Exception] = []

        @enable_ki_protection
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
        if self._slots.restore_at < deadline:
            deadline = self._slots.restore_at
        if deadline != self._idle_scope.deadline:  # only setting the deadline is slow
            self._idle_scope.deadline = deadline

    @enable_ki_protection
    async def _keep_house(self) -> NoReturn:
        """Close connections that were not used, and give withheld slots out again."""
        while True:
            with trio.CancelScope() as self._idle_scope:
                self._set_alarm()
                await trio.sleep_forever()
            now = trio.current_time()
            while self._size > self._min_size and self._idle and self._idle[0].expires <= now:
                self._drop(self._idle.popleft())
                self._counters.expired += 1
            if self._slots.restore_at <= now:
                self._slots.restore_one()

    def _close(self) -> None:
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())
        self._slots.restore_all()
        self._slots.wake_all()
