"""Limits under load: never exceeded at any commit, and nothing stranded.

Producers, handlers and cancellations run transactions that stay open for a while, and
roll some of them back. Heartbeats do not help: the next one comes after the test.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import AsyncExitStack

import psycopg
import pytest
import trio

import tocsin
from tests.support import open_connection, query, until_query

pytestmark = pytest.mark.fault

N = {"smtp": 3, "host": 1, "customer": 1, "api": 100_000}
CHECK = """
create table public.exceeded (message_id bigint, why text);
create function public.check_slots() returns trigger language plpgsql as $$
begin
    insert into public.exceeded
    select m.id, m.state || ' without slots' from tocsin.messages m
    where m.id = new.id and m.state in ('ready', 'leased') and m.options ? 'limits'
        and (select count(*) from jsonb_array_elements(m.options -> 'limits') x
             where x -> 'per' is null)
            <> (select count(*) from tocsin.slots s join tocsin.limits l on l.id = s.limit_id
                where s.message_id = m.id and s.slot between 1 and l.n);
    return null;
end
$$;
create constraint trigger check_slots after insert or update on tocsin.messages
    deferrable initially deferred for each row execute function public.check_slots();
"""


def choose_limits(rng: random.Random) -> list[dict[str, object]]:
    key = rng.choice("abc")
    return rng.choice(
        [
            [{"name": "smtp", "n": 3}],
            [{"name": "host", "n": 1, "key": key}],
            [{"name": "smtp", "n": 3}, {"name": "host", "n": 1, "key": key}],
            [{"name": "customer", "ordered": True, "key": key}],
            [
                {"name": "customer", "ordered": True, "key": key},
                {"name": "host", "n": 1, "key": key},
                {"name": "smtp", "n": 3},
            ],
            [{"name": "api", "n": 100_000, "per": 10, "key": key}, {"name": "smtp", "n": 3}],
        ]
    )


class Load:
    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.rng = random.Random(seed)
        self.active: Counter[tuple[str, str]] = Counter()
        self.exceeded: list[str] = []
        self.ids: list[int] = []

    async def pause(self) -> None:
        for _ in range(self.rng.choice([0, 0, 1, 5, 30])):
            await trio.lowlevel.checkpoint()

    async def produce(self, transactions: int) -> None:
        async with open_connection(self.dsn) as connection:
            for _ in range(transactions):
                await connection.execute("begin")
                ids = []
                for _ in range(self.rng.choice([1, 1, 3])):
                    limits = choose_limits(self.rng)
                    cursor = await connection.execute(
                        "select tocsin.enqueue(%s, %s::text::jsonb, options => %s::text::jsonb,"
                        " delay => %s, max_deliveries => 3)",
                        [
                            self.rng.choice("qr"),
                            json.dumps(limits),
                            json.dumps({"limits": limits}),
                            self.rng.choice(["0 s", "0 s", "0.01 s"]),
                        ],
                    )
                    ids += [row[0] for row in await cursor.fetchall()]
                    await self.pause()
                if self.rng.random() < 0.8:
                    await connection.execute("commit")
                    self.ids += ids
                else:
                    await connection.execute("rollback")

    async def disturb(self, times: int) -> None:
        """Cancel, reschedule or move messages, and keep their rows locked a while."""
        async with open_connection(self.dsn) as connection:
            for _ in range(times):
                await self.pause()
                if not self.ids:
                    continue
                message_id = self.rng.choice(self.ids)
                await connection.execute("begin")
                try:
                    await connection.execute(
                        self.rng.choice(
                            [
                                "select tocsin.cancel(%s)",
                                "select tocsin.reschedule(%s, delay => '0.01 s')",
                                "select tocsin.reprioritise(%s, -1)",
                            ]
                        ),
                        [message_id],
                    )
                    await self.pause()
                except psycopg.Error:
                    await connection.execute("rollback")
                else:
                    await connection.execute("commit" if self.rng.random() < 0.5 else "rollback")

    async def handle(self, message: tocsin.Message) -> None:
        keys = [
            (limit["name"], limit.get("key", "")) for limit in message.payload if "per" not in limit
        ]
        for key in keys:
            self.active[key] += 1
            if self.active[key] > N[key[0]]:
                self.exceeded.append(f"{key} by {message.id}")
        try:
            await self.pause()
            choice = self.rng.random()
            if choice < 0.2:
                raise ValueError("fails")
            if choice < 0.3:
                raise tocsin.Snooze(0.001)
        finally:
            for key in keys:
                self.active[key] -= 1
        if choice < 0.6:
            async with open_connection(self.dsn) as connection:
                await connection.execute("begin")
                await message.archive(connection=connection)
                await self.pause()
                await connection.execute("commit" if choice < 0.5 else "rollback")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
async def test_limits_hold_and_no_message_is_stranded(store_dsn: str, seed: int) -> None:
    load = Load(store_dsn, seed)
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(tocsin.connect(store_dsn, heartbeat=600))
            for _ in range(3)
        ]
        for queue in "qr":
            await stores[0].queues.create(queue, retry_base=0.001, retry_max=0.01)
        await query(store_dsn, CHECK)
        async with trio.open_nursery() as consumers:

            async def consume(store: tocsin.Store, queue: str) -> None:
                async with store.consumer(queue) as consumer:
                    await consumer.handle(load.handle, concurrency=4)

            for store in stores:
                for queue in "qr":
                    consumers.start_soon(consume, store, queue)
            async with trio.open_nursery() as producers:
                for _ in range(4):
                    producers.start_soon(load.produce, 40)
                producers.start_soon(load.disturb, 60)
            await until_query(
                store_dsn,
                "select 1 where not exists (select from tocsin.messages)",
                patience=60,
            )
            consumers.cancel_scope.cancel()
    assert load.exceeded == []
    assert await query(store_dsn, "select * from public.exceeded") == []
    assert await query(store_dsn, "select * from tocsin.slots") == []
