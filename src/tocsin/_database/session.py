"""The settings of the sessions of Tocsin's own connections.

They are the same whatever role, database, server and environment set for sessions. A
session gets them in the first statement after connecting, and again when it is reset
after a user's statements. ``client_encoding`` is a parameter of the connection, too. So
it is right from the start, after a reset, and behind PgBouncer, which gives each of its
clients the encoding that it asked for.

What each of them is for:

- The encoding: the fast statements (``driver/_prepared.py``) send and receive UTF-8.
- The isolation level: claims and deletions read what was committed a moment ago.
- The styles of dates and intervals: psycopg reads only these. Tocsin's own results are
  binary and have no style; this is for the statements of users.
- ``array_nulls``: psycopg writes arrays as text.
- The timeouts: the client's patience ends a statement, and a lock that is held for long
  is waited for, so that a message is not refused because a table is locked for a
  moment. In a user's transaction, the timeouts of the user's role count again
  (`USERS_LIMITS`).

Some settings are left as they are, on purpose: ``default_transaction_read_only``,
because a read-only database is read-only for all programs; ``synchronous_commit``,
because the user decides how durable a commit is; ``TimeZone`` and ``search_path``,
which matter only to the user's own statements.

Behind a pooler nothing is set, because the next client of the session would have it. No
result there depends on it: what remains are the user's isolation level and timeouts,
which end a statement as an outage does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tocsin.driver import TrioConnection
from tocsin.errors import ConfigError

from . import network

ENCODING: Final = "UTF8"
"""The encoding of each connection."""

USERS_LIMITS: Final = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)
"""Settings that are the user's own again in a user's transaction."""

SETTINGS: Final[Mapping[str, str]] = {
    "client_encoding": ENCODING,
    "default_transaction_isolation": "read committed",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "array_nulls": "on",
    **dict.fromkeys(USERS_LIMITS, "0"),
    "idle_session_timeout": "0",
    **network.ON_THE_SERVER,
}
"""The settings of each session that is ours. One that the server does not know is left
out: ``transaction_timeout`` came with 17."""


async def set_up(connection: TrioConnection[Any]) -> None:
    """Make the session of a new connection what Tocsin's statements need.

    The call takes one round trip.

    Raises:
        psycopg.Error: The server refuses a setting, or the connection is lost.
        ConfigError: A pooler in between ignores the encoding.

    Cancellation:
        Atomic.
    """
    await connection.apply_settings(SETTINGS)
    if not connection.has_own_session:
        # A statement that psycopg has prepared may not exist in the next transaction,
        # and a statement that fails in a transaction cannot be repeated.
        connection.prepare_threshold = None
        if connection.info.encoding != "utf-8":
            raise ConfigError(
                "dsn",
                _FOREIGN_ENCODING.format(connection.pgconn.parameter_status(b"client_encoding")),
            )


_FOREIGN_ENCODING = (
    "the pooler ignores client_encoding=UTF8, and its sessions have {}; configure it to pass on"
    " this parameter, or run: alter role ... set client_encoding = 'UTF8'"
)


async def apply_users_limits(connection: TrioConnection[Any]) -> None:
    """Let the user's own limits count until the current transaction ends.

    The call takes one round trip if there are any, else none.

    Raises:
        psycopg.Error: The connection is lost.

    Cancellation:
        Atomic.
    """
    limits = [name for name in USERS_LIMITS if connection.settings_before.get(name, "0") != "0"]
    if limits:
        await connection.execute(
            "; ".join(f"set local {name} to default" for name in limits).encode()
        )


async def reset(connection: TrioConnection[Any]) -> None:
    """Undo what the user has set in the session.

    The call takes one round trip. Behind a pooler the session belongs to all of its
    clients, and stays as it is.

    Raises:
        psycopg.Error: The session cannot be reset, or the connection is lost.

    Cancellation:
        Atomic.
    """
    if connection.has_own_session:
        await connection.reset_session()
