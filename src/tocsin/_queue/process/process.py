"""This process as the database sees it: its registration, its LISTEN connection, its
heartbeat.

One task owns the one dedicated connection (the *connection*) and does three things with
it: it LISTENs, it holds the lifeline (an advisory lock whose loss tells the others that
this process is gone), and it sends the heartbeat, which so proves end to end that the
connection still works. A process that only produces has no connection; its heartbeat
goes through the pool.

The connection proves itself before it is relied on: a notification sent through the
pool must arrive. A pooler in transaction mode swallows LISTEN without a word; then this
process says so once, loudly, gives up the connection, and lives by its heartbeat, which
brings the due times of its queues and the state of its workers.

After each connection it LISTENs first and then has every consumer look, so nothing rung
in between is missed. The connection also tells the database on which queues somebody
sleeps here, the *guards* of ``bell.py``: advisory locks, which the server drops with
the connection.

The heartbeat's answer also says when it is this process's turn to maintain the database
(``maintenance.py``).

Why death is looked for by the heartbeat, and not by a session that waits for another
process's lifeline: such a wait is a statement under way, and its snapshot would hold
back vacuum for as long as everybody lives, the death of a queue table.
``sql/functions/workers/processes.sql`` has the rest of the argument about who is dead.
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

from tocsin._concurrency.backoff import OutageRetry, delays
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.client import Connection, Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._database.schema import ours
from tocsin._version import VERSION
from tocsin.errors import (
    ConfigError,
    PermissionDenied,
    QueueNotFound,
    StateTransitionError,
    TocsinError,
)
from tocsin.errors._workers import ProcessDeclaredDead

from .bell import Bell

logger = logging.getLogger("tocsin.process")

CONFIRM_WITHIN = 0.1
"""Seconds between two looks at most while a transaction is open that has put messages
into a queue and may not have rung."""

STEADY_AFTER = 1.0
"""Seconds after which a LISTEN connection counts as one that works: what it has to do
first may fail each time."""

SETTLED_AFTER = 10.0
"""Seconds after which a process that is declared dead registers anew at once."""

LEASES = "leases "
"""What a notification to us begins with when messages were taken from a worker: its id
follows."""

HEARD_WITHIN = 5.0
"""Seconds that a notification to ourselves may take before LISTEN counts as not
working."""


class LocalWorker(Protocol):
    """A worker of this process: see ``registration.py``."""

    @property
    def worker_id(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def listens_to(self) -> tuple[str, int] | None: ...
    def on_worker_status(self, status: str, grace: float | None) -> None: ...
    def on_leases_revoked(self) -> None: ...
    async def register(self, process_id: int) -> None: ...


class Process:
    """See the module."""

    def __init__(
        self,
        database: Database,
        connect: Callable[[], Awaitable[Connection]],
        bell: Bell,
        heartbeat_interval: float,
        maintain: Callable[[], None],
    ) -> None:
        self._database = database
        self._maintain = maintain
        self._connect = connect
        self._bell = bell
        self._heartbeat_interval = heartbeat_interval
        self._id: int | None = None
        self._channel = ""
        self._registering = trio.Lock()
        self._local_workers: dict[int, LocalWorker] = {}
        # the queue that a channel rings for; None: our own channel
        self._listening: dict[str, int | None] = {}
        self._declared_dead = False
        self._reregistered = trio.Event()
        self._registered_at = -math.inf
        self._pauses = delays()
        self._next_heartbeat = math.inf
        self._idle_scope: trio.CancelScope | None = None
        self._woken = False
        self._echo = ""
        self._listen_tried = trio.Event()
        # queues that the database knows to have sleepers here
        self._locked_queues: set[int] = set()
        # those among them that are not guarded yet, since a producer may not have seen
        # that
        self._unconfirmed_locks: set[int] = set()
        self._confirm_at = math.inf
        self._confirm_wait = 0.0
        bell.when_locks_change = self._wake_loop
        self.connected: bool = False
        """Whether the connection is up and proven."""
        self.listen_works: bool = True
        """Whether LISTEN works, as far as this process knows."""
        self.notifications: int = 0
        """How many notifications of messages have come in."""
        self.heartbeats: int = 0
        """How many heartbeats have been sent."""

    async def register(self, worker: LocalWorker) -> None:
        """Register a worker with this process, which registers itself before its first,
        and has its connection up before its first consumer.

        Raises what the worker's registration raises. Cancelled, the worker may be
        registered.
        """
        while worker.worker_id not in self._local_workers:
            wait = 0.0
            async with self._registering:
                try:
                    await worker.register(self._id or await self._register())
                except ProcessDeclaredDead:
                    self._mark_dead()
                except StateTransitionError as refused:
                    # Its name is another's, who seems to have died a moment ago:
                    # perhaps ourselves, before a restart.
                    if refused.retry_after is None:
                        raise
                    wait = refused.retry_after
                else:
                    self._local_workers[worker.worker_id] = worker
            self._wake_loop()
            if self._declared_dead:
                await self._reregistered.wait()
            await trio.sleep(wait)
        # A consumer without a lifeline that died now would be missed only much later,
        # so it has one before it claims anything.
        if self._needs_listener:
            await self._listen_tried.wait()

    def unregister(self, worker_id: int) -> None:
        """Forget a worker."""
        self._local_workers.pop(worker_id, None)
        self._wake_loop()

    def look(self) -> None:
        """Send a heartbeat now, to learn how things stand with our workers."""
        if self._id is not None:
            self._next_heartbeat = trio.current_time()
            self._wake_loop()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the connection and the heartbeat, for ever. On cancellation, unregister
        the process.

        Raises `ConfigError` when the LISTEN connection logs in as a role that may not
        act for the process.
        """
        retries = OutageRetry("the LISTEN connection", logger)
        try:
            while True:
                try:
                    if self._declared_dead:
                        async with self._registering:
                            await self._register_again()
                    if self._needs_listener:
                        async with self._open_listen_connection() as connection:
                            await self._serve(connection, retries)
                    else:
                        await self._serve(None, retries)
                except (*TRANSIENT, ProcessDeclaredDead) as lost:
                    wait = retries.failed(lost)
                    async with self._heartbeats_from_pool():
                        await trio.sleep(wait)
        finally:
            with self._database.grace.scope() as patience:
                await self._unregister()
            if patience.cancelled_caught:
                logger.warning(
                    "process %d is not unregistered, the others will find it dead: no answer",
                    self._id,
                )

    @property
    def _queues(self) -> dict[str, int]:
        """The queues to LISTEN for, by channel."""
        return dict(r.listens_to for r in self._local_workers.values() if r.listens_to is not None)

    @property
    def _needs_listener(self) -> bool:
        # Once there is a connection it is kept, also when its last consumer has left:
        # the next one will want it.
        return (self.connected or bool(self._queues)) and self.listen_works

    async def _serve(self, connection: Connection | None, retries: OutageRetry) -> None:
        """Do what comes up, on the connection or without one, until that has to change."""
        steady_at = math.inf if connection is None else trio.current_time() + STEADY_AFTER
        while not self._declared_dead and self._needs_listener == (connection is not None):
            self._woken = False
            if connection is not None:
                for queue_id in await self._listen(connection):  # a message may have come before
                    self._bell.ring(queue_id)
                await self._set_waiter_locks(connection)
            if trio.current_time() >= self._next_heartbeat:
                await self._send_heartbeat(connection)
            if self._woken or self._declared_dead:
                continue
            if trio.current_time() >= steady_at:
                retries.succeeded()
                steady_at = math.inf
            with trio.CancelScope(
                deadline=min(self._next_heartbeat, self._confirm_at, steady_at)
            ) as self._idle_scope:
                while connection is not None:
                    await connection.wait_for_notifications()
                    # Who was woken is to send its claim before this task goes on: in
                    # trio's second pass it has.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                await trio.sleep_forever()
            self._idle_scope = None

    def _wake_loop(self) -> None:
        self._woken = True
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    # The connection

    @asynccontextmanager
    async def _open_listen_connection(self) -> AsyncIterator[Connection]:
        """Connect, LISTEN, prove it, and take a lifeline."""
        connection: Connection | None = None
        try:
            async with self._heartbeats_from_pool():
                connection = await self._connect()
            connection.add_notify_handler(self._on_notification)
            # A pooler would keep the LISTEN on some connection of its own, and hand
            # what it brings to whoever has that connection then. So nothing but our own
            # channel is listened to until it is proven; the queues follow in `_serve`.
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
            self._listening = {self._channel: None}
            if not await self._probe_listen(connection):
                self.listen_works = False
                await self._database.fetch("select tocsin.detach_process(%s)", [self._id])
                logger.warning(
                    "LISTEN does not work on this connection to %s, probably because of a"
                    " connection pooler: messages will wait for up to one heartbeat (%.1f s). Set"
                    " listen_dsn, where dsn is set, to one that goes round the pooler.",
                    self._database.address,
                    self._heartbeat_interval,
                )
            else:
                try:
                    (alive,) = await self._database.fetch_one(
                        "select tocsin.attach_process(%s)", [self._id], on=connection
                    )
                except PermissionDenied as denied:
                    raise ConfigError(
                        "listen_dsn", f"{denied.problem}; have listen_dsn log in as the role of dsn"
                    ) from denied
                if not alive:
                    self._mark_dead()
                self.connected = True
                self._bell.ring_all()
            self._listen_tried.set()
            yield connection
        finally:
            self._listen_tried.set()
            self.connected = False
            self._bell.locks_lost()
            self._locked_queues.clear()
            self._unconfirmed_locks.clear()
            self._confirm_at = math.inf
            if connection is not None:
                await connection.close()

    async def _listen(self, connection: Connection) -> list[int]:
        """LISTEN for what our workers want by now, and for nothing else; return the
        queues that are new."""
        wanted = {self._channel: None, **self._queues}
        # also a queue made anew, with the name and the channel of one that is gone
        new = wanted.items() - self._listening.items()
        for channel, queue_id in new:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self._listening[channel] = queue_id
        for channel in self._listening.keys() - wanted.keys():
            await connection.execute(sql.SQL("unlisten {}").format(sql.Identifier(channel)))
            del self._listening[channel]
        return [queue_id for _, queue_id in new if queue_id is not None]

    async def _set_waiter_locks(self, connection: Connection) -> None:
        """Tell the database where somebody sleeps here, and where nobody does any more;
        see ``sql/functions/queue/ring.sql``."""
        if deserted := self._bell.release_idle_locks():
            await self._database.fetch("select tocsin.end_waiting(%s)", [deserted], on=connection)
            self._locked_queues.difference_update(deserted)
        if queues_without_lock := self._bell.queues_without_lock() - self._locked_queues:
            self._locked_queues |= queues_without_lock
            self._unconfirmed_locks |= queues_without_lock
            statement, self._confirm_wait = "select tocsin.begin_waiting(%s)", 0.001
        elif self._unconfirmed_locks and trio.current_time() >= self._confirm_at:
            queues_without_lock = set(self._unconfirmed_locks)
            statement, self._confirm_wait = (
                "select tocsin.unrung_transactions(%s)",
                min(2 * self._confirm_wait, CONFIRM_WITHIN),
            )
        else:
            return
        (in_flight,) = await self._database.fetch_one(
            statement, [list(queues_without_lock)], on=connection
        )
        for queue_id in queues_without_lock:
            if queue_id in in_flight:
                self._bell.ring(queue_id)  # others that have not rung may have ended meanwhile
            else:
                self._unconfirmed_locks.discard(queue_id)
                self._bell.lock_confirmed(queue_id)
        self._confirm_at = (
            trio.current_time() + self._confirm_wait if self._unconfirmed_locks else math.inf
        )

    async def _probe_listen(self, connection: Connection) -> bool:
        for _ in range(2):  # once may be too late because this loop was blocked
            self._echo = secrets.token_hex(8)
            # To ask how full the queue of notifications is cleans it up, without which
            # one that was full stays so.
            await self._database.fetch(
                "select pg_notify(%s, %s), pg_notification_queue_usage()",
                [self._channel, self._echo],
            )
            with trio.move_on_after(HEARD_WITHIN / 2):
                while self._echo:
                    await connection.wait_for_notifications()
            if not self._echo:
                return True
        return False

    def _on_notification(self, notification: psycopg.Notify) -> None:
        queue_id = self._listening.get(notification.channel)
        if queue_id is not None:
            self.notifications += 1
            self._bell.ring(queue_id)
        elif not notification.payload:  # something has happened to one of our workers
            self.look()
        elif notification.payload == self._echo:
            self._echo = ""
        else:  # whoever may connect may notify anything, so what it says is not relied on
            for worker_id, worker in self._local_workers.items():
                if notification.payload == f"{LEASES}{worker_id}":
                    worker.on_leases_revoked()

    # The heartbeat

    async def _send_heartbeat(self, connection: Connection | None) -> None:
        # Noted before the statement: what comes up while it is under way may ask for
        # the next one at once.
        self._next_heartbeat = trio.current_time() + self._heartbeat_interval
        residents = {(w.worker_id, w.token): w for w in self._local_workers.values()}
        # Also the guarded ones where nobody sleeps just now: who lies down meanwhile
        # relies on a look that may not have seen what this statement itself gives back,
        # and for that this session does not ring for itself.
        queue_ids = list(self._locked_queues.union(self._bell.queues_waiting()))
        try:
            # else this connection may be all that works
            able = (self._database.failing_for or 0) <= self._heartbeat_interval
            rows = await self._database.fetch(
                "select * from tocsin.heartbeat(%s, %s::integer[], %s)",
                [self._id, queue_ids, able or connection is None],
                on=connection,
            )
        except BaseException:
            self._next_heartbeat = trio.current_time()
            raise
        self.heartbeats += 1
        for kind, number, status, seconds, registration in rows:
            match kind:
                case "dead":
                    logger.warning(
                        "process %d was declared dead by the others; registering anew", number
                    )
                    self._mark_dead()
                    return
                case "look_again":
                    self._next_heartbeat = min(self._next_heartbeat, trio.current_time() + seconds)
                case "maintain":
                    self._maintain()
                case "worker" if (number, registration) in residents:
                    residents.pop((number, registration)).on_worker_status(status, seconds)
                case "worker" if (
                    status != "stopped"
                    and not self._registering.locked()
                    and number not in self._local_workers
                ):
                    # Its registration was cancelled after it had happened.
                    await self._database.fetch(
                        "select tocsin.unregister_worker(%s, %s)",
                        [number, registration],
                        on=connection,
                    )
                case "queue":
                    if seconds == 0:
                        self._bell.ring(number)
                    else:
                        self._bell.expect(number, seconds)
        for (worker_id, registration), worker in residents.items():
            if worker_id in self._local_workers and worker.token == registration:
                worker.on_worker_status("gone", None)

    @asynccontextmanager
    async def _heartbeats_from_pool(self) -> AsyncIterator[None]:
        """While there is no connection, the heartbeat goes through the pool."""
        async with open_nursery_bare() as nursery:
            nursery.start_soon(self._beat_by_pool)
            yield
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _beat_by_pool(self) -> None:
        while not self._declared_dead:
            await trio.sleep_until(self._next_heartbeat)
            try:
                await self._send_heartbeat(None)
            except TRANSIENT as lost:
                logger.debug("no heartbeat: %s", lost)
                await trio.sleep(self._heartbeat_interval / 2)

    # The registration

    async def _register(self) -> int:
        process_id, self._channel = await self._database.fetch_one(
            "select id, tocsin.process_channel(id) from tocsin.register_process(%s, %s, %s, %s, %s) id",
            [
                socket.gethostname(),
                os.getpid(),
                VERSION,
                timedelta(seconds=self._heartbeat_interval),
                ours().version,
            ],
        )
        self._database.note_served()
        self._id = int(process_id)
        self._registered_at = trio.current_time()
        self._next_heartbeat = trio.current_time() + self._heartbeat_interval
        return self._id

    async def _register_again(self) -> None:
        """Register anew with all workers.

        An earlier attempt may have come half way before the connection was lost. What
        declares the process dead may do so each time, so there are pauses in between.
        """
        if trio.current_time() < self._registered_at + SETTLED_AFTER:
            await trio.sleep(next(self._pauses))
        else:
            self._pauses = delays()
        await self._database.fetch("select tocsin.unregister_process(%s)", [self._id])
        process_id = await self._register()
        for worker_id, worker in list(self._local_workers.items()):
            try:
                await worker.register(process_id)
            except (StateTransitionError, QueueNotFound) as refused:
                logger.warning("cannot register again: %s", refused)
                self.unregister(worker_id)
                worker.on_worker_status("gone", None)
            else:
                # Under another id, if it has been purged meanwhile.
                if worker_id in self._local_workers:
                    del self._local_workers[worker_id]
                    self._local_workers[worker.worker_id] = worker
        self._declared_dead = False
        self._reregistered.set()

    def _mark_dead(self) -> None:
        if not self._declared_dead:
            self._declared_dead = True
            self._reregistered, self._listen_tried = trio.Event(), trio.Event()

    async def _unregister(self) -> None:
        if self._id is not None:
            try:
                await self._database.fetch("select tocsin.unregister_process(%s)", [self._id])
            except (TocsinError, *TRANSIENT) as error:
                logger.warning(
                    "process %d is not unregistered, the others will find it dead: %s",
                    self._id,
                    error,
                )
