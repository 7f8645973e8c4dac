"""The way from a connection string to an open libpq connection, without blocking.

libpq can connect without blocking, but for three things that it leaves to its caller:
it looks names up with the blocking resolver, it does not honour ``connect_timeout``,
and it knows several hosts but not one list of attempts for all their addresses.
psycopg's answer for asyncio cannot be used here (it wants asyncio's resolver), and its
generator for connecting is private and has changed between patch releases. So:

- Names are looked up with `trio.socket.getaddrinfo` first, and their addresses are put
  into ``hostaddr``, which libpq never looks up (it still checks the server's
  certificate against ``host``). Hosts come from the parameters, the environment or the
  service file, as `pq.Conninfo.get_defaults` tells. The one case out of reach is a host
  named in a service file that the connection string itself selects (``service=``):
  libpq reads it alone.
- `psycopg.conninfo.conninfo_attempts` makes the list of attempts, with
  ``load_balance_hosts`` and ``prefer-standby``; it has no name left to look up.
- Each attempt drives libpq's public ``PQconnectStart`` and ``PQconnectPoll``, with its
  timeout. ``target_session_attrs`` is checked by libpq in there.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Callable
from typing import TypeAlias, cast

import psycopg
import trio
from psycopg import pq
from psycopg.abc import ConnDict, ConnParam
from psycopg.conninfo import (
    conninfo_attempts,
    conninfo_to_dict,
    make_conninfo,
    timeout_from_conninfo,
)

from ._forks import keep_from_children
from ._hosts import Hosts

__all__ = ["ServerRefusal", "drive", "finish", "open_pgconn", "parse_conninfo"]

Handle: TypeAlias = pq.abc.PGconn | pq.abc.PGcancelConn
Failures: TypeAlias = list[tuple[str, psycopg.Error]]
"""What was tried, in psycopg's words, and what came of it."""


class ServerRefusal(psycopg.OperationalError):
    """The refusal of a connection by a server, or by each where several were tried.

    libpq does not tell the SQLSTATE of such an answer.
    """


async def open_pgconn(
    conninfo: str, parameters: dict[str, ConnParam], hosts: Hosts | None = None
) -> pq.abc.PGconn:
    """Connect to the first server that admits the connection.

    Args:
        conninfo: The connection string.
        parameters: Parameters that count before those of the string.
        hosts: Remembers the hosts that do not answer.

    Raises:
        psycopg.OperationalError: No server does. The text has each attempt, never a
            password, and ``pgconn`` is what is left of the last one.
        psycopg.ProgrammingError: The connection string cannot be read.

    Cancellation:
        Nothing is left open.
    """
    settings = parse_conninfo(conninfo, **parameters)
    timeout = timeout_from_conninfo(settings)
    resolved, failures = await _look_up(settings)
    attempts = conninfo_attempts(resolved) if resolved is not None else []
    for attempt in attempts if hosts is None else hosts.arrange(attempts):
        try:
            with trio.move_on_after(timeout):
                return await _connect(make_conninfo("", **attempt))
            if hosts is not None:
                hosts.note_silence(attempt)
            raise psycopg.errors.ConnectionTimeout("connection timeout expired")
        except psycopg.OperationalError as error:
            failures.append(
                (
                    _describe(attempt.get("host"), attempt.get("port"), attempt.get("hostaddr")),
                    error,
                )
            )
    raise _summary(failures)


async def drive(handle: Handle, poll: Callable[[], int]) -> int:
    """Do what libpq's poll functions ask of their caller, and return the last status.

    The status is the `pq.PollingStatus` that ends it.

    Cancellation:
        ``handle`` is of no use but for `finish`.
    """
    status: int = pq.PollingStatus.WRITING
    while status in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
        reading = status == pq.PollingStatus.READING
        # libpq may close its socket and open another between two polls.
        await (trio.lowlevel.wait_readable if reading else trio.lowlevel.wait_writable)(
            handle.socket
        )
        status = poll()
    return status


def finish(handle: Handle) -> None:
    """Close ``handle`` at once; tasks that wait for its socket get an error."""
    try:
        fileno = handle.socket
    except psycopg.OperationalError:
        # libpq itself has closed the socket.
        pass
    else:
        trio.lowlevel.notify_closing(fileno)
    handle.finish()


async def _connect(conninfo: str) -> pq.abc.PGconn:
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    keep_from_children(pgconn)
    answered = False

    def poll() -> int:
        nonlocal answered
        answered = _has_data(pgconn)
        return pgconn.connect_poll()

    try:
        started = pgconn.status != pq.ConnStatus.BAD
        if not started or await drive(pgconn, poll) != pq.PollingStatus.OK:
            problem = pgconn.get_error_message()
            # A caller may want to know, for example, whether the server has requested a
            # password.
            kind = ServerRefusal if answered else psycopg.OperationalError
            raise kind(f"connection failed: {problem}", pgconn=_finish_without_secrets(pgconn))
        pgconn.nonblocking = 1
    except BaseException:
        finish(pgconn)
        raise
    return pgconn


