"""A process that stood still for longer than its leases last: no handler begins under a
lease that is over."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, connect_blocking
from tocsin._queue.consuming import lease_clock
from tocsin._queue.consuming.claims import Claim

VT = 0.5


async def test_no_handler_begins_under_a_lease_that_is_over(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", vt=VT, max_deliveries=1)
    await store.produce_many("q", range(400))
    paused = False
    begun_late: list[int] = []

    async def handler(message: tocsin.Message) -> None:
        nonlocal paused
        if not paused and len(consumer._parts.leases.messages()) > 5:
            paused = True
            time.sleep(VT * 1.2)  # noqa: ASYNC251 - as a stopped process does
            # what another consumer's scan does
            other.execute("update tocsin.queues set max_deliveries = 5")
            other.execute("select tocsin.reclaim()")
        elif paused and not begun_late:
            lease = "select lease from tocsin.messages where id = %s"
            if other.execute(lease, [message.id]).fetchone() != (message.lease_token,):
                begun_late.append(message.id)

    with connect_blocking(store_dsn) as other:
        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended):
                await consumer.handle(handler, once=True)
    assert paused
    assert begun_late == []
    assert "ended before a handler could begin" in caplog.text


async def test_the_time_that_the_machine_slept_counts(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio's clock stands still during that time."""
    await store.queues.ensure("q", vt=3600, max_deliveries=1)
    ids = await store.produce_many("q", range(2))
    begun: list[int] = []

    async def handler(messages: tocsin.Message) -> None:
        begun.append(messages.id)

    slept = 0.0
    monkeypatch.setattr(lease_clock, "time_asleep", lambda: slept)
    async with store.consumer("q") as consumer:
        claim = consumer._parts.claimer.claim

        async def claim_and_sleep(*arguments: object, **options: object) -> object:
            nonlocal slept
            claimed = await claim(*arguments, **options)  # type: ignore[arg-type]
            if not slept:
                slept = 4000.0
            return claimed

        monkeypatch.setattr(consumer._parts.claimer, "claim", claim_and_sleep)
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handler, once=True)
    assert begun == ids
    # requeued at first, uncounted
    assert [(await store.messages.get(i)).read_ct for i in ids] == [1, 1]


async def test_a_stream_leaves_an_expired_message_that_is_locked_to_the_end_of_its_run(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is over before the stream can hand out the message, and another
    transaction has locked its row: the stream waits for the next message."""
    await store.queues.ensure("q", vt=3600)
    first = await store.produce("q", 1)
    slept = 0.0
    monkeypatch.setattr(lease_clock, "time_asleep", lambda: slept)
    async with AsyncExitStack() as stack, store.consumer("q") as consumer:
        claim = consumer._parts.claimer.claim

        async def claim_and_sleep(*arguments: Any, **options: Any) -> Claim:
            nonlocal slept
            claimed = await claim(*arguments, **options)
            if not slept:
                slept = 4000.0
                connection = await stack.enter_async_context(store.transaction())
                await connection.execute("select from tocsin.messages for update")
                await store.produce("q", 2)
            return claimed

        monkeypatch.setattr(consumer._parts.claimer, "claim", claim_and_sleep)
        async with consumer.messages() as stream:
            with trio.fail_after(PATIENCE):
                message = await anext(stream)
            assert message.payload == 2
            await message.archive()
            await stack.aclose()
    assert (await store.messages.get(first)).read_ct == 0
