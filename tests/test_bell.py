"""Who sleeps in a process, and who is woken."""

from __future__ import annotations

import math

import trio
import trio.testing
from support import PATIENCE

from tocsin._queue.process.bell import LINGER, Bed, Bell


async def fall_asleep(*beds: Bed) -> None:
    for bed in beds:
        trio.lowlevel.spawn_system_task(bed.sleep)
    await trio.testing.wait_all_tasks_blocked()


async def fall_asleep_guarded(bell: Bell, bed: Bed) -> None:
    """In a queue that has no guard yet: the guard's coming wakes it for a look."""
    await fall_asleep(bed)
    bell.guard(1)
    await trio.testing.wait_all_tasks_blocked()


def look_in_vain(bed: Bed, again_at: float = math.inf) -> None:
    bed.look()
    bed.looked(again_at, full=False)


async def test_a_ring_during_the_last_look_is_not_lost() -> None:
    bell = Bell()
    with bell.bed(1) as bed, bell.bed(2) as elsewhere:
        bed.look()
        bell.ring(1)
        bed.looked(math.inf, full=False)
        with trio.fail_after(PATIENCE):
            await bed.sleep()
        assert (bed.rung, elsewhere.rung) == (True, False)
    bell.ring(1)  # nobody sleeps there any more


async def test_one_ring_wakes_one_and_who_took_all_it_could_wakes_another() -> None:
    bell = Bell()
    with bell.bed(1) as a, bell.bed(1) as b, bell.bed(1) as c:
        await fall_asleep(a, b, c)
        bell.ring(1)
        assert [bed.rung for bed in (a, b, c)] == [True, False, False]
        bell.ring(1)  # before the first has woken
        assert [bed.rung for bed in (a, b, c)] == [True, True, False]
        await trio.testing.wait_all_tasks_blocked()
        a.look()
        a.looked(math.inf, full=False)
        assert not c.rung
        b.look()
        b.looked(-math.inf, full=True)
        assert [bed.rung for bed in (a, b, c)] == [False, True, True]


async def test_a_ring_that_finds_all_awake_is_for_whoever_can_first() -> None:
    bell = Bell()
    with bell.bed(1) as a, bell.bed(1) as b:
        bell.ring(1)
        assert a.rung
        assert b.rung


async def test_who_was_rung_and_leaves_or_cannot_look_rings_another() -> None:
    bell = Bell()
    with bell.bed(1) as b, bell.bed(1) as c, bell.bed(1) as d:
        with bell.bed(1) as a:
            a.ring()
            await fall_asleep(b)
        assert b.rung  # a has left
        b.look()
        await fall_asleep(c)
        b.failed_to_look()
        assert b.rung
        assert c.rung
        await fall_asleep(d)
        with trio.move_on_after(0):
            await c.sleep(sound=True)  # no room, or paused
        assert d.rung


async def test_a_sound_sleeper_wakes_for_a_nudge_only(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell()
    with bell.bed(1) as bed:
        bed.ring()
        bell.expect(1, 1)
        with trio.move_on_after(5) as patience:
            await bed.sleep(sound=True)  # the ring and the alarm's setting woke it
            await bed.sleep(sound=True)
        assert patience.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bed.sleep(sound=True))
            await trio.testing.wait_all_tasks_blocked()
            bed.nudge()


