"""Features by their names, each told whole, where no other file does."""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    Handled,
    move_clock,
    query,
    run_until_suspended,
    since,
    statements,
    until,
    until_asleep,
)
from tests.support.commands import Call, line_with, started


async def everything(dsn: str) -> list[Any]:
    return [
        await query(dsn, f"select x::text from tocsin.{t} x order by 1")
        for t in ("messages", "archive", "dead_letters")
    ]


# Queues


async def test_per_queue_settings_changed_live_count_for_a_run_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Beside the visibility timeout (tests/queue/admin/test_queues.py) and the mode of
    notifying (tests/queue/process/test_ring.py)."""
    await store.queues.ensure("q", max_deliveries=5, retry_base=0, retry_jitter=0)

    async def fail(message: tocsin.Message) -> None:
        if message.payload != "good":
            raise RuntimeError

    async def due_in() -> list[tuple[float]]:
        return await query(
            store_dsn,
            "select extract(epoch from due - tocsin._clock())::float8 from tocsin.messages where"
            " state = 'delayed'",
        )

    handled, suspended = Handled(fail), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await store.produce("q", "five times")
        await until(lambda: store.dead_letters.list("q"))
        assert [m.read_ct for m in handled.messages] == [1, 2, 3, 4, 5]

        await store.queues.update("q", max_deliveries=1)
        await store.produce("q", "once")
        await until(lambda: query(store_dsn, "select 1 from tocsin.dead_letters where read_ct = 1"))

        await store.queues.update("q", max_deliveries=9, retry_base=600, retry_max=600)
        await store.produce("q", "later")
        await until(due_in)
        ((seconds,),) = await due_in()
        assert 500 < seconds <= 600

        await store.queues.update("q", max_payload=6)
        assert await store.produce("q", "good")
        with pytest.raises(tocsin.PayloadTooLarge):
            await store.produce("q", "longer")
        await until(lambda: query(store_dsn, "select 1 from tocsin.archive"))
        await store.queues.update("q", retention=0)
        last = await store.produce("q", "good")
        await handled.wait(9)
        await consumer.interrupt()
    with pytest.raises(tocsin.MessageNotFound):  # it is finished, and was not kept
        await store.messages.get(last)
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(1,)]


# Messages


async def test_fencing(store: tocsin.Store, store_dsn: str) -> None:
    """After a redelivery the old holder can do nothing, one by one or many at a time,
    and is told so; also when the new one has settled."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as a, store.consumer("q") as b:
        (old,) = await a.dequeue(vt=10)
        await move_clock(store_dsn, 11)
        (new,) = await b.dequeue(vt=3600)
        assert (new.id, new.lease_token > old.lease_token) == (old.id, True)
        for finished in (False, True):
            if finished:
                await new.archive()
            before = await everything(store_dsn)
            one: list[Callable[[], Awaitable[None]]] = [
                old.archive,
                old.delete,
                old.release,
                lambda: old.extend(60),
            ]
            for operation, call in zip(
                ("archive", "delete", "release", "extend"), one, strict=True
            ):
                with pytest.raises(tocsin.LeaseLost) as lost:
                    await call()
                assert (lost.value.message_id, lost.value.operation) == (old.id, operation)
            for many in (
                a.archive_many,
                a.delete_many,
                a.release_many,
                functools.partial(a.extend_many, seconds=60),
            ):
                assert await many([old]) == [False]
            assert await everything(store_dsn) == before
        assert await query(store_dsn, "select consumer_worker_id, read_ct from tocsin.archive") == [
            (b.worker_id, 2)
        ]


