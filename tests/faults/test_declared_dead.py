"""A process that was declared dead, and registers again."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import tocsin
from tests.support import query, until_blocked, until_idle, until_query
from tests.support.faults import SOON, die_holding, holding
from tests.support.runs import running

pytestmark = pytest.mark.fault


async def declare_all_dead(dsn: str) -> None:
    """Declare each process dead, as another process does after missed heartbeats."""
    await query(dsn, "select tocsin.unregister_process(id, true) from tocsin.processes")


async def test_a_process_declared_dead_does_not_stop_its_successor(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The successor takes over the worker's id with its name. What the former holder
    then says about the worker must not count."""
    await store.queues.ensure("q", vt=3600)
    async with tocsin.connect(store_dsn, heartbeat=3600) as zombie_store:
        async with zombie_store.consumer("q", name="w") as zombie:
            await declare_all_dead(store_dsn)
            successor_context = store.consumer("q", name="w")
            successor = await successor_context.__aenter__()
            assert successor.worker_id == zombie.worker_id
            await store.produce("q", 1)
            assert len(await successor.dequeue()) == 1
        assert await successor.status() == "ready"
        assert (await successor.info()).held == 1
        await successor_context.__aexit__(None, None, None)


async def test_a_process_declared_dead_cannot_claim_as_its_successor(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as zombie_store,
        zombie_store.consumer("q", name="w") as zombie,
    ):
        await declare_all_dead(store_dsn)
        async with store.consumer("q", name="w"):
            await store.produce("q", 1)
            with pytest.raises(tocsin.StateTransitionError):
                await zombie.dequeue()


async def test_registering_with_a_process_that_was_declared_dead(store_dsn: str) -> None:
    """The process does not know yet that it was declared dead. The new worker must not
    belong to a process that does not exist."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.producer("q"):
            await declare_all_dead(store_dsn)
            async with store.consumer("q", name="w") as consumer, running(consumer) as run:
                orphans = (
                    "select id from tocsin.workers w where status <> 'stopped' "
                    "and not exists (select from tocsin.processes p where p.id = w.process_id)"
                )
                store._process.request_heartbeat()
                await until_query(
                    store_dsn,
                    "select 1 from tocsin.workers where name = 'w' and status = 'polling'",
                )
                assert await query(store_dsn, orphans) == []
                await store.produce("q", 1)
                with trio.move_on_after(SOON):
                    await run.handled.wait(1)
                assert not run.ended


async def test_a_suspended_worker_stays_suspended_when_its_process_registers_again(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.2) as store:
        await store.queues.ensure("q")
        async with store.consumer("q", name="w") as consumer, running(consumer) as run:
            await (await store.workers.get(consumer.worker_id)).suspend()
            await until_idle(store)
            before = store._process._membership.process.id
            await declare_all_dead(store_dsn)
            registered_again = (
                "select 1 from tocsin.workers w join tocsin.processes p on p.id = w.process_id and"
                " p.id <> %s"
            )
            await until_query(store_dsn, registered_again, before)
            assert await consumer.status() == "suspended"
            run.cancel()


async def test_a_connection_lost_during_the_second_registration_costs_no_worker(
    store_dsn: str,
) -> None:
    """Two workers; the connection breaks while the second registers again."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        for queue in ("q", "r"):
            await store.queues.ensure(queue)
        async with (
            store.consumer("q") as a,
            store.consumer("r") as b,
            running(a) as run_of_a,
            running(b) as run_of_b,
        ):
            await until_idle(store)
            await declare_all_dead(store_dsn)
            async with holding(
                store_dsn, "select 1 from tocsin.workers where id = %s for update", b.worker_id
            ):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, "register_worker")
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                    " 'Lock'",
                )
            await until_query(
                store_dsn,
                "select 1 from tocsin.workers where status <> 'stopped' having count(*) = 2",
            )
            await store.produce("r", 1)
            with trio.fail_after(SOON):
                await run_of_b.handled.wait(1)
            assert not run_of_a.ended
            assert not run_of_b.ended
            run_of_a.cancel()
            run_of_b.cancel()


async def test_a_process_that_learned_of_its_death_registers_again_at_once(store_dsn: str) -> None:
    """The process does not wait for its next heartbeat."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            await until_idle(store)
            await declare_all_dead(store_dsn)
            store._process.request_heartbeat()
            await until_query(
                store_dsn,
                "select 1 from tocsin.workers where id = %s and status = 'ready'",
                consumer.worker_id,
            )


async def test_a_process_that_registers_again_by_a_new_worker_has_a_lifeline(
    store_dsn: str,
) -> None:
    """Without one, its next death is noticed only after fifteen heartbeats."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q"):
            await until_idle(store)
            await declare_all_dead(store_dsn)
            async with store.consumer("q"):
                await until_query(
                    store_dsn, "select 1 from tocsin.processes where lifeline is not null"
                )


async def test_a_connection_lost_while_a_process_registers_again_with_a_new_worker_costs_no_worker(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q", name="first") as consumer, running(consumer) as run:
            await until_idle(store)
            await declare_all_dead(store_dsn)

            async def register() -> None:
                async with store.consumer("q", name="second"):
                    pass

            locked = "select 1 from tocsin.workers where id = %s for update"
            async with (
                trio.open_nursery() as registering,
                holding(store_dsn, locked, consumer.worker_id),
            ):
                registering.start_soon(register)
                await until_blocked(store_dsn, "register_worker")
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                    " 'Lock'",
                )
            store._process.request_heartbeat()
            await until_query(
                store_dsn,
                "select 1 from tocsin.workers where name = 'first' and status <> 'stopped'",
            )
            await store.produce("q", 1)
            with trio.fail_after(SOON):
                await run.handled.wait(1)
            assert not run.ended
            run.cancel()


async def test_a_dead_workers_message_that_cannot_become_a_dead_letter_ends_no_heartbeat(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    await die_holding(store_dsn, "13")
    async with store.consumer("q"):
        store._process.request_heartbeat()
        await until_query(store_dsn, "select 1 from tocsin.processes having count(*) = 1")
