"""What the process reports: rings, the LISTEN connection, the states of workers, its
death, maintenance."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import pytest

import tocsin
from bench import proxy
from tests.support import next_event, query, until, until_idle
from tests.support.runs import running
from tocsin import telemetry
from tocsin.embedded import EmbeddedServer

CHANGES = (telemetry.ConnectionUp, telemetry.ConnectionDown)


async def test_a_ring_for_an_idle_consumer_names_its_queue(store: tocsin.Store) -> None:
    await store.queues.ensure("other")
    await store.queues.ensure("q")
    with store.events.subscribe(telemetry.Rung) as rings:
        async with store.consumer("q") as consumer, running(consumer):
            await until_idle(store)
            await store.produce("other", 1)
            await store.produce("q", 1)
            assert (await next_event(rings)).queue == "q"


async def test_a_worker_reports_each_state_once(store_dsn: str) -> None:
    with ExitStack() as stack:
        async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
            await store.queues.ensure("q")
            changes = stack.enter_context(store.events.subscribe(telemetry.WorkerStateChanged))
            async with store.consumer("q") as consumer, running(consumer):
                assert (await next_event(changes)).status == "polling"
                await consumer.interrupt()
                found = await next_event(changes, lambda c: c.status == "suspended")
                assert (found.queue, found.worker_id) == ("q", consumer.worker_id)
                sent = store.statistics().heartbeats
                await until(lambda: store.statistics().heartbeats >= sent + 2)
        statuses = [found.status, *[change.status async for change in changes]]
    assert all(one != next_one for one, next_one in pairwise(statuses))


async def test_the_connection_is_reported_up_down_and_up(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        with store.events.subscribe(*CHANGES) as connection:
            async with store.consumer("q"):
                assert isinstance(await next_event(connection), telemetry.ConnectionUp)
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity where"
                    " datname = current_database() and pid <> pg_backend_pid() and (query ilike"
                    " 'listen%' or pid in (select pid from pg_locks where locktype = 'advisory'"
                    " and mode = 'ExclusiveLock' and granted))",
                )
                down = await next_event(connection)
                assert isinstance(down, telemetry.ConnectionDown)
                assert down.reason
                await next_event(connection, lambda e: isinstance(e, telemetry.ConnectionUp))


async def changes_until(
    events: telemetry.Subscription[telemetry.Event],
    *last: tuple[str, str],
) -> list[tuple[str, str]]:
    """The events, as class and connection, until each of these has come."""
    seen = list[tuple[str, str]]()
    while not set(last) <= set(seen):
        event = await next_event(events)
        assert isinstance(event, CHANGES)
        seen.append((type(event).__name__, event.connection))
    return seen


@pytest.mark.slow
async def test_an_outage_is_reported_once_for_the_pool_and_once_for_listen(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        with store.events.subscribe(*CHANGES) as changes:
            async with store.consumer("q"):
                assert await changes_until(changes, ("ConnectionUp", "listen"))
                await own_server.stop()
                for _ in range(3):
                    with pytest.raises(tocsin.ConnectionLost):
                        await store.produce("q", 1)
                # The LISTEN connection has been tried more than once as well.
                opened = store.statistics().pool.errors
                await until(lambda: store.statistics().pool.errors > opened + 2)
                await own_server.start()
                await store.produce("q", 1)
                seen = await changes_until(
                    changes, ("ConnectionUp", "pool"), ("ConnectionUp", "listen")
                )
    assert sorted(seen) == [
        ("ConnectionDown", "listen"),
        ("ConnectionDown", "pool"),
        ("ConnectionUp", "listen"),
        ("ConnectionUp", "pool"),
    ]


async def test_an_outage_of_the_pool_alone_says_why_and_nothing_of_listen(
    store_dsn: str,
) -> None:
    async with (
        proxy.running(store_dsn) as between,
        tocsin.connect(between.dsn(), listen_dsn=store_dsn, heartbeat=0.5) as store,
    ):
        await store.queues.ensure("q")
        with store.events.subscribe(*CHANGES) as changes:
            async with store.consumer("q"):
                assert await changes_until(changes, ("ConnectionUp", "listen"))
                between.refuse()
                with pytest.raises(tocsin.ConnectionLost):
                    await store.queues.list()
                down = await next_event(changes)
                assert isinstance(down, telemetry.ConnectionDown)
                assert down.connection == "pool"
                assert "is not available" in down.reason
                between.restore()
                # The heartbeat tries the pool.
                up = await next_event(changes)
                assert isinstance(up, telemetry.ConnectionUp)
                assert up.connection == "pool"
                assert store.statistics().failing_for is None


async def test_a_process_without_a_listen_connection_reports_the_pool_alone(
    store_dsn: str,
) -> None:
    async with (
        proxy.running(store_dsn) as between,
        tocsin.connect(between.dsn(), heartbeat=0.2) as store,
    ):
        await store.queues.ensure("q")
        with store.events.subscribe(*CHANGES) as changes:
            async with store.producer("q"):
                between.refuse()
                # The heartbeat fails, and then succeeds.
                assert await changes_until(changes, ("ConnectionDown", "pool")) == [
                    ("ConnectionDown", "pool")
                ]
                between.restore()
                assert await changes_until(changes, ("ConnectionUp", "pool")) == [
                    ("ConnectionUp", "pool")
                ]


async def test_a_process_reports_that_it_was_declared_dead(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("q")
        with store.events.subscribe(telemetry.DeclaredDead) as deaths:
            async with store.consumer("q"):
                ((process_id,),) = await query(store_dsn, "select id from tocsin.processes")
                await query(
                    store_dsn, "select tocsin.unregister_process(%s, died => true)", process_id
                )
                assert (await next_event(deaths)).process_id == process_id


async def test_maintenance_is_reported_with_its_result(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("q")
        with store.events.subscribe(telemetry.MaintenanceEnded) as ended:
            async with store.consumer("q"):
                await query(store_dsn, "update tocsin.maintenance set due_at = '-infinity'")
                result = (await next_event(ended, lambda e: e.result is not None)).result
                assert isinstance(result, tocsin.MaintenanceResult)
                assert result.problems == ()
