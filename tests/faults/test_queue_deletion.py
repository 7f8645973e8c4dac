"""Deleting a queue while other transactions use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, open_connection, query, until, until_query
from tests.support.queues import contents, dequeue_into, open_transaction, until_waiting
from tests.support.sweeps import sweep
from tocsin.driver import TrioConnection

pytestmark = pytest.mark.fault


@pytest.fixture(params=["no consumer waits", "a consumer waits", "it always rings"])
async def contested(
    request: pytest.FixtureRequest, store: tocsin.Store, store_dsn: str
) -> AsyncIterator[tocsin.Store]:
    """A store with a queue to which a producer rings for this reason, or does not."""
    queue = await store.queues.create("q", notify="always" if "always" in request.param else None)
    async with open_connection(store_dsn) as connection:
        if request.param == "a consumer waits":
            await connection.execute("select tocsin.begin_waiting(array[%s::int])", [queue.id])
        yield store


@pytest.mark.parametrize("force", [False, True])
async def test_a_deletion_waits_for_a_transaction_that_has_enqueued(
    contested: tocsin.Store, store_dsn: str, force: bool
) -> None:
    outcome = list[tocsin.DeleteResult | Exception]()

    async def delete() -> None:
        try:
            outcome.append(await contested.queues.delete("q", force=force))
        except tocsin.QueueNotEmpty as refused:
            outcome.append(refused)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as producing:
        await producing.execute("select tocsin.enqueue('q', '1')")
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        # it has been let in, and is not held up now
        await producing.execute("select tocsin.enqueue('q', '2')")
        await producing.execute("commit")
    (result,) = outcome
    if force:
        assert result == tocsin.DeleteResult(workers=0, messages=2, archived=0, dead_letters=0)
    else:
        assert isinstance(result, tocsin.QueueNotEmpty)
        assert result.messages == 2
    assert (await contents(store_dsn))["messages"] == (0 if force else 2)


@pytest.mark.parametrize("committed", [True, False])
@sweep(
    "call",
    ["enqueue('q', '1')", "enqueue_many('q', '[1]')", """enqueue_each('q', '[{"payload": 1}]')"""],
    quick=1,
)
async def test_an_enqueue_waits_for_a_deletion_under_way(
    contested: tocsin.Store, store_dsn: str, call: str, committed: bool
) -> None:
    outcome = list[str | None]()

    async def enqueue() -> None:
        try:
            await query(store_dsn, f"select tocsin.{call}")
            outcome.append(None)
        except psycopg.Error as refused:
            assert 'queue "q" does not exist' in str(refused)
            outcome.append(refused.sqlstate)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as deleting:
        await deleting.execute("select tocsin.delete_queue('q')")
        nursery.start_soon(enqueue)
        await until_waiting(store_dsn, call)
        await deleting.execute("commit" if committed else "rollback")
    assert outcome == (["TC001"] if committed else [None])
    assert (await contents(store_dsn))["messages"] == int(not committed)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_registration_waits_for_a_deletion_under_way(
    store: tocsin.Store, store_dsn: str, committed: bool
) -> None:
    await store.queues.ensure("q")
    outcome = list[str]()

    async def register() -> None:
        try:
            async with store.consumer("q") as consumer:
                outcome.append(await consumer.status())
        except tocsin.QueueNotFound as refused:
            outcome.append(refused.queue)

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as deleting:
        await deleting.execute("select tocsin.delete_queue('q')")
        nursery.start_soon(register)
        await until_waiting(store_dsn, "register_worker")
        await deleting.execute("commit" if committed else "rollback")
    assert outcome == (["q"] if committed else ["ready"])


async def test_a_deletion_waits_for_a_registration_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")

    async def delete() -> None:
        with pytest.raises(tocsin.QueueNotEmpty) as refused:
            await store.queues.delete("q")
        assert refused.value.workers == 1

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as registering:
        await registering.execute(
            "select tocsin.register_worker('q', 'consumer', 'w', null, 'h', 1, 'v')"
        )
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        await registering.execute("commit")


async def test_a_deletion_waits_for_what_is_being_settled(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The deletion also takes a message that has moved to the archive, to the dead
    letters, or back to the queue."""
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        async with store.producer("q") as producer:
            await producer.enqueue_many([1, 2], max_deliveries=9)
            await producer.enqueue(3, max_deliveries=1)
        messages = await consumer.dequeue(3)
        await messages[0].extend(7200)  # the last one in the index, the first by its id
        ids, leases = zip(*((m.id, m.lease_token) for m in messages), strict=True)
        deleted = list[tocsin.DeleteResult]()

        async def delete() -> None:
            deleted.append(await store.queues.delete("q", force=True))

        async with trio.open_nursery() as nursery, open_transaction(store_dsn) as settling:
            await settling.execute(
                "select tocsin.archive(%s, %s)", [list(ids[:1]), list(leases[:1])]
            )
            nursery.start_soon(delete)
            await until_waiting(store_dsn, "delete_queue")
            await settling.execute(
                "select tocsin.release(%s, %s)", [list(ids[1:]), list(leases[1:])]
            )
            await settling.execute("commit")
        assert deleted == [tocsin.DeleteResult(workers=2, messages=1, archived=1, dead_letters=1)]
    assert set((await contents(store_dsn)).values()) == {0}


