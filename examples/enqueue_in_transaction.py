"""Commit an order and the message about it together, or neither.

    uv run examples/enqueue_in_transaction.py [DSN]

With a queue outside the database, a crash between the two writes leaves an order
without a message, or a message about an order that does not exist.
"""

import sys

import trio

import tocsin


class CardDeclined(Exception):
    """The customer cannot pay."""


async def place_order(
    store: tocsin.Store, producer: tocsin.Producer, article: str, *, paid: bool
) -> None:
    """Store an order and enqueue its shipping.

    Raises:
        CardDeclined: The order is not paid, and is not stored.
    """
    async with store.transaction() as connection:
        cursor = await connection.execute(
            "insert into example_orders (article) values (%s) returning id", [article]
        )
        (order_id,) = await cursor.fetchone() or (None,)
        await producer.enqueue({"order": order_id, "article": article}, connection=connection)
        if not paid:
            raise CardDeclined(article)


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("shipping")
        async with store.transaction() as connection:
            await connection.execute("drop table if exists example_orders")
            await connection.execute(
                "create table example_orders (id bigint generated always as identity, article text"
                " not null)"
            )

        async with store.producer("shipping") as producer:
            try:
                await place_order(store, producer, "a piano", paid=False)
            except CardDeclined as declined:
                print(f"declined, rolled back: {declined}")
            await place_order(store, producer, "a metronome", paid=True)

        async with store.transaction() as connection:
            cursor = await connection.execute("select article from example_orders")
            print("orders:", ", ".join(article for (article,) in await cursor.fetchall()))

        async with store.consumer("shipping") as consumer:
            messages = await consumer.dequeue(10)
            print("messages:", ", ".join(message.payload["article"] for message in messages))
            await consumer.archive_many(messages)


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
