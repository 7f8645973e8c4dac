"""What psycopg's cursors need of a connection on trio.

A program makes cursors of many classes: psycopg's own, through ``connection.cursor()``
or by hand, and classes of its own. Each of them works on a `TrioConnection` as it is,
but for two coroutines of psycopg that the connection knows by their code:

- ``AsyncServerCursor.close`` must close the cursor on the server in a cancelled scope
  too. The connection sees its generator through, and its lock waits for its turn.
- ``AsyncCursor.copy`` must not begin a COPY with `psycopg.copy.AsyncQueuedLibpqWriter`,
  which starts a task of asyncio's with the first data. The connection looks at the
  writer before it sends the statement.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.copy import AsyncQueuedLibpqWriter
from trio.lowlevel import enable_ki_protection

from tocsin._concurrency.grace import Grace
from tocsin._concurrency.lock import Lock

from ._persistence import persist

__all__ = ["StatementLock", "check_writer", "closes_server_cursor"]

_CLOSE: Final = psycopg.AsyncServerCursor.close.__code__
_CLOSE_GEN: Final = psycopg.AsyncServerCursor._close_gen.__code__
_START_COPY_GEN: Final = psycopg.AsyncCursor._start_copy_gen.__code__


class StatementLock(Lock):
    """The lock of one connection.

    A server-side cursor that is being closed takes it in a cancelled scope, too.
    """

    def __init__(self, pgconn: pq.abc.PGconn, grace: Grace) -> None:
        super().__init__()
        self._pgconn = pgconn
        self.grace = grace

    @enable_ki_protection
    async def __aenter__(self) -> None:
        if self.locked() and sys._getframe(1).f_code is _CLOSE:
            await persist(self._pgconn, self.grace, self.acquire)
        else:
            await self.acquire()


def closes_server_cursor(gen: Any) -> bool:
    """Return whether ``gen`` is what closes a server-side cursor."""
    return getattr(gen, "gi_code", None) is _CLOSE_GEN


def check_writer(gen: Any) -> None:
    """Refuse a COPY whose writer needs asyncio.

    To be called by what ``AsyncCursor.copy`` awaits: the writer is a variable of that
    coroutine, and nothing else knows of it yet.

    Raises:
        psycopg.NotSupportedError: ``gen`` begins such a COPY.
    """
    if getattr(gen, "gi_code", None) is _START_COPY_GEN and isinstance(
        sys._getframe(2).f_locals.get("writer"), AsyncQueuedLibpqWriter
    ):
        raise psycopg.NotSupportedError(
            "AsyncQueuedLibpqWriter starts a task of asyncio's, which does not run on trio: call"
            " copy() without a writer, or with an AsyncLibpqWriter"
        )