async def test_a_deletion_waits_for_a_claim_under_way(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)

    async def delete() -> None:
        assert (await store.queues.delete("q", force=True)).messages == 1

    async with (
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
        open_transaction(store_dsn) as claiming,
    ):
        claim = "select tocsin.claim(w.id, w.registration, 1) from tocsin.workers w where w.id = %s"
        await claiming.execute(claim.encode(), [consumer.worker_id])
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        await claiming.execute("commit")
    assert set((await contents(store_dsn)).values()) == {0}


async def test_a_deletion_cut_short_leaves_everything_and_wakes_waiting_consumers(
    store: tocsin.Store, store_dsn: str
) -> None:
    """While it waits for a transaction, a consumer that begins to wait still finds
    what comes from that."""
    await store.queues.ensure("q")
    async with (
        open_transaction(store_dsn) as producing,
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
    ):
        await producing.execute("select tocsin.enqueue('q', '1')")
        with trio.CancelScope() as deletion:
            async with trio.open_nursery() as deleting:
                deleting.start_soon(lambda: store.queues.delete("q", force=True))
                await until_waiting(store_dsn, "delete_queue")
                nursery.start_soon(dequeue_into, got := list[tocsin.Message](), consumer)
                await trio.testing.wait_all_tasks_blocked(0.02)
                deletion.cancel()
        await producing.execute("commit")
    assert [m.payload for m in got] == [1]


async def test_what_belongs_to_no_queue_is_swept_and_nothing_else(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A transaction with a snapshot from before the deletion may enqueue after it."""
    for name in ("a", "b", "c", "d"):
        await store.queues.ensure(name)
        await store.produce(name, 1)
    async with open_transaction(store_dsn) as producing:
        await producing.execute("set transaction isolation level repeatable read")
        await producing.execute("select 1")
        for name in ("a", "c", "d"):
            await store.queues.delete(name, force=True)
            await producing.execute("select tocsin.enqueue(%s, '2')", [name])
            await producing.execute("select tocsin.enqueue(%s, '3', delay => '1 day')", [name])
        assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(0,)]
        await producing.execute("commit")
    assert (await contents(store_dsn))["messages"] == 7
    assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(6,)]
    assert await query(store_dsn, "select payload from tocsin.messages") == [(1,)]
    await store.queues.delete("b", force=True)
    assert await query(store_dsn, "select tocsin._sweep_orphans()") == [(0,)]


async def test_queue_deleted_again_and_again_under_producers_and_consumers(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Each message is either there, or went with a forced deletion; refused ones are
    refused by name; nothing is left behind."""
    # it would sweep, too
    await query(store_dsn, "update tocsin.maintenance set due_at = 'infinity'")
    rounds, enqueued, deleted = 15, list[int](), 0
    over = trio.Event()

    async def produce() -> None:
        while not over.is_set():
            try:
                enqueued.append(await store.produce("q", 1))
            except tocsin.QueueNotFound as refused:
                assert refused.queue == "q" or refused.queue.startswith("number ")

    async def consume() -> None:
        while not over.is_set():
            try:
                async with store.consumer("q") as consumer:
                    for message in await consumer.dequeue(2):
                        await message.release()
            except (tocsin.QueueNotFound, tocsin.WorkerStopped, tocsin.LeaseLost):
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(produce)
            nursery.start_soon(consume)
        for _ in range(rounds):
            await store.queues.ensure("q", notify="always")
            await until_query(store_dsn, "select 1 from tocsin.messages limit 1")
            with trio.fail_after(PATIENCE):
                gone = await store.queues.delete("q", force=True)
                deleted += gone.messages + gone.dead_letters  # released for the fifth time
        over.set()
    ((swept,),) = await query(store_dsn, "select tocsin._sweep_orphans()")
    assert len(enqueued) == deleted + swept
    assert (await contents(store_dsn)) == {
        "messages": 0,
        "dead_letters": 0,
        "archive": 0,
        "workers": 0,
        "queues": 0,
    }


HAND_OVERS = {
    "replays a dead letter": (
        "select from tocsin.dead_letters where id = 1 for update",
        "select tocsin.replay(array[1])",
    ),
    "settles and enqueues": (
        "select tocsin.archive(array[2], array[{lease}])",
        "select tocsin.enqueue('q', '4')",
    ),
    "claims and enqueues": (
        "select tocsin.claim({worker}, {registration}, 1)",
        "select tocsin.enqueue('q', '4')",
    ),
    "enqueues and settles": (
        "select tocsin.enqueue('q', '4')",
        "select tocsin.archive(array[2], array[{lease}])",
    ),
    "purges and enqueues": (
        "select tocsin.purge_queue('q', ready => true)",
        "select tocsin.enqueue('q', '4')",
    ),
    "purges the archive and enqueues": (
        "select tocsin.purge_queue('q', archived => true)",
        "select tocsin.enqueue('q', '4')",
    ),
    "registers and enqueues": (
        "select tocsin.register_worker('q', 'consumer', 'other', null, 'h', 1, 'v')",
        "select tocsin.enqueue('q', '4')",
    ),
}
"""What a transaction does that first locks something of a queue and then needs
something that its deletion has, in two steps."""


@sweep("what", HAND_OVERS, quick=["settles and enqueues", "claims and enqueues"])
async def test_a_deletion_gives_way_to_a_transaction_that_waits_for_it(
    store: tocsin.Store, store_dsn: str, what: str
) -> None:
    """PostgreSQL would call it a deadlock, and abort either of the two."""
    await store.queues.create("q")
    deleted = list[tocsin.DeleteResult]()

    async def delete() -> None:
        deleted.append(await store.queues.delete("q", force=True))

    async with (
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
        open_transaction(store_dsn) as other,
    ):
        await store.produce_many("q", [1, 2, 3, 4])
        dead, held, kept = await consumer.dequeue(3)
        assert (dead.id, held.id) == (1, 2)
        await kept.archive()
        await query(store_dsn, "select tocsin._move_to_dead_letters(array[1], 'x')")
        given = {
            "lease": held.lease_token,
            "worker": consumer.worker_id,
            "registration": consumer._registration.token,
        }
        first, second = (statement.format(**given) for statement in HAND_OVERS[what])
        await other.execute(first.encode())
        nursery.start_soon(delete)
        await until_waiting(store_dsn, "delete_queue")
        # Again and again the deletion has the lock `rung`, and lets go of it.
        exclusive = (
            "select 1 from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and"
            " granted"
        )
        if what != "enqueues and settles":
            await until_query(store_dsn, exclusive)
        with trio.fail_after(PATIENCE):
            await other.execute(second.encode())
        await other.execute("commit")
    assert len(deleted) == 1
    assert set((await contents(store_dsn)).values()) == {0}


async def refused_as_busy(store: tocsin.Store, into: list[str]) -> None:
    with pytest.raises(tocsin.QueueBusy, match="in use by transactions that do not end") as refused:
        await store.queues.delete("q", force=True)
    into.append(refused.value.queue)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param("select tocsin.enqueue('q', '2')", marks=pytest.mark.slow),
        "select from tocsin.messages for update",
        "select pg_advisory_xact_lock(tocsin._lock_key('rung', 1))",
    ],
)
async def test_a_deletion_is_refused_when_a_transaction_does_not_end(
    store: tocsin.Store, store_dsn: str, use: str
) -> None:
    assert (await store.queues.create("q")).id == 1
    await store.produce("q", 1)
    refused = list[str]()
    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as other:
        await other.execute(use.encode())
        nursery.start_soon(refused_as_busy, store, refused)
        await until_waiting(store_dsn, "delete_queue")
        assert not refused
        await query(store_dsn, FUTURE)
        await until(lambda: refused)
        await other.execute("rollback")
    assert refused == ["q"]
    assert [m.payload for m in await store.messages.list("q")] == [1]
    assert (await store.queues.delete("q", force=True)).messages == 1


