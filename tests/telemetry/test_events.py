"""The event channel: what a subscription delivers, drops, and costs."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

import tocsin
from tocsin import telemetry
from tocsin.telemetry.events import Events


def rung(queue: str) -> telemetry.Rung:
    return telemetry.Rung(queue=queue)


async def test_a_subscription_delivers_what_it_asked_for_in_order() -> None:
    events = Events()
    with events.subscribe(telemetry.Rung) as rings, events.subscribe() as everything:
        for event in (rung("a"), telemetry.ConnectionUp(), rung("b")):
            events.emit(event)
        events.close()
        assert [event.queue async for event in rings] == ["a", "b"]
        assert [type(event).__name__ async for event in everything] == [
            "Rung",
            "ConnectionUp",
            "Rung",
        ]


async def test_an_event_that_no_subscription_asks_for_is_not_wanted() -> None:
    events = Events()
    assert not events.wants(telemetry.Rung)
    with events.subscribe(telemetry.Rung):
        assert events.wants(telemetry.Rung)
        assert not events.wants(telemetry.Woken)
        with events.subscribe():
            assert events.wants(telemetry.Woken)
        assert not events.wants(telemetry.Woken)
    assert not events.wants(telemetry.Rung)


async def test_a_full_buffer_drops_and_counts() -> None:
    events = Events()
    with events.subscribe(telemetry.Rung, buffer=2) as slow, events.subscribe() as other:
        for n in range(5):
            events.emit(rung(str(n)))
        assert (slow.dropped, other.dropped) == (3, 0)
        assert [(await anext(slow)).queue, (await anext(slow)).queue] == ["0", "1"]
        events.emit(rung("later"))
        assert (await anext(slow)).queue == "later"


async def test_a_cancelled_subscriber_loses_nothing() -> None:
    events = Events()
    with events.subscribe(telemetry.Rung) as rings:
        with trio.move_on_after(0) as scope:
            await anext(rings)
        assert scope.cancelled_caught
        events.emit(rung("a"))
        assert (await anext(rings)).queue == "a"


async def test_the_iteration_ends_with_the_store(store_dsn: str) -> None:
    async with trio.open_nursery() as nursery:
        async with tocsin.connect(store_dsn) as store:
            with store.events.subscribe(telemetry.Enqueued) as before:
                await store.queues.ensure("q")
                message_id = await store.produce("q", 1)
                assert (await anext(before)).ids == (message_id,)

            async def listen() -> None:
                with store.events.subscribe() as events:
                    nursery.cancel_scope.deadline = trio.current_time() + 30
                    async for _ in events:
                        pass

            nursery.start_soon(listen)
        with store.events.subscribe() as late:
            assert [event async for event in late] == []
    assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"buffer": "x"}])
def test_a_buffer_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="buffer must be a positive integer"):
        Events().subscribe(**wrong)


def test_a_class_that_is_no_event_is_refused() -> None:
    with pytest.raises(TypeError, match=r"classes of tocsin\.telemetry"):
        Events().subscribe(int)  # type: ignore[type-var]


def test_events_are_frozen_and_exported() -> None:
    kinds = [k for k in vars(telemetry).values() if isinstance(k, type)]
    events = [k for k in kinds if issubclass(k, telemetry.Event)]
    assert len(events) == 15
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        rung("a").queue = "b"  # type: ignore[misc]


async def test_enqueued_names_the_messages_the_producer_and_the_transaction(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    with store.events.subscribe(telemetry.Enqueued) as enqueued:
        async with store.producer("q") as producer:
            one = await producer.enqueue(1)
            many = await producer.enqueue_many([2, 3])
            async with store.transaction() as connection:
                within = await producer.enqueue(4, connection=connection)
            alone = await store.produce("q", 5)
            await store.produce_many("q", [])
            with pytest.raises(tocsin.PayloadInvalid):
                await store.produce("q", object())
            last = await store.produce("q", 6)
        found = [await anext(enqueued) for _ in range(5)]
    worker = producer.worker_id
    assert [(e.ids, e.worker_id, e.in_transaction) for e in found] == [
        ((one,), worker, False),
        (tuple(many), worker, False),
        ((within,), worker, True),
        ((alone,), None, False),
        ((last,), None, False),
    ]
    assert {e.queue for e in found} == {"q"}
