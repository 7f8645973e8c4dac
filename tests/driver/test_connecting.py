"""Connecting: names, several hosts, timeouts, and errors that tell what happened but no
secret."""

from __future__ import annotations

import os
import socket
import traceback
from typing import Any

import attrs
import psycopg
import pytest
import trio
import trio.testing
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from bench import proxy
from tests.driver.helpers import Connection, open_files, value
from tests.support import servers
from tocsin.driver import Hosts, TrioConnection
from tocsin.driver._hosts import AVOID_FOR

SECRET = "hunter2"


@attrs.define
class Names(trio.abc.HostnameResolver):
    """A resolver that knows some names."""

    addresses: dict[str, list[str]]
    asked: list[str] = attrs.Factory(list)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: Any,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        name = (host or b"").decode()
        self.asked.append(name)
        if name not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, type, proto, "", (address, int(port or 0)))
            for address in self.addresses[name]
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


def use_names(addresses: dict[str, list[str]]) -> Names:
    names = Names(addresses)
    trio.socket.set_custom_hostname_resolver(names)
    return names


async def failure(dsn: str, **parameters: Any) -> psycopg.Error:
    before = open_files()
    with pytest.raises(psycopg.Error) as caught:
        await TrioConnection.connect(dsn, **parameters)
    assert open_files() == before
    return caught.value


async def test_parameters(dsn: str) -> None:
    async with await TrioConnection.connect(
        dsn, autocommit=True, prepare_threshold=None, row_factory=dict_row, application_name="me"
    ) as connection:
        assert connection.autocommit
        assert connection.prepare_threshold is None
        assert await (await connection.execute("show application_name")).fetchone() == {
            "application_name": "me"
        }


async def test_adapters_and_cursors(dsn: str, observer: Connection) -> None:
    observer.adapters.register_loader("int4", TextLoader)
    async with await TrioConnection.connect(
        dsn, context=observer, cursor_factory=psycopg.AsyncClientCursor
    ) as connection:
        assert isinstance(connection.cursor(), psycopg.AsyncClientCursor)
        assert await value(connection, "select %s::int4", (1,)) == "1"


async def test_defaults_come_from_the_environment(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "dbname": "PGDATABASE",
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
    }
    for name, setting in conninfo_to_dict(dsn).items():
        if name in names:
            monkeypatch.setenv(names[name], str(setting))
    async with await TrioConnection.connect() as connection:
        assert (
            await value(connection, "select current_database()") == conninfo_to_dict(dsn)["dbname"]
        )


async def test_without_arguments_the_local_socket_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGPORT", str(servers.free_port()))
    error = await failure("")
    assert "connection to server on socket" in str(error)


async def test_names_are_resolved_by_trio_and_every_address_is_tried(dsn: str) -> None:
    names = use_names({"db.example": ["127.0.0.2", "127.0.0.1"]})
    async with (
        proxy.running(dsn) as server,
        await TrioConnection.connect(server.dsn(host="db.example")) as connection,
    ):
        assert connection.info.host == "db.example"
        assert connection.info.hostaddr == "127.0.0.1"
    assert names.asked == ["db.example"]


async def test_a_name_from_the_environment_is_resolved_by_trio(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = use_names({"db.example": ["127.0.0.1"]})
    async with proxy.running(dsn) as server:
        monkeypatch.setenv("PGHOST", "db.example")
        settings: dict[str, Any] = {
            name: setting
            for name, setting in conninfo_to_dict(server.dsn()).items()
            if name != "host"
        }
        async with await TrioConnection.connect(**settings) as connection:
            assert connection.info.host == "db.example"
    assert names.asked == ["db.example"]


async def test_figures_are_not_resolved(dsn: str) -> None:
    names = use_names({})
    async with proxy.running(dsn) as server:
        async with await TrioConnection.connect(
            server.dsn(host="nowhere.example", hostaddr="127.0.0.1")
        ):
            pass
        async with await TrioConnection.connect(server.dsn(host="127.0.0.1")):
            pass
    assert names.asked == []


async def test_an_unknown_name_is_an_operational_error(dsn: str) -> None:
    use_names({})
    error = await failure(dsn, host="nowhere.example")
    assert isinstance(error, psycopg.OperationalError)
    assert "failed to resolve host 'nowhere.example'" in str(error)


async def test_the_next_host_is_tried(dsn: str) -> None:
    use_names({"dead.example": ["127.0.0.2"], "db.example": ["127.0.0.1"]})
    async with proxy.running(dsn) as server:
        hosts = "nowhere.example,dead.example,db.example"
        for balance in ("disable", "random"):
            async with await TrioConnection.connect(
                server.dsn(host=hosts, load_balance_hosts=balance)
            ) as connection:
                assert connection.info.host == "db.example"


async def test_the_error_names_each_attempt(dsn: str) -> None:
    use_names({"dead.example": ["127.0.0.1", "127.0.0.2"]})
    port = servers.free_port()
    error = await failure(dsn, host="nowhere.example,dead.example", port=port, password=SECRET)
    assert isinstance(error, psycopg.OperationalError)
    _, title, *lines = str(error).rpartition(
        "Multiple connection attempts failed. All failures were:"
    )
    assert title
    for line, part in zip(
        lines[0].split("\n- ")[1:], ("nowhere.example", "127.0.0.1", "127.0.0.2"), strict=True
    ):
        assert part in line
        assert f"port: '{port}'" in line
    assert SECRET not in "".join(traceback.format_exception(error))


async def test_one_port_for_each_host(dsn: str) -> None:
    async with proxy.running(dsn) as server:
        dsn = server.dsn(host="127.0.0.1,127.0.0.1", port=f"{servers.free_port()},{server.port}")
        async with await TrioConnection.connect(dsn) as connection:
            assert connection.info.port == server.port


async def test_lists_that_do_not_match(dsn: str) -> None:
    error = await failure(dsn, host="a.example,b.example,c.example", port="1,2")
    assert "could not match 2 port numbers to 3 hosts" in str(error)


@pytest.mark.parametrize(
    ("wanted", "index"), [("read-write", 1), ("read-only", 0), ("any", 0), ("prefer-standby", 0)]
)
async def test_target_session_attrs(wanted: str, index: int, dsn: str) -> None:
    async with (
        proxy.running(dsn, settings={"default_transaction_read_only": "on"}) as first,
        proxy.running(dsn) as second,
    ):
        ports = [first.port, second.port]
        addresses = first.dsn(
            host="127.0.0.1,127.0.0.1", port=f"{ports[0]},{ports[1]}", target_session_attrs=wanted
        )
        async with await TrioConnection.connect(addresses) as connection:
            assert connection.info.port == ports[index]


async def test_no_server_is_good_enough(dsn: str) -> None:
    async with proxy.running(dsn, settings={"default_transaction_read_only": "on"}) as server:
        with pytest.raises(psycopg.OperationalError, match="session is read-only"):
            await TrioConnection.connect(server.dsn(target_session_attrs="read-write"))


async def test_a_server_that_never_answers(mock_clock: trio.testing.MockClock) -> None:
    errors: list[psycopg.Error] = []

    async def connect() -> None:
        dsn = make_conninfo(host="127.0.0.1", port=port, connect_timeout=2)
        errors.append(await failure(dsn))

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1.9)
            await trio.testing.wait_all_tasks_blocked()
            assert not errors
            mock_clock.jump(0.2)
    assert isinstance(errors[0], psycopg.errors.ConnectionTimeout)


