"""`open_nursery_bare`: one cause comes out bare, several stay together."""

from __future__ import annotations

import traceback
from typing import Any, NoReturn

import pytest
import trio

from tocsin._concurrency.nursery import open_nursery_bare


async def fail(error: BaseException) -> NoReturn:
    raise error


async def test_nothing_happens() -> None:
    done: list[int] = []

    async def work(n: int) -> None:
        await trio.lowlevel.checkpoint()
        done.append(n)

    async with open_nursery_bare() as nursery:
        for n in range(3):
            nursery.start_soon(work, n)
    assert sorted(done) == [0, 1, 2]


async def test_the_blocks_error() -> None:
    error = ValueError("mine")

    async def block() -> None:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error

    with pytest.raises(ValueError, match="mine") as caught:
        await block()
    assert caught.value is error


async def test_a_tasks_error() -> None:
    error = ValueError("the task's")

    async def block() -> None:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail, error)
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="the task's") as caught:
        await block()
    assert caught.value is error
    # Where it was raised can be seen, and nothing of the group.
    text = "".join(traceback.format_exception(error))
    assert "in fail" in text
    assert "ExceptionGroup" not in text
    assert error.__context__ is None


async def test_cause_and_context_are_kept() -> None:
    cause = KeyError("cause")
    error = ValueError("consequence")
    error.__cause__ = cause
    error.__context__ = context = LookupError("context")
    with pytest.raises(ValueError, match="consequence"):
        async with open_nursery_bare() as nursery:
            nursery.start_soon(fail, error)
    assert error.__cause__ is cause
    assert error.__context__ is context


async def test_several_errors_stay_a_group() -> None:
    async def block() -> None:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(fail, ValueError("one"))
            nursery.start_soon(fail, KeyError("two"))

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert {type(error) for error in caught.value.exceptions} == {ValueError, KeyError}


async def test_a_group_of_one_from_elsewhere_stays_a_group() -> None:
    group = ExceptionGroup("of the block's own nursery", [ValueError("inside")])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery_bare(), open_nursery_bare() as nursery:
            nursery.start_soon(fail, group)
    assert (caught.value.message, caught.value.exceptions) == (group.message, group.exceptions)


async def test_a_group_of_two_is_raised_as_it_is() -> None:
    group = ExceptionGroup("two", [ValueError("one"), KeyError("two")])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(fail, group)
    assert caught.group_contains(ValueError)
    assert caught.group_contains(KeyError)


async def test_control_c_is_a_cause_like_any_other() -> None:
    with pytest.raises(KeyboardInterrupt):
        async with open_nursery_bare() as nursery:
            nursery.start_soon(fail, KeyboardInterrupt())


async def test_cancelled_from_inside() -> None:
    async with open_nursery_bare() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught


async def test_cancelled_from_outside_is_cancelled_and_not_a_group() -> None:
    async def block() -> None:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    raised: list[type[BaseException]] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await block()
        except BaseException as error:
            raised.append(type(error))
            raise
    assert raised == [trio.Cancelled]


async def test_an_error_while_cancelled_from_outside() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in cleanup")

    async def block() -> None:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            await trio.lowlevel.checkpoint()
            scope.cancel()

    with trio.CancelScope() as scope, pytest.raises(ValueError, match="in cleanup"):
        await block()


async def test_start_works() -> None:
    async def serve(task_status: trio.TaskStatus[Any]) -> None:
        task_status.started("ready")
        await trio.sleep_forever()

    async with open_nursery_bare() as nursery:
        assert await nursery.start(serve) == "ready"
        nursery.cancel_scope.cancel()
