"""What a consumer reports: claims, handler calls, settlements, leases."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import tocsin
from tests.support import Handled, move_clock, next_event, until_idle
from tests.support.runs import running
from tocsin import telemetry

CONSUMER_KINDS = (
    telemetry.Claimed,
    telemetry.HandlerBegan,
    telemetry.HandlerEnded,
    telemetry.Settled,
)


async def run_once(consumer: tocsin.Consumer, handler: Any, **options: Any) -> None:
    with pytest.raises(tocsin.Suspended):
        await consumer.handle(handler, once=True, **options)


async def test_a_message_that_is_handled_is_reported_step_by_step(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    with store.events.subscribe(*CONSUMER_KINDS) as events:
        async with store.consumer("q") as consumer:
            await run_once(consumer, Handled())
            found = [await next_event(events) for _ in range(4)]
    assert [type(event) for event in found] == list(CONSUMER_KINDS)
    for event in found:
        assert (event.queue, event.worker_id, event.ids) == (  # type: ignore[attr-defined]
            "q",
            consumer.worker_id,
            (message_id,),
        )
    _, _, ended, settled = found
    assert isinstance(ended, telemetry.HandlerEnded)
    assert (ended.outcome, ended.error, ended.took >= 0) == ("returned", None, True)
    assert isinstance(settled, telemetry.Settled)
    assert (settled.outcome, settled.in_transaction) == ("archived", False)


async def test_a_handler_that_raises_is_reported_with_its_error(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)

    def fail(message: tocsin.Message) -> None:
        raise LookupError("no")

    with store.events.subscribe(telemetry.HandlerEnded, telemetry.Settled) as events:
        async with store.consumer("q") as consumer:
            await run_once(consumer, fail)
            ended, settled = await next_event(events), await next_event(events)
    assert isinstance(ended, telemetry.HandlerEnded)
    assert (ended.outcome, ended.error) == ("raised", "LookupError")
    assert isinstance(settled, telemetry.Settled)
    assert settled.outcome == "failed"


async def test_a_handler_that_is_cancelled_is_reported(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)

    async def hang(message: tocsin.Message) -> None:
        await trio.sleep_forever()

    with store.events.subscribe(telemetry.HandlerBegan, telemetry.HandlerEnded) as events:
        async with store.consumer("q") as consumer, running(consumer, hang):
            await next_event(events)
            await consumer.interrupt(grace=0)
            ended = await next_event(events)
    assert isinstance(ended, telemetry.HandlerEnded)
    assert (ended.outcome, ended.error) == ("cancelled", None)


async def test_what_is_settled_by_hand_is_reported(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    first, second, third, fourth = await store.produce_many("q", range(4))
    with store.events.subscribe(telemetry.Settled) as events:
        async with store.consumer("q") as consumer:
            messages = await consumer.dequeue(4)
            await messages[0].archive()
            await messages[1].delete()
            await messages[2].release(delay=60)
            async with store.transaction() as connection:
                await messages[3].archive(connection=connection)
            found = [await next_event(events) for _ in range(4)]
    assert [(e.ids, e.outcome, e.in_transaction) for e in found] == [
        ((first,), "archived", False),
        ((second,), "deleted", False),
        ((third,), "released", False),
        ((fourth,), "archived", True),
    ]


async def test_leases_that_are_extended_or_lost_are_reported(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    kinds = (telemetry.LeasesExtended, telemetry.LeasesLost)
    with store.events.subscribe(*kinds) as events:
        async with store.consumer("q") as consumer:
            (message,) = await consumer.dequeue()
            await message.extend(10)
            extended = await next_event(events)
            assert isinstance(extended, telemetry.LeasesExtended)
            assert extended.ids == (message_id,)
            await move_clock(store_dsn, 11)
            await store.messages.cancel(message_id)
            with pytest.raises(tocsin.LeaseLost):
                await message.extend(10)
            lost = await next_event(events)
            assert isinstance(lost, telemetry.LeasesLost)
            assert lost.ids == (message_id,)


async def test_leases_that_a_run_extends_or_loses_are_reported(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=10)
    message_id = await store.produce("q", 1)
    kinds = (telemetry.LeasesExtended, telemetry.LeasesLost)
    with store.events.subscribe(*kinds) as events:
        async with store.consumer("q") as consumer:

            async def lose(message: tocsin.Message) -> None:
                await consumer._parts.keeper.refresh()
                await move_clock(store_dsn, 11)
                await store.messages.cancel(message.id)
                await consumer._parts.keeper.refresh()

            await run_once(consumer, lose)
            found = [await next_event(events) for _ in kinds]
    assert [type(event) for event in found] == list(kinds)
    for event in found:
        assert (event.queue, event.worker_id, event.ids) == (  # type: ignore[attr-defined]
            "q",
            consumer.worker_id,
            (message_id,),
        )


async def test_an_idle_consumer_that_is_rung_for_is_reported(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with store.events.subscribe(telemetry.Woken) as events:
        async with store.consumer("q") as consumer, running(consumer):
            await until_idle(store)
            await store.produce("q", 1)
            woken = await next_event(events)
    assert (woken.queue, woken.worker_id) == ("q", consumer.worker_id)
