"""Calling the command line from a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.support import ENDS_WITHIN


class Ended(NamedTuple):
    """What a call of the command left behind."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        """The document that it printed."""
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line that it printed."""
        return [line.split() for line in self.out.splitlines()]


class Call(Protocol):
    """Calls the command in this process; ``stdin`` is what it can read."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Ended: ...


def one_line(text: str) -> bool:
    """Whether it is an error as the command line prints them."""
    return text.startswith("tocsin: ") and text.count("\n") == 1


@contextmanager
def started(
    dsn: str, *arguments: str, folder: Path | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a process of its own, perhaps in this folder; kill it at the
    end of the block if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tocsin", *arguments, "--dsn", dsn],
        cwd=folder,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=ENDS_WITHIN)


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """Read what the process writes to standard error until a line with this text."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        if text in line:
            return line
        seen.append(line)
    raise EOFError(f"no {text!r} in {seen}")


def ask_at_a_terminal(dsn: str, *arguments: str, answer: str) -> str:
    """Call the command with a terminal to ask at, give this answer, and return what it
    wrote to standard error."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        with started(dsn, *arguments, stdin=theirs) as process:
            return process.communicate(timeout=ENDS_WITHIN)[1]
    finally:
        os.close(ours)
        os.close(theirs)
