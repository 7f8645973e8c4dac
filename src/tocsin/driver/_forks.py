"""Forked processes, which have copies of the parent's sockets and must not keep them.

A server notices that a process is dead by the end of its sessions, and a session ends
when the last copy of its socket is closed. A child that outlives its parent, such as a
worker of a `concurrent.futures.ProcessPoolExecutor`, would keep the sessions of a dead
parent.

Python has one hook for that, which belongs to the process. It holds weak references to
open connections and does nothing in the parent. In the child it puts ``/dev/null`` in
the place of each copy. It does not close the connection, because libpq would then end
the parent's session. The number stays taken, so libpq can never write to another file
of the child.

A program that is executed gets no copies, since libpq's sockets are closed on exec.
"""

from __future__ import annotations

import os
import weakref

import psycopg
from psycopg import pq

__all__ = ["keep_from_children"]

_open: weakref.WeakSet[pq.abc.PGconn] = weakref.WeakSet()


def keep_from_children(pgconn: pq.abc.PGconn) -> None:
    """Have forked processes drop their copy of this connection's socket."""
    _open.add(pgconn)


def _drop_copies() -> None:
    sockets = []
    for pgconn in list(_open):
        try:
            sockets.append(pgconn.socket)
        except psycopg.OperationalError:
            continue  # the connection is closed
    _open.clear()
    if sockets:
        nothing = os.open(os.devnull, os.O_RDWR)
        for fileno in sockets:
            os.dup2(nothing, fileno, inheritable=False)
        os.close(nothing)


os.register_at_fork(after_in_child=_drop_copies)
