"""How many transactions may have a connection, and which one is next."""

from __future__ import annotations

from typing import Any, cast

import trio
import trio.testing

from tocsin._database.transaction_limit import TransactionLimit


class Growing:
    """What the limit needs of a pool of three, which grows when the test says so."""

    max_size = 3

    def __init__(self) -> None:
        self.may_grow = trio.Event()
        self.may_grow.set()

    def statistics(self) -> Growing:
        return self

    async def grow(self, size: int) -> bool:
        await trio.lowlevel.checkpoint()
        await self.may_grow.wait()
        return True


async def test_the_turn_of_a_task_that_is_cancelled_is_the_next_ones() -> None:
    pool = Growing()
    limit = TransactionLimit(cast(Any, pool))
    scopes = {name: trio.CancelScope() for name in "ab"}
    begun: list[str] = []

    async def transact(name: str) -> None:
        with scopes[name]:
            async with limit:
                begun.append(name)

    async with limit, trio.open_nursery() as nursery:
        async with limit:
            for name in scopes:
                nursery.start_soon(transact, name)
                await trio.testing.wait_all_tasks_blocked()
            pool.may_grow = trio.Event()
        await trio.testing.wait_all_tasks_blocked()  # the first in line waits for the pool
        scopes["a"].cancel()
        await trio.testing.wait_all_tasks_blocked()
        pool.may_grow.set()
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["b"]
