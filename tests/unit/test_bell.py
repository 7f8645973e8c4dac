"""Which tasks of a process wait, and which are woken."""

from __future__ import annotations

import math

import trio
import trio.testing

from tests.support import PATIENCE
from tocsin._queue.process.bell import LINGER, Bell, Waiter
from tocsin.telemetry.events import Events


def do_nothing() -> None:
    """What these bells do when a lock is to be taken or released."""


async def begin_waiting(*waiters: Waiter) -> None:
    for waiter in waiters:
        trio.lowlevel.spawn_system_task(waiter.wait)
    await trio.testing.wait_all_tasks_blocked()


async def begin_waiting_under_lock(bell: Bell, waiter: Waiter) -> None:
    """In a queue that has no lock yet: its confirmation wakes the task for a claim."""
    await begin_waiting(waiter)
    bell.lock_confirmed(1)
    await trio.testing.wait_all_tasks_blocked()


def claim_in_vain(waiter: Waiter, again_at: float = math.inf) -> None:
    waiter.begin_claim()
    waiter.end_claim(again_at, full=False)


async def test_a_ring_during_the_last_claim_is_not_lost() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter, bell.waiter(2) as elsewhere:
        waiter.begin_claim()
        bell.ring(1)
        waiter.end_claim(math.inf, full=False)
        with trio.fail_after(PATIENCE):
            await waiter.wait()
        assert (waiter.wake_pending, elsewhere.wake_pending) == (True, False)
    bell.ring(1)  # no task waits there any more


async def test_one_ring_wakes_one_and_a_waiter_that_took_all_it_could_wakes_another() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as a, bell.waiter(1) as b, bell.waiter(1) as c:
        await begin_waiting(a, b, c)
        bell.ring(1)
        assert [waiter.wake_pending for waiter in (a, b, c)] == [True, False, False]
        bell.ring(1)  # before the first has woken
        assert [waiter.wake_pending for waiter in (a, b, c)] == [True, True, False]
        await trio.testing.wait_all_tasks_blocked()
        a.begin_claim()
        a.end_claim(math.inf, full=False)
        assert not c.wake_pending
        b.begin_claim()
        b.end_claim(-math.inf, full=True)
        assert [waiter.wake_pending for waiter in (a, b, c)] == [False, True, True]


async def test_a_ring_that_finds_no_task_waiting_is_for_all() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as a, bell.waiter(1) as b:
        bell.ring(1)
        assert a.wake_pending
        assert b.wake_pending


async def test_a_waiter_that_was_rung_and_leaves_or_cannot_claim_rings_another() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as b, bell.waiter(1) as c, bell.waiter(1) as d:
        with bell.waiter(1) as a:
            a.ring()
            await begin_waiting(b)
        assert b.wake_pending  # a has left
        b.begin_claim()
        await begin_waiting(c)
        b.claim_failed()
        assert b.wake_pending
        assert c.wake_pending
        await begin_waiting(d)
        with trio.move_on_after(0):
            await c.wait(ignore_rings=True)  # no room, or paused
        assert d.wake_pending


async def test_a_waiter_that_ignores_rings_wakes_for_wake_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter:
        waiter.ring()
        bell.wake_within(1, 1)
        with trio.move_on_after(5) as patience:
            await waiter.wait(ignore_rings=True)  # the ring and the due time's setting woke it
            await waiter.wait(ignore_rings=True)
        assert patience.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: waiter.wait(ignore_rings=True))
            await trio.testing.wait_all_tasks_blocked()
            waiter.wake()


async def test_a_due_time_rings_one_once_and_the_earlier_one_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter, bell.waiter(1) as other:
        begun = trio.current_time()
        bell.wake_within(1, 10)
        bell.wake_within(1, 4)
        claim_in_vain(waiter, begun + 7)
        await begin_waiting(other)
        while not (waiter.wake_pending or other.wake_pending):
            await waiter.wait()
        assert trio.current_time() - begun == 4
        assert not (waiter.wake_pending and other.wake_pending)
        waiter.wake_pending = False
        with trio.move_on_after(100) as patience:
            await waiter.wait()
        assert patience.cancelled_caught