def _has_data(pgconn: pq.abc.PGconn) -> bool:
    """Return whether there is something to read.

    The end of the connection is not.
    """
    try:
        with socket.socket(fileno=os.dup(pgconn.socket)) as copy:
            return bool(copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _finish_without_secrets(pgconn: pq.abc.PGconn) -> pq.abc.PGconn:
    """Close a connection, and return what an error tells of it.

    That is everything but the passwords, since errors end up in logs.
    """
    left = psycopg.errors.finish_pgconn(pgconn)
    public = [option._replace(val=None) if _is_secret(option) else option for option in left.info]
    return cast(
        pq.abc.PGconn,
        dataclasses.replace(cast(psycopg.errors.FinishedPGconn, left), password=b"", info=public),
    )


def _is_secret(option: pq.ConninfoOption) -> bool:
    return option.dispchar == b"*" or option.keyword in (b"scram_client_key", b"scram_server_key")


def parse_conninfo(conninfo: str, **parameters: ConnParam) -> ConnDict:
    """Return the parameters of a connection string.

    Raises:
        psycopg.ProgrammingError: The string cannot be read, or libpq would take a part
            of the password in a URI for something else. The error has no part of the
            string.
    """
    if "\0" in conninfo:
        raise psycopg.ProgrammingError("a connection string cannot have a NUL character in it")
    scheme, is_uri, rest = conninfo.partition("://")
    if is_uri and scheme in ("postgresql", "postgres"):
        authority, _, tail = rest.partition("/")
        if (
            authority.count("@") > 1
            or "@" in tail.partition("?")[0]
            or re.search(r"%(?![0-9A-Fa-f]{2})", authority)
        ):
            raise psycopg.ProgrammingError(
                "special characters in a user name or a password must be percent-encoded: %40 is an"
                " @, %2F a /, %25 a %"
            )
    try:
        return conninfo_to_dict(conninfo, **parameters)
    except psycopg.ProgrammingError as error:
        # libpq quotes the text that it could not parse, which may be a part of the
        # password. The quoted "=" of libpq's own text is harmless.
        problem, quoted, _ = str(error).replace('"="', "an equals sign").partition('"')
        message = problem + ('"…"' if quoted else "")
    except UnicodeError:
        message = "it is not text"
    raise psycopg.ProgrammingError(f"invalid connection string: {message}")


async def _look_up(settings: ConnDict) -> tuple[ConnDict | None, Failures]:
    """Return ``settings`` with one host, hostaddr and port per address.

    It is None if no name could be resolved. Second come the names that could not be.
    """
    defaults = {
        d.keyword.decode(): d.val.decode() for d in pq.Conninfo.get_defaults() if d.val is not None
    }

    def listed(name: str) -> list[str]:
        value = str(settings.get(name, defaults.get(name, "")))
        return value.split(",") if value else []

    hosts, addresses, ports = listed("host"), listed("hostaddr"), listed("port")
    count = max(len(hosts), len(addresses))
    hosts, addresses = hosts or [""] * count, addresses or [""] * count
    ports = ports * count if len(ports) == 1 else ports
    if not count or not len(hosts) == len(addresses) == len(ports):
        # The default is a local socket. For lists that do not match, psycopg has the
        # best error.
        return settings, []

    found: list[tuple[str, str, str]] = []
    failures: Failures = []
    for host, address, port in zip(hosts, addresses, ports, strict=True):
        if address or not host or host.startswith("/"):
            found.append((host, address, port))
            continue
        try:
            # For a numeric address this is only a checkpoint.
            answers = await trio.socket.getaddrinfo(
                host, port or None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
        except (OSError, UnicodeError) as error:
            failure = psycopg.OperationalError(f"failed to resolve host {host!r}: {error}")
            failures.append((_describe(host, port or None, None), failure))
        else:
            found += dict.fromkeys((host, str(answer[4][0]), port) for answer in answers)
    if not found:
        return None, failures
    columns = (",".join(column) for column in zip(*found, strict=True))
    return {**settings, **dict(zip(("host", "hostaddr", "port"), columns, strict=True))}, failures


def _describe(host: object, port: object, hostaddr: object) -> str:
    return f"host: {host!r}, port: {port!r}, hostaddr: {hostaddr!r}"


def _summary(failures: Failures) -> psycopg.Error:
    """Return the one failure, or one error that lists all of them.

    The list has the class of the last failure, and the form that psycopg gives it.
    """
    last = failures[-1][1]
    if len(failures) == 1:
        return last
    attempts = "".join(f"\n- {where}: {error}" for where, error in failures)
    kind = type(last)
    if not all(isinstance(error, ServerRefusal) for _, error in failures):
        kind = psycopg.OperationalError if kind is ServerRefusal else kind
    return kind(
        f"{last}\nMultiple connection attempts failed. All failures were:{attempts}",
        pgconn=last.pgconn,
    )
