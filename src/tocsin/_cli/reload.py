"""Restart a command whenever a Python file has changed, for development.

The command runs in a process of its own, because modules cannot be unloaded. The times
of the last change of the files are read twice a second; notifications of the operating
system would need another library.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import click
import trio

from tocsin._concurrency.nursery import open_nursery_bare

EVERY = 0.5
"""Seconds between two readings of the files' times."""
PATIENCE = 5
"""Seconds for handlers to end after a change, and again for the process to end after
that."""


async def run_and_restart(command: Sequence[str], root: Path) -> int:
    """Run the command, and again after each change below ``root``.

    Ends when the command ends well, or when a signal has ended it, and returns its exit
    code. SIGINT and SIGTERM are passed on. When the command fails by itself, the next
    change starts it again.

    Cancellation:
        The command is ended.
    """
    signalled = trio.Event()
    received: list[int] = []
    processes: list[trio.Process] = []

    async def pass_signals_on() -> None:
        async for number in signals:
            received.append(number)
            signalled.set()
            for process in processes:
                process.send_signal(number)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(pass_signals_on)
            while True:
                seen = look(root)  # before the start: what changes while it is starting counts
                async with _running(command) as process:
                    processes[:] = [process]
                    for number in received:  # while there was no process, or it was starting
                        process.send_signal(number)
                    changed = await _race(process.wait, partial(_change, root, seen)) == 1
                    if changed and not signalled.is_set():
                        click.echo("tocsin: a file has changed; restarting", err=True)
                        await _end(process)
                    code = await process.wait()
                if code != 0 and not changed and not signalled.is_set():
                    click.echo(f"tocsin: ended with {code}; waiting for a file to change", err=True)
                    changed = await _race(signalled.wait, partial(_change, root, seen)) == 1
                if signalled.is_set() or not changed:
                    break
            nursery.cancel_scope.cancel()
    return code if code >= 0 else 128 - code


async def _race(*functions: Callable[[], Awaitable[object]]) -> int:
    """Call these until the first has ended, and return which that was."""
    first: list[int] = []

    async def call(n: int) -> None:
        await functions[n]()
        first.append(n)
        nursery.cancel_scope.cancel()

    async with open_nursery_bare() as nursery:
        for n in range(len(functions)):
            nursery.start_soon(call, n)
    return first[0]


def look(root: Path) -> dict[str, int]:
    """Return when each Python file below this directory has last changed.

    Hidden directories and virtual environments do not count.
    """
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [
            f
            for f in folders
            if not f.startswith((".", "__pycache__"))
            and not (Path(folder) / f / "pyvenv.cfg").exists()
        ]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except OSError:  # it has just gone
                    continue
    return found


async def _change(root: Path, seen: dict[str, int]) -> None:
    await trio.lowlevel.checkpoint()
    while look(root) == seen:
        with trio.move_on_after(EVERY):
            await trio.sleep_forever()


@asynccontextmanager
async def _running(command: Sequence[str]) -> AsyncIterator[trio.Process]:
    # A process group of its own: Ctrl-C at the terminal reaches it once, by way of this
    # process, and not as two signals.
    process = await trio.lowlevel.open_process(list(command), process_group=0)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _end(process: trio.Process) -> None:
    """End it: gently, then less so. Takes no longer than three times `PATIENCE`."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with trio.move_on_after(PATIENCE):
                await process.wait()