@pytest.mark.parametrize("delivered_by", ["dequeue", "handle", "handle_batches", "messages"])
async def test_a_delivery_tells_its_key_its_token_and_how_many_there_may_be(
    store: tocsin.Store, store_dsn: str, delivered_by: str
) -> None:
    """In whichever way it is delivered; the message's own maximum of deliveries goes
    before its queue's."""
    await store.queues.ensure("q", max_deliveries=7)
    await store.produce("q", 1, key="k", max_deliveries=2)
    await store.produce("q", 2)
    delivered: list[tocsin.Message] = []

    async def keep_many(messages: list[tocsin.Message]) -> None:
        delivered.extend(messages)

    async def keep(message: tocsin.Message) -> None:
        delivered.append(message)

    async with store.consumer("q") as consumer:
        if delivered_by == "dequeue":
            delivered += await consumer.dequeue(2)
        elif delivered_by == "messages":
            async with consumer.messages() as stream:
                delivered += [await anext(stream), await anext(stream)]
        else:
            with pytest.raises(tocsin.Suspended):
                if delivered_by == "handle":
                    await consumer.handle(keep, once=True)
                else:
                    await consumer.handle_batches(keep_many, size=2, once=True)
    assert [(m.payload, m.key, m.max_deliveries) for m in delivered] == [(1, "k", 2), (2, None, 7)]
    tokens = "select id, lease from tocsin.messages"
    if delivered_by in ("dequeue", "messages"):
        assert await query(store_dsn, tokens + " order by id") == [
            (m.id, m.lease_token) for m in delivered
        ]
    assert all(m.lease_token > 0 for m in delivered)


async def test_extend_visibility(store: tocsin.Store, store_dsn: str) -> None:
    """From the server's now, for one message or for many, and only for the consumer
    that holds them by this lease."""
    await store.queues.ensure("q")
    await store.produce_many("q", range(4))
    async with store.consumer("q") as consumer, store.consumer("q") as other:
        one, *others = messages = await consumer.dequeue(4, vt=100)
        await move_clock(store_dsn, 60)
        await consumer.extend(one, 100)
        assert await consumer.extend_many([m.id for m in others[:2]], timedelta(seconds=100)) == [
            True,
            True,
        ]
        with pytest.raises(tocsin.LeaseLost):
            await other.extend(one.id, 100)  # it does not hold it
        with pytest.raises(tocsin.LeaseLost):
            await other.extend_many([one.id], 100)
        await move_clock(store_dsn, 110)  # the first leases would have ended ten seconds ago
        assert [m.id for m in await other.dequeue(9, vt=3600)] == [messages[-1].id]
        assert await consumer.extend_many(messages, 100) == [True, True, True, False]
        await move_clock(store_dsn, 209)
        assert await other.dequeue(9) == []
        assert await consumer.archive_many(messages[:3]) == [True, True, True]
        assert await consumer.extend_many([], 100) == []
        for seconds in (0, -1):
            with pytest.raises(ValueError, match="seconds must be"):
                await consumer.extend_many([one], seconds)


@pytest.mark.parametrize("operation", ["archive", "delete", "release", "extend"])
async def test_archive_delete_release_extend_many_in_one_statement(
    dsn_of_quiet_store: str, operation: str
) -> None:
    """The outcomes are in the order of what was given; archiving keeps the row."""
    dsn = dsn_of_quiet_store
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        await store.produce_many("q", range(5))
        async with store.consumer("q") as consumer:
            messages = await consumer.dequeue(5)
            await messages[2].delete()
            given = [messages[n] for n in (4, 2, 0, 3)]
            before = await statements(dsn)
            if operation == "extend":
                outcomes = await consumer.extend_many(given, 60)
            else:
                outcomes = await getattr(consumer, f"{operation}_many")(given)
            run = since(before, await statements(dsn))
        assert outcomes == [True, False, True, True]
        assert [(f".{operation}(" in text, calls) for text, calls in run.items()] == [(True, 1)]
    kept = await query(dsn, "select payload from tocsin.archive order by id")
    assert kept == ([(0,), (3,), (4,)] if operation == "archive" else [])


async def test_delay_goes_by_the_servers_clock_only(store: tocsin.Store, store_dsn: str) -> None:
    """However far the client's is from it."""
    await store.queues.ensure("q")
    await move_clock(store_dsn, 100_000)
    messages = [
        await store.messages.get(await store.produce("q", 1, delay=60)),
        await store.messages.get(
            (await store.produce_many("q", [1], delay=timedelta(minutes=1)))[0]
        ),
    ]
    for message in messages:
        assert message.due is not None
        assert message.due - message.enqueued_at == timedelta(seconds=60)
        assert message.enqueued_at > datetime.now(UTC) + timedelta(seconds=90_000)
    at = await store.messages.get(
        await store.produce("q", 1, at=datetime.now(UTC) + timedelta(seconds=50_000))
    )
    assert at.state == "ready"  # that moment is over, there
    async with store.consumer("q") as consumer:
        assert [m.id for m in await consumer.dequeue(9, vt=3600)] == [at.id]
        await move_clock(store_dsn, 100_061)
        assert len(await consumer.dequeue(9)) == 2


