"""The connection's lock."""

from __future__ import annotations

import trio
import trio.testing

from tocsin._concurrency.lock import Lock


async def test_first_come_first_served() -> None:
    lock = Lock()
    order: list[int] = []

    async def take(n: int) -> None:
        async with lock:
            order.append(n)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await lock.acquire()
        for n in range(5):
            nursery.start_soon(take, n)
            await trio.testing.wait_all_tasks_blocked()
        lock.release()
    assert order == [0, 1, 2, 3, 4]
    assert not lock.locked()


async def test_no_later_task_is_faster_than_a_waiting_one() -> None:
    lock = Lock()
    order: list[str] = []

    async def take() -> None:
        async with lock:
            order.append("waited")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
        # The lock was released, and belongs to the waiting task.
        async with lock:
            order.append("came later")
    assert order == ["waited", "came later"]


async def test_free_it_does_not_yield() -> None:
    lock = Lock()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with lock:
            pass
    assert not scope.cancelled_caught


async def test_cancelled_while_waiting() -> None:
    lock = Lock()
    async with lock:
        with trio.move_on_after(0) as scope:
            await lock.acquire()
        assert scope.cancelled_caught
    assert not lock.locked()


async def test_cancelled_when_it_was_just_handed_over() -> None:
    lock = Lock()
    await lock.acquire()
    held: list[bool] = []

    async def take() -> None:
        with scope:
            async with lock:
                held.append(lock.locked())
                await trio.lowlevel.checkpoint()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        lock.release()
        scope.cancel()
    assert held == [True]
    assert scope.cancelled_caught
    assert not lock.locked()
