"""Running a child process and hearing what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.support import PATIENCE


class Child:
    """A child process whose lines can be awaited."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._buffer = b""

    async def line(self) -> str:
        """Return its next line."""
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._buffer:
                chunk = await self.process.stdout.receive_some()
                if not chunk:
                    raise EOFError(
                        f"the child ended with {await self.process.wait()} and {self._buffer!r}"
                    )
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    async def words(self, first: str) -> list[str]:
        """Return the words that follow this one in the next line."""
        words = (await self.line()).split()
        assert words[0] == first, words
        return words[1:]


@asynccontextmanager
async def run_script(script: str, *arguments: str) -> AsyncIterator[Child]:
    """Run a script of tests/support/children, or one with its whole path; kill it at
    the end of the block."""
    command = [sys.executable, "-u", str(Path(__file__).parent / "children" / script), *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()
