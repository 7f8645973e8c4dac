"""Rings that arrive while the process is busy, or its queue is created again."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

import tocsin
from tests.support import query, until, until_blocked, until_idle
from tests.support.faults import SOON, die_holding, holding
from tests.support.runs import running

pytestmark = pytest.mark.fault


async def test_a_blocked_loop_is_no_proof_that_listen_does_not_work(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    await store.queues.ensure("q")

    async def block() -> None:
        await until(lambda: store._process.listener.proof._token)
        time.sleep(0.5)  # noqa: ASYNC251 - this is what is tested

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        async with store.consumer("q"):
            pass
    assert store.statistics().listen_works


async def test_a_queue_created_again_under_the_same_name_rings_for_its_own_consumers(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q", name="old"):
            await until_idle(store)
            await query(store_dsn, "delete from tocsin.workers")
            await query(store_dsn, "delete from tocsin.queues")
            await store.queues.ensure("q")
            async with store.consumer("q", name="new") as consumer, running(consumer) as run:
                await until_idle(store)
                await query(store_dsn, "select tocsin.enqueue('q', '1')")
                with trio.move_on_after(SOON):
                    await run.handled.wait(1)
                run.cancel()
    assert run.handled.payloads == [1]


async def test_what_the_listen_connection_requeues_is_seen_by_a_consumer_that_has_begun_to_wait(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat reaps a dead process while the consumer begins to wait. Its session
    does not see its own lock, so it does not ring for its own process."""
    monkeypatch.setattr("tocsin._queue.process.bell.LINGER", 3600)
    finish = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            await finish.wait()

    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        queue = await store.queues.ensure("q", vt=36000)
        await die_holding(store_dsn, "2")
        async with store.consumer("q") as consumer, running(consumer, handle) as run:
            await until_idle(store)
            await store.produce("q", 1)
            await run.handled.wait(1)
            async with holding(
                store_dsn, "select from tocsin.processes where hostname <> 'h' for update"
            ):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                finish.set()
                with trio.fail_after(SOON):
                    await until(lambda: store._process.bell.queues_waiting() == [queue.id])
            with trio.move_on_after(SOON):
                await run.handled.wait(2)
            run.cancel()
    assert run.handled.payloads == [1, 2]
