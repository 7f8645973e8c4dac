"""The time of a handler's call: one timer cancels the calls of a run."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing
from trio.testing import MockClock

from tocsin._queue.consuming.calls import Calls, CallScope


@asynccontextmanager
async def open_calls() -> AsyncIterator[Calls]:
    async with trio.open_nursery() as nursery:
        yield Calls(nursery)
        nursery.cancel_scope.cancel()


def open_call(calls: Calls) -> CallScope:
    call = CallScope(calls)
    calls.add(call)
    return call


async def end_of(call: CallScope) -> float:
    """Return when the call was cancelled; infinity: within an hour it was not."""
    with call.scope:
        await trio.sleep(3600)
    return trio.current_time() if call.scope.cancelled_caught else math.inf


async def test_a_call_is_cancelled_when_its_time_is_over(autojump_clock: MockClock) -> None:
    async with open_calls() as calls:
        call = open_call(calls)
        deadline = call.limit(10)
        assert await end_of(call) == deadline == 10
        assert call.late


async def test_the_shortest_time_is_over_first(autojump_clock: MockClock) -> None:
    async with open_calls() as calls:
        limits = {30: open_call(calls), 10: open_call(calls), 20: open_call(calls)}
        ends: dict[int, float] = {}

        async def wait(seconds: int) -> None:
            ends[seconds] = await end_of(limits[seconds])

        async with trio.open_nursery() as nursery:
            for seconds, call in limits.items():
                call.limit(seconds)
                nursery.start_soon(wait, seconds)
                await trio.testing.wait_all_tasks_blocked()
        assert ends == {30: 30, 10: 10, 20: 20}


async def test_a_call_after_one_that_ended_in_time_has_its_own_time(
    autojump_clock: MockClock,
) -> None:
    async with open_calls() as calls:
        call = open_call(calls)
        call.limit(10)
        await trio.sleep(9)
        call.unlimit()
        await trio.sleep(9)
        call.limit(10)
        assert await end_of(call) == 28


async def test_a_call_without_a_limit_goes_on(autojump_clock: MockClock) -> None:
    async with open_calls() as calls:
        other, call = open_call(calls), open_call(calls)
        call.limit(10)
        call.unlimit()
        other.limit(20)
        assert await end_of(call) == math.inf
        assert other.late


async def test_a_call_that_was_cancelled_before_is_not_late(autojump_clock: MockClock) -> None:
    async with open_calls() as calls:
        call = open_call(calls)
        call.limit(10)
        call.scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        assert not call.late
