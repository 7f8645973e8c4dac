"""Passwords: no error, log, statement or process list shows one."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import PATIENCE, query, servers
from tests.support.commands import Call
from tests.support.sweeps import sweep

SECRET = "s3cr3t-hunter2"


def said(error: BaseException | None) -> str:
    """All that an error says, its causes included, as text and as a program sees it."""
    text = ""
    while error is not None:
        text += (
            "".join(traceback.format_exception(error))
            + repr(error)
            + repr(error.args)
            + repr(vars(error))
        )
        error = error.__cause__ or error.__context__
    return text


def dsns(server: servers.Server, database: str) -> dict[str, str]:
    """Connection strings with the secret in them, none of which leads anywhere."""
    good = server.dsn(database)
    on_server = {"password": SECRET, "connect_timeout": "5"}
    return {
        "no listener": f"postgresql://ada:{SECRET}@127.0.0.1:1/app",
        "no such host": f"postgresql://ada:{SECRET}@host.invalid/app",
        "no such socket": f"host=/no/such/directory user=ada password={SECRET}",
        "several hosts": f"postgresql://ada:{SECRET}@127.0.0.1:1,127.0.0.1:2/app",
        "no such role": make_conninfo(good, user="tocsin_test_nobody", **on_server),
        "no such database": make_conninfo(
            good,
            dbname="tocsin_test_none",
            **({} if server.kind == "dsn" else {"password": servers.PASSWORD}),
        ),
        "bad option": f"postgresql://ada:{SECRET}@127.0.0.1/app?no_such_option=1",
        "bad port": f"postgresql://ada:{SECRET}@127.0.0.1:port/app",
        "bad value": f"postgresql://ada:{SECRET}@127.0.0.1:1/app?sslmode=nonsense",
        "bad timeout": f"postgresql://ada:{SECRET}@127.0.0.1:1/app?connect_timeout=soon",
        "a slash in the password": f"postgresql://ada:{SECRET}/x@127.0.0.1/app",
        "a question mark in the password": f"postgresql://ada:{SECRET}?x@127.0.0.1/app",
        "an at sign in the password": f"postgresql://ada:x@{SECRET}@127.0.0.1/app",
        "unbalanced": f"postgresql://ada:{SECRET}@[::1/app",
        "a password that is none": f"host=127.0.0.1 port=1 password='{SECRET}",
        "an equals sign too few": f"host=127.0.0.1 {SECRET}",
        "percent": f"postgresql://ada:{SECRET}%zz@127.0.0.1/app",
        "a NUL": f"postgresql://ada:{SECRET}\0@127.0.0.1/app",
        "a surrogate": f"postgresql://ada:{SECRET}\ud800@127.0.0.1/app",
    }


KINDS = list(dsns(servers.Server("dsn", "host=x", 0, None, None), "x"))


@sweep("kind", KINDS, quick=["no listener", "no such role", "bad value"])
async def test_a_password_is_in_no_error_and_no_log_of_the_library(
    server: servers.Server,
    database_factory: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = dsns(server, str(conninfo_to_dict(database_factory())["dbname"]))[kind]
    with pytest.raises((tocsin.ConfigError, tocsin.ConnectionLost)) as refused:
        async with tocsin.connect(dsn) as store:
            await store.queues.list()
    assert SECRET not in said(refused.value)
    assert SECRET not in caplog.text
    assert servers.PASSWORD not in said(refused.value) + caplog.text


@sweep("kind", ["no listener", "no such role", "unbalanced", "bad value"], quick=2)
async def test_a_password_is_in_no_error_of_the_listening_connection(
    server: servers.Server, store_dsn: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = dsns(server, str(conninfo_to_dict(store_dsn)["dbname"]))[kind]
    text = ""
    with trio.move_on_after(1):
        try:
            async with tocsin.connect(store_dsn, listen_dsn=dsn) as store:
                await store.queues.ensure("q")
                async with store.consumer("q"):
                    await trio.sleep_forever()
        except (tocsin.ConfigError, tocsin.ConnectionLost) as error:
            text = said(error)
    assert text or "LISTEN connection" in caplog.text
    assert SECRET not in text + caplog.text


async def test_a_live_server_is_not_told_the_password_in_a_statement_nor_a_user_in_a_refusal(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password = str(conninfo_to_dict(store_dsn).get("password") or SECRET)
    dsn = make_conninfo(store_dsn, password=password)
    errors = ""
    async with tocsin.connect(dsn) as store:
        text = repr(store) + repr(store.statistics()) + repr(vars(store).keys())
        for attempt in (
            store.queues.get("nowhere"),
            store.workers.get(1),
            store.produce("nowhere", 1),
            store.queues.create(""),
        ):
            try:
                await attempt
            except Exception as error:
                errors += said(error)
        rows = await query(
            dsn,
            "select query, application_name from pg_stat_activity where datname ="
            " current_database()",
        )
        await query(
            dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity where datname ="
            " current_database() and pid <> pg_backend_pid()",
        )
        try:
            await store.queues.list()
        except tocsin.ConnectionLost as lost:
            errors += said(lost)
    assert errors
    assert password not in text + errors + caplog.text + repr(rows)


# no environment holds these
@sweep(
    "kind",
    [k for k in KINDS if k not in ("a NUL", "a surrogate")],
    quick=["no such role", "bad value"],
)
def test_a_password_is_in_nothing_that_the_command_says(
    server: servers.Server,
    dsn: str,
    kind: str,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOCSIN_DSN", dsns(server, str(conninfo_to_dict(dsn)["dbname"]))[kind])
    ended = call("admin", "verify")
    assert ended.code in (2, 3), ended
    assert ended.error.startswith("tocsin: ")
    assert SECRET not in ended.out + ended.error + caplog.text
    assert servers.PASSWORD not in ended.out + ended.error + caplog.text


def test_a_password_is_in_nothing_that_a_process_of_the_command_says(
    server: servers.Server, dsn: str
) -> None:
    bad = dsns(server, str(conninfo_to_dict(dsn)["dbname"]))["no such role"]
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "tocsin", "admin", "verify"],
        env={**os.environ, "TOCSIN_DSN": bad},
        capture_output=True,
        check=False,
    )
    assert ended.returncode in (2, 3), ended
    assert b"tocsin: " in ended.stderr
    for password in (SECRET, servers.PASSWORD):
        assert password.encode() not in ended.stdout + ended.stderr


@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="reads the process list in /proc"
)
def test_a_password_from_the_environment_is_not_in_the_process_list(tmp_path: Path) -> None:
    # takes connections and says nothing, so that the command stays
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dsn = f"postgresql://ada:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/app"
        command = [sys.executable, "-m", "tocsin", "admin", "verify"]
        with subprocess.Popen(
            command, env={**os.environ, "TOCSIN_DSN": dsn}, stderr=subprocess.DEVNULL
        ) as process:
            try:
                listener.settimeout(PATIENCE)
                connected, _ = listener.accept()
                with connected:
                    listed = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                    names = Path(f"/proc/{process.pid}/comm").read_bytes()
            finally:
                process.terminate()
    assert b"tocsin" in listed
    assert SECRET.encode() not in listed + names
