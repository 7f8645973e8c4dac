"""Make standard input, output and errors usable in any process.

A stream may be closed, full, or in an encoding that lacks most characters.
"""

from __future__ import annotations

import io
import os
import sys

_INPUT, _OUTPUT, _ERRORS = range(3)


class StreamClosed(Exception):
    """A command reads standard input, which is closed."""

    def __init__(self) -> None:
        super().__init__("standard input is closed")


def prepare() -> None:
    """Make the three streams usable.

    A closed stream is opened on the null device, so that no later file or socket gets
    its descriptor. Characters that cannot be encoded become escape sequences.
    """
    if sys.stdin is None:  # Python's value for a closed stream
        _occupy(_INPUT, os.O_WRONLY)
    if sys.stdout is None:
        _occupy(_OUTPUT, os.O_RDONLY)
        sys.stdout = io.TextIOWrapper(io.FileIO(_OUTPUT, "w", closefd=False))  # each write fails
    if sys.stderr is None:
        _occupy(_ERRORS, os.O_WRONLY)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _occupy(number: int, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number, inheritable=True)
        os.close(opened)


def is_terminal() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def input_number() -> int:
    """Return the file descriptor of standard input.

    Raises:
        StreamClosed: Standard input is closed.
    """
    if sys.stdin is None:
        raise StreamClosed
    return sys.stdin.fileno()


def give_up_output() -> None:
    """Keep Python from reporting at exit that output could not be written.

    The command has reported that already.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
