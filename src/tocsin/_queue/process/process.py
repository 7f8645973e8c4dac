"""This process as the database sees it: its registration, its LISTEN connection, its heartbeat.

One task owns the one dedicated connection (the *line*) and does three things with it: it LISTENs, it holds the lifeline (an advisory lock
whose loss tells the others that this process is gone), and it sends the heartbeat, which so proves end to end that the line still works.
A process that only produces has no line; its heartbeat goes through the pool.

The line proves itself before it is relied on: a notification sent through the pool must arrive. A pooler in transaction mode swallows
LISTEN without a word; then this process says so once, loudly, gives up the line, and lives by its heartbeat, which brings the due times
of its queues and the state of its workers.

After each connection it LISTENs first and then has every consumer look, so nothing rung in between is missed. The line also tells the
database on which queues somebody sleeps here, the *guards* of ``bell.py``: advisory locks, which the server drops with the line.

The heartbeat's answer also says when it is this process's turn to maintain the database (``maintenance.py``).

Why death is looked for by the heartbeat, and not by a session that waits for another process's lifeline: such a wait is a statement under
way, and its snapshot would hold back vacuum for as long as everybody lives, the death of a queue table. ``sql/functions/processes.sql``
has the rest of the argument about who is dead.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

import psycopg
import trio
from psycopg import sql

from tocsin._concurrency.backoff import Retries, delays
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.client import Connection, Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._version import VERSION
from tocsin.errors import ConfigError, PermissionDenied, ProcessBuried, QueueNotFound, StateTransitionError, TocsinError

from .bell import Bell

logger = logging.getLogger("tocsin")

SETTLE_WITHIN = 0.1
"""Seconds between two looks at most while a transaction is open that has put messages into a queue and may not have rung."""

STEADY_AFTER = 1.0
"""Seconds after which a LISTEN connection counts as one that works: what it has to do first may fail each time."""

SETTLED_AFTER = 10.0
"""Seconds after which a process that is declared dead registers anew at once."""

LEASES = "leases "
"""What a notification to us begins with when messages were taken from a worker: its id follows."""

HEARD_WITHIN = 5.0
"""Seconds that a notification to ourselves may take before LISTEN counts as not working."""


class Resident(Protocol):
    """A worker of this process: see ``registration.py``."""

    @property
    def worker_id(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def listens_to(self) -> tuple[str, int] | None: ...
    def noticed(self, status: str, grace: float | None) -> None: ...
    def leases_taken(self) -> None: ...
    async def register(self, process_id: int) -> None: ...


class Process:
    """See the module."""

    def __init__(
        self, database: Database, connect: Callable[[], Awaitable[Connection]], bell: Bell, every: float, maintain: Callable[[], None]
    ) -> None:
        self._database = database
        self._maintain = maintain
        self._connect = connect
        self._bell = bell
        self._every = every
        self._id: int | None = None
        self._channel = ""
        self._registering = trio.Lock()
        self._residents: dict[int, Resident] = {}
        self._listening: dict[str, int | None] = {}  # the queue that a channel rings for; None: our own channel
        self._buried = False
        self._risen = trio.Event()
        self._registered_at = -math.inf
        self._pauses = delays()
        self._next_beat = math.inf
        self._nap: trio.CancelScope | None = None
        self._kicked = False
        self._echo = ""
        self._line_tried = trio.Event()
        self._guarding: set[int] = set()  # queues that the database knows to have sleepers here
        self._unsettled: set[int] = set()  # those among them that are not guarded yet, since a producer may not have seen that
        self._settle_at = math.inf
        self._settle_wait = 0.0
        bell.when_guards_change = self._kick
        self.connected = False
        """Whether the line is up and proven."""
        self.deaf = False
        """Whether LISTEN was found not to work."""
        self.rings = 0
        """How many notifications of messages have come in."""
        self.heartbeats = 0
        """How many heartbeats have been sent."""

    async def enroll(self, worker: Resident) -> None:
        """Register a worker with this process, which registers itself before its first, and has its line up before its first consumer.

        Raises what the worker's registration raises. Cancelled, the worker may be registered.
        """
        while worker.worker_id not in self._residents:
            wait = 0.0
            async with self._registering:
                try:
                    await worker.register(self._id or await self._register())
                except ProcessBuried:
                    self._be_buried()
                except StateTransitionError as refused:
                    # Its name is another's, who seems to have died a moment ago: perhaps ourselves, before a restart.
                    if refused.retry_after is None:
                        raise
                    wait = refused.retry_after
                else:
                    self._residents[worker.worker_id] = worker
            self._kick()
            if self._buried:
                await self._risen.wait()
            await trio.sleep(wait)
        # A consumer without a lifeline that died now would be missed only much later, so it has one before it claims anything.
        if self._wants_line:
            await self._line_tried.wait()

    def dismiss(self, worker_id: int) -> None:
        """Forget a worker."""
        self._residents.pop(worker_id, None)
        self._kick()

    def look(self) -> None:
        """Send a heartbeat now, to learn how things stand with our workers."""
        if self._id is not None:
            self._next_beat = trio.current_time()
            self._kick()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the line and the heartbeat, for ever. On cancellation, unregister the process.

        Raises `ConfigError` when the LISTEN connection logs in as a role that may not act for the process.
        """
        retries = Retries("the LISTEN connection")
        try:
            while True:
                try:
                    if self._buried:
                        async with self._registering:
                            await self._rise_again()
                    if self._wants_line:
                        async with self._line() as line:
                            await self._serve(line, retries)
                    else:
                        await self._serve(None, retries)
                except (*TRANSIENT, ProcessBuried) as lost:
                    wait = retries.failed(lost)
                    async with self._beating():
                        await trio.sleep(wait)
        finally:
            with self._database.grace.scope() as patience:
                await self._unregister()
            if patience.cancelled_caught:
                logger.warning("process %d is not unregistered, the others will find it dead: no answer", self._id)

    @property
    def _queues(self) -> dict[str, int]:
        """The queues to LISTEN for, by channel."""
        return dict(r.listens_to for r in self._residents.values() if r.listens_to is not None)

    @property
    def _wants_line(self) -> bool:
        # Once there is a line it is kept, also when its last consumer has left: the next one will want it.
        return (self.connected or bool(self._queues)) and not self.deaf

    async def _serve(self, line: Connection | None, retries: Retries) -> None:
        """Do what comes up, on the line or without one, until that has to change."""
        steady_at = math.inf if line is None else trio.current_time() + STEADY_AFTER
        while not self._buried and self._wants_line == (line is not None):
            self._kicked = False
            if line is not None:
                for queue_id in await self._listen(line):  # a message may have come before
                    self._bell.ring(queue_id)
                await self._set_guards(line)
            if trio.current_time() >= self._next_beat:
                await self._beat(line)
            if self._kicked or self._buried:
                continue
            if trio.current_time() >= steady_at:
                retries.succeeded()
                steady_at = math.inf
            with trio.CancelScope(deadline=min(self._next_beat, self._settle_at, steady_at)) as self._nap:
                while line is not None:
                    await line.wait_for_notifications()
                    # Who was woken is to send its claim before this task goes on: in trio's second pass it has.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                await trio.sleep_forever()
            self._nap = None

    def _kick(self) -> None:
        self._kicked = True
        if self._nap is not None:
            self._nap.cancel()

    # The line

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[Connection]:
        """Connect, LISTEN, prove it, and take a lifeline."""
        line: Connection | None = None
        try:
            async with self._beating():
                line = await self._connect()
            line.add_notify_handler(self._hear)
            # A pooler would keep the LISTEN on some connection of its own, and hand what it brings to whoever has that connection then. So
            # nothing but our own channel is listened to until it is proven; the queues follow in `_serve`.
            await line.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
            self._listening = {self._channel: None}
            if not await self._is_heard(line):
                self.deaf = True
                await self._database.fetch("select tocsin.detach_process(%s)", [self._id])
                logger.warning(
                    "LISTEN does not work on this connection to %s, probably because of a connection pooler: messages will wait for up "
                    "to one heartbeat (%.1f s). Set listen_dsn, where dsn is set, to one that goes round the pooler.",
                    self._database.address,
                    self._every,
                )
            else:
                try:
                    (alive,) = await self._database.fetch_one("select tocsin.attach_process(%s)", [self._id], on=line)
                except PermissionDenied as denied:
                    raise ConfigError("listen_dsn", f"{denied.problem}; have listen_dsn log in as the role of dsn") from denied
                if not alive:
                    self._be_buried()
                self.connected = True
                self._bell.ring_all()
            self._line_tried.set()
            yield line
        finally:
            self._line_tried.set()
            self.connected = False
            self._bell.lose_guards()
            self._guarding.clear()
            self._unsettled.clear()
            self._settle_at = math.inf
            if line is not None:
                await line.close()

    async def _listen(self, line: Connection) -> list[int]:
        """LISTEN for what our workers want by now, and for nothing else; return the queues that are new."""
        wanted = {self._channel: None, **self._queues}
        new = wanted.items() - self._listening.items()  # also a queue made anew, with the name and the channel of one that is gone
        for channel, queue_id in new:
            await line.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self._listening[channel] = queue_id
        for channel in self._listening.keys() - wanted.keys():
            await line.execute(sql.SQL("unlisten {}").format(sql.Identifier(channel)))
            del self._listening[channel]
        return [queue_id for _, queue_id in new if queue_id is not None]

    async def _set_guards(self, line: Connection) -> None:
        """Tell the database where somebody sleeps here, and where nobody does any more; see ``sql/functions/ring.sql``."""
        if deserted := self._bell.give_up_guards():
            await self._database.fetch("select tocsin.wake_up(%s)", [deserted], on=line)
            self._guarding.difference_update(deserted)
        if unguarded := self._bell.unguarded() - self._guarding:
            self._guarding |= unguarded
            self._unsettled |= unguarded
            statement, self._settle_wait = "select tocsin.fall_asleep(%s)", 0.001
        elif self._unsettled and trio.current_time() >= self._settle_at:
            unguarded = set(self._unsettled)
            statement, self._settle_wait = "select tocsin.unrung_in_flight(%s)", min(2 * self._settle_wait, SETTLE_WITHIN)
        else:
            return
        (in_flight,) = await self._database.fetch_one(statement, [list(unguarded)], on=line)
        for queue_id in unguarded:
            if queue_id in in_flight:
                self._bell.ring(queue_id)  # others that have not rung may have ended meanwhile
            else:
                self._unsettled.discard(queue_id)
                self._bell.guard(queue_id)
        self._settle_at = trio.current_time() + self._settle_wait if self._unsettled else math.inf

    async def _is_heard(self, line: Connection) -> bool:
        for _ in range(2):  # once may be too late because this loop was blocked
            self._echo = secrets.token_hex(8)
            # To ask how full the queue of notifications is cleans it up, without which one that was full stays so.
            await self._database.fetch("select pg_notify(%s, %s), pg_notification_queue_usage()", [self._channel, self._echo])
            with trio.move_on_after(HEARD_WITHIN / 2):
                while self._echo:
                    await line.wait_for_notifications()
            if not self._echo:
                return True
        return False

    def _hear(self, notification: psycopg.Notify) -> None:
        queue_id = self._listening.get(notification.channel)
        if queue_id is not None:
            self.rings += 1
            self._bell.ring(queue_id)
        elif not notification.payload:  # something has happened to one of our workers
            self.look()
        elif notification.payload == self._echo:
            self._echo = ""
        else:  # whoever may connect may notify anything, so what it says is not relied on
            for worker_id, worker in self._residents.items():
                if notification.payload == f"{LEASES}{worker_id}":
                    worker.leases_taken()

    # The heartbeat

    async def _beat(self, line: Connection | None) -> None:
        # Noted before the statement: what comes up while it is under way may ask for the next one at once.
        self._next_beat = trio.current_time() + self._every
        residents = {(w.worker_id, w.token): w for w in self._residents.values()}
        # Also the guarded ones where nobody sleeps just now: who lies down meanwhile relies on a look that may not have seen what this
        # statement itself gives back, and for that this session does not ring for itself.
        queue_ids = list(self._guarding.union(self._bell.asleep()))
        try:
            able = (self._database.failing_for or 0) <= self._every  # else this line may be all that works
            rows = await self._database.fetch(
                "select * from tocsin.heartbeat(%s, %s::integer[], %s)", [self._id, queue_ids, able or line is None], on=line
            )
        except BaseException:
            self._next_beat = trio.current_time()
            raise
        self.heartbeats += 1
        for kind, number, status, seconds, registration in rows:
            match kind:
                case "dead":
                    logger.warning("process %d was declared dead by the others; registering anew", number)
                    self._be_buried()
                    return
                case "look_again":
                    self._next_beat = min(self._next_beat, trio.current_time() + seconds)
                case "maintain":
                    self._maintain()
                case "worker" if (number, registration) in residents:
                    residents.pop((number, registration)).noticed(status, seconds)
                case "worker" if status != "stopped" and not self._registering.locked() and number not in self._residents:
                    # Its registration was cancelled after it had happened.
                    await self._database.fetch("select tocsin.unregister_worker(%s, %s)", [number, registration], on=line)
                case "queue":
                    if seconds == 0:
                        self._bell.ring(number)
                    else:
                        self._bell.expect(number, seconds)
        for (worker_id, registration), worker in residents.items():
            if worker_id in self._residents and worker.token == registration:
                worker.noticed("gone", None)

    @asynccontextmanager
    async def _beating(self) -> AsyncIterator[None]:
        """While there is no line, the heartbeat goes through the pool."""
        async with open_nursery_bare() as nursery:
            nursery.start_soon(self._beat_by_pool)
            yield
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _beat_by_pool(self) -> None:
        while not self._buried:
            await trio.sleep_until(self._next_beat)
            try:
                await self._beat(None)
            except TRANSIENT as lost:
                logger.debug("no heartbeat: %s", lost)
                await trio.sleep(self._every / 2)

    # The registration

    async def _register(self) -> int:
        await self._database.check_served()
        process_id, self._channel = await self._database.fetch_one(
            "select id, tocsin.process_channel(id) from tocsin.register_process(%s, %s, %s, %s) id",
            [socket.gethostname(), os.getpid(), VERSION, timedelta(seconds=self._every)],
        )
        self._id = int(process_id)
        self._registered_at = trio.current_time()
        self._next_beat = trio.current_time() + self._every
        return self._id

    async def _rise_again(self) -> None:
        """Register anew with all workers.

        An earlier attempt may have come half way before the connection was lost. What declares the process dead may do so each time, so
        there are pauses in between.
        """
        if trio.current_time() < self._registered_at + SETTLED_AFTER:
            await trio.sleep(next(self._pauses))
        else:
            self._pauses = delays()
        await self._database.fetch("select tocsin.unregister_process(%s)", [self._id])
        process_id = await self._register()
        for worker_id, worker in list(self._residents.items()):
            try:
                await worker.register(process_id)
            except (StateTransitionError, QueueNotFound) as refused:
                logger.warning("cannot register again: %s", refused)
                self.dismiss(worker_id)
                worker.noticed("gone", None)
            else:
                # Under another id, if it has been purged meanwhile.
                if worker_id in self._residents:
                    del self._residents[worker_id]
                    self._residents[worker.worker_id] = worker
        self._buried = False
        self._risen.set()

    def _be_buried(self) -> None:
        if not self._buried:
            self._buried = True
            self._risen, self._line_tried = trio.Event(), trio.Event()

    async def _unregister(self) -> None:
        if self._id is not None:
            try:
                await self._database.fetch("select tocsin.unregister_process(%s)", [self._id])
            except (TocsinError, *TRANSIENT) as error:
                logger.warning("process %d is not unregistered, the others will find it dead: %s", self._id, error)