FUTURE = (
    "create or replace function tocsin._clock() returns timestamptz language sql volatile parallel"
    " safe as $$ select pg_catalog.clock_timestamp() + interval '11 s' $$"
)


@pytest.mark.slow
async def test_two_deletions_in_a_transaction_do_not_deadlock_with_a_user_of_both_queues(
    store: tocsin.Store, store_dsn: str
) -> None:
    for name in ("a", "q"):
        await store.queues.create(name)
    outcome = list[str | None]()

    async def delete(deleting: TrioConnection[Any]) -> None:
        with pytest.raises(
            psycopg.Error, match="in use by transactions that do not end"
        ) as refused:
            await deleting.execute("select tocsin.delete_queue('q', force => true)")
        outcome.append(refused.value.sqlstate)
        await deleting.execute("rollback")

    async with (
        open_transaction(store_dsn) as producing,
        open_transaction(store_dsn) as deleting,
        trio.open_nursery() as nursery,
    ):
        await producing.execute("select tocsin.enqueue('q', '1')")
        await deleting.execute("select tocsin.delete_queue('a')")
        nursery.start_soon(delete, deleting)
        await until_waiting(store_dsn, "delete_queue('q'")
        nursery.start_soon(producing.execute, "select tocsin.enqueue('a', '1')")
        await until_waiting(store_dsn, "enqueue('a'")
        await query(store_dsn, FUTURE)
    assert outcome == ["TC011"]


async def test_deletions_of_different_queues_do_not_wait_for_each_other(
    store: tocsin.Store, store_dsn: str
) -> None:
    for queue in ("a", "b"):
        await store.queues.create(queue)
    async with open_connection(store_dsn) as other:
        await other.execute("begin")
        await other.execute("select tocsin.delete_queue('a')")
        await store.queues.delete("b")
        await other.execute("rollback")
    assert [q.name for q in await store.queues.list()] == ["a"]
