"""Letting the tasks that were woken run first."""

from __future__ import annotations

import trio
import trio.testing

from tocsin._concurrency.scheduling import run_woken_tasks


async def test_the_tasks_that_were_woken_have_run() -> None:
    # trio runs the tasks of one pass in random order, so once is not enough.
    for _ in range(50):
        woken = trio.Event()
        ran = list[str]()

        async def wait(woken: trio.Event = woken, ran: list[str] = ran) -> None:
            await woken.wait()
            ran.append("the task")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            woken.set()
            await run_woken_tasks()
            assert ran == ["the task"]
