"""The consumer as a source of messages to iterate over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Message

from .manual import ManualConsumer
from .stream import open_stream


class StreamingConsumer(ManualConsumer):
    """A consumer that opens streams of messages."""

    def messages(
        self, *, vt: Duration | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Open a stream of messages.

        It is used as ``async with consumer.messages() as stream: async for message in
        stream: ...``.

        Each message is to be settled in the block. Unsettled messages are released at
        its end, without counting a delivery. When the block ends with an error,
        unsettled messages have failed with that error, and come back at once or become
        dead letters. Leases are extended until then. Interrupted, the stream raises
        `Suspended` when it is asked for the next message, and cancels the block when
        the interruption's grace is over.

        Args:
            vt: Length of the leases in seconds; default: the queue's.

        Raises:
            Suspended: The run has ended.
            LeaseLost: A lease was lost, for which the block was cancelled.
            StateTransitionError: The worker may not poll.
            WorkerStopped: The worker is stopped.

        Cancellation:
            Leaves nothing behind.
        """
        return open_stream(self._state, None if vt is None else to_seconds(vt, "vt"))
