"""Statements that concurrent `enqueue` calls of one process to one queue share.

A statement for one message spends most of its time waiting for the network and for the
flush of its commit. A call that finds no statement under way to its queue sends its
own at once. Calls that come during a statement gather, and go together in the next
one. No call waits for another to join it; the busier a process is, the more calls
share a statement.

- *Each caller gets its own id or its own error.* The shared statement leaves out what
  it must not enqueue and says so; those messages then go alone, where the database says
  why. When the statement fails as a whole, nothing is enqueued, and all go alone.
- *A message is sent once.* When the connection is lost the outcome is unknown: every
  caller of that statement gets the error, and nothing is sent again.
- *A cancelled caller delays no other.* While it waits it is taken out, and its message
  is not enqueued. A shared statement runs in the store's nursery and not in a caller's
  scope, so it goes on.
- *Ids are in the order of the calls*, so there is one statement at a time for a queue.
- *No caller waits for a foreign transaction.* A message with a key may have to, when a
  transaction that has not ended has taken the key; it never comes here. Nor does a
  message that belongs to the caller's transaction.

When a consumer was idle on the queue the last time, a moment ago, the bell rings before
the message is sent: see ``ring_early.sql``.

`PendingBatch` decides what is sent next; `EnqueueBatcher` sends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import trio

from tocsin._concurrency.scheduling import run_woken_tasks
from tocsin._database.client import Database
from tocsin.errors import ConnectionLost, TocsinError

from .enqueue_request import ENQUEUE_CALL, EnqueueRequest, number_parameters

_CALL = number_parameters(ENQUEUE_CALL)
_RUNG = "pg_catalog.current_setting('bell.rung', true)"
_ENQUEUE = f"select {_CALL}, {_RUNG}"
_ENQUEUE_RING_EARLY = f"select {_CALL[:-1]}, ring_early => true), {_RUNG}"
_RING = "select pg_catalog.pg_notify($1, '') where pg_catalog.pg_notification_queue_usage() < 0.9"
_WAIT_FOR_FLUSH = "select tocsin.wait_for_flush()"
_ENQUEUE_EACH = "select tocsin.enqueue_each(%s, %s)"
AT_REST = 0.005
"""Seconds after which a consumer that was rung for may have been idle for a while."""
MAX_MESSAGES = 1000
"""Most messages in a shared statement."""
MAX_SIZE = 1 << 22
"""Most characters of payloads and headers in a shared statement.

