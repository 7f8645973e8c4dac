"""Locks of a server's directory, and the server that a killed process has left.

A process that is killed (SIGKILL, out of memory) runs no cleanup, and its server goes
on alone. The next `serve` must tell such an orphan from a server in use. It cannot
trust process ids, because the kernel gives them out again. So two `flock` locks lie in
the directory of the data; the kernel drops each with the last process that holds it.

- ``owner.lock`` is held by the process that is in a `serve` block. When it is taken,
  the directory is busy.
- ``server.lock`` is inherited by the postmaster and all its backends. When it is taken
  and ``owner.lock`` was free, the server is an orphan. Only then is the process id that
  the file names believed.

PostgreSQL itself decides whether a ``postmaster.pid`` is stale.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trio

from ._stopping import FAST, POLL

__all__ = ["ServerBusy", "ServerLock", "owned"]


class ServerBusy(RuntimeError):
    """A directory that another process, or another block of this one, is using."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(f"the PostgreSQL server in {directory} is in use by {owner}")
        self.directory = directory
        """The directory that `serve` was given."""
        self.pid = pid
        """Id of the process that uses the directory; None when it is not known."""


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None when another process holds it.

    The descriptor is read-only, because the server inherits it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Hold ``owner.lock`` of the directory for the block.

    Raises:
        ServerBusy: Another process, or another block of this one, holds it.
    """
    path = directory / "owner.lock"
    descriptor = try_lock(path)
    if descriptor is None:
        owner = path.read_text()
        raise ServerBusy(directory, int(owner) if owner else None)
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        path.write_text("")
        os.close(descriptor)


@attrs.frozen
class ServerLock:
    """The file that is locked while a postmaster or one of its backends lives."""

    path: Path
    """Names the directory of their sockets and the postmaster's process id."""

    def record(self, sockets: Path, pid: int | None = None) -> None:
        """Write where the server's sockets are, and its process id."""
        self.path.write_text(f"{sockets}\n" if pid is None else f"{sockets}\n{pid}\n")

    def recorded(self) -> tuple[Path | None, int | None]:
        """Return the directory and the process id that were recorded last."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return (Path(lines[0]) if lines else None), (int(lines[1]) if len(lines) > 1 else None)

    async def take(self) -> int:
        """Stop what is left of an earlier server, and return the lock's descriptor.

        Raises:
            ServerBusy: The earlier server does not end.

        Cancellation:
            The lock is not held. The earlier server may have been told to stop.
        """
        await trio.lowlevel.checkpoint()
        if (descriptor := try_lock(self.path)) is not None:
            return descriptor
        _, pid = self.recorded()
        for number, patience in FAST:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with trio.move_on_after(patience):
                while True:
                    if (descriptor := try_lock(self.path)) is not None:
                        return descriptor
                    await trio.sleep(POLL)
        raise ServerBusy(self.path.parent, pid)
