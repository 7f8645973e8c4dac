"""Settling by hand and by a handler: the lease token decides."""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, move_clock, query, since, statements, until_idle
from tests.support.runs import running_call


async def everything(dsn: str) -> list[Any]:
    return [
        await query(dsn, f"select x::text from tocsin.{t} x order by 1")
        for t in ("messages", "archive", "dead_letters")
    ]


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


@pytest.mark.parametrize("again", [True, False])
async def test_handler_timeout_a_late_finish_cannot_settle(
    store: tocsin.Store, store_dsn: str, again: bool
) -> None:
    """A thread cannot be stopped. What it does in the end changes nothing: not its
    message that waits, nor one that another has handled."""
    await store.queues.ensure("q", retry_base=0 if again else 3600, retry_jitter=0)
    message_id = await store.produce("q", 1)
    go_on, finished, late = threading.Event(), trio.Event(), list[str]()

    def handle(message: tocsin.Message) -> None:
        if message.read_ct > 1:
            return
        assert go_on.wait(PATIENCE)
        try:
            trio.from_thread.run(message.archive, trio_token=token)
        except tocsin.LeaseLost as lost:
            late.append(str(lost))
        trio.from_thread.run_sync(finished.set, trio_token=token)

    token = trio.lowlevel.current_trio_token()
    async with (
        store.consumer("q") as consumer,
        running_call(consumer, functools.partial(consumer.handle, handle, timeout=0.05)) as run,
    ):
        await run.settled(1, "failed")
        if again:
            await run.settled(1, "archived")
        before = await everything(store_dsn)
        go_on.set()
        with trio.fail_after(PATIENCE):
            await finished.wait()
        await until_idle(store)
        assert await everything(store_dsn) == before
        run.cancel()
    assert len(late) == 1
    message = await store.messages.get(message_id)
    # a thread may be too slow for its next delivery, too
    assert (message.state, message.read_ct > 1) == ("archived" if again else "delayed", again)
    assert message.last_error is not None
    assert message.last_error.startswith("TooSlowError")
