"""Instruments: context managers round each enqueue and each handler call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest

import tocsin
from tests.support.sweeps import sweep
from tocsin.telemetry import EnqueueCall


class Recorder:
    """An instrument that notes what it sees."""

    def __init__(self, name: str = "", log: list[tuple[Any, ...]] | None = None) -> None:
        self.name = name
        self.log: list[tuple[Any, ...]] = [] if log is None else log

    @contextmanager
    def enqueueing(self, call: EnqueueCall) -> Iterator[None]:
        self.log.append((f"{self.name}enqueueing", call.queue, call.payloads, call.worker_id))
        call.headers = {**(call.headers or {}), f"by{self.name}": "instrument"}
        try:
            yield
        except Exception as error:
            self.log.append((f"{self.name}refused", type(error).__name__, call.ids))
            raise
        self.log.append((f"{self.name}enqueued", call.ids))

    @contextmanager
    def handling(self, messages: Sequence[tocsin.Message]) -> Iterator[None]:
        self.log.append((f"{self.name}handling", [m.id for m in messages]))
        try:
            yield
        except BaseException as error:
            self.log.append((f"{self.name}raised", type(error).__name__))
            raise
        self.log.append((f"{self.name}handled",))


class Faulty:
    """An instrument that raises where it can."""

    def __init__(self, where: str) -> None:
        self.where = where

    def enqueueing(self, call: EnqueueCall) -> Any:
        return self._fail()

    def handling(self, messages: Sequence[tocsin.Message]) -> Any:
        return self._fail()

    def _fail(self) -> Any:
        if self.where == "call":
            raise RuntimeError("at the call")
        return self._manager()

    @contextmanager
    def _manager(self) -> Iterator[None]:
        if self.where == "enter":
            raise RuntimeError("at the beginning")
        with suppress(ValueError):
            yield
        if self.where == "exit":
            raise RuntimeError("at the end")


async def test_an_enqueue_runs_within_each_instrument_and_has_its_headers(store_dsn: str) -> None:
    log: list[tuple[Any, ...]] = []
    instruments = [Recorder("1", log), Recorder("2", log)]
    async with tocsin.connect(store_dsn, instruments=instruments) as store:
        await store.queues.ensure("q")
        async with store.producer("q") as producer:
            message_id = await producer.enqueue({"n": 1}, headers={"own": 1})
        assert log == [
            ("1enqueueing", "q", [{"n": 1}], producer.worker_id),
            ("2enqueueing", "q", [{"n": 1}], producer.worker_id),
            ("2enqueued", [message_id]),
            ("1enqueued", [message_id]),
        ]
        found = await store.messages.get(message_id)
        assert found.headers == {"own": 1, "by1": "instrument", "by2": "instrument"}


async def test_a_batch_is_one_call(store_dsn: str) -> None:
    recorder = Recorder()
    async with tocsin.connect(store_dsn, instruments=[recorder]) as store:
        await store.queues.ensure("q")
        ids = await store.produce_many("q", [1, 2])
        more = await store.produce_many("q", (n for n in (3,)))
        assert recorder.log == [
            ("enqueueing", "q", [1, 2], None),
            ("enqueued", ids),
            ("enqueueing", "q", None, None),
            ("enqueued", more),
        ]
        assert (await store.messages.get(ids[1])).headers == {"by": "instrument"}


async def test_an_instrument_sees_the_error_of_an_enqueue(store_dsn: str) -> None:
    recorder = Recorder()
    async with tocsin.connect(store_dsn, instruments=[recorder]) as store:
        with pytest.raises(tocsin.QueueNotFound):
            await store.produce("none", 1)
    assert recorder.log[-1] == ("refused", "QueueNotFound", None)


@pytest.mark.parametrize("where", ["call", "enter", "exit"])
async def test_an_instrument_that_fails_is_reported_and_disturbs_nothing(
    store_dsn: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    async with tocsin.connect(store_dsn, instruments=[Faulty(where), recorder]) as store:
        await store.queues.ensure("q")
        message_id = await store.produce("q", 1)
        assert (await store.messages.get(message_id)).payload == 1
    assert [entry[0] for entry in recorder.log] == ["enqueueing", "enqueued"]
    (record,) = [r for r in caplog.records if r.name == "tocsin.telemetry"]
    assert record.exc_info is not None
    assert "RuntimeError" in str(record.exc_info[0])


async def test_an_instrument_cannot_suppress_an_error(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, instruments=[Faulty("nowhere")]) as store:
        await store.queues.ensure("q")
        with pytest.raises(ValueError, match="priority"):
            await store.produce("q", 1, priority=2**40)


@pytest.mark.parametrize("wrong", [object(), 1])
async def test_what_is_no_instrument_is_refused(store_dsn: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="has the methods handling and enqueueing"):
        async with tocsin.connect(store_dsn, instruments=[wrong]):
            pass


# Handlers


current: ContextVar[str] = ContextVar("current", default="none")


class Context:
    """An instrument that sets a context variable for the handler."""

    @contextmanager
    def enqueueing(self, call: EnqueueCall) -> Iterator[None]:
        yield

    @contextmanager
    def handling(self, messages: Sequence[tocsin.Message]) -> Iterator[None]:
        current.set(f"message {messages[0].id}")
        yield


async def run_once(store: tocsin.Store, handler: Any, *, batches: bool = False) -> None:
    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            if batches:
                await consumer.handle_batches(handler, size=10, once=True)
            else:
                await consumer.handle(handler, once=True)


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("batches", [False, True])
async def test_a_handler_runs_within_the_instruments(
    store_dsn: str, kind: str, batches: bool
) -> None:
    recorder, seen = Recorder(), list[str]()
    async with tocsin.connect(store_dsn, instruments=[recorder, Context()]) as store:
        await store.queues.ensure("q")
        first, second = await store.produce_many("q", [1, 2])
        recorder.log.clear()

        def note(work: Any) -> None:
            seen.append(current.get())

        async def note_async(work: Any) -> None:
            note(work)

        await run_once(store, note if kind == "thread" else note_async, batches=batches)
    if batches:
        assert recorder.log == [("handling", [first, second]), ("handled",)]
        assert seen == [f"message {first}"]
    else:
        assert recorder.log == [
            *(("handling", [first]), ("handled",)),
            *(("handling", [second]), ("handled",)),
        ]
        assert seen == [f"message {first}", f"message {second}"]
    assert current.get() == "none"


async def test_handler_instruments_are_left_in_reverse_order(store_dsn: str) -> None:
    log: list[tuple[Any, ...]] = []
    instruments = [Recorder("1", log), Recorder("2", log)]
    async with tocsin.connect(store_dsn, instruments=instruments) as store:
        await store.queues.ensure("q")
        message_id = await store.produce("q", 1)
        log.clear()

        def note(message: tocsin.Message) -> None:
            log.append(("handler",))

        await run_once(store, note)
    assert log == [
        ("1handling", [message_id]),
        ("2handling", [message_id]),
        ("handler",),
        ("2handled",),
        ("1handled",),
    ]


async def test_messages_that_are_taken_by_hand_have_no_handler_call(store_dsn: str) -> None:
    recorder = Recorder()
    async with tocsin.connect(store_dsn, instruments=[recorder]) as store:
        await store.queues.ensure("q")
        first, second = await store.produce_many("q", [1, 2])
        recorder.log.clear()
        async with store.consumer("q") as consumer:
            (message,) = await consumer.dequeue()
            assert message.id == first
            await message.archive()
            async with consumer.messages() as messages:
                message = await anext(messages)
                assert message.id == second
                await message.archive()
    assert recorder.log == []


@pytest.mark.parametrize("kind", ["async", "thread"])
@sweep(
    ("verdict", "state"),
    [(tocsin.Reject("no"), "dead"), (tocsin.Retry(60), "delayed"), (tocsin.Snooze(60), "delayed")],
    quick=1,
    ids=["Reject", "Retry", "Snooze"],
)
async def test_an_instrument_sees_what_a_handler_raises(
    store_dsn: str, kind: str, verdict: Exception, state: str
) -> None:
    recorder = Recorder()
    async with tocsin.connect(store_dsn, instruments=[recorder]) as store:
        await store.queues.ensure("q")
        message_id = await store.produce("q", 1)

        def decide(message: tocsin.Message) -> None:
            raise verdict

        async def decide_async(message: tocsin.Message) -> None:
            decide(message)

        await run_once(store, decide if kind == "thread" else decide_async)
        assert recorder.log[-1] == ("raised", type(verdict).__name__)
        assert (await store.messages.get(message_id)).state == state
        if state == "dead":
            assert (await store.dead_letters.get(message_id)).reason == "rejected"


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("where", ["call", "enter", "exit"])
async def test_an_instrument_that_fails_round_a_handler_disturbs_nothing(
    store_dsn: str, kind: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    handled = list[int]()
    async with tocsin.connect(store_dsn, instruments=[Faulty(where)]) as store:
        await store.queues.ensure("q")
        message_id = await store.produce("q", 1)
        caplog.clear()

        def note(message: tocsin.Message) -> None:
            handled.append(message.id)

        async def note_async(message: tocsin.Message) -> None:
            note(message)

        await run_once(store, note if kind == "thread" else note_async)
        assert (await store.messages.get(message_id)).state == "archived"
    assert handled == [message_id]
    assert [r.name for r in caplog.records if r.exc_info] == ["tocsin.telemetry"]


async def test_an_instrument_cannot_suppress_a_handlers_error(store_dsn: str) -> None:
    async with tocsin.connect(store_dsn, instruments=[Faulty("nowhere")]) as store:
        await store.queues.ensure("q", max_deliveries=1)
        message_id = await store.produce("q", 1)

        async def fail(message: tocsin.Message) -> None:
            raise ValueError("no good")

        await run_once(store, fail)
        assert (await store.dead_letters.get(message_id)).error == "ValueError: no good"
