"""Fixtures: the session's server, a database and roles for a test, a server for one
test alone."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from psycopg import sql

from tests.support import connect_blocking, servers
from tocsin.embedded import EmbeddedServer, serve

_SERVERS = pytest.StashKey[set[str]]()
"""The servers that the tests ran on, as the summary shows them."""


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[servers.Server]:
    """The PostgreSQL server that the tests share; each process of pytest-xdist has its
    own."""
    with servers.running() as server:
        pytestconfig.stash.setdefault(_SERVERS, set()).add(str(server))
        yield server


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the server's name to the process that writes the summary."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["servers"] = sorted(session.config.stash.get(_SERVERS, ()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the server's name from a process of pytest-xdist."""
    node.config.stash.setdefault(_SERVERS, set()).update(
        getattr(node, "workeroutput", {}).get("servers", ())
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Write which server the tests ran on; they start one only when they need it."""
    for name in sorted(config.stash.get(_SERVERS, ())):
        terminalreporter.write_line(f"server: {name}")


@pytest.fixture
def database_factory(server: servers.Server) -> Iterator[Callable[[], str]]:
    """A function that gives the connection string of another fresh, empty database."""
    with ExitStack() as stack:

        def create() -> str:
            name = server.create_database()
            stack.callback(server.drop_database, name)
            return server.dsn(name)

        yield create


@pytest.fixture
def dsn(database_factory: Callable[[], str]) -> str:
    """Connection string of a fresh, empty database."""
    return database_factory()


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """A server for this test alone, which may stop and restart it."""
    with servers.directory() as base:
        async with serve(
            base / "server", settings=servers.SETTINGS, installation=servers.INSTALLATION
        ) as server:
            yield server


@pytest.fixture
def new_role(server: servers.Server) -> Iterator[Callable[..., str]]:
    """A function that makes up a role's name and, unless told otherwise, creates a
    login of that name; it is dropped in the end."""
    names: list[str] = []

    def make(kind: str, *members_of: str, create: bool = True, options: str = "login") -> str:
        name = f"tocsin_test_{kind}_{secrets.token_hex(4)}"
        names.append(name)
        if create:
            with connect_blocking(server.admin_dsn) as connection:
                connection.execute(
                    sql.SQL("create role {} {} password {}").format(
                        sql.Identifier(name),
                        sql.SQL(options),
                        sql.Literal(servers.PASSWORD),
                    )
                )
                for role in members_of:
                    connection.execute(
                        sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(name))
                    )
        return name

    yield make
    with connect_blocking(server.admin_dsn) as connection:
        for name in names:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
