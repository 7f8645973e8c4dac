"""What each connection asks of the operating systems at its two ends, so that a silent
network ends it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from bench import proxy
from tests.support import servers
from tocsin._database import network

OPTIONS = {
    "keepalives_idle": (socket.TCP_KEEPIDLE, 5),
    "keepalives_interval": (socket.TCP_KEEPINTVL, 2),
    "keepalives_count": (socket.TCP_KEEPCNT, 3),
    "tcp_user_timeout": (socket.TCP_USER_TIMEOUT, 10_000),
}


def options_of(fileno: int) -> dict[str, int]:
    with socket.socket(fileno=os.dup(fileno)) as copy:
        return {
            name: copy.getsockopt(socket.IPPROTO_TCP, option)
            for name, (option, _) in OPTIONS.items()
        }


async def test_the_client_notices_a_host_that_vanished(store_dsn: str) -> None:
    async with (
        proxy.running(store_dsn) as by_tcp,
        tocsin.connect(by_tcp.dsn()) as store,
        store.transaction() as connection,
    ):
        assert options_of(connection.fileno()) == {
            name: value for name, (_, value) in OPTIONS.items()
        }
    async with (
        proxy.running(store_dsn) as by_tcp,
        tocsin.connect(by_tcp.dsn(keepalives_idle=60, tcp_user_timeout=0)) as store,
        store.transaction() as connection,
    ):
        assert options_of(connection.fileno()) == {
            "keepalives_idle": 60,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 0,
        }


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("", {**network.ON_THE_CLIENT, "connect_timeout": "10"}),
        ("host=a,b", {**network.ON_THE_CLIENT, "connect_timeout": "3"}),
        ("postgresql://a,b/d", {**network.ON_THE_CLIENT, "connect_timeout": "3"}),
        ("hostaddr=10.0.0.1,10.0.0.2", {**network.ON_THE_CLIENT, "connect_timeout": "3"}),
        ("host=a,b connect_timeout=7", {**network.ON_THE_CLIENT, "connect_timeout": "7"}),
        (
            "keepalives_count=9",
            {**network.ON_THE_CLIENT, "keepalives_count": "9", "connect_timeout": "10"},
        ),
        ("service=mine", {"connect_timeout": "10"}),
    ],
)
def test_what_the_connection_string_says_goes_before(dsn: str, expected: dict[str, str]) -> None:
    whole = conninfo_to_dict(network.complete(dsn))
    assert {
        name: whole[name] for name in {*network.ON_THE_CLIENT, "connect_timeout"} & whole.keys()
    } == expected


def test_what_the_environment_says_goes_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services = tmp_path / "services"
    services.write_text("[mine]\nkeepalives_idle=77\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", "mine")
    monkeypatch.setenv("PGHOST", "a,b")
    whole = conninfo_to_dict(network.complete(""))
    assert "keepalives_idle" not in whole
    assert (whole["keepalives_count"], whole["connect_timeout"]) == ("3", "3")


async def test_the_server_notices_a_client_that_vanished(
    store_dsn: str, server: servers.Server
) -> None:
    """Each session of ours. Unix sockets have no such options, so this needs TCP."""
    if server.host is None:
        pytest.skip("the server does not listen on TCP")
    async with (
        tocsin.connect(make_conninfo(store_dsn, host=server.host, port=server.port)) as store,
        store.transaction() as connection,
    ):
        line = await store._process.listener._connect()
        for session in (connection, line):
            cursor = await session.execute(
                "select name, setting from pg_settings where name = any(%s)",
                [list(network.ON_THE_SERVER)],
            )
            assert dict(await cursor.fetchall()) == network.ON_THE_SERVER
        await line.close()


@pytest.mark.parametrize(
    "variables", [{"PGCONNECT_TIMEOUT": "60"}, {"PGSERVICE": "mine"}], ids=lambda each: min(each)
)
def test_a_timeout_of_the_environment_or_of_its_service_goes_before(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "services").write_text("[mine]\nconnect_timeout=60\n", encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert conninfo_to_dict(network.complete("dbname=x"))["connect_timeout"] == "60"
