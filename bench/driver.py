"""Many connections, each with one statement after the other, and little else: a load that is not its own bottleneck.

One process holds many connections with libpq's asynchronous calls and one poll over all of them: no threads that wait for each other, no
results that are decoded. Two such processes get many times as many empty statements through as inserts (``enqueue_concurrent.driver``), so
what limits the inserts is the server.
"""

from __future__ import annotations

import select
import sys
import time
from contextlib import AsyncExitStack

import trio
from psycopg import pq

from .child import playing, say

PROCESSES = 2
_NAME = b"load"
_FINE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


async def load(dsn: str, connections: int, seconds: float, statement: str) -> float:
    """Run a statement on so many connections for so long, each in a transaction of its own; return how many a second there were."""
    async with AsyncExitStack() as stack:
        words = connections // PROCESSES, seconds, statement
        children = [await stack.enter_async_context(playing(repeat, dsn, *words)) for _ in range(PROCESSES)]
        for child in children:
            await child.order("go")
        with trio.fail_after(seconds + 30):
            return sum([await child.hear_number("rate") for child in children])


def repeat(dsn: str, connections: str, seconds: str, statement: str) -> None:
    """Say how many of these statements a second this process got through."""
    lines = [_open(dsn, statement.encode()) for _ in range(int(connections))]
    by_number = {line.socket: line for line in lines}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    say("ready")
    sys.stdin.readline()
    began = time.perf_counter()
    end = began + float(seconds)
    for line in lines:
        line.send_query_prepared(_NAME, None)
    done = 0
    while time.perf_counter() < end:
        for number, _ in poll.poll(1000):
            line = by_number[number]
            line.consume_input()
            if not line.is_busy():
                _finish(line)
                done += 1
                line.send_query_prepared(_NAME, None)
    say("rate", done / (time.perf_counter() - began))
    sys.stdin.read()


def _open(dsn: str, statement: bytes) -> pq.abc.PGconn:
    line = pq.PGconn.connect(dsn.encode())
    if line.status != pq.ConnStatus.OK:
        raise RuntimeError(line.get_error_message())
    if line.prepare(_NAME, statement).status not in _FINE:
        raise RuntimeError(line.get_error_message())
    return line


def _finish(line: pq.abc.PGconn) -> None:
    while (result := line.get_result()) is not None:
        if result.status not in _FINE:
            raise RuntimeError(result.get_error_message())
