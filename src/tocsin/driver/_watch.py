"""Finding connections that have fallen silent.

A connection that ends says so. One that falls silent does not: a load balancer has
forgotten it, a proxy has stalled, the server hangs. What the operating systems cannot
see of that, since the silence is above TCP, is found here.

**Silence is not slowness.** A statement may rightly take minutes, because there is much
to do or a lock is held. So no statement has a limit of its own. When nothing has come
for `ASK_AFTER` seconds, the watch opens another connection and asks the server about
the session. One that works or waits for a lock will answer. One that is idle, waits for
its client or is gone will not; asked twice, that is proof enough. Then the connection
is closed, and its session is terminated on the server: what it holds is free, and a
request that is still on its way is not executed later.

**When the server cannot be asked either**, the connection is closed after `PATIENCE`,
and its session is terminated as soon as there is another connection
(`Watch.terminate_abandoned`). Where the server answers but does not tell, because of a
pooler or because it admits no further connection, the connection is closed after
`LONGEST`.

A statement whose connection is closed here fails as with any lost connection: it has
taken effect or not. Other connections that are idle then are as old as this one, and as
little to be trusted: the pool lends them to no task again.

**It costs one comparison and one look at the clock for each wait.** One task sleeps
until the first look that is due. While no statement is under way it has no deadline.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import psycopg
import trio
from psycopg.rows import tuple_row

from ._grace import Grace
from ._session import SessionId

if TYPE_CHECKING:
    from ._connection import TrioConnection

__all__ = ["Watch"]

logger = logging.getLogger("tocsin.driver")

ASK_AFTER: Final = 2.0
"""Seconds without an answer after which the server is asked about the session."""
CONFIRM_AFTER: Final = 0.5
"""Seconds between two questions about a session that seems to be silent: its answer may
have been on its way at the first one."""
ASK_AGAIN: Final = 5.0
"""Most seconds between two questions about a session that works."""
TERMINATE_WITHIN: Final = 2.0
"""Seconds for which a task that waits on a silent connection goes on waiting, so that
its session has ended when it learns of it."""
PATIENCE: Final = 10.0
"""Seconds without an answer after which a connection is closed if the server cannot be
asked."""
LONGEST: Final = 60.0
"""The same if the server answers, but does not tell about the session."""

_FIND: Final = (
    b"from unnest(%s::int[], %s::numeric[]) asked (pid, began) join pg_catalog.pg_stat_activity a "
    b"on a.pid = asked.pid and extract(epoch from a.backend_start) = asked.began"
)
_ASK: Final = (
    b"select a.pid, asked.began::text, a.state, a.wait_event_type is not distinct from 'Client' "
    + _FIND
)
_TERMINATE: Final = b"select pg_catalog.pg_terminate_backend(a.pid, 1000) " + _FIND


class _Finding(Enum):
    """What the server says of a session that has not answered."""

    WORKS = "works"
    SILENT = "silent"
    UNTOLD = "untold"
    UNREACHABLE = "unreachable"


@attrs.define
class _Wait:
    """A statement that is being asked about."""

    since: float
    look_at: float


class Watch:
    """Watches over connections to one server; see the module."""

    def __init__(self, connect: Callable[[], Awaitable[TrioConnection[Any]]]) -> None:
        self._connect = connect
        self._connections: weakref.WeakSet[TrioConnection[Any]] = weakref.WeakSet()
        self._waits: weakref.WeakKeyDictionary[TrioConnection[Any], _Wait] = (
            weakref.WeakKeyDictionary()
        )
        self._abandoned = set[SessionId]()
        self._idle_scope = trio.CancelScope()
        self.idle: bool = True
        """Whether no statement is known to be under way."""
        self.dropped: int = 0
        """How many connections have been closed because they had fallen silent."""

    def add(self, connection: TrioConnection[Any]) -> None:
        """Watch over this connection for as long as it is open."""
        self._connections.add(connection)
        connection.set_watch(self)

    @property
    def waiting_since(self) -> float:
        """Since when the statement that has waited longest is without an answer, as a
        `trio.current_time`; infinity when there is none."""
        return min((c.waits_since for c in self._connections), default=math.inf)

    @property
    def has_abandoned(self) -> bool:
        """Whether there is something to do for `terminate_abandoned`."""
        return bool(self._abandoned)

    def wake(self, now: float) -> None:
        """A statement is under way while the watch is `waiting`."""
        self.idle = False
        self._idle_scope.deadline = now + ASK_AFTER

    async def run(self) -> NoReturn:
        """Watch, for ever. Cancellation closes the connection that it asks on, and
        nothing else."""
        while True:
            with trio.CancelScope(deadline=self._next_look()) as self._idle_scope:
                await trio.sleep_forever()
            for _ in range(2):  # the answer may be there, and this event loop have been blocked
                await trio.lowlevel.checkpoint()
            if due := self._due():
                await self._look(due)

    async def terminate_abandoned(self, connection: TrioConnection[Any]) -> None:
        """On this connection, end the sessions of those that were closed when the
        server could not be told so.

        What they were to do is done by then, or will never be. Raises psycopg's errors.
        Cancelled, they have ended or not.
        """
        if self._abandoned:
            abandoned = list(self._abandoned)
            await _run(connection, _TERMINATE, abandoned)
            self._abandoned.difference_update(abandoned)

    def _next_look(self) -> float:
        look_at = math.inf
        for connection in self._connections:
            if (since := connection.waits_since) < math.inf:
                wait = self._waits.get(connection)
                look_at = min(
                    look_at,
                    since + ASK_AFTER if wait is None or wait.since != since else wait.look_at,
                )
        self.idle = look_at == math.inf
        return look_at

    def _due(self) -> list[TrioConnection[Any]]:
        """Return the connections that are to be looked at now."""
        now = trio.current_time()
        due = []
        for connection in list(self._connections):
            since = connection.waits_since
            if since + ASK_AFTER <= now:
                wait = self._waits.get(connection)
                if wait is None or wait.since != since:
                    wait = self._waits[connection] = _Wait(since, now)
                    logger.info(
                        "no answer from PostgreSQL for %.1f s; asking on another connection",
                        now - since,
                    )
                if wait.look_at <= now:
                    due.append(connection)
        return due

    async def _look(self, due: Sequence[TrioConnection[Any]]) -> None:
        """Ask the server about the sessions of these connections, and close those that
        are silent."""
        findings = dict.fromkeys(due, _Finding.UNREACHABLE)
        silent: list[TrioConnection[Any]] = []
        asking: TrioConnection[Any] | None = None
        longest = min(self._waits[c].since for c in due)
        try:
            with trio.move_on_at(max(longest + PATIENCE, trio.current_time() + ASK_AFTER)):
                try:
                    asking = await self._connect()
                    asking.share_grace(Grace(0))
                    findings = await _find_out(asking, due)
                    if _Finding.SILENT in findings.values():
                        await trio.sleep(CONFIRM_AFTER)
                        again = await _find_out(asking, due)
                        findings = {
                            c: again[c] if findings[c] is _Finding.SILENT else findings[c]
                            for c in due
                        }
                except Exception as error:
                    logger.debug("PostgreSQL cannot be asked about a session: %s", error)
                    if isinstance(error, psycopg.Error) and _is_admission(error):
                        findings = dict.fromkeys(due, _Finding.UNTOLD)
            silent = [
                c
                for c in due
                if c.waits_since == self._waits[c].since
                and self._is_silent(self._waits[c], findings[c])
            ]
            self._abandoned.update(c.session for c in silent if c.session is not None)
            if silent and asking is not None and not asking.closed:
                with trio.move_on_after(TERMINATE_WITHIN), suppress(psycopg.Error):
                    await self.terminate_abandoned(asking)
        finally:
            if asking is not None:
                asking.finish()
            for connection in silent:
                self._give_up(connection)

    def _is_silent(self, wait: _Wait, finding: _Finding) -> bool:
        """Whether a connection is to be closed; notes when to look again if it is not."""
        now = trio.current_time()
        waited = now - wait.since
        match finding:
            case _Finding.WORKS:
                logger.debug(
                    "no answer from PostgreSQL for %.1f s, but the session works or waits for a"
                    " lock",
                    waited,
                )
                wait.look_at = now + min(waited, ASK_AGAIN)
                return False
            case _Finding.SILENT:
                return True
            case _Finding.UNTOLD:
                wait.look_at = min(now + ASK_AGAIN, wait.since + LONGEST)
                return waited >= LONGEST
            case _Finding.UNREACHABLE:
                wait.look_at = min(now + ASK_AFTER / 2, wait.since + PATIENCE)
                return waited >= PATIENCE

    def _give_up(self, connection: TrioConnection[Any]) -> None:
        reason = f"no answer for {trio.current_time() - self._waits[connection].since:.1f} s"
        logger.warning("a connection to PostgreSQL is closed: %s", reason)
        self.dropped += 1
        self._connections.discard(connection)
        connection.give_up(reason)
        for other in self._connections:
            if other.waits_since == math.inf:
                other.suspect = True


async def _find_out(
    connection: TrioConnection[Any], silent: Sequence[TrioConnection[Any]]
) -> dict[TrioConnection[Any], _Finding]:
    """Ask on one connection about the sessions of others."""
    told: dict[SessionId, _Finding] = {}
    for pid, began, state, waits_for_client in await _run(
        connection, _ASK, [c.session for c in silent if c.session is not None]
    ):
        if state is None or state == "disabled":
            told[pid, began] = _Finding.UNTOLD
        else:
            told[pid, began] = (
                _Finding.WORKS if state == "active" and not waits_for_client else _Finding.SILENT
            )
    return {
        c: _Finding.UNTOLD if c.session is None else told.get(c.session, _Finding.SILENT)
        for c in silent
    }


async def _run(
    connection: TrioConnection[Any], statement: bytes, sessions: Collection[SessionId]
) -> list[tuple[Any, ...]]:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    await cursor.execute(
        statement, [[pid for pid, _ in sessions], [began for _, began in sessions]]
    )
    return await cursor.fetchall()


def _is_admission(error: psycopg.Error) -> bool:
    """Whether the server is there and only does not let us in, because there are too
    many connections, say."""
    return error.sqlstate is not None and not error.sqlstate.startswith("57")
