"""Jobs, flows, results and schedules through a restart of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest
import trio

import tocsin
from tests.support import PATIENCE, query, until_true
from tests.support.jobs import working
from tocsin.embedded import EmbeddedServer

pytestmark = [pytest.mark.fault, pytest.mark.slow]

Mode = Literal["fast", "immediate"]


@pytest.fixture
async def mortal(own_server: EmbeddedServer) -> AsyncIterator[tocsin.Store]:
    """A store on a server that may be stopped."""
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("default")
        yield store


@tocsin.task(name="follow")
async def follow(text: str) -> str:
    await trio.lowlevel.checkpoint()
    return f"{text}, followed"


@tocsin.task(name="tick")
async def tick() -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_wait_for_the_last_job_of_a_flow_goes_on(
    mortal: tocsin.Store, own_server: EmbeddedServer, mode: Mode
) -> None:
    """The first job ends while there is no server. After a crash the server has
    forgotten which processes wait."""
    began, go_on = trio.Event(), trio.Event()
    results: list[str] = []

    @tocsin.task(name="stay", timeout=None)
    async def stay() -> str:
        began.set()
        await go_on.wait()
        return "done"

    async with tocsin.connect(own_server.dsn) as other, working(mortal, stay, follow):
        async with other.flow("chain") as flow:
            last = flow.add(follow.call(flow.add(stay.call())))

        async def wait() -> None:
            results.append(await flow.job(last).result(timeout=2 * PATIENCE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            with trio.fail_after(PATIENCE):
                await began.wait()
            await until_true(own_server.dsn, "count(*) = 1 from tocsin.awaited")
            await own_server.stop(mode)
            go_on.set()
            await own_server.start()
    assert results == ["done, followed"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_schedule_goes_on_and_doubles_no_tick(
    mortal: tocsin.Store, own_server: EmbeddedServer, mode: Mode
) -> None:
    jobs = "count(*) >= {} from tocsin.archive"
    async with working(mortal, tick):
        await mortal.schedules.set("often", tick.call(), every=0.1)
        for number in 3, 6, 9:
            await until_true(own_server.dsn, jobs.format(number))
            if number < 9:
                await own_server.restart(mode)
    same = "count(*) = count(distinct options ->> 'tick') from tocsin.archive"
    assert await query(own_server.dsn, f"select {same}") == [(True,)]