# Producers


async def test_enqueue_batch_and_delayed(store: tocsin.Store, store_dsn: str) -> None:
    """One message, a batch of any size, all of it or none, its ids in order, and both
    for later."""
    await store.queues.ensure("q", max_payload=20)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        first = await producer.enqueue("one")
        ids = await producer.enqueue_many(range(20_000))
        assert ids == sorted(set(ids))
        assert (len(ids), ids[0] > first) == (20_000, True)
        for bad in ({1}, "x" * 30):
            with pytest.raises((tocsin.PayloadInvalid, tocsin.PayloadTooLarge)) as refused:
                await producer.enqueue_many([*range(20_000), bad])
            assert getattr(refused.value, "index", None) == 20_000
        later = [
            await producer.enqueue("later", delay=60),
            *await producer.enqueue_many(["too"] * 2, delay=60),
        ]
        assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(20_004,)]
        messages = await consumer.dequeue(30_000, vt=3600)
        assert [(m.id, m.payload) for m in messages] == [
            (first, "one"),
            *zip(ids, range(20_000), strict=True),
        ]
        await move_clock(store_dsn, 61)
        assert [m.id for m in await consumer.dequeue(9)] == later


# Consumers


@pytest.mark.parametrize("way", ["async", "thread", "batch", "stream"])
async def test_heartbeat_and_lease_extension_while_a_handler_runs(store_dsn: str, way: str) -> None:
    """Both go on beside it for as long as it runs: the worker looks alive, and its
    message is nobody else's."""
    async with tocsin.connect(store_dsn, heartbeat=0.1) as store:
        await store.queues.ensure("q", vt=0.4)
        message_id = await store.produce("q", 1)
        began, go_on = trio.Event(), threading.Event()

        async def handle(_: object) -> None:
            began.set()
            while not go_on.is_set():
                await trio.lowlevel.checkpoint()

        def block(_: tocsin.Message) -> None:
            trio.from_thread.run_sync(began.set)
            assert go_on.wait(PATIENCE)

        async def run() -> None:
            try:
                if way == "stream":
                    async with consumer.messages() as stream:
                        async for message in stream:
                            await handle(message)
                            await message.archive()
                elif way == "batch":
                    await consumer.handle_batches(handle, size=5)
                else:
                    await consumer.handle(block if way == "thread" else handle)
            except tocsin.Suspended:
                pass

        async with (
            store.consumer("q") as consumer,
            store.consumer("q") as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(run)
            await began.wait()
            signs = set[object]()
            with trio.fail_after(PATIENCE):
                while len(signs) < 5:
                    ((extended, read_ct),) = await query(
                        store_dsn, "select vt - dequeued_at > '1.2 s', read_ct from tocsin.messages"
                    )
                    assert read_ct == 1
                    assert await other.dequeue() == []
                    if extended:  # three times as long as a lease, and still it is kept
                        signs.add((await consumer.info()).heartbeat_at)
            assert await consumer.is_healthy(30)
            go_on.set()
            await until(lambda: query(store_dsn, "select 1 from tocsin.archive"))
            await consumer.interrupt()
        assert (await store.messages.get(message_id)).read_ct == 1


@pytest.mark.parametrize("way", ["handle", "handle_batches", "messages", "dequeue"])
async def test_wake_up_without_polling(dsn_of_quiet_store: str, way: str) -> None:
    """Whichever way a consumer waits, nothing at all is asked of the server meanwhile;
    and what comes wakes it."""
    dsn = dsn_of_quiet_store
    got = Handled()

    async def first(messages: list[tocsin.Message]) -> None:
        await got(messages[0])

    async def run(consumer: tocsin.Consumer) -> None:
        if way == "handle":
            await consumer.handle(got)
        elif way == "handle_batches":
            await consumer.handle_batches(first, size=10)
        elif way == "messages":
            async with consumer.messages() as stream:
                async for message in stream:
                    await got(message)
        else:
            while True:
                for message in await consumer.dequeue(wait=3600):
                    await got(message)

    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run, consumer)
            await until_asleep(store)
            before = await statements(dsn)
            # no task has run for so long, whatever its clock
            await trio.testing.wait_all_tasks_blocked(0.5)
            assert since(before, await statements(dsn)) == {}
            await query(dsn, "select tocsin.enqueue('q', '1')")
            await got.wait(1)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("again", [True, False])
