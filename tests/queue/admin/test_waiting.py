"""Changing a message that waits: cancel, reschedule, reprioritise, by its id or by its
queue and key."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    move_clock,
    open_connection,
    query,
    until_blocked,
    until_idle,
    until_query,
)
from tests.support.dead_letters import make_dead
from tests.support.runs import running

BY = pytest.mark.parametrize("by", ["id", "key"])


def name(message_id: int, by: str) -> dict[str, Any]:
    return {"message_id": message_id} if by == "id" else {"queue": "q", "key": "k"}


@BY
async def test_a_cancelled_message_is_archived_and_its_key_is_free(
    store: tocsin.Store, store_dsn: str, by: str
) -> None:
    queue = await store.queues.ensure("q")
    message_id = await store.produce(
        "q", {"n": 1}, key="k", priority=3, headers={"h": 1}, delay=3600
    )
    assert await store.messages.cancel(**name(message_id, by)) == message_id
    found = await store.messages.get(message_id)
    assert (
        found.state,
        found.last_error,
        found.payload,
        found.headers,
        found.key,
        found.priority,
        found.read_ct,
    ) == (*("archived", "cancelled", {"n": 1}, {"h": 1}, "k", 3, 0),)
    assert await query(store_dsn, "select tocsin.archived_count(%s)", queue.id) == [(1,)]
    assert await store.produce("q", 2, key="k") > message_id
    await store.queues.update("q", retention=0)
    again = await store.messages.cancel(queue="q", key="k")
    with pytest.raises(tocsin.MessageNotFound):
        await store.messages.get(again)
    assert await query(store_dsn, "select tocsin.archived_count(%s)", queue.id) == [(1,)]


@BY
async def test_a_message_that_becomes_due_earlier_wakes_a_consumer(store_dsn: str, by: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, running(consumer) as run:
            first = await store.produce("q", 1, delay=3600, key="k")
            second = await store.produce("q", 2, at=datetime.now(UTC) + timedelta(hours=1))
            await until_idle(store)
            assert await store.messages.reschedule(**name(first, by), delay=0) == first
            await run.handled.wait(1)
            await until_idle(store)
            await store.messages.reschedule(second, delay=1800)
            await until_idle(store)
            await store.messages.reschedule(second, delay=0.2)
            await run.handled.wait(2)
            third = await store.produce("q", 3, delay=3600)
            await until_idle(store)
            await store.messages.reschedule(third, at=datetime.now(UTC) - timedelta(days=1))
            await run.handled.wait(3)
    assert run.handled.payloads == [1, 2, 3]


@BY
async def test_a_message_that_becomes_due_later_waits_until_then(
    store: tocsin.Store, store_dsn: str, by: str
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1, key="k")
    assert await store.messages.reschedule(**name(message_id, by), delay=60) == message_id
    found = await store.messages.get(message_id)
    assert (found.state, found.due == found.vt) == ("delayed", True)
    async with store.consumer("q") as consumer:
        assert await consumer.dequeue() == []
        await move_clock(store_dsn, 61)
        (message,) = await consumer.dequeue()
        assert (message.id, message.read_ct) == (message_id, 1)


@BY
async def test_another_priority_is_another_place_in_the_queue(store: tocsin.Store, by: str) -> None:
    await store.queues.ensure("q")
    first, second = await store.produce_many("q", [1, 2])
    last = await store.produce("q", 3, key="k")
    assert await store.messages.reprioritise(**name(last, by), priority=-1) == last
    async with store.consumer("q") as consumer:
        assert [m.id for m in await consumer.dequeue(9)] == [last, first, second]


async def test_what_does_not_wait_is_refused_and_its_state_named(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    leased = await store.produce("q", 1, key="k")
    async with store.consumer("q") as consumer:
        (held,) = await consumer.dequeue()
        archived = await store.messages.cancel(await store.produce("q", 2))
        (dead,) = await make_dead(store, "q", 3)
        rows = "select m::text from tocsin.messages m"
        before = await query(store_dsn, rows)
        for message_id, state in ((leased, "leased"), (archived, "archived"), (dead, "dead")):
            for change in (
                store.messages.cancel(message_id),
                store.messages.reschedule(message_id, delay=0),
                store.messages.reprioritise(message_id, priority=1),
            ):
                with pytest.raises(
                    tocsin.MessageNotWaiting,
                    match=f"message {message_id} cannot be changed: it is {state}",
                ) as refused:
                    await change
                assert (refused.value.message_id, refused.value.state) == (message_id, state)
        with pytest.raises(tocsin.MessageNotWaiting):
            await store.messages.cancel(queue="q", key="k")
        assert await query(store_dsn, rows) == before
        await held.archive()
    with pytest.raises(tocsin.MessageNotFound, match="message 4711 does not exist") as unknown:
        await store.messages.cancel(4711)
    assert (unknown.value.message_id, unknown.value.key) == (4711, None)
    with pytest.raises(
        tocsin.MessageNotFound, match='no unfinished message of queue "q" has the key "k"'
    ) as unknown:
        await store.messages.cancel(queue="q", key="k")
    assert (unknown.value.message_id, unknown.value.key) == (None, "k")
    with pytest.raises(tocsin.QueueNotFound):
        await store.messages.cancel(queue="nothing", key="k")


async def test_arguments_that_make_no_sense_are_refused(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1, key="k")
    messages: Any = store.messages
    for kind, refused in [
        (ValueError, messages.cancel()),
        (ValueError, messages.cancel(1, queue="q", key="k")),
        (ValueError, messages.cancel(queue="q")),
        (ValueError, messages.cancel(key="k")),
        (TypeError, messages.cancel("k")),
        (TypeError, messages.cancel(queue="q", key=1)),
        (ValueError, messages.reschedule(message_id)),
        (ValueError, messages.reschedule(message_id, delay=-1)),
        (ValueError, messages.reschedule(message_id, delay=1, at=datetime.now(UTC))),
        (ValueError, messages.reschedule(message_id, at=datetime(2030, 1, 1))),
        (TypeError, messages.reprioritise(message_id, priority="1")),
        (ValueError, messages.reprioritise(message_id, priority=2**31)),
        (TypeError, messages.cancel(message_id, connection="x")),
    ]:
        with pytest.raises(kind):
            await refused
    for call in (
        "cancel()",
        f"cancel({message_id}, key => 'k')",
        "cancel(queue => 'q')",
        f"reschedule({message_id})",
        f"reschedule({message_id}, '-1 s')",
        f"reschedule({message_id}, '1 s', now())",
        f"reprioritise({message_id})",
    ):
        with pytest.raises(psycopg.Error) as error:
            await query(store_dsn, f"select tocsin.{call}")
        assert error.value.sqlstate == "TC022", call
    assert (await store.messages.get(message_id)).state == "ready"


# At the same moment as a claim


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("change", ["cancel", "reschedule", "reprioritise"])
async def test_a_claim_that_comes_first_has_the_message(
    store: tocsin.Store, store_dsn: str, change: str, end: str
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    outcomes: list[object] = []

    async def attempt() -> None:
        options = {"cancel": {}, "reschedule": {"delay": 60}, "reprioritise": {"priority": 1}}[
            change
        ]
        try:
            outcomes.append(await getattr(store.messages, change)(message_id, **options))
        except tocsin.MessageNotWaiting as refused:
            outcomes.append(refused.state)

    async with (
        store.consumer("q") as consumer,
        open_connection(store_dsn) as claiming,
        trio.open_nursery() as nursery,
    ):
        await claiming.execute("begin")
        await claiming.execute(
            "select * from tocsin.claim(%s, %s, 1)",
            [consumer.worker_id, consumer._registration.token],
        )
        nursery.start_soon(attempt)
        await until_blocked(store_dsn)
        await claiming.execute(end.encode())
    assert outcomes == (["leased"] if end == "commit" else [message_id])


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_claim_passes_over_a_message_that_is_being_changed(
    store: tocsin.Store, end: str
) -> None:
    await store.queues.ensure("q")
    first, second = await store.produce_many("q", [1, 2])
    async with store.consumer("q") as consumer:
        async with (
            store.transaction() as transaction,
            transaction.transaction(force_rollback=end == "rollback"),
        ):
            assert await store.messages.cancel(first, connection=transaction) == first
            assert [m.id for m in await consumer.dequeue(9)] == [second]
        assert [m.id for m in await consumer.dequeue(9)] == ([] if end == "commit" else [first])


async def test_of_many_claims_and_changes_each_message_has_one_end(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A message is handled or cancelled, never both and never neither, whatever is
    changed at the same moment."""
    await store.queues.ensure("q")
    ids = await store.produce_many("q", range(300))
    cancelled = list[int]()

    async def change(start: int) -> None:
        for message_id in ids[start::3]:
            with suppress(tocsin.MessageNotWaiting):
                await store.messages.reprioritise(message_id, priority=message_id % 3)
                await store.messages.reschedule(message_id, delay=0)
                cancelled.append(await store.messages.cancel(message_id))

    async with store.consumer("q") as consumer, running(consumer) as run:
        async with trio.open_nursery() as changes:
            for start in range(3):
                changes.start_soon(change, start)
        await until_query(store_dsn, "select 1 from tocsin.messages limit 1", gives=[])
    assert sorted([*cancelled, *(m.id for m in run.handled.messages)]) == ids
    archived = (
        "select id from tocsin.archive where last_error = 'cancelled' and read_ct = 0 order by id"
    )
    assert [row[0] for row in await query(store_dsn, archived)] == sorted(cancelled)


