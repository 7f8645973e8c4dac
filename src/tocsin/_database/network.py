"""Limits to the silence of a network, after which both ends take a connection for lost.

A host that vanishes, and a router that forgets a connection, send no word about it. By
the kernels' defaults a connection then lives for a quarter of an hour to two hours, on
each side. So each of our connections asks for less, on the client's side by libpq's
parameters and on the server's by settings of the session. The server's end matters as
much: it holds the lifeline and the locks of a client that vanished.

Keepalive alone is not enough. It is suspended while sent data waits to be acknowledged,
which a notification to a vanished client does; ``tcp_user_timeout`` limits that wait.
What neither of them sees, because the silence is above TCP, is found by
``driver/_watch.py``.

Unix sockets ignore all of it, and a system that lacks one of the options only lacks
that one.
"""

from __future__ import annotations

from typing import Final

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CONNECT_TIMEOUT: Final = 10
"""Seconds that one attempt to connect may take, unless the DSN (``connect_timeout``) or
``PGCONNECT_TIMEOUT`` says otherwise."""

CONNECT_TIMEOUT_OF_SEVERAL: Final = 3
"""The same where a DSN names several hosts: while the first one is gone, each new
connection waits for it before it tries the next."""

ON_THE_CLIENT: Final = {
    "keepalives_idle": "5",  # seconds
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",  # milliseconds
}
"""Parameters of a connection string, for a connection whose user does not set them."""

ON_THE_SERVER: Final = {
    "tcp_keepalives_idle": "4",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "2",
    # On Linux this timeout also limits keepalive. The messages of a vanished host wait
    # for it, so it is short. It also ends the session of a living client that has not
    # read for that long, because its event loop is blocked and the buffers of the
    # sockets are full. The process of that client opens another session, and the
    # messages that it had claimed are delivered again.
    "tcp_user_timeout": "8000",
}
"""Settings of a session that is ours alone."""


def complete(dsn: str) -> str:
    """Return a DSN with each parameter above that its user has not set.

    The user sets one in the DSN, in libpq's environment or in a service file.
    """
    said = conninfo_to_dict(dsn)
    environment = {d.keyword.decode(): d.val.decode() for d in pq.Conninfo.get_defaults() if d.val}
    chosen: dict[str, str | int] = {}
    if "service" not in said:  # a service file, which only libpq reads, may set them
        chosen = {
            name: value
            for name, value in ON_THE_CLIENT.items()
            if name not in said and name not in environment
        }
    if "connect_timeout" not in said:
        hosts = str(
            said.get("host")
            or said.get("hostaddr")
            or environment.get("host")
            or environment.get("hostaddr")
            or ""
        )
        chosen["connect_timeout"] = environment.get(
            "connect_timeout", CONNECT_TIMEOUT_OF_SEVERAL if "," in hosts else CONNECT_TIMEOUT
        )
    return make_conninfo(dsn, **chosen)
