"""A host that can vanish: a network namespace with its own address.

The host is for processes whose packets are lost without an error. It needs root, Linux
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
"""The address of this side, and the address of the other host."""


def is_possible() -> bool:
    """Return whether such a host can be created on this machine."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@attrs.frozen
class Remote:
    """The host; created by `running`."""

    name: str
    """Name of the namespace."""

    def prefix(self) -> list[str]:
        """Return the words before a command that make it run on the host."""
        return ["ip", "netns", "exec", self.name]

    def vanish(self) -> None:
        """Lose all packets to and from the host from now on."""
        _ip("-n", self.name, "link", "set", "far", "down")

    @classmethod
    def make(cls, near: str) -> Self:
        """Create the host, with this name for the near end of its network link."""
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
    """Create a host for the block."""
    near = f"near{secrets.token_hex(3)}"
    remote = Remote.make(near)
    try:
        yield remote
    finally:
        _ip("link", "del", near)
        _ip("netns", "del", remote.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
