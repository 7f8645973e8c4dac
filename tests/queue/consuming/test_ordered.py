"""An ordered queue: no message begins before the one ahead of it is finished."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, move_clock, nodes, query, until_idle
from tests.support.runs import running


async def test_a_message_that_failed_holds_up_those_behind_it(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_deliveries=2, retry_base=0.05)
    seen: list[tuple[Any, int]] = []
    ended = trio.Event()

    async def handler(message: tocsin.Message) -> None:
        seen.append((message.payload, message.read_ct))
        match message.payload:
            case 1 if message.read_ct == 1:
                raise ValueError("later")
            case 2:
                raise ValueError("never")
            case 3 if len(seen) == 6:
                raise tocsin.Snooze(0.05)
            case 4:
                raise tocsin.Reject("no")
            case 5 if message.read_ct == 1:
                raise tocsin.Retry(0.05)
            case 6:
                await message.archive()
            case 7:
                ended.set()

    with trio.fail_after(PATIENCE):
        await store.produce_many("q", range(8))
        async with store.consumer("q") as consumer, running(consumer, handler, ordered=True):
            await ended.wait()
    assert seen == [
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        (3, 1),
        (3, 1),
        (4, 1),
        (5, 1),
        (5, 2),
        (6, 1),
        (7, 1),
    ]


async def test_of_two_consumers_one_works_and_the_other_takes_over(store: tocsin.Store) -> None:
    await store.queues.ensure("q", vt=1)
    active, most, seen = 0, 0, list[int]()
    workers = set[int]()
    half, ended = trio.Event(), trio.Event()

    async def handler(message: tocsin.Message) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await trio.lowlevel.checkpoint()
        seen.append(message.payload)
        workers.add(message.consumer_worker_id)
        active -= 1
        if message.payload == 49:
            half.set()
        if message.payload == 99:
            ended.set()

    with trio.fail_after(PATIENCE):
        async with (
            store.consumer("q") as first,
            store.consumer("q") as second,
            running(first, handler, ordered=True),
            running(second, handler, ordered=True),
        ):
            await store.produce_many("q", range(50))
            await half.wait()
            leader = next(c for c in (first, second) if c.worker_id == min(workers))
            await leader.interrupt()
            await store.produce_many("q", range(50, 100))
            await ended.wait()
    assert (most, seen) == (1, list(range(100)))


async def test_a_locked_first_message_is_not_overtaken(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.produce_many("q", range(2))
    async with store.transaction() as connection, store.consumer("q") as consumer:
        await connection.execute("select from tocsin.messages order by id limit 1 for update")
        claim = await consumer._parts.claimer.claim(1, None, ordered=True)
        assert (len(claim.batch), claim.full) == (0, False)


async def test_a_standby_backs_off_from_an_expired_message_that_is_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with (
        store.consumer("q") as leader,
        store.consumer("q") as standby,
        store.transaction() as connection,
    ):
        await leader.dequeue(vt=0.001)
        await connection.execute("select from tocsin.messages for update")
        registration = standby._registration
        for seconds, least, most in ((0.4, 0.1, 0.25), (100, 0.25, 0.25)):
            await move_clock(store_dsn, seconds)
            ((next_due,),) = await query(
                store_dsn,
                "select next_due from tocsin.claim(%s, %s, 1, ordered => true)",
                registration.worker_id,
                registration.token,
            )
            assert least <= next_due <= most


async def test_a_run_that_ends_when_no_message_is_due_waits_for_one_that_holds_up_the_rest(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    await store.produce_many("q", range(3))
    seen: list[tuple[Any, int]] = []

    async def handler(message: tocsin.Message) -> None:
        seen.append((message.payload, message.read_ct))
        if message.read_ct == 1:
            raise tocsin.Retry(3600 if message.payload == 2 else 0.05)

    async with store.consumer("q") as consumer:
        with trio.fail_after(PATIENCE), pytest.raises(tocsin.Suspended) as ended:
            await consumer.handle(handler, ordered=True, once=True)
    # When the last one has failed, none that is due is behind it.
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    assert (ended.value.handled, ended.value.failed) == (2, 3)


async def test_order_and_concurrency_exclude_each_other(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(ValueError, match="concurrency must be 1"):
            await consumer.handle(print, ordered=True, concurrency=2)


SETUP = """
insert into tocsin.messages (queue_id, priority, state, lease, consumer_worker_id, due, vt,
    enqueued_at, payload)
select 1, 0, 'ready', n, null, now(), now(), now(), '1' from generate_series(1, 20000) n
"""


@pytest.mark.parametrize("planned", ["on the empty table", "on the full table"])
def test_an_ordered_claim_follows_an_index_without_a_sort(plans: Any, planned: str) -> None:
    statement = "select tocsin._order_kept_for(1)"
    if planned == "on the empty table":
        plans("vacuum analyze tocsin.messages")
        for _ in range(8):
            plans(statement)
    plans(SETUP)
    found = plans(statement)
    assert found
    for text, plan in found.items():
        for node in nodes(plan):
            assert node["Node Type"] not in ("Sort", "Seq Scan"), (text, plan)


@pytest.mark.parametrize("change", ["cancel", "reschedule", "purge"])
async def test_a_failed_message_that_is_taken_out_of_the_way_holds_up_none(
    store_dsn: str, change: str
) -> None:
    failed, passed = trio.Event(), trio.Event()

    async def handler(message: tocsin.Message) -> None:
        if message.payload == 1:
            failed.set()
            raise ValueError
        passed.set()

    async with tocsin.connect(store_dsn, heartbeat=600) as store:
        await store.queues.ensure("q", retry_base=3600)
        await store.produce_many("q", range(1, 3))
        async with store.consumer("q") as consumer, running(consumer, handler, ordered=True):
            with trio.fail_after(PATIENCE):
                await failed.wait()
                await until_idle(store)
                [message] = await store.messages.list("q", state="delayed")
                match change:
                    case "cancel":
                        await store.messages.cancel(message.id)
                    case "reschedule":
                        await store.messages.reschedule(message.id, delay=7200)
                    case "purge":
                        for dry_run in (True, False):
                            assert await store.queues.purge(
                                "q", delayed=True, dry_run=dry_run
                            ) == tocsin.PurgeResult(0, 1, 0, 0, 0)
                await passed.wait()
