"""One postmaster, its start and its stop.

The postmaster gets a session of its own. Ctrl-C in a terminal goes to the whole
foreground process group, and the server must outlive the block's last transaction.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import trio

from ._locks import ServerLock
from ._processes import Account, ServerFailed, spawn
from ._stopping import FAST, IMMEDIATE, POLL, StopMode

__all__ = ["EmbeddedServer"]


@final
class EmbeddedServer:
    """A PostgreSQL server, which `serve` starts and stops."""

    def __init__(
        self, directory: Path, version: str, dsn: str, sockets: Path, command: Sequence[str]
    ) -> None:
        self.dsn: Final = dsn
        """Connection string for the database ``postgres``, as superuser, over a Unix
        socket. A restart does not change it."""
        self.directory: Final = directory
        """Holds the data, the log, the locks and, where they had to be copied, the
        binaries."""
        self.log_path: Final = directory / "server.log"
        """The server's log since `serve`. The log of the run before is
        ``server.log.old``, in the same directory."""
        self.version: Final = version
        """PostgreSQL's version, such as ``18.6``."""
        self._command: Final = command
        self._sockets: Final = sockets
        self._lock: Final = ServerLock(directory / "server.lock")
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start the server and wait until it accepts connections.

        A running server is left alone.

        Raises:
            ServerFailed: The server ended instead.
            ServerBusy: An earlier server of this directory cannot be stopped.

        Cancellation:
            The server is stopped.
        """
        await trio.lowlevel.checkpoint()
        if self._process is not None and self._process.poll() is None:
            return
        earlier_sockets, _ = self._lock.recorded()
        descriptor = await self._lock.take()
        try:
            if earlier_sockets not in (None, self._sockets):
                shutil.rmtree(earlier_sockets, ignore_errors=True)
            self._lock.record(self._sockets)
            process = await spawn(
                self._command, Account.choose(), self.log_path, pass_fds=(descriptor,)
            )
            self._process = process
            self._lock.record(self._sockets, process.pid)
        finally:
            os.close(descriptor)
        try:
            while _status(self.directory / "data", process.pid) != "ready":
                if process.poll() is not None:
                    raise ServerFailed(
                        f"postgres ended with status {process.returncode}", self.log_path
                    )
                await trio.sleep(POLL)
        except BaseException:
            await self._end("immediate")
            raise

    async def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server.

        A server that does not end in time is sent a stronger signal, and is killed in
        the end. All of it takes 20 seconds at most.

        Args:
            mode: ``"fast"`` ends the sessions and writes everything out;
                ``"immediate"`` is a crash.

        Cancellation:
            The server is stopped, and then `trio.Cancelled` is raised.
        """
        await self._end(mode)
        await trio.lowlevel.checkpoint()

    async def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again.

        Args:
            mode: As for `stop`.

        Raises:
            ServerFailed: The server ended instead of starting.
            ServerBusy: The server cannot be stopped.

        Cancellation:
            The server is stopped.
        """
        await self.stop(mode)
        await self.start()

    async def _end(self, mode: StopMode) -> None:
        if self._process is None:
            return
        try:
            for number, patience in FAST if mode == "fast" else IMMEDIATE:
                self._process.send_signal(number)
                with trio.move_on_after(patience, shield=True):
                    await self._process.wait()
                    return
        except KeyboardInterrupt:
            # After a second Ctrl-C, during the cleanup of the first, end at once and
            # leave no server running.
            self._process.send_signal(signal.SIGQUIT)
            raise


def _status(data: Path, pid: int) -> str:
    """Return the state that the postmaster has written.

    It is ``starting``, ``ready`` or ``stopping``, or the empty string before the
    postmaster has written one.
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return lines[7].strip() if len(lines) > 7 and lines[0] == str(pid) else ""
