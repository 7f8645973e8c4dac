"""Unique keys: at most one unfinished message of a key, also of producers that enqueue
at the same moment."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, connect_blocking, open_connection, query, until, until_blocked
from tests.support.dead_letters import kill, make_dead
from tests.support.sweeps import sweep

ENQUEUE = "select tocsin.enqueue('q', '1', key => %s)"


@pytest.mark.parametrize("end", ["commit", "rollback", "rollback to savepoint"])
async def test_unique_key_of_two_transactions_the_second_waits_for_the_first(
    store: tocsin.Store, store_dsn: str, end: str
) -> None:
    await store.queues.ensure("q")
    got: list[int] = []

    async def produce() -> None:
        got.append(await store.produce("q", 2, key="k"))

    async with open_connection(store_dsn) as first, trio.open_nursery() as nursery:
        await first.execute("begin")
        await first.execute("savepoint before")
        cursor = await first.execute(ENQUEUE, ["k"])
        ((held,),) = await cursor.fetchall()
        nursery.start_soon(produce)
        await until_blocked(store_dsn)
        await first.execute("rollback to savepoint before" if "savepoint" in end else end.encode())
        await until(lambda: got)
        if "savepoint" in end:
            await first.execute("commit")
    assert (got == [held]) == (end == "commit")
    assert await query(store_dsn, "select id from tocsin.messages") == [(got[0],)]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_unique_key_with_many_producers_at_every_isolation_level(
    store: tocsin.Store, store_dsn: str, level: str
) -> None:
    """A transaction that cannot see the message which has the key is told to try again,
    and then gets that one's id."""
    await store.queues.ensure("q")
    ids: dict[str, set[int]] = {str(key): set() for key in range(10)}

    async def produce() -> None:
        async with open_connection(store_dsn) as connection:
            for key, seen in ids.items():
                while True:
                    try:
                        async with connection.transaction():
                            await connection.execute(
                                f"set transaction isolation level {level}".encode()
                            )
                            # it has a snapshot
                            await connection.execute("select count(*) from tocsin.queues")
                            await trio.lowlevel.checkpoint()
                            cursor = await connection.execute(ENQUEUE, [key])
                            ((message_id,),) = await cursor.fetchall()
                    except psycopg.errors.SerializationFailure:
                        assert level != "read committed"
                        continue
                    seen.add(message_id)
                    break

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(produce)
    assert [len(seen) for seen in ids.values()] == [1] * 10
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(10,)]


async def test_unique_key_is_free_when_its_message_is_finished_and_not_before(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q", max_deliveries=3, retry_base=1000, retry_jitter=0)

    async def enqueue() -> int:
        return await store.produce("q", 1, key="k")

    first = await enqueue()
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        assert await enqueue() == first  # leased
        await message.release()
        assert await enqueue() == first  # ready again
        await kill(consumer)
        assert (await store.messages.get(first)).state == "delayed"
        assert await enqueue() == first  # waiting for its next delivery
    await store.queues.ensure("r")
    (second,) = await make_dead(store, "r", 1, key="k")
    third = await store.produce("r", 1, key="k")
    assert third > second  # a dead letter is finished
    async with store.consumer("r") as consumer:
        (message,) = await consumer.dequeue()
        await message.archive()
        fourth = await store.produce("r", 1, key="k")
        assert fourth > third
        (message,) = await consumer.dequeue()
        await message.delete()
        assert await store.produce("r", 1, key="k") > fourth


@sweep(
    "key",
    ["", " ", "'; --", '"', "\\", "%s", "$1", "\N{SNOWMAN}\U0001f600", "k" * 1024],
    quick=2,
    ids=repr,
)
async def test_unique_key_may_be_any_text(store: tocsin.Store, key: str) -> None:
    await store.queues.ensure("q")
    first = await store.produce("q", 1, key=key)
    assert await store.produce("q", 2, key=key) == first
    assert await store.produce("q", 3, key=key[:-1] + "x") != first
    assert (await store.messages.get(first)).key == key


@sweep(
    ("key", "raises"),
    [
        ("k" * 1025, ValueError),
        ("\N{SNOWMAN}" * 400, ValueError),
        (5, TypeError),
        (b"k", TypeError),
    ],
    quick=1,
)
async def test_unique_key_that_is_none_is_refused(
    store: tocsin.Store, key: Any, raises: type[Exception]
) -> None:
    await store.queues.ensure("q")
    with pytest.raises(raises, match="key must be"):
        await store.produce("q", 1, key=key)
    assert await store.messages.list("q") == []


def test_unique_key_from_sql(store_dsn: str) -> None:
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.create_queue('q')")
        first = connection.execute(ENQUEUE, ["k"]).fetchone()
        assert connection.execute(ENQUEUE, ["k"]).fetchone() == first
        assert connection.execute(ENQUEUE, ["l"]).fetchone() != first
