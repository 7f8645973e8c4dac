"""Restart a command whenever a Python file has changed, for development.

The command runs in a separate process, because Python cannot unload modules. This
process reads the modification times of the files twice a second; file notifications of
the operating system would need another library.
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
"""Seconds between two readings of the modification times."""
PATIENCE = 5
"""Seconds that handlers have to end after a change, and that the process then has to
end."""


async def run_and_restart(command: Sequence[str], root: Path) -> int:
    """Run the command, and run it again after each change below ``root``.

    Ends when the command succeeds, or when a signal has ended it, and returns its exit
    code. SIGINT and SIGTERM are sent to the command, too. When the command fails by
    itself, the next change starts it again.

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
                seen = look(root)  # before the start, so that a change during the start counts
                async with _running(command) as process:
                    processes[:] = [process]
                    for number in received:  # signals from before the process could receive them
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
    """Call the functions concurrently until one has ended, and return its number."""
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
    """Return the modification time of each Python file below this directory.

    Hidden directories and virtual environments are left out.
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
                except OSError:  # the file has just been deleted
                    continue
    return found


async def _change(root: Path, seen: dict[str, int]) -> None:
    await trio.lowlevel.checkpoint()
    while look(root) == seen:
        with trio.move_on_after(EVERY):
            await trio.sleep_forever()


@asynccontextmanager
async def _running(command: Sequence[str]) -> AsyncIterator[trio.Process]:
    # The command has a separate process group, so that it receives Ctrl-C at the
    # terminal only once, from this process.
    process = await trio.lowlevel.open_process(list(command), process_group=0)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _end(process: trio.Process) -> None:
    """End the process with SIGTERM, and finally with SIGKILL.

    Takes at most three times `PATIENCE`.
    """
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with trio.move_on_after(PATIENCE):
                await process.wait()
