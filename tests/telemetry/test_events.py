"""The event channel: what a subscription delivers, drops, and costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import tocsin
from tocsin import telemetry
from tocsin.telemetry import events as events_module
from tocsin.telemetry.events import Events

ROOT = Path(__file__).parents[2]
KINDS = [
    kind
    for kind in vars(events_module).values()
    if isinstance(kind, type) and issubclass(kind, telemetry.Event)
]


def rung(queue: str) -> telemetry.Rung:
    return telemetry.Rung(queue=queue)


async def test_a_subscription_delivers_what_it_asked_for_in_order() -> None:
    events = Events()
    with events.subscribe(telemetry.Rung) as rings, events.subscribe() as everything:
        for event in (rung("a"), telemetry.ConnectionUp(connection="pool"), rung("b")):
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


def test_events_are_exported() -> None:
    assert len(KINDS) == 15
    assert {kind.__name__ for kind in KINDS} <= set(telemetry.__all__)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_frozen(kind: type[telemetry.Event]) -> None:
    event = kind.__new__(kind)
    for field in attrs.fields(kind):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, field.name, None)


def test_the_table_of_the_guide_has_each_event() -> None:
    page = (ROOT / "docs" / "guides" / "telemetry.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    exported = {kind.__name__ for kind in KINDS if kind.__name__ in telemetry.__all__}
    assert sorted(re.findall(r"`(\w+)`", rows)) == sorted(exported - {"Event"})


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


async def test_a_call_that_ends_after_the_store_was_closed_reports_to_no_subscription() -> None:
    events = Events()
    with events.subscribe(telemetry.Rung) as rings:
        events.close()
        events.emit(rung("late"))
        assert [event async for event in rings] == []
