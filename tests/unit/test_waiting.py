"""Waiting for a socket, without a database."""

from __future__ import annotations

import math
import socket
from collections.abc import Generator, Iterator
from contextlib import suppress

import psycopg
import pytest
import trio
import trio.testing
from psycopg.waiting import Ready, Wait

from tests.driver.helpers import SAFETY_NET
from tocsin.driver import _waiting as waiting


def wait_once(what: Wait) -> Generator[Wait, int, int]:
    ready = 0
    while not ready:
        ready = yield what
    return ready


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def stuff(end: socket.socket) -> None:
    """Write until the socket takes no more."""
    with suppress(BlockingIOError):
        while True:
            end.send(b"x" * 65536)


def empty(end: socket.socket) -> None:
    with suppress(BlockingIOError):
        while end.recv(65536):
            pass


async def wait(what: Wait, end: socket.socket, deadline: float = math.inf) -> int:
    turn = waiting.Turn()
    await turn.enter()
    with trio.fail_after(SAFETY_NET):
        return await waiting.wait(wait_once(what), end.fileno(), turn, deadline)


async def test_writable_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    assert await wait(Wait.W, ends[0]) == Ready.W
    assert await wait(Wait.RW, ends[0]) == Ready.W
    ends[1].send(b"x")
    assert await wait(Wait.RW, ends[0]) == Ready.RW


async def test_readable_later(ends: tuple[socket.socket, socket.socket]) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wait(Wait.R, ends[0]) == Ready.R

        await trio.testing.wait_all_tasks_blocked()
        ends[1].send(b"x")


@pytest.mark.parametrize("what", [Wait.W, Wait.RW])
async def test_writable_later(what: Wait, ends: tuple[socket.socket, socket.socket]) -> None:
    stuff(ends[0])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wait(what, ends[0]) == Ready.W

        await trio.testing.wait_all_tasks_blocked()
        empty(ends[1])


async def test_readable_before_writable(ends: tuple[socket.socket, socket.socket]) -> None:
    stuff(ends[0])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wait(Wait.RW, ends[0]) == Ready.R

        await trio.testing.wait_all_tasks_blocked()
        ends[1].send(b"x")


@pytest.mark.parametrize("what", [Wait.R, Wait.W, Wait.RW])
async def test_closed_during_that_time(
    what: Wait, ends: tuple[socket.socket, socket.socket]
) -> None:
    stuff(ends[0])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(psycopg.OperationalError, match="connection socket closed"):
                await wait(what, ends[0])

        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(ends[0])


@pytest.mark.parametrize("what", [Wait.R, Wait.W, Wait.RW])
async def test_closed_before(what: Wait, ends: tuple[socket.socket, socket.socket]) -> None:
    number = ends[0].fileno()
    ends[0].close()
    with pytest.raises(psycopg.OperationalError, match="connection socket closed"):
        await waiting.wait(wait_once(what), number, waiting.Turn())


@pytest.mark.parametrize("what", [Wait.R, Wait.RW])
async def test_a_deadline(
    what: Wait, ends: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    stuff(ends[0])
    with pytest.raises(psycopg.errors._WaitTimeout):
        await wait(what, ends[0], trio.current_time() + 10)
    assert trio.current_time() == 10
    # A deadline that is over still leaves time for one check.
    ends[1].send(b"x")
    assert await wait(what, ends[0], trio.current_time()) == Ready.R


@pytest.mark.parametrize("what", [Wait.R, Wait.W, Wait.RW])
async def test_resumed_after_cancellation(
    what: Wait, ends: tuple[socket.socket, socket.socket]
) -> None:
    stuff(ends[0])
    gen = wait_once(what)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.wait, gen, ends[0].fileno(), waiting.Turn())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    ends[1].send(b"x")
    empty(ends[1])
    assert await waiting.wait(gen, ends[0].fileno(), waiting.Turn())


async def test_cancelled_is_cancelled_and_not_a_group(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def wait_for_either() -> None:
        try:
            await wait(Wait.RW, ends[0])
        except BaseException as error:
            raised.append(type(error))
            raise

    raised: list[type[BaseException]] = []
    stuff(ends[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_either)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert raised == [trio.Cancelled]


async def test_a_busy_socket_leaves_a_turn_to_other_tasks(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    turns = 0

    def busy() -> Generator[Wait, int, int]:
        while turns < 3:
            yield Wait.W
        return turns

    async def other() -> None:
        nonlocal turns
        while turns < 3:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with trio.fail_after(SAFETY_NET):
            assert await waiting.wait(busy(), ends[0].fileno(), waiting.Turn()) == 3


async def test_what_the_generator_raises_comes_out(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    def broken() -> Generator[Wait, int, int]:
        yield Wait.W
        raise OSError("my own")

    with pytest.raises(OSError, match="my own"):
        await waiting.wait(broken(), ends[0].fileno(), waiting.Turn())
