"""The session of a connection: which one on the server it is, and its settings.

A pooler such as PgBouncer may run each transaction on another session of the server
than the one that it named when the client connected. What a client sets in such a
session reaches the next client. So settings are applied only where no pooler stands in
between, and the statement that applies them checks that: the session that runs it must
be the one that the connection was told at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import psycopg
from psycopg import generators, pq, sql
from psycopg.abc import PQGen
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from ._connection import TrioConnection

__all__ = ["SessionId", "SessionState"]

SessionId: TypeAlias = tuple[int, str]
"""A session on a server: its process id, and when it began, in seconds since 1970."""

_RESET: Final = (
    b"close all; set session authorization default; reset role; reset all; unlisten *; select"
    b" pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences"
)

_APPLY: Final = (
    b"select s.name, s.was, set_config(s.name, s.value, false), a.pid, extract(epoch from"
    b" a.backend_start)::text from (select name, value, current_setting(name, true) as was"
    b" from unnest(%s::text[], %s::text[]) given (name, value)) s,"
    b" pg_stat_get_activity(pg_backend_pid()) a where pg_backend_pid() = %s and s.was is not null"
)


class SessionState:
    """What is known of a connection's session, and what is set in it."""

    def __init__(self) -> None:
        self.id: SessionId | None = None
        """The session; None when it is not known."""
        self.is_own = False
        """Whether `apply` has found that no pooler stands in between."""
        self.before: Mapping[str, str] = {}
        """The values that the settings of `apply` had before."""
        self._reset = _RESET

    async def apply(self, connection: TrioConnection[Any], settings: Mapping[str, str]) -> None:
        """Apply settings, as `TrioConnection.apply_settings` describes."""
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        await cursor.execute(
            _APPLY, [list(settings), list(settings.values()), connection.info.backend_pid]
        )
        rows = await cursor.fetchall()
        self.before = {name: was for name, was, *_ in rows}
        self.is_own = bool(rows)
        for *_, pid, began in rows[:1]:
            self.id = None if began is None else (pid, began)
        applied = [
            sql.SQL("set_config({}, {}, false)").format(name, settings[name])
            for name in self.before
        ]
        self._reset = _RESET
        if applied:
            self._reset += b"; select " + sql.SQL(", ").join(applied).as_bytes(connection)

    def reset(self, pgconn: pq.abc.PGconn) -> PQGen[None]:
        """Undo what was set, and apply again what `apply` has applied."""
        pgconn.send_query(self._reset)
        for result in (yield from generators.execute(pgconn)):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
