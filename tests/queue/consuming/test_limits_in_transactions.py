"""Limits and transactions that stay open: none waits, and no message is stranded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

import tocsin
from tests.support import open_connection, query
from tests.support.queues import open_transaction, until_waiting
from tocsin.driver import TrioConnection


@pytest.fixture
async def dsn(store: tocsin.Store, store_dsn: str) -> str:
    """A store with the queues q and r."""
    for queue in "qr":
        await store.queues.ensure(queue)
    return store_dsn


def enqueues(*names: str, queue: str = "q", **more: object) -> str:
    """The statement that enqueues a message with these limits."""
    limits = [{"name": name} | more for name in names]
    return f"select tocsin.enqueue('{queue}', '1', options => '{json.dumps({'limits': limits})}')"


def registers(*names: str, n: int = 1) -> str:
    """The statement that registers a task for each of these limits, in this order."""
    tasks = [
        {
            "name": f"task {name} {n}",
            "queue": "q",
            "max_deliveries": 3,
            "priority": 0,
            "timeout": 60,
            "description": "",
            "limits": [{"name": name, "n": n}],
        }
        for name in names
    ]
    return f"select tocsin.register_tasks('{json.dumps(tasks)}')"


async def one(connection: TrioConnection[Any], statement: str) -> Any:
    (row,) = await (await connection.execute(statement.encode())).fetchall()
    return row[0]


async def until_empty(consumer: tocsin.Consumer) -> list[int]:
    """Claim and archive until nothing is left."""
    found: list[int] = []
    while messages := await consumer.dequeue(9):
        found += [message.id for message in messages]
        await consumer.archive_many(messages)
    return found


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
async def test_producers_that_name_new_limits_do_not_wait_for_each_other(
    store: tocsin.Store, dsn: str, level: str
) -> None:
    async with open_transaction(dsn) as one_session, open_transaction(dsn) as other:
        sessions = one_session, other
        for session in sessions:
            await session.execute(f"set transaction isolation level {level}".encode())
        ids = []
        with trio.fail_after(30):
            for names in ("x", "y"), ("y", "x"):
                for session, name in zip(sessions, names, strict=True):
                    ids.append(await one(session, enqueues(name)))
                    ids.append(await one(session, enqueues(*names, key="k", ordered=True)))
        for session in sessions:
            await session.execute("commit")
    async with store.consumer("q") as consumer:
        assert sorted(await until_empty(consumer)) == sorted(ids)


async def test_kinds_that_get_one_name_at_once_are_limits_of_their_own(
    store: tocsin.Store, dsn: str
) -> None:
    async with open_transaction(dsn) as one_session, open_transaction(dsn) as other:
        ids = [await one(one_session, enqueues("x")), await one(one_session, enqueues("x"))]
        ids.append(await one(other, enqueues("x", ordered=True, key="k")))
        await one_session.execute("commit")
        await other.execute("commit")
    async with store.consumer("q") as consumer:
        assert sorted(await until_empty(consumer)) == ids


async def test_workers_that_change_limits_wait_in_one_order(dsn: str) -> None:
    await query(dsn, registers("x", "y"))
    async with open_transaction(dsn) as operator, trio.open_nursery() as nursery:
        await operator.execute("select tocsin.set_limit('x', 9)")
        for n, names in (2, "xy"), (3, "yx"):
            nursery.start_soon(query, dsn, registers(*names, n=n) + f" -- {n}")
            await until_waiting(dsn, f"-- {n}")
        await operator.execute("commit")
    assert len(await query(dsn, "select distinct n from tocsin.limits")) == 1


async def test_a_worker_that_waits_for_an_operator_stops_no_limit(
    store: tocsin.Store, dsn: str
) -> None:
    await query(dsn, registers("x"))
    async with open_transaction(dsn) as operator, trio.open_nursery() as nursery:
        await operator.execute("select tocsin.set_limit('x', 9)")
        nursery.start_soon(query, dsn, registers("x", "y", n=2))
        await until_waiting(dsn, "register_tasks")
        message_id = (await query(dsn, enqueues("new")))[0][0]
        async with store.consumer("q") as consumer:
            assert [message.id for message in await consumer.dequeue(9)] == [message_id]
        await operator.execute("commit")


async def register(dsn: str, queue: str) -> Any:
    """Register a consumer; return its id and its registration."""
    (worker,) = await query(
        dsn,
        "select id, registration from tocsin.register_worker(%s, 'consumer', %s, null, 'h', 1,"
        " 'v')",
        queue,
        queue,
    )
    return worker


async def claim(connection: TrioConnection[Any], worker: Any) -> list[int]:
    cursor = await connection.execute(
        "select id from tocsin.claim(%s, %s, 9) where kind = 'message'", worker
    )
    return [row[0] for row in await cursor.fetchall()]


async def test_a_transaction_that_does_not_know_the_queue_strands_no_message(dsn: str) -> None:
    """The claim that looks for older transactions has itself the id of an older one."""
    workers = {queue: await register(dsn, queue) for queue in "qr"}
    async with (
        open_transaction(dsn) as consumer,
        open_transaction(dsn) as early,
        open_transaction(dsn) as settles,
    ):
        await consumer.execute("commit")
        holder = await one(consumer, enqueues("x"))
        assert await claim(consumer, workers["q"]) == [holder]
        waiting = await one(consumer, enqueues("x", queue="r"))
        await one(early, "select pg_current_xact_id()::text")
        await settles.execute(
            "select tocsin.delete(array[%s::bigint], array[(select lease from"
            " tocsin.messages where id = %s)])",
            [holder, holder],
        )
        assert await claim(consumer, workers["r"]) == []
        assert await claim(early, workers["r"]) == []
        await early.execute("commit")
        assert await claim(consumer, workers["r"]) == []
        await settles.execute("commit")
        assert await claim(consumer, workers["r"]) == [waiting]


async def test_a_scan_that_leaves_out_locked_rows_soon_comes_again(dsn: str) -> None:
    """An open transaction shares the locks of all rows that tell of the messages."""
    await query(dsn, registers("x"))
    await query(dsn, "update tocsin.limit_queues set since = '1'")  # known to all
    worker = await register(dsn, "q")
    for n in range(70):
        await query(dsn, enqueues("x", key=f"k{n}"))
    async with open_transaction(dsn) as producer, open_transaction(dsn) as consumer:
        await consumer.execute("commit")
        for n in range(70):
            await producer.execute(enqueues("x", key=f"k{n}").encode())
        await query(
            dsn,
            "do $$ begin execute format('create or replace function tocsin._clock() returns"
            " timestamptz language sql volatile as $_$ select timestamptz %L $_$',"
            " clock_timestamp() + interval '1 s'); end $$",  # so no scan ends by time
        )
        found = 0
        while found < 70:
            cursor = await consumer.execute(
                "select kind, next_due from tocsin.claim(%s, %s, 100)", worker
            )
            *messages, end = await cursor.fetchall()
            found += len(messages)
            assert found == 70 or end == ("end", 0.01)
        await producer.execute("rollback")


async def test_a_later_due_time_lets_the_next_message_of_another_queue_run(
    store: tocsin.Store, dsn: str
) -> None:
    ordered: dict[str, Any] = {"key": "k", "ordered": True}
    async with store.consumer("q") as q, store.consumer("r") as r:
        (holder, first), next_one = (
            [(await query(dsn, enqueues("x", **ordered)))[0][0] for _ in range(2)],
            (await query(dsn, enqueues("x", queue="r", **ordered)))[0][0],
        )
        (message,) = await q.dequeue(9)
        assert message.id == holder
        assert await r.dequeue(9) == []
        await message.archive()
        assert await r.dequeue(9) == []
        await query(dsn, "update tocsin.limit_queues set since = '1'")  # known to all
        assert await r.dequeue(9) == []
        await query(
            dsn,
            "update tocsin.messages set due = tocsin._clock() where id = %s",
            first,
        )
        assert [message.id for message in await r.dequeue(9)] == [next_one]


async def test_a_slot_that_becomes_free_makes_no_further_slot(store_dsn: str) -> None:
    """A scan looks for a free slot of three while other transactions free slot 1."""
    slot = (
        "insert into tocsin.slots (message_id, limit_id, key, queue_id, line, stage, priority, due,"
        " slot) values ({0}, 1, '', 1, 1, 3, 0, now(), {0})"
    )
    await query(store_dsn, slot.format(3))
    lowest: list[int] = []

    async def look(*, task_status: trio.TaskStatus[None]) -> None:
        async with open_connection(store_dsn) as connection:
            task_status.started()
            while len(lowest) < 50:
                cursor = await connection.execute(
                    "select max(tocsin._lowest_free(1, '')) from generate_series(1, 200)"
                )
                lowest.extend(number for (number,) in await cursor.fetchall())

    async with open_connection(store_dsn) as connection, trio.open_nursery() as nursery:
        await nursery.start(look)
        while len(lowest) < 50:
            await connection.execute(slot.format(1).encode())
            await connection.execute("delete from tocsin.slots where slot = 1")
    assert max(lowest) == 2
