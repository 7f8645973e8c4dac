"""Each trio run has a value of its own."""

from __future__ import annotations

import trio

from tocsin._concurrency.run_local import RunLocal


def test_a_run_makes_the_value_once_and_another_run_makes_its_own() -> None:
    local: RunLocal[list[int]] = RunLocal("test", list)

    async def use() -> tuple[list[int], list[int]]:
        return local.get(), local.get()

    first, again = trio.run(use)
    other, _ = trio.run(use)
    assert first is again
    assert other is not first
