"""The watch that finds connections that have fallen silent.

A connection that ends says so. One that falls silent does not: a load balancer has
forgotten it, a proxy has stalled, the server hangs. The operating systems cannot see a
silence above TCP, so it is found here.

**Silence is not slowness.** A statement may rightly take minutes, because there is much
to do or a lock is held. So no statement has a limit of its own. When nothing has come
for `ASK_AFTER` seconds, the watch opens another connection and asks the server about
the session. A session works, waits for a lock, or is silent: it is idle, waits for its
client or is gone. A session that is silent twice is proof enough. Then its connection
is closed, and the session is terminated on the server: what it holds is free, and a
request that is still on its way is not executed later.

**When the server refuses a further connection**, the watch asks on one that is idle.

**When the server cannot be reached**, the connection is closed after `PATIENCE`, and
its session is terminated when there is another connection
(`Watch.terminate_abandoned`). Where the server answers but does not tell, because of a
pooler or because it admits no further connection and none is idle, the connection is
closed after `LONGEST`.

A statement whose connection is closed here fails as with any lost connection: it has
taken effect or not. Other connections that are idle then are as old as this one, and as
little to be trusted: no task checks them out again.

**It costs one comparison and one reading of the clock for each wait.** One task waits
until the first check that is due. While no statement is under way it has no deadline.
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
from trio.lowlevel import enable_ki_protection

from tocsin._concurrency.grace import Grace

from ._connecting import ServerRefusal
from ._session import SessionId

if TYPE_CHECKING:
    from ._connection import TrioConnection

__all__ = ["Watch"]

logger = logging.getLogger("tocsin.driver")

ASK_AFTER: Final = 2.0
"""Seconds without an answer after which the server is asked about the session."""
CONFIRM_AFTER: Final = 0.5
"""Seconds between two questions about a session that seems to be silent: at the first
one its answer may have been on its way."""
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
    """What is found about a session that has not answered."""

    WORKS = "works"
    SILENT = "silent"
    UNTOLD = "untold"
    UNREACHABLE = "unreachable"


@attrs.define
class _Wait:
    """A statement that the server is asked about."""

    since: float
    check_at: float


class Watch:
    """The watch over the connections to one server; see the module."""

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
        """Since when the statement that has waited longest is without an answer.

        It is a `trio.current_time`, or infinity when there is no such statement.
        """
        return min((c.waits_since for c in self._connections), default=math.inf)

    @property
    def has_abandoned(self) -> bool:
        """Whether there is something to do for `terminate_abandoned`."""
        return bool(self._abandoned)

    def wake(self, now: float) -> None:
        """Record that a statement is under way while the watch is `idle`."""
        self.idle = False
        self._idle_scope.deadline = now + ASK_AFTER

    @enable_ki_protection
    async def run(self) -> NoReturn:
        """Watch until cancelled, which closes the connection that it asks on."""
        while True:
            with trio.CancelScope(deadline=self._next_check()) as self._idle_scope:
                await trio.sleep_forever()
            for _ in range(2):  # the answer may have arrived while this event loop was blocked
                await trio.lowlevel.checkpoint()
            if due := self._due():
                await self._check(due)

    async def terminate_abandoned(self, connection: TrioConnection[Any]) -> None:
        """End the sessions of connections that were closed while the server was silent.

        The server could not be told of their end. Afterwards their statements have
        either taken effect or never will. A session that this role may not terminate is
        left to the timeouts of the server, with a warning.

        Args:
            connection: Where the server is asked to end them.

        Raises:
            psycopg.Error: The connection is lost.

        Cancellation:
            The sessions have ended or not.
        """
        for session in list(self._abandoned):
            try:
                await _run(connection, _TERMINATE, [session])
            except psycopg.errors.InsufficientPrivilege as error:
                logger.warning(
                    "a session that was abandoned could not be terminated, and holds its locks"
                    " until the server detects the loss: %s",
                    error,
                )
            self._abandoned.discard(session)

    def _next_check(self) -> float:
        check_at = math.inf
        for connection in self._connections:
            if (since := connection.waits_since) < math.inf:
                wait = self._waits.get(connection)
                check_at = min(
                    check_at,
                    since + ASK_AFTER if wait is None or wait.since != since else wait.check_at,
                )
        self.idle = check_at == math.inf
        return check_at

    def _due(self) -> list[TrioConnection[Any]]:
        """Return the connections that are to be checked now."""
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
                if wait.check_at <= now:
                    due.append(connection)
        return due

    async def _check(self, due: Sequence[TrioConnection[Any]]) -> None:
        """Ask the server about the sessions of these connections; close silent ones."""
        findings = dict.fromkeys(due, _Finding.UNREACHABLE)
        silent: list[TrioConnection[Any]] = []
        opened: TrioConnection[Any] | None = None
        asking: TrioConnection[Any] | None = None
        longest = min(self._waits[c].since for c in due)
        try:
            with trio.move_on_at(max(longest + PATIENCE, trio.current_time() + ASK_AFTER)):
                try:
                    try:
                        asking = opened = await self._connect()
                    except psycopg.Error as error:
                        if not _is_refusal(error) or (asking := self._find_idle(due)) is None:
                            raise
                    findings = await _find_out_for_sure(asking, due)
                except Exception as error:
                    logger.debug("PostgreSQL cannot be asked about a session: %s", error)
                    if isinstance(error, psycopg.Error) and _is_refusal(error):
                        findings = dict.fromkeys(due, _Finding.UNTOLD)
            silent = [
                c
                for c in due
                if c.waits_since == self._waits[c].since
                and self._is_silent(self._waits[c], findings[c])
            ]
            if silent:
                # Before the sessions end: a task that sees it asks for another one.
                self._suspect_idle()
            self._abandoned.update(c.session for c in silent if c.session is not None)
            if silent and asking is not None and not asking.closed:
                with trio.move_on_after(TERMINATE_WITHIN), suppress(psycopg.Error):
                    await self.terminate_abandoned(asking)
        finally:
            if opened is not None:
                opened.finish()
            for connection in silent:
                self._give_up(connection)

    def _find_idle(self, due: Collection[TrioConnection[Any]]) -> TrioConnection[Any] | None:
        """Return a connection that can be asked on when no other can be opened.

        A task that wants to use the connection waits for the answer.
        """
        for connection in self._connections:
            if connection not in due and connection.autocommit and connection.is_idle():
                return connection
        return None

    def _is_silent(self, wait: _Wait, finding: _Finding) -> bool:
        """Return whether a connection is to be closed.

        If it is not, record when to check again.
        """
        now = trio.current_time()
        waited = now - wait.since
        match finding:
            case _Finding.WORKS:
                logger.debug(
                    "no answer from PostgreSQL for %.1f s, but the session works or waits for a"
                    " lock",
                    waited,
                )
                wait.check_at = now + min(waited, ASK_AGAIN)
                return False
            case _Finding.SILENT:
                return True
            case _Finding.UNTOLD:
                wait.check_at = min(now + ASK_AGAIN, wait.since + LONGEST)
                return waited >= LONGEST
            case _Finding.UNREACHABLE:
                wait.check_at = min(now + ASK_AFTER / 2, wait.since + PATIENCE)
                return waited >= PATIENCE

    def _give_up(self, connection: TrioConnection[Any]) -> None:
        reason = f"no answer for {trio.current_time() - self._waits[connection].since:.1f} s"
        logger.warning("a connection to PostgreSQL is closed: %s", reason)
        self.dropped += 1
        self._connections.discard(connection)
        connection.give_up(reason)

    def _suspect_idle(self) -> None:
        for connection in self._connections:
            if connection.waits_since == math.inf:
                connection.suspect = True


async def _find_out(
    connection: TrioConnection[Any], silent: Sequence[TrioConnection[Any]]
) -> dict[TrioConnection[Any], _Finding]:
    """Ask on one connection about the sessions of the silent ones."""
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


async def _find_out_for_sure(
    connection: TrioConnection[Any], silent: Sequence[TrioConnection[Any]]
) -> dict[TrioConnection[Any], _Finding]:
    """Ask again about the sessions that seem to be silent."""
    findings = await _find_out(connection, silent)
    if _Finding.SILENT in findings.values():
        await trio.sleep(CONFIRM_AFTER)
        again = await _find_out(connection, silent)
        findings = {
            c: again[c] if finding is _Finding.SILENT else finding
            for c, finding in findings.items()
        }
    return findings


async def _run(
    connection: TrioConnection[Any], statement: bytes, sessions: Collection[SessionId]
) -> list[tuple[Any, ...]]:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    grace = connection.grace
    connection.share_grace(Grace(0))  # if this connection is silent, too, it is closed at once
    try:
        await cursor.execute(
            statement, [[pid for pid, _ in sessions], [began for _, began in sessions]]
        )
        return await cursor.fetchall()
    finally:
        connection.share_grace(grace)


def _is_refusal(error: psycopg.Error) -> bool:
    """Return whether the server can be reached, and only refuses a connection.

    There may be too many of them.
    """
    return isinstance(error, ServerRefusal) or (
        error.sqlstate is not None and not error.sqlstate.startswith("57")
    )
