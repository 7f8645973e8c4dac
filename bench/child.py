"""Start the processes of a benchmark, and exchange lines with them.

A process runs one function of one of these modules, async or not, which is
called with a connection string and further words. It is started as ``python -m
bench.child MODULE FUNCTION WORDS...``. The connection string, which may contain a
password, is in the environment. The benchmark writes each order as a line to the
standard input of the process. The process writes its measurements to its standard
output.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing

import tocsin

_DSN = "TOCSIN_BENCH_DSN"
_CLEANUP_WITHIN = 10.0
_PATIENCE = 60.0
"""Seconds to wait for a line of a process."""


class Lines:
    """The lines of a stream, split into words."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next(self) -> list[str]:
        """Return the words of the next line.

        Raises:
            EOFError: The stream has ended.

        Cancellation:
            No line is lost.
        """
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode().split()


class Child:
    """A process that runs a function; created by `child_process`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._lines = Lines(process.stdout)

    async def order(self, *words: object) -> None:
        """Send the process a line.

        Cancellation:
            The line is sent, sent in part, or not sent.
        """
        await self._stdin.send_all(" ".join(map(str, words)).encode() + b"\n")

    async def receive(self, word: str, within: float = _PATIENCE) -> list[str]:
        """Return the rest of the process's next line, which begins with this word.

        Raises:
            RuntimeError: The line begins with another word, or the process has ended.
            trio.TooSlowError: The process sent no line in time.

        Cancellation:
            No line is lost.
        """
        try:
            with trio.fail_after(within):
                first, *rest = await self._lines.next()
        except EOFError:
            raise RuntimeError(
                f"a process ended that should have reported {word!r}; its standard error says why"
            ) from None
        if first != word:
            raise RuntimeError(f"a process reported {first!r} instead of {word!r}")
        return rest

    async def close(self) -> None:
        """Close the pipes to the process.

        Cancellation:
            The pipes are closed.
        """
        await self._stdin.aclose()
        await self._stdout.aclose()

    async def receive_number(self, word: str) -> float:
        """Return the number that follows this word in the process's next line."""
        (number,) = await self.receive(word)
        return float(number)


@asynccontextmanager
async def child_process(
    function: Callable[..., object], dsn: str, *words: object
) -> AsyncIterator[Child]:
    """Run this function in a process, and wait until it reports that it is ready.

    At the end the process is killed, with the processes that it has started.
    """
    async with child_processes(function, dsn, words) as (child,):
        yield child


@asynccontextmanager
async def child_processes(
    function: Callable[..., object], dsn: str, *each: Sequence[object]
) -> AsyncIterator[list[Child]]:
    """Run this function in several processes, each with its own arguments.

    The processes start at the same time. See `child_process`.
    """
    children: list[Child] = []
    try:
        for words in each:
            # One by one, so that the processes that have started are killed after an
            # error.
            children.append(await _start(function, dsn, words))  # noqa: PERF401
        for child in children:
            await child.receive("ready")
        yield children
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                # Some peers start processes of their own, which this kills, too.
                os.killpg(child.process.pid, signal.SIGKILL)
        with trio.move_on_after(_CLEANUP_WITHIN, shield=True):
            for child in children:
                await child.process.wait()
                await child.close()


async def _start(function: Callable[..., object], dsn: str, words: Sequence[object]) -> Child:
    command = [
        sys.executable,
        "-m",
        "bench.child",
        function.__module__,
        function.__qualname__,
        *map(str, words),
    ]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {_DSN: dsn},
        cwd=Path(__file__).parents[1],
        start_new_session=True,  # Ctrl-C reaches only the benchmark, which then kills the process
    )
    return Child(process)


# In the child process


def report(*words: object) -> None:
    """Send a line to the benchmark."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


@asynccontextmanager
async def orders() -> AsyncIterator[Lines]:
    """Yield the benchmark's orders, for an async function.

    A function that is not async reads `sys.stdin`.
    """
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        yield Lines(stream)


async def until_idle(store: tocsin.Store) -> None:
    """Return when this process waits only for a notification or its next heartbeat.

    A task that waits for the answer to a statement seems idle, but it has a connection
    of the pool.
    """
    while True:
        await trio.testing.wait_all_tasks_blocked(0.001)
        if not store.statistics().pool.in_use:
            return


def _run_function(module: str, function: str, *words: str) -> None:
    called: Callable[..., Any] = getattr(importlib.import_module(module), function)
    if inspect.iscoroutinefunction(called):
        trio.run(called, os.environ[_DSN], *words)
    else:
        called(os.environ[_DSN], *words)


if __name__ == "__main__":
    _run_function(*sys.argv[1:])