async def test_a_waiter_without_a_lock_asks_for_it_and_claims_again_under_it() -> None:
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1

    bell = Bell(ask, Events())
    with bell.waiter(1) as waiter:
        claim_in_vain(waiter)
        assert bell.queues_without_lock() == set()  # no task waits
        await begin_waiting(waiter)
        assert asked == 1
        assert bell.queues_without_lock() == {1}
        bell.lock_confirmed(1)
        assert waiter.wake_pending
        await trio.testing.wait_all_tasks_blocked()
        claim_in_vain(waiter)
        await begin_waiting(waiter)
        assert asked == 1
        assert not waiter.wake_pending
        bell.locks_lost()
        assert bell.queues_without_lock() == {1}


async def test_a_claim_from_before_the_lock_is_not_relied_on() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter:
        waiter.begin_claim()
        bell.lock_confirmed(1)
        waiter.wake_pending = False
        waiter.end_claim(math.inf, full=False)
        with trio.fail_after(PATIENCE):
            await waiter.wait()
        assert waiter.wake_pending


async def test_a_lock_is_released_when_no_task_has_waited_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter:
        await begin_waiting_under_lock(bell, waiter)
        assert bell.release_idle_locks() == []
        await trio.sleep(2 * LINGER)
        assert bell.release_idle_locks() == [1]
        assert bell.release_idle_locks() == []
        claim_in_vain(waiter)
        await begin_waiting_under_lock(bell, waiter)
        claim_in_vain(waiter)
        await begin_waiting(waiter)
        await trio.sleep(2 * LINGER)
        assert bell.release_idle_locks() == []  # it waits


async def test_a_lock_is_released_at_once_when_no_waiter_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as waiter:
        await begin_waiting_under_lock(bell, waiter)
        assert bell.release_idle_locks() == []
    assert bell.release_idle_locks() == [1]


async def test_a_ring_where_no_task_has_waited_for_a_while_says_that_the_lock_may_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.extend(bell.release_idle_locks())

    bell = Bell(ask, Events())
    with bell.waiter(1) as waiter:
        await begin_waiting_under_lock(bell, waiter)
        bell.ring(1)
        assert asked == []
        await trio.sleep(2 * LINGER)
        bell.ring(1)
        assert asked == [1]


async def test_a_ring_for_a_waiter_that_cannot_claim_is_for_all_that_do_not_wait() -> None:
    """They may have a claim under way, or no room just now, and will begin to wait
    without having seen what was rung for."""
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as paused, bell.waiter(1) as busy:
        await begin_waiting(paused)
        busy.begin_claim()
        bell.ring(1)
        busy.end_claim(math.inf, full=False)
        assert not busy.wake_pending  # the other would claim
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await paused.wait(ignore_rings=True)
        assert busy.wake_pending


async def test_a_due_time_for_a_waiter_that_cannot_claim_is_for_all_that_do_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as paused, bell.waiter(1) as busy:
        bell.wake_within(1, 1)
        while not paused.wake_pending:
            await paused.wait()
        with trio.move_on_after(0):
            await paused.wait(ignore_rings=True)
        assert busy.wake_pending


async def test_waiters_that_all_cannot_claim_do_not_ring_each_other_without_end() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as a, bell.waiter(1) as b:

        async def sleep_soundly(waiter: Waiter) -> None:
            while True:
                await waiter.wait(ignore_rings=True)

        a.ring()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep_soundly, a)
            nursery.start_soon(sleep_soundly, b)
            with trio.fail_after(PATIENCE):
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert b.wake_pending
            nursery.cancel_scope.cancel()


async def test_busy_consumers_that_know_already_are_not_woken_to_be_told_again() -> None:
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as a, bell.waiter(1) as b:
        a.wake_pending = b.wake_pending = True
        with trio.move_on_after(0):
            await b.wait(ignore_rings=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: b.wait(ignore_rings=True))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await a.wait(ignore_rings=True)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            b.wake()


async def test_a_ring_for_a_waiter_that_is_being_cancelled_is_for_another() -> None:
    """Its scope is cancelled, and its task has not run on yet: to the bell it still
    waits. A stream may then not claim for long."""
    bell = Bell(do_nothing, Events())
    with bell.waiter(1) as a, bell.waiter(1) as b:
        scope = trio.CancelScope()

        async def sleep_until_cancelled() -> None:
            with scope:
                await a.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep_until_cancelled)
            await trio.testing.wait_all_tasks_blocked()
            await begin_waiting(b)
            scope.cancel()
            bell.ring(1)
        assert a.wake_pending
        assert b.wake_pending
