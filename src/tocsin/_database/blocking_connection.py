"""The use of a blocking psycopg connection from trio: in a thread, and never in two.

A thread cannot be cancelled, but the statement that it waits for can. So a cancellation
cancels the statement on the server, and then waits for the thread: the caller goes on
to roll back, and must not use the connection at the same time as the thread. A server
that does not answer costs the connection: its socket is shut down under the thread,
which then ends with an error. A thread that runs the caller's own code does not use the
socket; the wait for it ends after a while, too.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import psycopg
import trio

from tocsin._concurrency.grace import GRACE

ASK_AGAIN = 0.25
"""Seconds after which the server is asked once more to cancel: a request that comes
between two statements is lost."""

T = TypeVar("T")


async def run_blocking(connection: psycopg.Connection[Any], use: Callable[[], T]) -> T:
    """Use the connection in a thread, and nowhere else at the same time.

    Raises:
        BaseException: The exception of ``use``.

    Cancellation:
        The statement has failed or taken effect, and the connection is free or closed.
    """
    # The thread takes this lock when it begins, unless the cancellation has taken it
    # before.
    first = threading.Lock()
    ended = trio.Event()
    token = trio.lowlevel.current_trio_token()
    results: list[T] = []

    def use_and_tell() -> None:
        if first.acquire(blocking=False):
            try:
                results.append(use())
            finally:
                token.run_sync_soon(ended.set)

    try:
        await trio.to_thread.run_sync(use_and_tell, abandon_on_cancel=True)
    except (trio.Cancelled, KeyboardInterrupt):
        if not first.acquire(blocking=False):
            with trio.CancelScope(shield=True):
                await _end(connection, ended)
        raise
    return results.pop()


async def _end(connection: psycopg.Connection[Any], ended: trio.Event) -> None:
    with trio.move_on_after(GRACE):
        while not ended.is_set():
            # Use a separate limiter, because all threads of the default limiter may be
            # busy.
            cancel = partial(connection.cancel_safe, timeout=GRACE)
            with suppress(psycopg.Error):
                await trio.to_thread.run_sync(
                    cancel, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                )
            with trio.move_on_after(ASK_AGAIN):
                await ended.wait()
        return
    with (
        suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as copy,
    ):
        copy.shutdown(socket.SHUT_RDWR)
    # Limit the wait: the thread may run a generator of the caller that hangs, and that
    # finds the connection broken afterwards.
    with trio.move_on_after(GRACE):
        await ended.wait()
