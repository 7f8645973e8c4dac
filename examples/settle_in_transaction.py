"""Book a payment exactly once, by settling its message in the same transaction.

    uv run examples/settle_in_transaction.py [DSN]

The first delivery fails after it has written its row. If the message were settled in a
separate transaction, the table could have the row twice, or a crash could leave a
payment that was never booked.
"""

import sys

import trio

import tocsin


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("payments", retry_base=0)
        async with store.transaction() as connection:
            await connection.execute("drop table if exists example_bookings")
            await connection.execute(
                "create table example_bookings (payment bigint not null, amount integer not null)"
            )

        async def book(message: tocsin.Message) -> None:
            async with store.transaction() as connection:
                await connection.execute(
                    "insert into example_bookings (payment, amount) values (%s, %s)",
                    [message.id, message.payload["amount"]],
                )
                await message.archive(connection=connection)
                if message.read_ct == 1:
                    raise RuntimeError("a crash before the commit")

        await store.produce_many("payments", [{"amount": 10}, {"amount": 20}])
        async with store.consumer("payments") as consumer:
            try:
                await consumer.handle(book, once=True)
            except tocsin.Suspended as suspended:
                print(f"handled: {suspended.handled}, failed: {suspended.failed}")

        async with store.transaction() as connection:
            cursor = await connection.execute("select amount from example_bookings order by amount")
            print("booked:", ", ".join(str(amount) for (amount,) in await cursor.fetchall()))


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
