"""The consumer as the holder of messages, which settles them."""

from __future__ import annotations

from collections.abc import Iterable

from tocsin._database.caller_connection import AnyConnection
from tocsin._durations import Duration
from tocsin._queue.message import Message

from .consumer_worker import ConsumerWorker


class SettlingConsumer(ConsumerWorker):
    """A consumer that settles the messages that it holds.

    A message is given as such, or by its id.
    """

    async def archive(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep it in the archive: see `Message.archive`.

        Args:
            connection: Archive in the caller's transaction.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        await self._parts.leases.find(message, "archive").archive(connection=connection)

    async def archive_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Archive messages in one statement; return which leases were still ours.

        The result has a value for each message, in order.

        Args:
            connection: Archive in the caller's transaction: see `Message.archive`.

        Raises:
            LeaseLost: An id is not held here.

        Cancellation:
            Atomic.
        """
        return await self._parts.settler.archive(
            self._find_all(messages, "archive"), connection=connection
        )

    async def delete(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep nothing: see `Message.delete`.

        Args:
            connection: Delete in the caller's transaction.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        await self._parts.leases.find(message, "delete").delete(connection=connection)

    async def delete_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Delete messages in one statement; return what `archive_many` does.

        Args:
            connection: Delete in the caller's transaction.

        Raises:
            LeaseLost: An id is not held here.

        Cancellation:
            Atomic.
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
        """Return a message to its queue: see `Message.release`.

        After its last delivery it becomes a dead letter.

        Args:
            delay: Seconds until the next delivery.
            connection: Release in the caller's transaction.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        await self._parts.leases.find(message, "release").release(
            delay=delay, connection=connection
        )

    async def release_many(
        self,
        messages: Iterable[Message | int],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        """Release messages in one statement; return what `archive_many` does.

        Args:
            delay: Seconds until the next delivery.
            connection: Release in the caller's transaction.

        Raises:
            LeaseLost: An id is not held here.

        Cancellation:
            Atomic.
        """
        return await self._parts.settler.release(
            self._find_all(messages, "release"), delay=delay, connection=connection
        )

    async def extend(self, message: Message | int, seconds: Duration) -> None:
        """Make a lease end ``seconds`` from now, by the server's clock.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        await self._parts.leases.find(message, "extend").extend(seconds)

    async def extend_many(self, messages: Iterable[Message | int], seconds: Duration) -> list[bool]:
        """Make leases end ``seconds`` from now, in one statement.

        It returns what `archive_many` does.

        Raises:
            LeaseLost: An id is not held here.

        Cancellation:
            Atomic.
        """
        return await self._parts.settler.extend(self._find_all(messages, "extend"), seconds)

    def _find_all(self, messages: Iterable[Message | int], operation: str) -> list[Message]:
        return [self._parts.leases.find(message, operation) for message in messages]
