"""Fixtures: the session's PostgreSQL server, a database for each test, a private server
for rough tests."""

import io
import json
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import psycopg
import pytest
import trio
from psycopg import sql

import tocsin
from tests.support import connect_blocking, servers
from tests.support.commands import Call, Ended
from tocsin.__main__ import main
from tocsin.embedded import EmbeddedServer, serve

_SERVER = pytest.StashKey[servers.Server]()


def _session_server(config: pytest.Config) -> servers.Server:
    if _SERVER not in config.stash:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        config.stash[_SERVER] = stack.enter_context(servers.running())
    return config.stash[_SERVER]


def pytest_configure() -> None:
    """The settings of whoever runs the tests are not for the tests; nor is that a shell
    ignores signals for a job in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for setting in attrs.fields(tocsin.Settings):
        os.environ.pop(f"TOCSIN_{setting.name.upper()}", None)
    os.environ.pop("TOCSIN_CONFIG", None)


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if config.option.collectonly else f"server: {_session_server(config)}"


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> servers.Server:
    """The PostgreSQL server that all tests share."""
    return _session_server(pytestconfig)


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


@pytest.fixture(scope="session")
def _store_template(server: servers.Server) -> Iterator[str]:
    name = server.create_database()

    async def install() -> None:
        async with tocsin.connect(server.dsn(name)) as store:
            await store.install()

    try:
        trio.run(install)
        yield name
    finally:
        server.drop_database(name)


@pytest.fixture
def store_dsn(server: servers.Server, _store_template: str) -> Iterator[str]:
    """Connection string of a fresh database with Tocsin's schema in it."""
    name = server.create_database(_store_template)
    yield server.dsn(name)
    server.drop_database(name)


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """A server for this test alone, which may stop and restart it."""
    with servers.directory() as base:
        async with serve(
            base / "server", settings=servers.SETTINGS, installation=servers.INSTALLATION
        ) as server:
            yield server


@pytest.fixture
async def store(store_dsn: str) -> AsyncIterator[tocsin.Store]:
    """A store on a fresh database."""
    async with tocsin.connect(store_dsn) as store:
        yield store


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
                        sql.Literal(servers.PASSWORD),  # type: ignore[arg-type]
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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line, in this process; gives its exit code, its output and its
    errors."""

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            monkeypatch.setattr(sys, "argv", ["tocsin", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def cli(call: Call, store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Like `call`, with a fresh store as its database."""
    monkeypatch.setenv("TOCSIN_DSN", store_dsn)
    return call


@pytest.fixture
def dsn_of_quiet_store(store_dsn: str) -> str:
    """Like `store_dsn`, where pg_stat_statements tells what was run."""
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        try:
            connection.execute("create extension pg_stat_statements")
            connection.execute("select pg_stat_statements_reset()")
        except psycopg.Error as error:
            pytest.skip(
                f"this server does not tell what was run on it: {error.diag.message_primary}"
            )
    return store_dsn


@pytest.fixture
def plans(store_dsn: str) -> Any:
    """A function that runs a statement and returns the plans of all statements inside
    it."""
    notices: list[str] = []
    with connect_blocking(store_dsn) as connection:
        try:
            connection.execute("load 'auto_explain'")
        except Exception as error:
            pytest.skip(f"this server has no auto_explain: {error}")
        connection.execute("select tocsin.create_queue('q'), tocsin.create_queue('r')")
        connection.execute("select tocsin.register_worker('q', 'consumer', 'w', null, 'h', 1, 'v')")
        connection.execute("set client_min_messages = log")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_format": "json",
            "log_analyze": "on",
            "log_buffers": "on",
        }.items():
            connection.execute(f"set auto_explain.{name} = '{value}'".encode())
        connection.add_notice_handler(
            lambda diagnostic: notices.append(diagnostic.message_primary or "")
        )

        def run(statement: str) -> dict[str, dict[str, Any]]:
            notices.clear()
            connection.execute(statement.encode())
            found = [
                json.loads(re.sub(r"^duration: .*?plan:\s*", "", n, flags=re.S))
                for n in notices
                if "plan:" in n
            ]
            compiled = [plan["Query Text"] for plan in found if "JIT" in plan]
            assert not compiled, f"the server compiles what it runs for a millisecond: {compiled}"
            return {" ".join(plan["Query Text"].split()): plan["Plan"] for plan in found}

        yield run
