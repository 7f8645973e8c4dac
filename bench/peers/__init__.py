"""Other queues from PyPI, each behind a thin adapter.

An adapter is a file of this package that has a `Peer` in it. Each queue is set up as
its own documentation says that it is fastest, with nothing but durability that a queue
on disk has by default; the adapter says how, and so do the settings of the result. They
bring an event loop of their own, asyncio, on uvloop where that is installed: each runs
in a process that has nothing to do with trio. They come with the extra ``peers``; what
is not installed is left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from urllib.parse import quote

import attrs
from psycopg.conninfo import conninfo_to_dict

Handled: TypeAlias = Callable[[], None]
"""To be called by the handler, once for each message."""


@attrs.frozen
class Peer:
    """What the benchmarks must know of another queue."""

    settings: Mapping[str, object]
    """How it is set up here; shown with its figures."""
    fill: Callable[[str, int], Awaitable[None]]
    """Installs it in the database, if need be, and enqueues this many messages with the
    payload ``{"n": number}``."""
    work: Callable[[str, int, Handled], Awaitable[object]]
    """Handles messages, in batches of this size where it has batches (0: as it is
    fastest), until cancelled or nothing is left."""
    settled: Callable[[str], Awaitable[int]]
    """Counts the messages that it has finished."""
    on_file: bool = False
    """Whether it is on a file of its own, whose path it gets instead of a connection
    string."""


def url(dsn: str) -> str:
    """Return a connection string as a URL.

    A directory with a socket is the host, with its slashes encoded.
    """
    given = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(dsn).items()}
    login = ":".join(given[name] for name in ("user", "password") if name in given)
    port = f":{given['port']}" if "port" in given else ""
    user = f"{login}@" if login else ""
    host, database = given.get("host", "localhost"), given.get("dbname", "")
    return f"postgresql://{user}{host}{port}/{database}"
