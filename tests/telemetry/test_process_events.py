"""What the process reports: rings, the LISTEN connection, the states of workers, its
death, maintenance."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import tocsin
from tests.support import next_event, query, until, until_asleep
from tests.support.runs import running
from tocsin import telemetry


async def test_a_ring_for_an_idle_consumer_names_its_queue(store: tocsin.Store) -> None:
    await store.queues.ensure("other")
    await store.queues.ensure("q")
    with store.events.subscribe(telemetry.Rung) as rings:
        async with store.consumer("q") as consumer, running(consumer):
            await until_asleep(store)
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
        kinds = (telemetry.ConnectionUp, telemetry.ConnectionDown)
        with store.events.subscribe(*kinds) as connection:
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
