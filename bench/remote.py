"""A host that can vanish: a network namespace with an address of its own.

It is for processes whose packets are to be lost without a word. It takes root, Linux
and the command ``ip`` (Debian's iproute2).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import attrs

ADDRESS, REMOTE_ADDRESS = "10.213.7.1", "10.213.7.2"
"""This side's, and the other one's."""


def is_possible() -> bool:
    """Return whether such a host can be made here."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@attrs.frozen
class Remote:
    """The host; made by `remote`."""

    name: str
    """Of its namespace."""

    def prefix(self) -> list[str]:
        """Return what makes a command run there."""
        return ["ip", "netns", "exec", self.name]

    def vanish(self) -> None:
        """Lose all packets to it and from it from now on."""
        _ip("-n", self.name, "link", "set", "far", "down")

    @classmethod
    def make(cls, near: str) -> Self:
        """Make it, with this name for the near end of the line."""
        remote = cls(f"tocsin-{secrets.token_hex(4)}")
        _ip("netns", "add", remote.name)
        _ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", remote.name)
        _ip("addr", "add", f"{ADDRESS}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", remote.name, "addr", "add", f"{REMOTE_ADDRESS}/30", "dev", "far")
        _ip("-n", remote.name, "link", "set", "far", "up")
        return remote


@contextmanager
def running() -> Iterator[Remote]:
    """Make a host for the length of the block."""
    near = f"near{secrets.token_hex(3)}"
    remote = Remote.make(near)
    try:
        yield remote
    finally:
        _ip("link", "del", near)
        _ip("netns", "del", remote.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
