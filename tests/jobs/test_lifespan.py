"""What the functions of a worker share, for the length of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

import tocsin
from tests.support import PATIENCE

from . import tasks


@tocsin.task(name="look")
async def look() -> str:
    await trio.lowlevel.checkpoint()
    events: list[str] = tocsin.current_job().state
    events.append("ran")
    return events[0]


async def test_each_run_enters_the_lifespan_first_and_leaves_it_last(
    store: tocsin.Store,
) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def live() -> AsyncIterator[list[str]]:
        events.append("entered")
        async with trio.open_nursery() as nursery:
            yield events
            nursery.cancel_scope.cancel()
        events.append("left")

    await store.queues.ensure("default")
    jobs = [await look.submit(store) for _ in range(2)]
    async with store.worker([look], lifespan=live) as worker:
        assert await worker.process_one()
        with pytest.raises(tocsin.Suspended):
            await worker.run(once=True)
    assert events == ["entered", "ran", "left"] * 2
    assert [await job.result() for job in jobs] == ["entered"] * 2


async def test_an_error_of_the_lifespan_ends_the_run(store: tocsin.Store) -> None:
    @asynccontextmanager
    async def break_at_once() -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if True:
            raise OSError("no connection")
        yield

    @asynccontextmanager
    async def break_later() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("lost")

    await store.queues.ensure("default")
    await tasks.wait_forever.submit(store)
    async with store.worker([tasks.wait_forever], lifespan=break_at_once) as worker:
        with pytest.raises(OSError, match="no connection"):
            await worker.run()
    async with store.worker([tasks.wait_forever], lifespan=break_later) as worker:
        with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as group:
            await worker.run()
    assert group.group_contains(OSError, match="lost")
