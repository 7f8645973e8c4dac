"""Consume by hand: dequeue messages, and settle them."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from tocsin._arguments import check_count
from tocsin._database.caller_connection import AnyConnection
from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Message
from tocsin.errors import ConnectionLost, LeaseLost, StateTransitionError, Suspended

from .consumer_state import ConsumerState
from .consumer_worker import ConsumerWorker
from .draining import wait_for_others


class ManualConsumer(ConsumerWorker):
    """Takes and settles messages when it is asked to."""

    async def dequeue(
        self, limit: int = 1, *, vt: Duration | None = None, wait: Duration = 0
    ) -> list[Message]:
        """Take up to ``limit`` messages.

        The leases are not extended by themselves: settle each message in time, or
        extend its lease.

        Args:
            limit: the most messages to take.
            vt: length of the leases in seconds; default: the queue's.
            wait: seconds to wait for a first message, before none is returned.

        Raises:
            StateTransitionError: the worker is suspended or interrupted, or comes to be
                while this waits.
            WorkerStopped: the worker is stopped.
            ConnectionLost: the database did not answer.
            Suspended: a signal has arrived, within `drain_on_signals`.
            ValueError: an argument is out of range.

        Cancellation:
            No message is taken.
        """
        check_count(limit, "limit")
        length = None if vt is None else to_seconds(vt, "vt")
        seconds = to_seconds(wait, "wait", zero=True)
        return await _dequeue(self._state, limit, length, trio.current_time() + seconds)

    async def archive(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep it in the archive: see `Message.archive`.

        Args:
            message: the message, or its id.
            connection: archive in the caller's transaction.

        Raises:
            LeaseLost: the lease is gone.

        Cancellation:
            Atomic: the message is archived or nothing has changed.
        """
        await self._find(message, "archive").archive(connection=connection)

    async def archive_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Archive messages in one statement; return for each, in order, whether its
        lease was still ours.

        Args:
            messages: the messages, or their ids.
            connection: archive in the caller's transaction: see `Message.archive`.

        Raises:
            LeaseLost: an id is not held here.

        Cancellation:
            Atomic: all or none.
        """
        return await self._parts.settler.archive(
            self._find_all(messages, "archive"), connection=connection
        )

    async def delete(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep nothing: see `Message.delete`.

        Args:
            message: the message, or its id.
            connection: delete in the caller's transaction.

        Raises:
            LeaseLost: the lease is gone.

        Cancellation:
            Atomic: the message is deleted or nothing has changed.
        """
        await self._find(message, "delete").delete(connection=connection)

    async def delete_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Delete messages in one statement; return what `archive_many` does.

        Args:
            messages: the messages, or their ids.
            connection: delete in the caller's transaction.

        Raises:
            LeaseLost: an id is not held here.

        Cancellation:
            Atomic: all or none.
        """
        return await self._parts.settler.delete(
            self._find_all(messages, "delete"), connection=connection
        )

    async def release(
        self,
        message: Message | int,
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> None:
        """Return a message to its queue; after its last delivery it becomes a dead
        letter: see `Message.release`.

        Args:
            message: the message, or its id.
            delay: seconds until the next delivery.
            connection: release in the caller's transaction.

        Raises:
            LeaseLost: the lease is gone.

        Cancellation:
            Atomic: the message is released or nothing has changed.
        """
        await self._find(message, "release").release(delay=delay, connection=connection)

    async def release_many(
        self,
        messages: Iterable[Message | int],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        """Release messages in one statement; return what `archive_many` does.

        Args:
            messages: the messages, or their ids.
            delay: seconds until the next delivery.
            connection: release in the caller's transaction.

        Raises:
            LeaseLost: an id is not held here.

        Cancellation:
            Atomic: all or none.
        """
        return await self._parts.settler.release(
            self._find_all(messages, "release"), delay=delay, connection=connection
        )

    async def extend(self, message: Message | int, seconds: Duration) -> None:
        """Make a lease end ``seconds`` from now, by the server's clock.

        Raises:
            LeaseLost: the lease is gone.

        Cancellation:
            Atomic: the lease is extended or nothing has changed.
        """
        await self._find(message, "extend").extend(seconds)

    async def extend_many(self, messages: Iterable[Message | int], seconds: Duration) -> list[bool]:
        """Make leases end ``seconds`` from now in one statement; return what
        `archive_many` does.

        Raises:
            LeaseLost: an id is not held here.

        Cancellation:
            Atomic: all or none.
        """
        return await self._parts.settler.extend(self._find_all(messages, "extend"), seconds)

    def _find(self, message: Message | int, operation: str) -> Message:
        if isinstance(message, Message):
            return message
        found = self._parts.leases.find(message)
        if found is None:
            raise LeaseLost(message, operation)
        return found

    def _find_all(self, messages: Iterable[Message | int], operation: str) -> list[Message]:
        return [self._find(message, operation) for message in messages]


async def _dequeue(
    state: ConsumerState, limit: int, vt: float | None, deadline: float
) -> list[Message]:
    state.parts.leases.drop_expired_manual()
    with state.manual_waiter() as waiter:
        while True:
            if state.closed:
                await trio.lowlevel.checkpoint()
                raise await _suspended(state)
            waiter.begin_claim()
            try:
                claim = await state.parts.claimer.claim(
                    limit, vt, full_scan=True, auto_extend=False
                )
            except BaseException as error:
                waiter.claim_failed()
                if state.closed and isinstance(error, (StateTransitionError, ConnectionLost)):
                    raise await _suspended(state) from error
                raise
            rung = waiter.wake_pending
            waiter.end_claim(claim.again_at, full=claim.full)
            messages = claim.batch.take_all()
            if messages or trio.current_time() >= deadline:
                waiter.wake_pending = rung
                return messages
            while not waiter.wake_pending and trio.current_time() < deadline:
                await waiter.wait(until=deadline)


async def _suspended(state: ConsumerState) -> Suspended:
    await wait_for_others(state)
    return Suspended("interrupted", handled=0, released=0)
