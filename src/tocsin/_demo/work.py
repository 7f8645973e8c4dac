"""Handlers that hash files and store the digests, with the counts for the view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from tocsin._queue.consuming.consumer import Consumer
from tocsin._queue.message import Message
from tocsin._store import Store

from .files import digest
from .tables import ADD_DIGEST, ADD_FILES

QUEUE = "files"
CONCURRENCY = 8
_MAX_DELIVERIES = 3
_STALLED_AFTER = 10.0


class Progress:
    """What the handlers have done so far, for the view and the course of the demo.

    The check does not rely on it.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        """How many files there are."""
        self.finished: Counter[str] = Counter()
        """Files that each consumer, by name, has hashed or given up."""
        self._at_work = 0
        self._changed = trio.Event()

    @contextmanager
    def handling(self, consumer: str, *, last: bool) -> Iterator[None]:
        """Count a delivery that is handled in this block.

        Args:
            consumer: Name of the consumer.
            last: Whether a failed delivery counts as finished.
        """
        self._at_work += 1
        finished = False
        try:
            yield
            finished = True
        except Exception:
            finished = last
            raise
        finally:
            self._at_work -= 1
            self.finished[consumer] += finished
            self._changed.set()
            self._changed = trio.Event()

    async def wait(self, count: int) -> None:
        """Wait until this many files are finished, or the demo has stalled.

        Cancellation:
            Changes nothing.
        """
        await trio.lowlevel.checkpoint()
        while self.finished.total() < count:
            with trio.move_on_after(_STALLED_AFTER) as patience:
                await self._changed.wait()
            if patience.cancelled_caught and not self._at_work:
                return


async def enqueue(store: Store, paths: Sequence[str]) -> None:
    """Enqueue a message for each file, and note the files in the demo's table.

    Cancellation:
        Atomic.
    """
    await store.queues.ensure(QUEUE, max_deliveries=_MAX_DELIVERIES, retry_base=0.05)
    async with store.producer(QUEUE, name="demo") as producer, store.transaction() as connection:
        ids = await producer.enqueue_many(({"path": path} for path in paths), connection=connection)
        await connection.execute(ADD_FILES, [ids, list(paths)])


async def work(store: Store, consumer: Consumer, root: Path, progress: Progress) -> None:
    """Hash files, several at a time, until the consumer is interrupted.

    The message of a file that cannot be read is delivered again, and becomes a dead
    letter in the end.

    Raises:
        Suspended: The consumer was interrupted.

    Cancellation:
        The messages at hand are released. A digest may be stored whose message is not
        archived.
    """
    name = str(consumer.name)

    async def handle(message: Message) -> None:
        path = message.payload["path"]
        with progress.handling(name, last=message.read_ct == _MAX_DELIVERIES):
            sha256, size = await trio.to_thread.run_sync(digest, root, path, abandon_on_cancel=True)
            async with store.transaction() as connection:
                await connection.execute(ADD_DIGEST, [message.id, path, sha256, size, name])

    await consumer.handle(handle, concurrency=CONCURRENCY)