async def test_cancelled_while_connecting(dsn: str) -> None:
    before = open_files()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with trio.move_on_after(0.01) as scope:
            await TrioConnection.connect(
                dsn, host="127.0.0.1", port=listener.socket.getsockname()[1]
            )
    assert scope.cancelled_caught
    assert open_files() == before


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=localhost password=a {SECRET}",
        f"postgresql://me:{SECRET}@[::1]nonsense/db",
        f"postgresql://me:%zz{SECRET}@localhost/db",
        f'postgresql://me:"{SECRET}@[::1]"nonsense/db',
    ],
)
async def test_a_string_that_cannot_be_read_is_not_quoted(dsn: str) -> None:
    error = await failure(dsn)
    assert isinstance(error, psycopg.ProgrammingError)
    assert SECRET not in "".join(traceback.format_exception(error))


async def test_a_wrong_parameter_is_named(dsn: str) -> None:
    assert "nonsense" in str(await failure(dsn, nonsense=1))


async def test_refused_by_the_server(dsn: str) -> None:
    error = await failure(dsn, dbname="no_such_database", password=SECRET)
    assert isinstance(error, psycopg.OperationalError)
    assert SECRET not in str(error)


async def test_an_error_tells_of_its_connection(dsn: str) -> None:
    error = await failure(dsn, dbname="no_such_database")
    assert error.pgconn is not None
    assert (error.pgconn.db, error.pgconn.status) == (b"no_such_database", pq.ConnStatus.BAD)
    assert error.pgconn.needs_password is False
    use_names({"dead.example": ["127.0.0.1", "127.0.0.2"]})
    error = await failure(dsn, host="dead.example", port=servers.free_port())
    assert error.pgconn is not None
    assert error.pgconn.hostaddr == b"127.0.0.2"


async def test_an_old_libpq_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)
    error = await failure(dsn)
    assert isinstance(error, psycopg.NotSupportedError)
    assert "psycopg[binary]" in str(error)


async def test_a_connection_that_is_forgotten_is_warned_of(dsn: str) -> None:
    connection = await TrioConnection.connect(dsn)
    with pytest.warns(ResourceWarning, match="deleted while still open"):
        del connection


async def test_a_host_that_has_not_answered_is_tried_last(dsn: str) -> None:
    hosts = Hosts()
    async with proxy.running(dsn) as silent, proxy.running(dsn) as speaking:
        silent.silence_all()
        both = speaking.dsn(
            host="127.0.0.1,127.0.0.1", port=f"{silent.port},{speaking.port}", connect_timeout=2
        )
        for _ in range(3):
            async with await TrioConnection.connect(both, hosts=hosts) as connection:
                assert connection.info.port == speaking.port
        assert (silent.accepted, speaking.accepted) == (1, 3)


def test_a_silent_host_is_tried_first_again_after_a_while() -> None:
    attempts: list[dict[str, str | int | None]] = [
        {"host": "a", "port": "1"},
        {"host": "b", "port": "1"},
        {"host": "c", "port": "1"},
    ]
    clock = trio.testing.MockClock()

    async def main() -> None:
        hosts = Hosts()
        assert hosts.arrange(attempts) == attempts
        hosts.note_silence(attempts[0])
        assert hosts.arrange(attempts) == [*attempts[1:], attempts[0]]
        clock.jump(AVOID_FOR)
        assert hosts.arrange(attempts) == attempts

    trio.run(main, clock=clock)
