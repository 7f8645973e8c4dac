"""A child that was forked has no part in its parent's connections."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from collections.abc import Callable

import trio

from tests.support import PATIENCE
from tocsin.driver import TrioConnection


def status_of_child(work: Callable[[], bool]) -> int:
    """Fork, and return the exit status of a child that ends with 0 when the function
    returns true."""
    child = os.fork()
    if not child:
        os._exit(not work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_a_child_holds_no_copy_of_the_socket_and_the_parent_goes_on(dsn: str) -> None:
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        fileno = connection.pgconn.socket
        sock = os.readlink(f"/proc/self/fd/{fileno}")

        def has_no_copy() -> bool:
            files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            return sock not in [os.readlink(file) for file in files if os.path.lexists(file)]

        assert status_of_child(has_no_copy) == 0
        cursor = await connection.execute("select 1")
        assert await cursor.fetchone() == (1,)


async def test_a_child_that_ends_does_not_end_the_session(dsn: str) -> None:
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        pgconn = connection.pgconn

        def finish() -> bool:
            pgconn.finish()
            gc.collect()
            return True

        assert status_of_child(finish) == 0
        cursor = await connection.execute("select 1")
        assert await cursor.fetchone() == (1,)


async def test_a_program_that_is_executed_gets_no_copy(dsn: str) -> None:
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        fileno = connection.pgconn.socket
        assert fcntl.fcntl(fileno, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with trio.fail_after(PATIENCE):
            script = f"import os, sys; sys.exit(os.path.exists('/proc/self/fd/{fileno}'))"
            ended = await trio.run_process([sys.executable, "-c", script], check=False)
        assert ended.returncode == 0


async def test_a_closed_connection_does_not_concern_a_child(dsn: str) -> None:
    connection = await TrioConnection.connect(dsn, autocommit=True)
    await connection.close()
    assert status_of_child(lambda: True) == 0
