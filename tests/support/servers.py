"""The PostgreSQL server that a test session runs against.

In this order: the server in `TOCSIN_TEST_DSN` (any from PostgreSQL 15, as a role that
may create databases); else a server of the PostgreSQL installed in
`TOCSIN_TEST_INSTALLATION` (such as `/usr/lib/postgresql/15`), with the settings that it
comes with; else a container, if a Docker daemon answers that has the image in
`TOCSIN_TEST_IMAGE` (`postgres:18`) or can pull it; else the embedded one.

A fixture for a whole session cannot be async: pytest-trio has one event loop per test.
`tocsin.embedded.serve` wants to be in one, so it gets a process of its own: this file,
run as a script, serves until its standard input is closed. That also happens when
pytest is killed, so no server is left behind.
"""

import gc
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal

import attrs
import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tocsin.embedded import serve

INSTALLATION = Path(named) if (named := os.environ.get("TOCSIN_TEST_INSTALLATION")) else None
"""Where the servers that the tests start come from; None: the wheel."""
SETTINGS = (
    {}
    if INSTALLATION is not None
    else {
        "fsync": "off",
        "max_connections": "200",
        "max_prepared_transactions": "10",
        "shared_preload_libraries": "pg_stat_statements",
    }
)
PASSWORD = secrets.token_hex(8)


@attrs.frozen
class Server:
    """A running server on which databases can be made."""

    kind: Literal["dsn", "installation", "container", "embedded"]
    """Where it comes from."""
    admin_dsn: str
    """Connection string for the database from which databases are created and
    dropped."""
    version_num: int
    """As in `show server_version_num`: 180006 is 18.6."""
    host: str | None
    """Where it listens on TCP; None if that is not known. The password is in
    `admin_dsn`."""
    port: int | None
    """Its TCP port; None if that is not known."""
    note: str = ""
    """Why it is not the kind that would have come first."""

    def __str__(self) -> str:
        version = f"{self.version_num // 10000}.{self.version_num % 10000}"
        return f"PostgreSQL {version} ({self.kind})" + (f"; {self.note}" if self.note else "")

    def dsn(self, database: str) -> str:
        return make_conninfo(self.admin_dsn, dbname=database)

    def create_database(self, template: str = "template0") -> str:
        """Create a database with a name that no other test session uses, and return the
        name.

        The server copies the files of the template: that takes half the time of writing
        each page to the WAL, as it does unless told otherwise.
        """
        name = f"tocsin_test_{secrets.token_hex(6)}"
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            statement = sql.SQL("create database {} template {} strategy file_copy")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            statement = sql.SQL("drop database if exists {} with (force)")
            connection.execute(statement.format(sql.Identifier(name)))


@contextmanager
def running() -> Iterator[Server]:
    """Start or find the server for the session, and stop it if it was started."""
    with ExitStack() as stack:
        if dsn := os.environ.get("TOCSIN_TEST_DSN"):
            yield _given(dsn)
        elif INSTALLATION is not None:
            yield _started(stack, "installation")
        elif isinstance(container := _container(stack), Server):
            yield container
        else:
            yield _started(stack, "embedded", note=container)


def _given(dsn: str) -> Server:
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        info = connection.info
        tcp = None if info.host.startswith(("/", "@")) else info.host
        return Server("dsn", dsn, info.server_version, tcp, info.port if tcp else None)


def _docker_answers() -> bool:
    import docker

    try:
        with closing(docker.from_env(timeout=3)) as client:
            return bool(client.ping())
    except docker.errors.DockerException:
        return False
    finally:
        # a failed attempt leaves an open socket in a cycle: a warning, later, in some
        # test
        gc.collect()


def _container(stack: ExitStack) -> Server | str:
    """The server in a new container, or why there is none; nothing if there just is no
    Docker."""
    image = os.environ.get("TOCSIN_TEST_IMAGE", "postgres:18")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries are warned of is not ours to mend
        if not _docker_answers():
            return ""
        from testcontainers.community.postgres import PostgresContainer

        options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        container = PostgresContainer(
            image, username="postgres", password=PASSWORD, dbname="postgres"
        )
        stack.callback(container.stop)
        try:
            container.with_command(f"postgres {options}").start()
        except Exception as error:  # of any library on the way to the daemon and the registry
            reason = str(error).partition("\n")[0]
            return f"no container from {image}: {reason}"
    host, port = container.get_container_host_ip(), int(container.get_exposed_port(5432))
    dsn = make_conninfo(host=host, port=port, user="postgres", password=PASSWORD, dbname="postgres")
    with psycopg.connect(dsn) as connection:
        return Server("container", dsn, connection.info.server_version, host, port)


def _started(stack: ExitStack, kind: Literal["installation", "embedded"], note: str = "") -> Server:
    port = free_port()
    # Its own session, so that Ctrl-C does not stop the server before the tests have
    # ended.
    command = [sys.executable, __file__, str(port)]
    process = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    )
    if process.stdout is None or not (answer := process.stdout.readline()):
        raise RuntimeError("the tests' server did not start; its standard error says why")
    dsn = make_conninfo(answer.rstrip(), password=PASSWORD)
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.SQL("alter role postgres password {}").format(PASSWORD))
        return Server(kind, dsn, connection.info.server_version, "127.0.0.1", port, note)


@contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory that a server which runs as another user can pass through,
    unlike pytest's.

    In memory where there is plenty, for a new database is 300 new files: 10 ms there,
    up to 100 ms on a slow disk.
    """
    memory = Path("/dev/shm")
    usable = (
        os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free > 4 << 30
        # the server's binaries may have to be copied there
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-test-", dir=memory if usable else None) as name:
        Path(name).chmod(0o711)
        yield Path(name)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def _serve_until_eof(port: int) -> None:
    with directory() as base:
        async with serve(
            base / "server", settings=SETTINGS, port=port, installation=INSTALLATION
        ) as server:
            sys.stdout.write(f"{server.dsn}\n")
            sys.stdout.flush()
            async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
                while await stdin.receive_some():
                    pass


if __name__ == "__main__":
    trio.run(_serve_until_eof, int(sys.argv[1]))
