"""The outbox: concurrent `enqueue` calls of one process to one queue share a statement.

A statement for one message spends most of its time waiting: for the server to be reached, for the disk to flush its commit. So a call
that finds nothing under way to its queue sends its own statement, at once and itself. The calls that come meanwhile gather, and go together
in one statement when that one has ended. Nobody waits for company; the busier a process is, the more its calls share.

What follows from it, and how it is kept:

- *Each caller gets its own id or its own error.* The shared statement leaves out what it must not enqueue and says so; those messages then
  go alone, where the database says why. When it failed as a whole, so that nothing was enqueued, they all go alone.
- *Never twice.* When the connection was lost the outcome is unknown: every caller of that statement is told so, and nothing is sent again.
- *A cancelled caller disturbs nobody.* While it waits it is taken out, and its message is not enqueued. A shared statement runs in the
  store's nursery, not in a caller's scope, and goes on.
- *Ids are in the order of the calls*, which is why there is only one statement at a time for a queue.
- *Nobody waits for somebody else's transaction.* A message with a key may have to, when another transaction has taken that key and has not
  ended; it never comes here. Nor does one that belongs to the caller's own transaction.

When somebody slept on the queue the last time, and that is a moment ago, the bell rings before the message is on its way to the disk:
see ``ring_first.sql``.

`Gathering` decides what is sent next; `Outbox` sends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import trio

from tocsin._database.client import Database
from tocsin.errors import ConnectionLost, TocsinError

from .enqueue_request import Draft

_ARGUMENTS = "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10"
_RUNG = "pg_catalog.current_setting('bell.rung', true)"
_ENQUEUE = f"select tocsin.enqueue({_ARGUMENTS}), {_RUNG}"
_ENQUEUE_RING_FIRST = f"select tocsin.enqueue({_ARGUMENTS}, ring_first => true), {_RUNG}"
_RING = "select pg_catalog.pg_notify($1, '') where pg_catalog.pg_notification_queue_usage() < 0.9"
_REACH_DISK = "select tocsin.reach_disk()"
_ENQUEUE_EACH = "select tocsin.enqueue_each(%s, %s)"
AT_REST = 0.005
"""Seconds after which whoever was rung for may be asleep again for a while."""
MAX_MESSAGES = 1000
"""Most messages in a shared statement."""
MAX_SIZE = 1 << 22
"""A shared statement takes no further message when its payloads and headers have this many characters."""


class Parcel:
    """A draft that waits to be sent with others, and the task that waits for its id."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._task: trio.lowlevel.Task | None = None
        self._result: int | Exception = 0

    @property
    def wanted(self) -> bool:
        """Whether its caller still waits for it."""
        return self._task is not None

    async def result(self) -> int:
        """Wait until it was told what became of it, and return the id or raise the error. Cancelled, it is not wanted any more."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._withdraw)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def _withdraw(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def tell(self, result: int | Exception) -> None:
        """Let the caller go on with this, if it has not done so already."""
        if self._task is not None:
            self._result = result
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)


class Gathering:
    """What one queue's callers wait to have sent while a statement is under way."""

    def __init__(self) -> None:
        self._waiting = deque[Parcel]()
        self._alone = deque[Parcel]()

    def add(self, parcel: Parcel) -> None:
        """Have it sent after all that wait already."""
        self._waiting.append(parcel)

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """Have these sent one by one, before anything else: they were sent together, and not enqueued."""
        self._alone.extend(parcels)

    def take(self) -> list[Parcel]:
        """Return what is to be sent next, in one statement; nothing when nobody waits."""
        while self._alone:
            parcel = self._alone.popleft()
            if parcel.wanted:
                return [parcel]
        batch: list[Parcel] = []
        size = 0
        while self._waiting and len(batch) < MAX_MESSAGES and size < MAX_SIZE:
            parcel = self._waiting.popleft()
            if parcel.wanted:
                batch.append(parcel)
                size += len(parcel.draft.payload) + len(parcel.draft.headers or "")
        return batch

    def take_all(self) -> list[Parcel]:
        """Return all that wait, to be sent by nobody."""
        parcels = [*self._alone, *self._waiting]
        self._alone.clear()
        self._waiting.clear()
        return parcels