async def test_an_alarm_rings_one_once_and_the_earlier_one_counts(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell()
    with bell.bed(1) as bed, bell.bed(1) as other:
        begun = trio.current_time()
        bell.expect(1, 10)
        bell.expect(1, 4)
        look_in_vain(bed, begun + 7)
        await fall_asleep(other)
        while not (bed.rung or other.rung):
            await bed.sleep()
        assert trio.current_time() - begun == 4
        assert not (bed.rung and other.rung)
        bed.rung = False
        with trio.move_on_after(100) as patience:
            await bed.sleep()
        assert patience.cancelled_caught


async def test_a_sleeper_without_a_guard_asks_for_it_and_looks_again_under_it() -> None:
    bell = Bell()
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1

    bell.when_guards_change = ask
    with bell.bed(1) as bed:
        look_in_vain(bed)
        assert bell.unguarded() == set()  # nobody sleeps
        await fall_asleep(bed)
        assert asked == 1
        assert bell.unguarded() == {1}
        bell.guard(1)
        assert bed.rung
        await trio.testing.wait_all_tasks_blocked()
        look_in_vain(bed)
        await fall_asleep(bed)
        assert asked == 1
        assert not bed.rung
        bell.lose_guards()
        assert bell.unguarded() == {1}


async def test_a_look_from_before_the_guard_is_not_relied_on() -> None:
    bell = Bell()
    with bell.bed(1) as bed:
        bed.look()
        bell.guard(1)
        bed.rung = False
        bed.looked(math.inf, full=False)
        with trio.fail_after(PATIENCE):
            await bed.sleep()
        assert bed.rung


async def test_a_guard_is_given_up_when_nobody_has_slept_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell()
    with bell.bed(1) as bed:
        await fall_asleep_guarded(bell, bed)
        assert bell.give_up_guards() == []
        await trio.sleep(2 * LINGER)
        assert bell.give_up_guards() == [1]
        assert bell.give_up_guards() == []
        look_in_vain(bed)
        await fall_asleep_guarded(bell, bed)
        look_in_vain(bed)
        await fall_asleep(bed)
        await trio.sleep(2 * LINGER)
        assert bell.give_up_guards() == []  # it sleeps


async def test_a_guard_is_given_up_at_once_when_nobody_is_left_who_could_sleep() -> None:
    bell = Bell()
    with bell.bed(1) as bed:
        await fall_asleep_guarded(bell, bed)
        assert bell.give_up_guards() == []
    assert bell.give_up_guards() == [1]


async def test_a_ring_where_nobody_has_slept_for_a_while_says_that_the_guard_may_go(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell()
    with bell.bed(1) as bed:
        await fall_asleep_guarded(bell, bed)
        asked: list[int] = []
        bell.when_guards_change = lambda: asked.extend(bell.give_up_guards())
        bell.ring(1)
        assert asked == []
        await trio.sleep(2 * LINGER)
        bell.ring(1)
        assert asked == [1]


async def test_a_ring_for_one_who_cannot_look_is_for_all_who_are_awake() -> None:
    """They may be looking already, or have no room just now, and will lie down without having seen what was rung for."""
    bell = Bell()
    with bell.bed(1) as paused, bell.bed(1) as busy:
        await fall_asleep(paused)
        busy.look()
        bell.ring(1)
        busy.looked(math.inf, full=False)
        assert not busy.rung  # the other would look
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await paused.sleep(sound=True)
        assert busy.rung


async def test_an_alarm_for_one_who_cannot_look_is_for_all_who_are_awake(autojump_clock: trio.testing.MockClock) -> None:
    bell = Bell()
    with bell.bed(1) as paused, bell.bed(1) as busy:
        bell.expect(1, 1)
        while not paused.rung:
            await paused.sleep()
        with trio.move_on_after(0):
            await paused.sleep(sound=True)
        assert busy.rung


async def test_beds_that_all_cannot_look_do_not_ring_each_other_for_ever() -> None:
    bell = Bell()
    with bell.bed(1) as a, bell.bed(1) as b:

        async def sleep_soundly(bed: Bed) -> None:
            while True:
                await bed.sleep(sound=True)

        a.ring()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep_soundly, a)
            nursery.start_soon(sleep_soundly, b)
            with trio.fail_after(PATIENCE):
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert b.rung
            nursery.cancel_scope.cancel()


async def test_busy_consumers_that_know_already_are_not_woken_to_be_told_again() -> None:
    bell = Bell()
    with bell.bed(1) as a, bell.bed(1) as b:
        a.rung = b.rung = True
        with trio.move_on_after(0):
            await b.sleep(sound=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: b.sleep(sound=True))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await a.sleep(sound=True)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            b.nudge()


async def test_a_ring_for_one_who_is_being_cancelled_is_for_another() -> None:
    """Its scope is cancelled, and its task has not run on yet: to the bell it still sleeps. A stream may then not look for long."""
    bell = Bell()
    with bell.bed(1) as a, bell.bed(1) as b:
        scope = trio.CancelScope()

        async def sleep_until_cancelled() -> None:
            with scope:
                await a.sleep()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep_until_cancelled)
            await trio.testing.wait_all_tasks_blocked()
            await fall_asleep(b)
            scope.cancel()
            bell.ring(1)
        assert a.rung
        assert b.rung
