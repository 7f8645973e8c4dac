"""The batcher: concurrent `enqueue` calls of one process to one queue share a
statement.

A statement for one message spends most of its time waiting: for the server to be
reached, for the disk to flush its commit. So a call that finds nothing under way to its
queue sends its own statement, at once and itself. The calls that come meanwhile gather,
and go together in one statement when that one has ended. Nobody waits for company; the
busier a process is, the more its calls share.

What follows from it, and how it is kept:

- *Each caller gets its own id or its own error.* The shared statement leaves out what
  it must not enqueue and says so; those messages then go alone, where the database says
  why. When it failed as a whole, so that nothing was enqueued, they all go alone.
- *Never twice.* When the connection was lost the outcome is unknown: every caller of
  that statement is told so, and nothing is sent again.
- *A cancelled caller disturbs nobody.* While it waits it is taken out, and its message
  is not enqueued. A shared statement runs in the store's nursery, not in a caller's
  scope, and goes on.
- *Ids are in the order of the calls*, which is why there is only one statement at a
  time for a queue.
- *Nobody waits for somebody else's transaction.* A message with a key may have to, when
  another transaction has taken that key and has not ended; it never comes here. Nor
  does one that belongs to the caller's own transaction.

When somebody slept on the queue the last time, and that is a moment ago, the bell rings
before the message is on its way to the disk: see ``ring_early.sql``.

`PendingBatch` decides what is sent next; `EnqueueBatcher` sends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import trio

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
"""Seconds after which whoever was rung for may be asleep again for a while."""
MAX_MESSAGES = 1000
"""Most messages in a shared statement."""
MAX_SIZE = 1 << 22
"""A shared statement takes no further message when its payloads and headers have this
many characters."""


class PendingEnqueue:
    """A request that waits to be sent with others, and the task that waits for its id."""

    def __init__(self, request: EnqueueRequest) -> None:
        self.request = request
        self._task: trio.lowlevel.Task | None = None
        self._result: int | Exception = 0

    @property
    def is_waiting(self) -> bool:
        """Whether its caller still waits for it."""
        return self._task is not None

    async def result(self) -> int:
        """Wait until it was told what became of it, and return the id or raise the
        error. Cancelled, it is not is_waiting any more."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._withdraw)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def _withdraw(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def set_result(self, result: int | Exception) -> None:
        """Let the caller go on with this, if it has not done so already."""
        if self._task is not None:
            self._result = result
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)


class PendingBatch:
    """What one queue's callers wait to have sent while a statement is under way."""

    def __init__(self) -> None:
        self._waiting = deque[PendingEnqueue]()
        self._alone = deque[PendingEnqueue]()

    def add(self, item: PendingEnqueue) -> None:
        """Have it sent after all that wait already."""
        self._waiting.append(item)

    def requeue(self, items: Sequence[PendingEnqueue]) -> None:
        """Have these sent one by one, before anything else: they were sent together,
        and not enqueued."""
        self._alone.extend(items)

    def take(self) -> list[PendingEnqueue]:
        """Return what is to be sent next, in one statement; nothing when nobody waits."""
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
        """Return all that wait, to be sent by nobody."""
        items = [*self._alone, *self._waiting]
        self._alone.clear()
        self._waiting.clear()
        return items


class EnqueueBatcher:
    """Sends requests; made by the store, whose nursery runs the shared statements. See
    the module."""

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        # Queues to which a statement is under way; None: nobody has come meanwhile.
        self._busy: dict[str, PendingBatch | None] = {}
        # Queues on which somebody slept the last time: their channel, and when that was
        # (`trio.current_time`).
        self._sleepers: dict[str, tuple[str, float]] = {}
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def enqueue(self, queue: str, request: EnqueueRequest) -> int:
        """Enqueue one message, in a statement of its own or in a shared one, and return
        its id.

        Raises Tocsin's errors. Cancelled while it waits for a shared statement, the
        message is not enqueued; while its statement is under way, it is or is not.
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

        Raises Tocsin's errors. Cancelled, it is enqueued or not.
        """
        await self._database.check_served()
        parameters = request.parameters(queue)
        channel, rung_at = self._sleepers.pop(queue, ("", math.inf))
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
            self._sleepers[queue] = channel, trio.current_time()
        return int(message_id)

    def close(self) -> None:
        """Send nothing together from here on: the nursery takes no more tasks. Those
        who wait are told so."""
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
                # Those who have just been told may enqueue again at once. They all run
                # before this task does for the second time.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                batch = pending.take()
        finally:
            for item in batch:
                item.set_result(
                    TocsinError(
                        "this store was closed while the message was under way: it is enqueued"
                        " or not"
                    )
                )
            self._end(queue, pending)

    def _end(self, queue: str, pending: PendingBatch) -> None:
        """Nothing is under way to this queue any more; somebody waits only if the store
        is being closed."""
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
            messages = f"[{','.join([item.request.to_json() for item in batch])}]"
            (ids,) = await self._database.fetch_one(_ENQUEUE_EACH, [queue, messages])
        except ConnectionLost as lost:
            for item in batch:
                item.set_result(ConnectionLost(lost.address, lost.reason))
        except Exception:  # whatever it was, it concerns the statement, which has not taken effect
            pending.requeue(batch)
        else:
            for item, message_id in zip(batch, ids, strict=True):
                if message_id is None:
                    pending.requeue([item])
                else:
                    item.set_result(message_id)
