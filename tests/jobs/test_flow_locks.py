"""Transactions that end, cancel and requeue jobs of a flow lock in one order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import tocsin
from tests.support import query
from tests.support.queues import open_transaction, until_waiting
from tocsin import OnFailure


@tocsin.task(name="one")
async def one(value: int | None) -> int | None:
    return value


async def submit_two(store: tocsin.Store, dsn: str, on_failure: OnFailure) -> tuple[int, int, int]:
    """Return the ids of a parent, its child and their flow."""
    await store.queues.ensure("default")
    async with store.flow("two") as flow:
        flow.add(one.call(flow.add(one.call(1))), on_failure=on_failure)
    ((parent, child, flow_id),) = await query(
        dsn, "select parent, child, flow_id from tocsin.edges"
    )
    return parent, child, flow_id


@asynccontextmanager
async def both_waiting(dsn: str, child: int, first: str, other: str) -> AsyncIterator[None]:
    """Run two statements, which meet while the row of the child is locked."""
    with trio.fail_after(60):
        async with open_transaction(dsn) as locks, trio.open_nursery() as nursery:
            await locks.execute("select from tocsin.messages where id = %s for update", [child])
            for statement in first, other:
                nursery.start_soon(query, dsn, statement)
                await until_waiting(dsn, statement)
            await locks.execute("commit")
    yield


async def test_a_parent_that_fails_and_a_requeue_of_its_flow(
    store: tocsin.Store, store_dsn: str
) -> None:
    parent, child, flow = await submit_two(store, store_dsn, "run")
    async with both_waiting(
        store_dsn, child, f"select tocsin.cancel({parent})", f"select tocsin.requeue_flow({flow})"
    ):
        assert await query(
            store_dsn, "select state::text from tocsin.messages where id = %s", parent
        ) == [("ready",)]


async def test_a_job_that_ends_and_a_cancellation_of_its_flow(
    store: tocsin.Store, store_dsn: str
) -> None:
    parent, child, flow = await submit_two(store, store_dsn, "cancel")
    async with store.consumer("default") as consumer:
        (message,) = await consumer.dequeue()
        ends = f"select tocsin.archive(array[{parent}::bigint], array[{message.lease_token}])"
        async with both_waiting(store_dsn, child, f"select tocsin.cancel_flow({flow})", ends):
            assert await query(
                store_dsn, "select outcome from tocsin.archive where id = %s", child
            ) == [("cancelled",)]
