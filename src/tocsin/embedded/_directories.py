"""The directories and the log of a server.

A session over the Unix socket is superuser. So the socket lies in a directory of mode
0700, which is made for each run among the temporary files, because the path of a socket
is limited to about a hundred bytes. TCP is off. With a ``port`` it is on for 127.0.0.1,
but with a password, and the superuser has none until one is set.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ._processes import Account

__all__ = ["begin_log", "make_directory", "socket_directory"]

_SOCKET_NAME: Final = "tocsin-01234567/.s.PGSQL.65535"
_SOCKET_PATH_LIMIT: Final = 103  # on macOS; 107 on Linux


def make_directory(directory: Path, account: Account) -> Path:
    """Make the missing parts of the path, and return it.

    Other users can traverse these directories but not list them.
    """
    directory = directory.absolute()
    for missing in reversed(
        [path for path in (directory, *directory.parents) if not path.exists()]
    ):
        missing.mkdir()
        missing.chmod(0o700 if account.uid is None else 0o711)
    return directory


def begin_log(log_path: Path) -> None:
    """Begin an empty log, and keep the one before."""
    with suppress(FileNotFoundError):
        log_path.replace(f"{log_path}.old")
    log_path.touch(mode=0o600)  # the log quotes statements


@contextmanager
def socket_directory(account: Account) -> Iterator[Path]:
    """Make a directory for the sockets, and remove it at the end of the block."""
    parent = Path(tempfile.gettempdir())
    # The server's user may have no access to root's TMPDIR.
    if account.uid is not None or len(os.fsencode(parent / _SOCKET_NAME)) > _SOCKET_PATH_LIMIT:
        parent = Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix="tocsin-", dir=parent))
    try:
        account.give(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
