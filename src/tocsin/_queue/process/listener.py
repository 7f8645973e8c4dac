"""The LISTEN connection: opening it, proving it, and handing its notifications on.

A connection is proven before it is relied on: a notification sent through the pool must
arrive. A pooler in transaction mode takes a LISTEN and delivers nothing. The process
then warns once, gives up the connection and goes on with its heartbeat alone, which
brings the due times of its queues and the state of its workers. It proves LISTEN again
every few minutes, because a server or a network in trouble looks the same for a while.

After each connection the process first LISTENs and then rings for every consumer. So a
ring between two connections is not missed.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import psycopg
import trio
from psycopg import sql

from tocsin._database.client import Connection, Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin.errors import ConnectionLost
from tocsin.telemetry.events import ConnectionDown, ConnectionUp, Rung

from .bell import Bell
from .membership import Membership

logger = logging.getLogger("tocsin.process")

HEARD_WITHIN = 5.0
"""Seconds that a proof may take.

After them LISTEN counts as not working. If the connection does not answer either, it
counts as lost.
"""

PROVE_AGAIN_AFTER = 180.0
"""Seconds after which LISTEN is proven again where it did not work."""


class ListenProof:
    """The proof that notifications arrive on the LISTEN connection."""

    def __init__(self, database: Database, heartbeat_interval: float) -> None:
        self.works: bool = True
        """Whether LISTEN works, as far as this process knows."""
        self.again_at: float = -math.inf
        """When to prove LISTEN again where it does not work (`trio.current_time`)."""
        self._database = database
        self._heartbeat_interval = heartbeat_interval
        self._token = ""

    @property
    def due(self) -> bool:
        """Whether a LISTEN connection is worth opening."""
        return self.works or trio.current_time() >= self.again_at

    def hear(self, payload: str) -> bool:
        """Return whether a notification belongs to the proof."""
        if self._token and payload == self._token:
            self._token = ""
            return True
        return False

    async def run(self, connection: Connection, channel: str) -> None:
        """Find out whether notifications of this channel arrive, and warn if not.

        Raises:
            ConnectionLost: The connection does not answer at all.

        Cancellation:
            Nothing is known.
        """
        if await self._heard(connection, channel):
            self.works = True
            return
        await self._check_answers(connection)
        logger.log(
            logging.WARNING if self.works else logging.DEBUG,
            "LISTEN does not work on this connection to %s, probably because of a"
            " connection pooler: messages will wait for up to one heartbeat (%.1f s). Set"
            " listen_dsn, where dsn is set, to one that goes round the pooler.",
            self._database.address,
            self._heartbeat_interval,
        )
        self.works = False
        self.again_at = trio.current_time() + PROVE_AGAIN_AFTER

    async def _heard(self, connection: Connection, channel: str) -> bool:
        for _ in range(2):  # The first probe may be late because this event loop was blocked.
            self._token = secrets.token_hex(8)
            # This statement also cleans up the notification queue, which would stay
            # full otherwise.
            await self._database.fetch(
                "select pg_notify(%s, %s), pg_notification_queue_usage()", [channel, self._token]
            )
            with trio.move_on_after(HEARD_WITHIN / 2):
                while self._token:
                    await connection.wait_for_notifications()
            if not self._token:
                return True
        return False

    async def _check_answers(self, connection: Connection) -> None:
        with trio.move_on_after(HEARD_WITHIN) as patience:
            await self._database.fetch("select", on=connection)
        if patience.cancelled_caught:
            raise ConnectionLost(self._database.address, "the LISTEN connection does not answer")


class Listener:
    """The LISTEN connection of this process, while there is one."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        proof: ListenProof,
        membership: Membership,
        bell: Bell,
        on_told: Callable[[str], None],
    ) -> None:
        """Begin without a connection.

        Args:
            connect: Opens the connection.
            proof: Finds out whether notifications arrive.
            membership: The process and its workers.
            bell: Rings for the consumers.
            on_told: Called with each notification of the process's own channel.
        """
        self.notifications: int = 0
        """How many notifications of messages have come in."""
        self.proof = proof
        self._connect = connect
        self._membership = membership
        self._bell = bell
        self._on_told = on_told
        # Up once it is proven; lost from the report of its loss until one is up again.
        self._state: Literal["down", "up", "lost"] = "down"
        # The queue that a channel rings for; None: the channel of this process.
        self._channels: dict[str, int | None] = {}

    @property
    def connected(self) -> bool:
        """Whether the connection is up and proven."""
        return self._state == "up"

    def is_wanted(self, *, needed: bool) -> bool:
        """Return whether there should be a connection.

        It is kept when its last user has left, because the next one needs it.

        Args:
            needed: Whether a consumer or another task needs it now.
        """
        return (self.connected or needed) and self.proof.due

    @asynccontextmanager
    async def open(
        self, while_connecting: Callable[[], AbstractAsyncContextManager[None]]
    ) -> AsyncIterator[Connection]:
        """Connect, LISTEN, prove it and take a lifeline.

        Where LISTEN does not work, the connection has no lifeline.

        Raises:
            ConnectionLost: There is no connection, or it does not answer.
            ConfigError: The connection logs in as a role that may not act for this
                process.

        Cancellation:
            The connection is closed.
        """
        connection: Connection | None = None
        try:
            try:
                async with while_connecting():
                    connection = await self._connect()
                await self._begin(connection)
            except Exception:
                self._membership.lifeline_failed()
                raise
            yield connection
        except TRANSIENT as lost:
            self._report_lost(lost)
            raise
        finally:
            if self.connected:
                self._state = "down"
            if connection is not None:
                await connection.close()

    async def _begin(self, connection: Connection) -> None:
        channel = self._membership.process.channel
        connection.add_notify_handler(self._on_notification)
        # A pooler keeps a LISTEN on one of its server connections and delivers what
        # arrives there to another client. So only the channel of this process is
        # listened to before the proof; those of the queues follow in `update_channels`.
        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        self._channels = {channel: None}
        await self.proof.run(connection, channel)
        if self.proof.works:
            await self._membership.attach(connection)
            self._state = "up"
            if self._bell.events.wants(ConnectionUp):
                self._bell.events.emit(ConnectionUp(connection="listen"))
            self._bell.ring_all()
        else:
            self._membership.lifeline_failed()

    async def update_channels(self, connection: Connection) -> None:
        """LISTEN to the channels that the workers need now, and to no other.

        It then rings for the new ones, because a message may have come before.
        """
        wanted = {self._membership.process.channel: None, **self._membership.channels}
        # A queue that was created again has the name and the channel of its
        # predecessor, but another id.
        new = wanted.items() - self._channels.items()
        for channel, queue_id in new:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self._channels[channel] = queue_id
        for channel in self._channels.keys() - wanted.keys():
            await connection.execute(sql.SQL("unlisten {}").format(sql.Identifier(channel)))
            del self._channels[channel]
        for _, queue_id in new:
            if queue_id is not None:
                self._bell.ring(queue_id)

    def _report_lost(self, error: Exception) -> None:
        if self._state != "lost" and self._bell.events.wants(ConnectionDown):
            self._bell.events.emit(ConnectionDown(connection="listen", reason=str(error)))
        self._state = "lost"

    def _report_ring(self, queue_id: int) -> None:
        queues = {w.queue for w in self._membership.workers.values() if w.queue_id == queue_id}
        for queue in queues:
            self._bell.events.emit(Rung(queue=queue))

    def _on_notification(self, notification: psycopg.Notify) -> None:
        queue_id = self._channels.get(notification.channel)
        payload = notification.payload
        if queue_id is not None:
            self.notifications += 1
            if self._bell.events.wants(Rung):
                self._report_ring(queue_id)
            self._bell.ring(queue_id)
        elif not self.proof.hear(payload):
            self._on_told(payload)
