"""Run other queues from PyPI, each through a thin adapter.

An adapter is a module of this package that defines a `Peer`. Each queue has the
settings that its own documentation recommends for speed, with the default durability of
a queue on disk. The adapter and the settings of the result describe them. The peers run
on asyncio, or on uvloop where it is installed, so each peer runs in a process without
trio. The extra ``peers`` installs them. A peer that is not installed is left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from urllib.parse import quote

import attrs
from psycopg.conninfo import conninfo_to_dict

Handled: TypeAlias = Callable[[], None]
"""Function that the handler calls once for each message."""


@attrs.frozen
class Peer:
    """The interface of another queue for the benchmarks."""

    settings: Mapping[str, object]
    """The settings of the queue, which are shown with its figures."""
    fill: Callable[[str, int], Awaitable[None]]
    """Function that installs the queue in the database if necessary, and enqueues
    this many messages with the payload ``{"n": number}``."""
    work: Callable[[str, int, Handled], Awaitable[object]]
    """Function that handles messages until it is cancelled or no message is left. The
    number is the size of batches, if the queue has batches; 0: the fastest size."""
    settled: Callable[[str], Awaitable[int]]
    """Function that counts the finished messages."""
    on_file: bool = False
    """Whether the queue uses a file, whose path it gets instead of a connection
    string."""


def url(dsn: str) -> str:
    """Return a connection string as a URL.

    A socket's directory becomes the host, with its slashes encoded.
    """
    given = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(dsn).items()}
    login = ":".join(given[name] for name in ("user", "password") if name in given)
    port = f":{given['port']}" if "port" in given else ""
    user = f"{login}@" if login else ""
    host, database = given.get("host", "localhost"), given.get("dbname", "")
    return f"postgresql://{user}{host}{port}/{database}"