A statement that has as many takes no further message.
"""


class PendingEnqueue:
    """A request in a batch that is to be sent, and the task that waits for its id."""

    def __init__(self, request: EnqueueRequest) -> None:
        self.request = request
        self._task: trio.lowlevel.Task | None = None
        self._result: int | Exception = 0

    @property
    def is_waiting(self) -> bool:
        """Whether its caller still waits for it."""
        return self._task is not None

    async def result(self) -> int:
        """Wait for the outcome, and return the id or raise the error.

        Cancellation:
            The request is no longer waiting, and is not sent.
        """
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._withdraw)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def _withdraw(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def set_result(self, result: int | Exception) -> None:
        """Resume the caller with this outcome, if it still waits."""
        if self._task is not None:
            self._result = result
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)


class PendingBatch:
    """The requests to one queue that wait for the end of a statement."""

    def __init__(self) -> None:
        self._waiting = deque[PendingEnqueue]()
        self._alone = deque[PendingEnqueue]()

    def add(self, item: PendingEnqueue) -> None:
        """Have a request sent after all that wait already."""
        self._waiting.append(item)

    def resend_alone(self, items: Sequence[PendingEnqueue]) -> None:
        """Have requests sent one by one before any other.

        Their shared statement did not enqueue them.
        """
        self._alone.extend(items)

    def take(self) -> list[PendingEnqueue]:
        """Return what the next statement sends; nothing when no request waits."""
        while self._alone:
            item = self._alone.popleft()
            if item.is_waiting:
                return [item]
        batch: list[PendingEnqueue] = []
        size = 0
        while self._waiting and len(batch) < MAX_MESSAGES and size < MAX_SIZE:
            item = self._waiting.popleft()
            if item.is_waiting:
                batch.append(item)
                size += len(item.request.payload) + len(item.request.headers or "")
        return batch

    def take_all(self) -> list[PendingEnqueue]:
        """Return all requests that wait; they are not sent."""
        items = [*self._alone, *self._waiting]
        self._alone.clear()
        self._waiting.clear()
        return items


class EnqueueBatcher:
    """The batcher of a store: see the module.

    The store makes it, and the store's nursery runs the shared statements.
    """

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        # Queues to which a statement is running; None: there has been no call since.
        self._busy: dict[str, PendingBatch | None] = {}
        # Queues whose consumer was idle at the last enqueue: the channel, and the time
        # of that enqueue (`trio.current_time`).
        self._idle_queues: dict[str, tuple[str, float]] = {}
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def enqueue(self, queue: str, request: EnqueueRequest) -> int:
        """Enqueue one message, in its own or in a shared statement; return its id.

        Raises:
            TocsinError: The message was refused, or the outcome is unknown.

        Cancellation:
            While it waits for a shared statement, the message is not enqueued; while
            its statement is under way, it is enqueued or not.
        """
        if request.key is not None:
            return await self.enqueue_alone(queue, request)
        if queue not in self._busy:
            self._busy[queue] = None
            try:
                return await self.enqueue_alone(queue, request)
            finally:
                self._dispatch_next(queue)
        pending = self._busy[queue]
        if pending is None:
            pending = self._busy[queue] = PendingBatch()
        item = PendingEnqueue(request)
        pending.add(item)
        return await item.result()

    async def enqueue_alone(self, queue: str, request: EnqueueRequest) -> int:
        """Enqueue one message in a statement of its own, and return its id.

        Raises:
            TocsinError: The message was refused, or the outcome is unknown.

        Cancellation:
            Atomic.
        """
        await self._database.contract.check()
        parameters = request.parameters(queue)
        channel, rung_at = self._idle_queues.pop(queue, ("", math.inf))
        if request.key is None and trio.current_time() >= rung_at + AT_REST:
            rows = await self._database.run_pipelined(
                [(_RING, [channel]), (_ENQUEUE_RING_EARLY, parameters), (_WAIT_FOR_FLUSH, [])],
                1,
                otherwise=_ENQUEUE,
            )
        else:
            rows = await self._database.run(_ENQUEUE, parameters)
        ((message_id, channel),) = rows.load(0, 1)
        if channel:
            self._idle_queues[queue] = channel, trio.current_time()
        return int(message_id)

    def close(self) -> None:
        """Send no more shared statements, since the nursery takes no more tasks.

        Calls that wait get an error.
        """
        self._closed = True

    def _dispatch_next(self, queue: str) -> None:
        pending = self._busy[queue]
        if pending is None:
            del self._busy[queue]
        elif not self._closed and (batch := pending.take()):
            self._nursery.start_soon(self._send_until_empty, queue, pending, batch)
        else:
            self._end(queue, pending)

    @trio.lowlevel.enable_ki_protection
    async def _send_until_empty(
        self, queue: str, pending: PendingBatch, batch: list[PendingEnqueue]
    ) -> None:
        try:
            while batch:
                await self._send(pending, queue, batch)
                # Callers that were just resumed may enqueue again at once.
                await run_woken_tasks()
                batch = pending.take()
        finally:
            for item in batch:
                item.set_result(
                    TocsinError(
                        "this store was closed while the message was being sent: it may be"
                        " enqueued or not"
                    )
                )
            self._end(queue, pending)

    def _end(self, queue: str, pending: PendingBatch) -> None:
        """Record that no statement is under way to this queue.

        A call waits only if the store is being closed, and gets an error.
        """
        del self._busy[queue]
        for item in pending.take_all():
            item.set_result(
                TocsinError("this store was closed before the message was sent: it is not enqueued")
            )

    async def _send(self, pending: PendingBatch, queue: str, batch: list[PendingEnqueue]) -> None:
        if len(batch) == 1:
            (item,) = batch
            try:
                item.set_result(await self.enqueue_alone(queue, item.request))
            except Exception as error:
                item.set_result(error)
            return
        try:
            await self._database.contract.check()  # raises one refusal for all calls
            messages = f"[{','.join([item.request.to_json() for item in batch])}]"
            (ids,) = await self._database.fetch_one(_ENQUEUE_EACH, [queue, messages])
        except ConnectionLost as lost:
            for item in batch:
                item.set_result(ConnectionLost(lost.address, lost.reason))
        except Exception:  # the statement has had no effect
            pending.resend_alone(batch)
        else:
            for item, message_id in zip(batch, ids, strict=True):
                if message_id is None:
                    pending.resend_alone([item])
                else:
                    item.set_result(message_id)