async def test_a_message_whose_lease_has_ended_waits(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q", max_deliveries=2)
    first, second = await store.produce_many("q", [1, 2])
    async with store.consumer("q") as consumer:
        held = await consumer.dequeue(2, vt=10)
        await move_clock(store_dsn, 11)
        assert (await store.messages.get(first)).state == "ready"
        await store.messages.cancel(first)
        await store.messages.reprioritise(second, priority=1)
        assert await consumer.archive_many(held) == [False, False]
        (again,) = await consumer.dequeue(2, vt=10)
        assert (again.id, again.read_ct) == (second, 2)
        found = await store.messages.get(first)
        assert (found.state, [d.delivery for d in found.history]) == ("archived", [1])


@pytest.mark.parametrize("change", ["cancel", "reschedule", "reprioritise"])
async def test_a_message_whose_last_lease_has_expired_waits_until_a_claim(
    store: tocsin.Store, store_dsn: str, change: str
) -> None:
    """Without deliveries left it is a dead letter from the next claim on, and can be
    changed until then."""
    await store.queues.ensure("q", max_deliveries=1)
    message_id = await store.produce("q", 1, key="k")
    async with store.consumer("q") as consumer:
        await consumer.dequeue(vt=10)
        await move_clock(store_dsn, 11)
        assert (await store.messages.get(message_id)).state == "ready"
        if change == "cancel":
            assert await store.messages.cancel(queue="q", key="k") == message_id
        elif change == "reschedule":
            assert await store.messages.reschedule(message_id, delay=60) == message_id
        else:
            assert await store.messages.reprioritise(message_id, priority=-1) == message_id
        found = await store.messages.get(message_id)
        outcomes = [(d.delivery, d.outcome) for d in found.history]
        claimed = [m.id for m in await consumer.dequeue(9)]
        if change == "cancel":
            assert (found.state, found.last_error) == ("archived", "cancelled")
            assert (outcomes, claimed) == ([(1, "lease_expired")], [])
        elif change == "reschedule":
            assert (found.state, outcomes, claimed) == ("delayed", [(1, "lease_expired")], [])
            await move_clock(store_dsn, 72)
            (again,) = await consumer.dequeue(9)  # one more delivery
            assert (again.id, again.read_ct) == (message_id, 2)
        else:
            assert (found.state, found.priority, claimed) == ("ready", -1, [])
            letter = await store.dead_letters.get(message_id)
            assert (letter.reason, letter.priority) == ("lease_expired", -1)
            with pytest.raises(tocsin.MessageNotWaiting) as moved:
                await store.messages.reprioritise(message_id, priority=0)
            assert moved.value.state == "dead"
            assert await store.dead_letters.replay(message_id) == [message_id]


# In the caller's transaction


async def test_a_change_in_the_callers_transaction_takes_effect_when_that_commits(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1, key="k", delay=3600)
    with psycopg.connect(store_dsn) as blocking:
        for _ in range(2):
            await store.messages.reschedule(queue="q", key="k", delay=0, connection=blocking)
            await store.messages.reprioritise(message_id, priority=5, connection=blocking)
            blocking.rollback()
            assert (await store.messages.get(message_id)).state == "delayed"
        await store.messages.reschedule(message_id, delay=0, connection=blocking)
        blocking.commit()
    assert (await store.messages.get(message_id)).state == "ready"
    async with store.transaction() as transaction:
        await store.messages.cancel(queue="q", key="k", connection=transaction)
        new = await store.produce("q", 2, key="k", connection=transaction)
        assert (await store.messages.get(message_id)).state == "ready"
    assert (await store.messages.get(message_id)).state == "archived"
    assert (await store.messages.get(new)).payload == 2


async def test_a_consumer_gets_what_another_transaction_gave_another_priority_after_that_has_ended(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        await store.produce("q", 1, key="k")
        async with store.consumer("q") as consumer, AsyncExitStack() as stack:
            async with store.transaction() as transaction:
                await store.messages.reprioritise(
                    queue="q", key="k", priority=7, connection=transaction
                )
                run = await stack.enter_async_context(running(consumer))
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert run.handled.messages == []
            await run.handled.wait(1)
    assert [m.priority for m in run.handled.messages] == [7]
