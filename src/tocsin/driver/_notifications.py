"""What the server sends on its own account: notifications, and its end."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.waiting import Wait

if TYPE_CHECKING:
    from ._connection import TrioConnection

__all__ = ["has_ended", "receive"]

_FATAL = frozenset(("FATAL", "PANIC"))


def receive(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Wait until the server has sent something.

    Notifications go to psycopg's handler.
    """
    if not _deliver(pgconn):
        while not (yield Wait.R):
            pass
        pgconn.consume_input()
        _deliver(pgconn)


def has_ended(connection: TrioConnection[Any]) -> bool:
    """Return whether the server has ended the session of an idle connection.

    Notifications that have come go to psycopg's handler.
    """
    pgconn = connection.pgconn
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    if not poll.poll(0):
        return False
    notices: list[str | None] = []
    connection.add_notice_handler(listen := lambda n: notices.append(n.severity_nonlocalized))
    try:
        # A socket is readable while there is something to read, and always at its end.
        while poll.poll(0):
            pgconn.consume_input()
            _deliver(pgconn)
    except psycopg.OperationalError:
        return True
    finally:
        connection.remove_notice_handler(listen)
    # A session that is ended from outside sends a notice a moment before its socket
    # ends.
    return not _FATAL.isdisjoint(notices)


def _deliver(pgconn: pq.abc.PGconn) -> bool:
    delivered = False
    while (notification := pgconn.notifies()) is not None:
        delivered = True
        if pgconn.notify_handler:
            pgconn.notify_handler(notification)
    return delivered
