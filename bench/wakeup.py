"""The time from an enqueue statement to a handler's first line in another process.

The consumer is idle. The sender reads the clock (CLOCK_MONOTONIC, which all processes
of a host share) just before the statement, and puts the time into the message. Each
message finds every consumer idle: it is sent after the previous message was archived,
its consumer waits for a notification again, and a pause has ended.

A message is sent in two ways: ``produce`` is a trio process with a `tocsin.Producer`,
and ``sql`` is ``select tocsin.enqueue(...)`` with blocking psycopg. The floor,
``claim``, is a minimal queue with blocking psycopg: one process inserts and notifies in
one statement, and the other process wakes up and runs a DELETE that returns the row.

Two figures split the time. ``blocking`` is ``sql`` up to the end of the claim, with a
consumer that calls Tocsin's functions with blocking psycopg, and so without trio and
Tocsin's Python code. ``heard`` is the time until that consumer has received the
notification; its floor is the same time of ``claim``.

Other figures compare with a notification without a message. ``notify`` is a bare NOTIFY
in one direction, which writes nothing that must be flushed. Its floor, and that of
``claim``, is a round trip: one process notifies another, which notifies the first, and
the first process measures the time. ``produce_raw`` and ``sql_raw`` have the round trip
as their floor, too. The floor of ``produce_trio`` and ``sql_trio`` is a round trip
between two processes that use Tocsin's driver on trio, which is a wake-up without a
queue.

Each way has its own processes and its own database. So the processes of all ways are
idle for the same time and handle the same number of messages.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NoReturn

import trio
from psycopg import sql

import tocsin
from tocsin.driver import TrioConnection

from . import floor
from .child import Child, child_process, orders, report, until_idle
from .frame import Bench
from .results import Result, percentile

QUEUE = "wakeup"
PAUSE = 0.005
"""Seconds between the end of one message and the start of the next."""
IN_TURN = 25
"""Number of messages that one way sends before the turn of the next way."""
ENQUEUE = f"select tocsin.enqueue('{QUEUE}', jsonb_build_object('sent', %s::bigint))"
CLAIM = """
select priority, due, id, lease, payload
from tocsin.claim(%s, %s, 1, from_priority => %s, from_due => %s, from_id => %s, durable => false)
"""
"""The claim of a consumer that has claimed before."""
TARGETS = {50: 1.5, 99: 3.0}
"""Maximum ratio to the floor, by percentile."""
RAW_TARGETS = {50: 2.5, 99: 5.0}
"""Maximum ratio to the round trip, by percentile."""


async def measure(bench: Bench) -> list[Result]:
    """Measure the median and the 99th percentile of each way, in ms."""
    samples = bench.pick(500, 25, 3)
    delays: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context

        async def pair(
            dsn: str, receive: Callable[..., object], send: Callable[..., object], *words: str
        ) -> tuple[Child, Child]:
            receiver = await enter(child_process(receive, dsn))
            return await enter(child_process(send, dsn, *words)), receiver

        caller = await enter(bench.bare_database())
        await enter(child_process(floor.answer, caller))
        calling = await enter(child_process(floor.call, caller))
        trio_caller = await enter(bench.bare_database())
        await enter(child_process(answer, trio_caller))
        trio_calling = await enter(child_process(call, trio_caller))
        ways = {
            "round_trip": (calling, calling),
            "trio_round_trip": (trio_calling, trio_calling),
            "notify": await pair(
                await enter(bench.bare_database()),
                floor.receive_notifications,
                floor.send,
                floor.NOTIFY,
            ),
            "claim": await pair(
                await enter(bench.bare_database(floor.TABLE)),
                floor.receive_and_claim,
                floor.send,
                floor.INSERT_AND_NOTIFY,
            ),
            "produce": await pair(await enter(bench.store_database(QUEUE)), consume, produce),
            "sql": await pair(
                await enter(bench.store_database(QUEUE)), consume, floor.send, ENQUEUE
            ),
            "blocking": await pair(
                await enter(bench.store_database(QUEUE)), consume_blocking, floor.send, ENQUEUE
            ),
        }
        # PostgreSQL and psycopg prepare statements and keep plans after some
        # repetitions.
        for sender, receiver in ways.values():
            await exchange(sender, receiver, bench.pick(20, 10, 1))
        while len(delays["sql"]) < samples:
            for name, (sender, receiver) in ways.items():
                for handled, *heard in await exchange(sender, receiver, min(IN_TURN, samples)):
                    delays[name].append(handled)
                    delays[f"{name}_heard"] += heard
    comparisons: list[tuple[str, str, str, dict[int, float]]] = [
        ("notify", "notify", "round_trip", {}),
        ("claim", "claim", "round_trip", {}),
        ("produce", "produce", "claim", TARGETS),
        ("sql", "sql", "claim", TARGETS),
        ("produce_raw", "produce", "round_trip", RAW_TARGETS),
        ("sql_raw", "sql", "round_trip", RAW_TARGETS),
        ("produce_trio", "produce", "trio_round_trip", RAW_TARGETS),
        ("sql_trio", "sql", "trio_round_trip", RAW_TARGETS),
        ("heard", "blocking_heard", "claim_heard", {}),
        ("blocking", "blocking", "claim", {}),
    ]
    return [
        Result(
            f"wakeup.{name}.p{percent}",
            percentile(delays[way], percent),
            "ms",
            percentile(delays[floor_way], percent),
            {"samples": len(delays[way]), "floor": floor_way}
            | ({"target_ratio": targets[percent]} if targets else {}),
        )
        for name, way, floor_way, targets in comparisons
        for percent in (50, 99)
    ]


async def exchange(sender: Child, receiver: Child, count: int) -> list[list[float]]:
    """Let the ways send messages in turn, and return the figures of each message.

    The first figure of a message is the time that it took, in ms.
    """
    delays = []
    for _ in range(count):
        await trio.sleep(PAUSE)
        await sender.order("go")
        delays.append([float(word) for word in await receiver.receive("handled")])
    return delays


async def consume(dsn: str) -> NoReturn:
    """Handle messages, and report how long each one took to arrive, in ms.

    The process reports when it is idle again.
    """
    send, receive = trio.open_memory_channel[float](1)

    async def handle(message: tocsin.Message) -> None:
        now = time.monotonic_ns()
        await send.send((now - message.payload["sent"]) / 1e6)

    async with (
        tocsin.connect(dsn) as store,
        store.consumer(QUEUE) as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(consumer.handle, handle)
        await until_idle(store)
        report("ready")
        while True:
            delay = await receive.receive()
            await until_idle(store)
            report("handled", delay)


def consume_blocking(dsn: str) -> None:
    """Receive notifications and claim messages with Tocsin's SQL functions only.

    Report how long each message and each notification took to arrive, in ms.
    """
    with floor.connect(dsn) as connection, floor.connect(dsn) as line:
        worker = connection.execute(
            "select id, registration from tocsin.register_worker(%s, 'consumer', 'blocking', null,"
            " 'host', 1, '')",
            [QUEUE],
        ).fetchone()
        queue = connection.execute(
            "select id, channel from tocsin.queues where name = %s", [QUEUE]
        ).fetchone()
        assert worker is not None
        assert queue is not None
        connection.execute("select tocsin.begin_poll(%s, %s)", worker)
        line.execute(sql.SQL("listen {}").format(sql.Identifier(queue[1])))
        line.execute("select tocsin.begin_waiting(array[%s])", [queue[0]])
        report("ready")
        position: tuple[object, ...] = (None, None, None)
        for _ in floor.wakes(line):
            heard = time.monotonic_ns()
            message = connection.execute(CLAIM, [*worker, *position]).fetchone()
            now = time.monotonic_ns()
            assert message is not None
            position, lease, sent = message[:3], message[3], json.loads(message[4])["sent"]
            connection.execute("select tocsin.archive(array[%s], array[%s])", [position[2], lease])
            report("handled", (now - sent) / 1e6, (heard - sent) / 1e6)


async def produce(dsn: str) -> NoReturn:
    """Enqueue a message for each order."""
    async with (
        tocsin.connect(dsn) as store,
        store.producer(QUEUE) as producer,
        orders() as incoming,
    ):
        report("ready")
        while True:
            await incoming.next()
            await producer.enqueue({"sent": time.monotonic_ns()})


async def call(dsn: str) -> NoReturn:
    """Notify `answer` for each order, and wait for the notification from it.

    Report how long that took, in ms.
    """
    async with (
        await TrioConnection.connect(dsn, autocommit=True) as connection,
        await TrioConnection.connect(dsn, autocommit=True) as line,
        orders() as incoming,
    ):
        await line.execute("listen floor_back")
        answers = line.notifies()
        report("ready")
        while True:
            await incoming.next()
            sent = time.monotonic_ns()
            await connection.execute("select pg_notify('floor', '')")
            await anext(answers)
            report("handled", (time.monotonic_ns() - sent) / 1e6)


async def answer(dsn: str) -> None:
    """Notify `call` back."""
    async with (
        await TrioConnection.connect(dsn, autocommit=True) as connection,
        await TrioConnection.connect(dsn, autocommit=True) as line,
    ):
        await line.execute("listen floor")
        report("ready")
        async for _ in line.notifies():
            await connection.execute("select pg_notify('floor_back', '')")
