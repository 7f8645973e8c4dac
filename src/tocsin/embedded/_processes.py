"""PostgreSQL's programs as processes of a system user that they accept.

PostgreSQL refuses to run as root. There it runs as ``nobody``, and only directories
that `serve` has made are given to that user.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

__all__ = ["Account", "ServerFailed", "run_to_end", "spawn"]

_LOG_TAIL: Final = 20


@attrs.frozen
class Account:
    """The system user that the server runs as; None throughout for the present user."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @classmethod
    def choose(cls) -> Account:
        """Return the account for a server of this process."""
        if os.geteuid() != 0:
            return cls()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid, ())

    def give(self, directory: Path) -> None:
        """Make the account the owner of the directory."""
        if self.uid is not None and self.gid is not None:
            os.chown(directory, self.uid, self.gid)


class ServerFailed(RuntimeError):
    """A run of ``initdb`` or the server that ended too early.

    The message has the end of the log.
    """

    def __init__(self, what: str, log_path: Path) -> None:
        tail = log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        super().__init__("\n  ".join([f"{what}; the end of {log_path}:", *tail]))
        self.log_path = log_path
        """The log."""


async def spawn(
    command: Sequence[str],
    account: Account,
    log_path: Path,
    *,
    output: int | None = None,
    pass_fds: tuple[int, ...] = (),
) -> trio.Process:
    """Start a process that writes to the log.

    Args:
        output: The descriptor for its standard output, instead of the log.
        pass_fds: Descriptors that the process inherits.

    Cancellation:
        The process is not started.
    """
    with log_path.open("ab") as log:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log.fileno() if output is None else output,
            stderr=log.fileno(),
            cwd="/",
            # A postmaster without a locale becomes multi-threaded on macOS, and ends.
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
            pass_fds=pass_fds,
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
        )


async def run_to_end(
    command: Sequence[str], account: Account, log_path: Path, *, output: int | None = None
) -> None:
    """Run a process to its end.

    `trio.run_process` would raise Ctrl-C in an ExceptionGroup.

    Raises:
        ServerFailed: The process ended with an error.

    Cancellation:
        The process is killed.
    """
    process = await spawn(command, account, log_path, output=output)
    try:
        await process.wait()
    except BaseException:
        process.kill()
        with trio.move_on_after(4, shield=True):
            await process.wait()
        raise
    if process.returncode != 0:
        raise ServerFailed(f"{command[0]} ended with status {process.returncode}", log_path)
