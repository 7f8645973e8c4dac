"""The files to work on, and how a message names one.

A name is bytes to the operating system, and need not be text; a payload is text. So a
message has the path percent-encoded, as a URL would, which leaves ordinary names as
they are.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

NOT_OURS = frozenset({"site-packages", "__pycache__"})
"""Directories in the standard library's folder that are not of the standard library."""


def standard_library() -> Path:
    """Return the folder of this Python's standard library.

    Every machine has it, with thousands of files.
    """
    return Path(sysconfig.get_paths()["stdlib"])


def find(root: Path, skipped: frozenset[str]) -> list[str]:
    """Return the regular files below a directory, as messages name them, in order.

    Symbolic links are not followed. Directories that cannot be read are left out.

    Args:
        root: The directory.
        skipped: Names of directories that are left out.
    """
    base = os.fsencode(root)
    found: list[bytes] = []
    directories = [base]
    while directories:
        try:
            entries = list(os.scandir(directories.pop()))
        except OSError:
            continue
        directories += [
            e.path
            for e in entries
            if e.is_dir(follow_symlinks=False) and os.fsdecode(e.name) not in skipped
        ]
        found += [e.path for e in entries if e.is_file(follow_symlinks=False)]
    return sorted(quote(os.path.relpath(path, base)) for path in found)


def digest(root: Path, name: str) -> tuple[str, int]:
    """Return a file's SHA-256 and its size in bytes.

    Raises:
        OSError: The file is gone or cannot be read.
    """
    with open(os.path.join(os.fsencode(root), unquote_to_bytes(name)), "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return sha256, file.tell()