async def test_handler_timeout_a_late_finish_cannot_settle(
    store: tocsin.Store, store_dsn: str, again: bool
) -> None:
    """A thread cannot be stopped. What it does in the end changes nothing: not its
    message that waits, nor one that another has handled."""
    await store.queues.ensure("q", retry_base=0 if again else 3600, retry_jitter=0)
    message_id = await store.produce("q", 1)
    go_on, late = threading.Event(), list[str]()

    def handle(message: tocsin.Message) -> None:
        if message.read_ct > 1:
            return
        assert go_on.wait(PATIENCE)
        try:
            trio.from_thread.run(message.archive, trio_token=token)
        except tocsin.LeaseLost as lost:
            late.append(str(lost))
        late.append("finished")

    async def state() -> str:
        return (await store.messages.get(message_id)).state

    token = trio.lowlevel.current_trio_token()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(consumer.handle, handle, timeout=0.05))
        with trio.fail_after(PATIENCE):
            while await state() != ("archived" if again else "delayed"):
                await trio.lowlevel.checkpoint()
            before = await everything(store_dsn)
            go_on.set()
            while "finished" not in late:
                await trio.lowlevel.checkpoint()
        await until_asleep(store)
        assert await everything(store_dsn) == before
        nursery.cancel_scope.cancel()
    assert len(late) == 2
    message = await store.messages.get(message_id)
    assert (message.state, message.read_ct) == (("archived", 2) if again else ("delayed", 1))
    assert message.last_error is not None
    assert message.last_error.startswith("TooSlowError")


# The command line


HANG = """
import logging, trio

async def hang(message):
    logging.info("began %s", message.payload)
    if message.payload == "hang":
        await trio.sleep_forever()
"""


def test_interrupt_with_grace_from_the_command_line(
    cli: Call, store_dsn: str, tmp_path: Path
) -> None:
    """A worker in another process ends by it: what it has finished is archived, what
    still runs after the grace is given back."""
    (tmp_path / "service.py").write_text(HANG)
    cli("queue", "create", "q", "--vt", "1h")
    cli("enqueue", "q", '"quick"', '"hang"')
    with started(store_dsn, "worker", "run", "q", "service:hang", folder=tmp_path) as process:
        line_with(process, "began hang")
        assert cli("worker", "interrupt", "1", "--grace", "10ms").code == 0
        assert process.wait(PATIENCE) == 0
    (waiting,) = cli("queue", "messages", "q", "--format", "json").json
    assert (waiting["payload"], waiting["state"], waiting["read_ct"]) == ("hang", "ready", 0)
    (done,) = cli("queue", "messages", "q", "--state", "archived", "--format", "json").json
    assert (done["payload"], done["consumer_worker_id"]) == ("quick", 1)


def test_exit_codes(cli: Call, dsn: str) -> None:
    for code, words in [
        (0, "queue create q"),
        (1, "queue create q"),  # refused
        (1, "queue get nothing"),  # not found
        (2, "queue get"),
        (2, "queue get q --format xml"),
        (2, "queue update q --vt soon"),
        (3, "queue list --dsn postgresql://127.0.0.1:1/none"),
        (0, "admin verify"),
        (0, "worker health --max-age 0"),
        (0, "enqueue q 1"),
        (4, "worker health --max-age 0"),  # it waits, and nobody consumes
        (0, "queue delete q --force --yes"),
    ]:
        ended = cli(*words.split())
        assert ended.code == code, (words, ended)
        if code in (1, 2, 3):
            assert (ended.out, ended.error.count("\n")) == ("", 1), ended
