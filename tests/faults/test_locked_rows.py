"""A transaction of another program that has locked the row of a leased message stops
neither its consumer nor the other messages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, open_connection, query, until_blocked, until_query
from tests.support.runs import running, running_call

pytestmark = pytest.mark.fault


@asynccontextmanager
async def locked(dsn: str, message_id: int) -> AsyncIterator[None]:
    """Lock a message's row for as long as the block lasts."""
    async with open_connection(dsn) as connection:
        await connection.execute("begin")
        await connection.execute(
            "select from tocsin.messages where id = %s for update", [message_id]
        )
        yield
        await connection.execute("rollback")


@pytest.mark.parametrize("fails", [False, True], ids=["archive", "fail"])
async def test_a_locked_message_is_settled_later_and_stops_no_other(
    store: tocsin.Store, store_dsn: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", vt=3600, max_deliveries=1)
    first = await store.produce("q", "first")
    seen: list[Any] = []
    all_seen, go = trio.Event(), trio.Event()

    async def handler(message: tocsin.Message) -> None:
        seen.append(message.payload)
        if message.payload == "first":
            await go.wait()
        if message.payload == "last":
            all_seen.set()
        if fails:
            raise ValueError("no good")

    with caplog.at_level(logging.WARNING, "tocsin"), trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer, running(consumer, handler) as run:
            await run.handled.wait(1)
            async with locked(store_dsn, first):
                others = await store.produce_many("q", [*range(20), "last"])
                go.set()
                await all_seen.wait()
                await run.settled(len(others))
                settled = "select count(*)::int from tocsin.messages where id = any (%s)"
                assert await query(store_dsn, settled, others) == [(0,)]
            await run.settled(len(others) + 1)
    assert len(seen) == len(others) + 1
    states = {(await store.messages.get(i)).state for i in [first, *others]}
    assert states == {"dead" if fails else "archived"}
    assert run.suspended.released == 0
    assert (
        f"have locked messages that are to be settled; that is tried again later: [{first}]"
        in caplog.text
    )


async def test_a_locked_message_keeps_no_other_lease_from_being_extended(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    first, second = await store.produce_many("q", range(2))
    began, go = trio.Event(), trio.Event()

    async def handler(message: tocsin.Message) -> None:
        if message.id == second:
            began.set()
        await go.wait()

    with trio.fail_after(PATIENCE):
        async with (
            store.consumer("q") as consumer,
            running(consumer, handler, concurrency=2) as run,
        ):
            await began.wait()
            ends = "select vt from tocsin.messages order by id"
            before = await query(store_dsn, ends)
            async with locked(store_dsn, first):
                await consumer._parts.keeper.refresh()
                (first_end,), (second_end,) = await query(store_dsn, ends)
                assert first_end == before[0][0]
                assert second_end > before[1][0]
            go.set()
    assert run.suspended.handled == 2


async def test_a_run_that_ends_leaves_locked_messages_and_requeues_the_rest(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    first, second = await store.produce_many("q", range(2))
    began = trio.Event()

    async def handler(messages: list[tocsin.Message]) -> None:
        began.set()
        await trio.sleep_forever()

    with trio.fail_after(PATIENCE):
        async with (
            store.consumer("q") as consumer,
            running_call(consumer, partial(consumer.handle_batches, handler, size=2)) as run,
        ):
            await began.wait()
            async with locked(store_dsn, first):
                run.cancel()
                await until_query(
                    store_dsn,
                    "select id from tocsin.messages where state = 'ready'",
                    gives=[(second,)],
                )
                assert await query(
                    store_dsn, "select id from tocsin.messages where state = 'leased'"
                ) == [(first,)]
    rows = await query(
        store_dsn, "select id, state::text, read_ct from tocsin.messages order by id"
    )
    # as the end of the registration requeues the rest
    assert rows == [(first, "ready", 0), (second, "ready", 0)]


async def test_a_settlement_by_hand_waits_for_a_locked_row(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    message_id = await store.produce("q", 1)
    with trio.fail_after(PATIENCE):
        async with store.consumer("q") as consumer:
            (message,) = await consumer.dequeue()
            async with trio.open_nursery() as nursery, locked(store_dsn, message_id):
                nursery.start_soon(message.archive)
                await until_blocked(store_dsn)
    assert (await store.messages.get(message_id)).state == "archived"
