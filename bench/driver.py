"""Run statements on many connections, as a load that is not a bottleneck.

One process drives many connections with libpq's asynchronous calls and one poll over
all of them. No threads wait for each other, and no results are decoded. Two such
processes run many times as many empty statements as inserts
(``enqueue_concurrent.driver``), so the server limits the inserts.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from psycopg import pq

from .child import Child, child_processes, report

PROCESSES = 2
_NAME = b"load"
_FINE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class Driver:
    """The processes that create the load; opened by `driving`."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    async def load(self, dsn: str, connections: int, seconds: float, statement: str) -> float:
        """Run a statement on many connections, and return its runs per second.

        Each run is a separate transaction.
        """
        for child in self._children:
            await child.order(json.dumps([dsn, connections // PROCESSES, seconds, statement]))
        return sum([await child.receive_number("rate") for child in self._children])


@asynccontextmanager
async def driving() -> AsyncIterator[Driver]:
    """Start the processes, and kill them at the end of the block."""
    async with child_processes(serve, "", *[()] * PROCESSES) as children:
        yield Driver(children)


def serve(dsn: str) -> None:
    """Run a statement repeatedly for each order.

    The order also names the database. Report the number of runs per second.
    """
    report("ready")
    for order in sys.stdin:
        report("rate", _repeat(*json.loads(order)))


def _repeat(dsn: str, connections: int, seconds: float, statement: str) -> float:
    opened = [_open(dsn, statement.encode()) for _ in range(connections)]
    by_number = {connection.socket: connection for connection in opened}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    began = time.perf_counter()
    end = began + seconds
    for connection in opened:
        connection.send_query_prepared(_NAME, None)
    done = 0
    while time.perf_counter() < end:
        for number, _ in poll.poll(1000):
            connection = by_number[number]
            connection.consume_input()
            if not connection.is_busy():
                _finish(connection)
                done += 1
                connection.send_query_prepared(_NAME, None)
    rate = done / (time.perf_counter() - began)
    for connection in opened:
        connection.finish()
    return rate


def _open(dsn: str, statement: bytes) -> pq.abc.PGconn:
    connection = pq.PGconn.connect(dsn.encode())
    if connection.status != pq.ConnStatus.OK:
        raise RuntimeError(connection.get_error_message())
    if connection.prepare(_NAME, statement).status not in _FINE:
        raise RuntimeError(connection.get_error_message())
    return connection


def _finish(connection: pq.abc.PGconn) -> None:
    while (result := connection.get_result()) is not None:
        if result.status not in _FINE:
            raise RuntimeError(result.get_error_message())
