"""Using a blocking psycopg connection from trio: in a thread, and never in two.

A thread cannot be cancelled, but what it waits for can: the statement, on the server.
So a cancellation asks the server to cancel, and then waits for the thread, since the
connection is the caller's, who goes on to roll back and must not meet the thread there.
A server that does not answer costs the connection, as with Tocsin's own
(``driver/_connection.py``): its socket is shut down under the thread, which then ends
with an error; unless it does not use it, since it is in the caller's own code, and that
is given up after a while too.
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

from tocsin.driver._grace import GRACE

ASK_AGAIN = 0.25
"""Seconds after which the server is asked once more to cancel: a request that comes
between two statements is lost."""

T = TypeVar("T")


async def run_blocking(connection: psycopg.Connection[Any], use: Callable[[], T]) -> T:
    """Use the connection in a thread. Nobody else may use it meanwhile.

    Raises what ``use`` raises. Cancelled, its statement has failed or taken effect, and
    the connection is free again or closed.
    """
    # taken by whoever comes first: the thread that begins, or the cancellation
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
            # In a thread of its own: those of the others may all be taken.
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
    # Not for ever: what the thread runs may be a generator of the caller's that hangs,
    # and then it will find the connection broken.
    with trio.move_on_after(GRACE):
        await ended.wait()
