"""Every public coroutine, cancelled at each of its checkpoints: nothing leaks, nothing
is half done, and a single cause comes out bare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

import tocsin
from tests.support import query, until, until_query
from tests.support.cancel_sweep import cancel_sweep

pytestmark = pytest.mark.fault


async def check_in_order(store: tocsin.Store, dsn: str) -> None:
    """No message is leased, and no connection stays checked out (the heartbeat may have
    checked out one at this moment)."""

    def in_use() -> int:
        pool = store.statistics().pool
        return pool.in_use + pool.waiting

    await until(lambda: not in_use())
    assert await query(dsn, "select id from tocsin.messages where state = 'leased'") == []


async def wait_for_stopped_workers(store: tocsin.Store) -> None:
    """A registration that was cancelled when it had happened already is found and ended
    by the heartbeat."""

    async def stopped() -> bool:
        return all(w.status == "stopped" for w in await store.workers.list())

    await until(stopped)


async def test_producing(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: producer.enqueue(1),
            lambda: producer.enqueue(1, key="k"),
            lambda: producer.enqueue_many([1, 2, 3]),
            lambda: producer.enqueue_many(range(5001)),
            lambda: store.produce("q", 1),
        ]
        for operation in operations:
            cut_short = await cancel_sweep(operation, lambda: check_in_order(store, store_dsn))
            assert cut_short >= 2

        async def in_a_transaction() -> None:
            async with store.transaction() as connection:
                await producer.enqueue("t", connection=connection)
                await producer.enqueue_many(["t", "t"], connection=connection)

        await cancel_sweep(in_a_transaction, lambda: check_in_order(store, store_dsn))
        ((count,),) = await query(
            store_dsn, "select count(*)::int from tocsin.messages where payload = '\"t\"'"
        )
        assert count % 3 == 0
        assert count >= 6


async def test_a_batch_is_all_or_nothing(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:

        async def enqueue() -> None:
            await producer.enqueue_many(range(5001))

        async def check() -> None:
            ((count,),) = await query(store_dsn, "select count(*)::int from tocsin.messages")
            assert count % 5001 == 0

        await cancel_sweep(enqueue, check)


async def test_claiming_and_settling(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=3600)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        ids = await producer.enqueue_many(range(200))

        async def claim() -> None:
            messages = await consumer.dequeue(2, wait=1)
            with trio.CancelScope(shield=True):
                assert await consumer.release_many(messages) == [True, True]

        await cancel_sweep(claim, lambda: check_in_order(store, store_dsn))
        for settle in (consumer.archive_many, consumer.delete_many, consumer.release_many):
            left = [r[0] for r in await query(store_dsn, "select id from tocsin.messages")]
            messages = await consumer.dequeue(20)

            async def settle_some(settle: Callable[..., Awaitable[list[bool]]] = settle) -> None:
                # called within this turn of the loop
                await settle([messages.pop(), messages.pop()])  # noqa: B023

            await cancel_sweep(settle_some)
            with trio.CancelScope(shield=True):
                await consumer.release_many(messages)
            await store._database.fetch(
                "select tocsin.release_others(%s, %s, '{}', '{}')",
                [consumer.worker_id, consumer._registration.token],
            )
            await check_in_order(store, store_dsn)
            assert set(left) <= set(ids)

    everywhere = (
        "select id from tocsin.messages union all select id from tocsin.archive union all select id"
        " from tocsin.dead_letters"
    )
    found = [r[0] for r in await query(store_dsn, everywhere)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("way", ["handle", "handle_batches", "messages"])
async def test_running(store: tocsin.Store, store_dsn: str, way: str) -> None:
    await store.queues.ensure("q", vt=3600)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        ids = await producer.enqueue_many(range(300))
        seen = 0

        async def handle(_: object) -> None:
            nonlocal seen
            seen += 1
            await trio.lowlevel.checkpoint()
            if seen % 3 == 0:
                raise Stop

        async def run() -> None:
            try:
                if way == "handle":
                    await consumer.handle(handle_and_stop, concurrency=2)
                elif way == "handle_batches":
                    await consumer.handle_batches(handle_and_stop, size=3)
                else:
                    async with consumer.messages() as stream:
                        async for message in stream:
                            await message.archive()
                            await handle(message)
            except Stop:
                pass
            except tocsin.Suspended:
                with trio.CancelScope(shield=True):
                    await consumer.resume()

        async def handle_and_stop(work: object) -> None:
            try:
                await handle(work)
            except Stop:
                await consumer.interrupt()

        async def check() -> None:
            await check_in_order(store, store_dsn)
            if await consumer.status() in ("interrupted", "suspended"):
                if await consumer.status() == "interrupted":
                    await consumer.suspend()
                await consumer.resume()
            assert await consumer.status() == "ready"

        await cancel_sweep(run, check)
        counts = await query(
            store_dsn,
            "select (select count(*) from tocsin.messages)::int, (select count(*) from"
            " tocsin.archive)::int",
        )
        assert sum(counts[0]) == len(ids)
        assert counts[0][1] > 0


class Stop(Exception):
    """The handler has had enough."""


async def test_registering(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", vt=3600)

    async def produce() -> None:
        async with store.producer("q") as producer:
            await producer.enqueue(1)

    async def consume() -> None:
        async with store.consumer("q") as consumer:
            await consumer.dequeue()

    for operation in (produce, consume):
        await cancel_sweep(operation, lambda: check_in_order(store, store_dsn))
        await wait_for_stopped_workers(store)


async def test_connecting(store_dsn: str) -> None:
    async def connect() -> None:
        async with tocsin.connect(store_dsn) as store:
            await store.queues.ensure("q")
            async with store.consumer("q") as consumer:
                await consumer.dequeue()

    sessions = (
        "select count(*)::int from pg_stat_activity where application_name = 'tocsin' and datname ="
        " current_database()"
    )

    async def check() -> None:
        await until_query(store_dsn, sessions, gives=[(0,)])  # the server takes a moment to notice

    await cancel_sweep(connect, check)


@pytest.mark.slow
async def test_workers_queues_and_schema(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        handle = await store.workers.get(consumer.worker_id)

        async def transitions() -> None:
            try:
                await handle.suspend()
                await handle.resume()
                await handle.interrupt()
            except tocsin.StateTransitionError:
                pass  # where an earlier turn was cancelled in between

        async def reset() -> None:
            await query(
                store_dsn, "update tocsin.workers set status = 'ready' where status <> 'stopped'"
            )
            await check_in_order(store, store_dsn)

        await cancel_sweep(transitions, reset)
        await cancel_sweep(lambda: handle.heartbeat(), reset)
        await cancel_sweep(lambda: handle.info(), reset)
        await cancel_sweep(lambda: store.workers.health(), reset)
        await cancel_sweep(lambda: store.workers.purge(0), reset)
        await cancel_sweep(lambda: store.workers.release_messages(consumer.worker_id), reset)
        await cancel_sweep(lambda: store.queues.ensure("r"), reset)
        await cancel_sweep(lambda: store.queues.pause("q"), reset)
        await cancel_sweep(lambda: store.queues.resume("q"), reset)
        await cancel_sweep(
            lambda: store.queues.purge("q", ready=True, dead=True, archived=True), reset
        )
        await cancel_sweep(lambda: store.queues.metrics(), reset)

        async def delete() -> None:
            await store.queues.ensure("short-lived")
            await store.produce("short-lived", 1)
            await store.queues.delete("short-lived", force=True)

        await cancel_sweep(delete, reset)
        await cancel_sweep(lambda: store.verify(), reset)


@pytest.mark.slow
async def test_installing(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:

        async def reinstall() -> None:
            await store.install()
            await store.uninstall()

        async def check() -> None:
            try:
                assert await store.verify() == ()
            except tocsin.SchemaMissing:
                assert (
                    await query(dsn, "select nspname from pg_namespace where nspname = 'tocsin'")
                    == []
                )

        await cancel_sweep(reinstall, check)


async def test_a_single_cause_comes_out_bare(store_dsn: str) -> None:
    class Boom(Exception):
        pass

    with pytest.raises(Boom):
        async with tocsin.connect(store_dsn) as store:
            await store.queues.ensure("q")
            async with store.consumer("q"), store.producer("q"):
                raise Boom
    with pytest.raises(Boom):
        async with (
            tocsin.connect(store_dsn) as store,
            store.consumer("q") as consumer,
            consumer.messages(),
        ):
            raise Boom
    with pytest.raises(KeyboardInterrupt):
        async with tocsin.connect(store_dsn) as store, store.consumer("q") as consumer:
            await store.produce("q", 1)

            async def handle(_: tocsin.Message) -> None:
                raise KeyboardInterrupt

            await consumer.handle(handle)
    assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
        ("ready", 0)
    ]


async def test_every_public_coroutine_is_a_checkpoint(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        handle = await store.workers.get(consumer.worker_id)
        calls: list[Callable[[], Awaitable[object]]] = [
            store.install,
            store.verify,
            lambda: store.produce("q", 1),
            store.queues.list,
            store.queues.count,
            lambda: store.queues.get("q"),
            lambda: store.queues.exists("q"),
            lambda: store.queues.ensure("q"),
            lambda: store.queues.create("new"),
            lambda: store.queues.pause("q"),
            lambda: store.queues.resume("q"),
            store.workers.list,
            lambda: store.queues.purge("q", ready=True),
            lambda: store.queues.delete("q", force=True),
            store.queues.metrics,
            store.stats,
            lambda: store.workers.get(consumer.worker_id),
            store.workers.stats,
            store.workers.health,
            lambda: store.workers.purge(0),
            lambda: store.workers.delete(0),
            lambda: store.workers.release_messages(consumer.worker_id),
            lambda: producer.enqueue(1),
            lambda: producer.enqueue_many([]),
            lambda: consumer.dequeue(),
            lambda: consumer.archive_many([]),
            lambda: consumer.delete_many([]),
            lambda: consumer.release_many([]),
            lambda: consumer.extend_many([], 1),
            consumer.status,
            consumer.info,
            consumer.heartbeat,
            lambda: consumer.is_healthy(1),
            consumer.suspend,
            consumer.resume,
            consumer.shutdown,
            consumer.interrupt,
            handle.interrupt,
            handle.stop,
            consumer.stop,
            lambda: consumer.handle(print),
            lambda: consumer.handle_batches(print, size=1),
            lambda: store.messages.get(1),
            lambda: store.messages.list("q"),
            lambda: store.dead_letters.get(1),
            lambda: store.dead_letters.list("q"),
            lambda: store.dead_letters.replay(1),
            lambda: store.dead_letters.archive(1),
            lambda: store.dead_letters.purge(1),
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught, call
        assert await consumer.status() == "ready"


@pytest.mark.slow
async def test_a_run_with_messages_claimed_ahead(store: tocsin.Store, store_dsn: str) -> None:
    """What a handler has seen is archived, and nothing else; nothing counts a delivery
    that no handler saw."""
    await store.queues.ensure("q")
    seen = list[int]()
    async with store.producer("q") as producer, store.consumer("q") as consumer:

        async def operation() -> None:
            await producer.enqueue_many(range(120))
            begun = len(seen)
            with trio.CancelScope() as scope:

                async def handle(message: tocsin.Message) -> None:
                    seen.append(message.id)
                    if len(seen) == begun + 60:
                        scope.cancel()

                await consumer.handle(handle)

        async def check() -> None:
            assert (
                await query(
                    store_dsn,
                    "select id from tocsin.messages where state <> 'ready' or read_ct > 0",
                )
                == []
            )
            assert sorted(seen) == [
                number
                for (number,) in await query(store_dsn, "select id from tocsin.archive order by id")
            ]
            await query(
                store_dsn,
                "delete from tocsin.messages where id < (select max(id) - 50 from tocsin.messages)",
            )

        assert await cancel_sweep(operation, check) > 10