class Outbox:
    """Sends drafts; made by the store, whose nursery runs the shared statements. See the module."""

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        # Queues to which a statement is under way; None: nobody has come meanwhile.
        self._busy: dict[str, Gathering | None] = {}
        # Queues on which somebody slept the last time: their channel, and when that was (`trio.current_time`).
        self._sleepers: dict[str, tuple[str, float]] = {}
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def enqueue(self, queue: str, draft: Draft) -> int:
        """Enqueue one message, in a statement of its own or in a shared one, and return its id.

        Raises Tocsin's errors. Cancelled while it waits for a shared statement, the message is not enqueued; while its statement is under
        way, it is or is not.
        """
        if draft.key is not None:
            return await self.enqueue_alone(queue, draft)
        if queue not in self._busy:
            self._busy[queue] = None
            try:
                return await self.enqueue_alone(queue, draft)
            finally:
                self._go_on(queue)
        gathering = self._busy[queue]
        if gathering is None:
            gathering = self._busy[queue] = Gathering()
        parcel = Parcel(draft)
        gathering.add(parcel)
        return await parcel.result()

    async def enqueue_alone(self, queue: str, draft: Draft) -> int:
        """Enqueue one message in a statement of its own, and return its id.

        Raises Tocsin's errors. Cancelled, it is enqueued or not.
        """
        parameters = draft.parameters(queue)
        channel, rung_at = self._sleepers.pop(queue, ("", math.inf))
        if draft.key is None and trio.current_time() >= rung_at + AT_REST:
            rows = await self._database.run_in_turn(
                [(_RING, [channel]), (_ENQUEUE_RING_FIRST, parameters), (_REACH_DISK, [])], 1, otherwise=_ENQUEUE
            )
        else:
            rows = await self._database.run(_ENQUEUE, parameters)
        ((message_id, channel),) = rows.load(0, 1)
        if channel:
            self._sleepers[queue] = channel, trio.current_time()
        return int(message_id)

    def close(self) -> None:
        """Send nothing together from here on: the nursery takes no more tasks. Those who wait are told so."""
        self._closed = True

    def _go_on(self, queue: str) -> None:
        gathering = self._busy[queue]
        if gathering is None:
            del self._busy[queue]
        elif not self._closed and (batch := gathering.take()):
            self._nursery.start_soon(self._send_on, queue, gathering, batch)
        else:
            self._end(queue, gathering)

    @trio.lowlevel.enable_ki_protection
    async def _send_on(self, queue: str, gathering: Gathering, batch: list[Parcel]) -> None:
        try:
            while batch:
                await self._send(gathering, queue, batch)
                # Those who have just been told may enqueue again at once. They all run before this task does for the second time.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                batch = gathering.take()
        finally:
            for parcel in batch:
                parcel.tell(TocsinError("this store was closed while the message was under way: it is enqueued or not"))
            self._end(queue, gathering)

    def _end(self, queue: str, gathering: Gathering) -> None:
        """Nothing is under way to this queue any more; somebody waits only if the store is being closed."""
        del self._busy[queue]
        for parcel in gathering.take_all():
            parcel.tell(TocsinError("this store was closed before the message was sent: it is not enqueued"))

    async def _send(self, gathering: Gathering, queue: str, batch: list[Parcel]) -> None:
        if len(batch) == 1:
            (parcel,) = batch
            try:
                parcel.tell(await self.enqueue_alone(queue, parcel.draft))
            except Exception as error:
                parcel.tell(error)
            return
        try:
            messages = f"[{','.join([parcel.draft.to_json() for parcel in batch])}]"
            (ids,) = await self._database.fetch_one(_ENQUEUE_EACH, [queue, messages])
        except ConnectionLost as lost:
            for parcel in batch:
                parcel.tell(ConnectionLost(lost.address, lost.reason))
        except Exception:  # whatever it was, it concerns the statement, which has not taken effect
            gathering.give_back(batch)
        else:
            for parcel, message_id in zip(batch, ids, strict=True):
                if message_id is None:
                    gathering.give_back([parcel])
                else:
                    parcel.tell(message_id)
