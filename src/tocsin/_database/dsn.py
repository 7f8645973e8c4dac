"""Connection strings: what libpq takes, and what an error may show of them."""

from __future__ import annotations

import re

import psycopg

from tocsin.driver._connecting import parse_conninfo
from tocsin.errors import ConfigError


def clean_dsn(dsn: str) -> str:
    """Return a DSN as libpq takes it.

    White space round it is removed, and so is the driver that SQLAlchemy's URLs name.
    """
    return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn.strip())


def describe_address(dsn: str) -> str:
    """Return host and port of a DSN for messages, without anything secret.

    Raises:
        ConfigError: The text is not a DSN.
    """
    try:
        parameters = parse_conninfo(dsn)
    except psycopg.ProgrammingError as error:
        problem = str(error)
        if "percent" not in problem:
            problem = (
                "not a PostgreSQL connection string; expected postgresql://user@host:port/database"
            )
        raise ConfigError("dsn", problem) from None
    defaults = {
        d.keyword.decode(): d.val.decode() for d in psycopg.pq.Conninfo.get_defaults() if d.val
    }
    host = (
        parameters.get("host")
        or parameters.get("hostaddr")
        or defaults.get("host")
        or "the default socket"
    )
    port = parameters.get("port") or defaults.get("port") or "5432"
    hosts = str(host).split(",")
    ports = str(port).split(",")
    # If a password contains a / or an @, libpq takes a part of it for a host or a port.
    if any("@" in h[1:] for h in hosts) or not all(p.isdecimal() for p in ports if p):
        raise ConfigError(
            "dsn",
            "host or port is not valid; special characters in a password must be percent-encoded"
            " (%40 is an @)",
        )
    if not str(parameters.get("connect_timeout") or 0).lstrip("-").isdecimal():
        raise ConfigError("dsn", "connect_timeout must be a number of seconds")
    return ",".join(
        f"{h}:{p}"
        for h, p in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    )
