"""Run pgqrs, which has a Rust core, with the explicit calls of its Python API.

The adapter claims a batch, reads each message, and archives the batch. The handler
loops of pgqrs (``consume_batch``) use the same two calls. Where the benchmark does not
set the batch size, it is 500; larger batches are not faster. An archived message stays
in the table of messages, with the time.
"""

from __future__ import annotations

from contextlib import suppress

import pgqrs
import psycopg

from . import Handled, Peer, url

QUEUE = "peer"
BATCH = 500
LEASE = 300


async def _connect(dsn: str) -> pgqrs.Store:
    config = pgqrs.Config(url(dsn))
    config.max_enqueue_per_second = config.max_enqueue_burst = (
        1_000_000  # the default limits the rate of filling
    )
    config.default_max_batch_size = 10_000
    return await pgqrs.connect_with(config)


async def fill(dsn: str, messages: int) -> None:
    store = await _connect(dsn)
    await pgqrs.admin(store).install()
    with suppress(pgqrs.QueueAlreadyExistsError):
        await store.queue(QUEUE)
    producer = await store.producer(QUEUE)
    for start in range(0, messages, 100):
        await pgqrs.enqueue_batch(
            producer, [{"n": number} for number in range(start, min(start + 100, messages))]
        )


async def work(dsn: str, size: int, handled: Handled) -> None:
    store = await _connect(dsn)
    consumer = await store.consumer(QUEUE)

    async def handle(message: pgqrs.QueueMessage) -> None:
        assert message.payload is not None
        handled()

    while messages := await consumer.dequeue_many_with_delay(size or BATCH, LEASE):
        for message in messages:
            await handle(message)
        if size == 1:
            await consumer.archive(messages[0].id)
        else:
            await consumer.archive_many([m.id for m in messages])


async def settled(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (
            await connection.execute(
                "select count(*) from pgqrs_messages where archived_at is not null"
            )
        ).fetchone()
    return int(row[0]) if row else 0


PEER = Peer({"batch": BATCH, "api": "dequeue_many_with_delay, archive_many"}, fill, work, settled)
