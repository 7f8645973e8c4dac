"""A command in a terminal of its own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import ENDS_WITHIN

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A terminal in which the command runs."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.raw = ""

    def read_until(self, pattern: str) -> str:
        """Read until something like this has been shown since the last call; return
        what was shown."""
        shown = ""
        deadline = time.monotonic() + ENDS_WITHIN
        while not re.search(pattern, _ESCAPES.sub("", shown)):
            ready, _, _ = select.select(
                [self._descriptor], [], [], max(0, deadline - time.monotonic())
            )
            assert ready, f"no {pattern!r} in {shown!r}"
            text = os.read(self._descriptor, 65536).decode()
            shown += text
            self.raw += text
        return _ESCAPES.sub("", shown)

    def read_to_end(self) -> str:
        """Return all that is shown until the command has ended."""
        while True:
            try:
                self.raw += os.read(self._descriptor, 65536).decode()
            except OSError:
                return _ESCAPES.sub("", self.raw)

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._descriptor, keys)

    def wait(self) -> int:
        """Return its exit code."""
        deadline = time.monotonic() + ENDS_WITHIN
        while self.process.poll() is None and time.monotonic() < deadline:
            # it may wait for its last words to be read
            if select.select([self._descriptor], [], [], 0.01)[0]:
                try:
                    self.raw += os.read(self._descriptor, 65536).decode()
                except OSError:
                    break
        return self.process.wait(ENDS_WITHIN)


@contextmanager
def terminal(dsn: str, *arguments: str, columns: int = 160) -> Iterator[Terminal]:
    ours, theirs = os.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "COLUMNS": str(columns),
        "LINES": "40",
        "TOCSIN_DSN": dsn,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tocsin", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(ENDS_WITHIN)
        os.close(ours)
