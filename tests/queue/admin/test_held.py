"""Held messages: no claim sees them, and everything else does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import trio

import tocsin
from tests.support import move_clock, nodes, query, until_blocked, until_idle
from tests.support.queues import open_transaction
from tests.support.runs import running

ADMIT = "select tocsin._admit(%s)"


async def hold(dsn: str, message_id: int, waits_for: int | None = 1) -> int:
    await query(
        dsn,
        "update tocsin.messages set state = 'held', waits_for = %s where id = %s",
        waits_for,
        message_id,
    )
    return message_id


async def test_no_claim_sees_a_held_message(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", "held", priority=-1))
    ready = await store.produce("q", "ready")
    async with store.consumer("q") as consumer:
        assert [m.id for m in await consumer.dequeue(5)] == [ready]
        assert await query(store_dsn, "select tocsin._next_due(1, false) > 0") == [(True,)]
    assert (await store.messages.get(held)).state == "held"
    assert [m.id for m in await store.messages.list("q", state="held")] == [held]
    assert [m.id for m in await store.messages.list("q")] == [held, ready]


async def test_an_ordered_claim_goes_past_a_held_message(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1))
    await store.produce("q", 2)
    claim = "select kind, payload from tocsin.claim(%s, %s, 1, ordered => true)"
    async with store.consumer("q"):
        worker = await query(store_dsn, "select id, registration from tocsin.workers")
        assert await query(store_dsn, claim, *worker[0]) == [("message", "2")]
    assert (await store.messages.get(held)).state == "held"


async def test_admitting_makes_ready_or_delayed_what_waits_for_nothing(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    now = await hold(store_dsn, await store.produce("q", "now"), None)
    later = await hold(store_dsn, await store.produce("q", "later", delay=60), 0)
    waits = await hold(store_dsn, await store.produce("q", "waits"), 1)
    ready = await store.produce("q", "ready")
    before = await store.messages.get(later)
    admitted = await query(store_dsn, ADMIT, [ready, waits, later, now])
    assert admitted == [([now, later],)]
    states = {m.id: m.state for m in await store.messages.list("q")}
    assert states == {now: "ready", later: "delayed", waits: "held", ready: "ready"}
    after = await store.messages.get(later)
    assert (after.due, after.vt) == (before.due, before.vt)
    assert await query(store_dsn, ADMIT, [now, later]) == [([],)]


async def test_admitting_wakes_an_idle_consumer(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", "held"), None)
    async with store.consumer("q") as consumer, running(consumer) as run:
        await until_idle(store)
        await query(store_dsn, ADMIT, [held])
        await run.handled.wait(1)
        assert run.handled.payloads == ["held"]


async def test_two_transactions_that_admit_the_same_message(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The second waits for the first, and finds nothing to admit."""
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1), 0)
    admitted: list[Any] = []

    async def admit() -> None:
        admitted.extend(await query(store_dsn, ADMIT, [held]))

    async with trio.open_nursery() as nursery, open_transaction(store_dsn) as first:
        await first.execute(ADMIT.encode(), [[held]])
        nursery.start_soon(admit)
        await until_blocked(store_dsn, "_admit")
        await first.execute("commit")
    assert admitted == [([],)]
    assert (await store.messages.get(held)).state == "ready"


@pytest.mark.parametrize("planned", ["on the empty table", "on the full table"])
def test_admitting_reads_the_named_rows_alone(plans: Any, planned: str) -> None:
    if planned == "on the empty table":
        for _ in range(8):
            plans("select tocsin._admit(array[1, 2])")
    plans(
        "insert into tocsin.messages (queue_id, state, due, vt, enqueued_at, payload) select 1,"
        " 'held', now(), now(), now(), '1' from generate_series(1, 20000)"
    )
    for n in range(8):
        found = plans(f"select tocsin._admit(array[{2 * n + 1}, {2 * n + 2}])")
    read = [n for p in found.values() for n in nodes(p) if n.get("Relation Name") == "messages"]
    assert {n.get("Index Name") for n in read} == {"messages_pkey", None}
    assert not [n for n in read if n["Node Type"] == "Seq Scan"]
    assert max(n["Actual Rows"] * n["Actual Loops"] for n in read) <= 2


async def test_metrics_and_stats_count_held_messages(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    for due_in in (0, 60):
        await hold(store_dsn, await store.produce("q", 1, delay=due_in))
    await store.produce("q", 1)
    metrics, stats = await store.queues.metrics("q"), await store.stats()
    assert (metrics.ready, metrics.delayed, metrics.held, metrics.leased) == (1, 0, 2, 0)
    assert (stats.ready, stats.delayed, stats.held, stats.leased) == (1, 0, 2, 0)
    assert metrics.enqueue_rate == pytest.approx(3 / 60)


async def test_purge_and_deletion_of_held_messages(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1))
    assert (await store.queues.purge("q", ready=True, delayed=True)).total == 0
    expected = tocsin.PurgeResult(ready=0, delayed=0, held=1, archived=0, dead=0)
    assert await store.queues.purge("q", held=True, dry_run=True) == expected
    with pytest.raises(tocsin.QueueNotEmpty):
        await store.queues.delete("q")
    assert await store.queues.purge("q", held=True) == expected
    with pytest.raises(tocsin.MessageNotFound):
        await store.messages.get(held)
    await hold(store_dsn, await store.produce("q", 1))
    assert (await store.queues.delete("q", force=True)).messages == 1
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_changes_of_a_held_message(store: tocsin.Store, store_dsn: str) -> None:
    """It can be reprioritised and rescheduled, and stays held. It can be cancelled."""
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1))
    await store.messages.reprioritise(held, priority=-7)
    for delay in (60, 0):
        await store.messages.reschedule(held, delay=delay)
        found = await store.messages.get(held)
        assert (found.state, found.priority) == ("held", -7)
        assert found.due == found.vt
        assert found.due is not None
        assert (found.due - found.enqueued_at > timedelta(seconds=59)) == (delay == 60)
    await store.messages.cancel(held)
    assert (await store.messages.get(held)).state == "archived"


async def test_a_held_message_expires(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1, expires_in=10))
    await move_clock(store_dsn, 11)
    async with store.consumer("q") as consumer:
        assert await consumer.dequeue() == []
    found = await store.messages.get(held)
    assert (found.state, found.reason) == ("dead", "expired")


async def test_a_held_message_that_cannot_become_a_dead_letter_stays_held(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    held = await hold(store_dsn, await store.produce("q", 1, expires_in=10))
    await query(
        store_dsn, "alter table tocsin.dead_letters add constraint none check (reason <> 'expired')"
    )
    await move_clock(store_dsn, 11)
    async with store.consumer("q") as consumer:
        assert await consumer.dequeue() == []
    assert (await store.messages.get(held)).state == "held"
