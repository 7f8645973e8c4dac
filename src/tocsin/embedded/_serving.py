"""A server that runs for as long as a block.

Where the program does not handle SIGTERM, the kernel would end the process at once and
leave the server behind. So within the block the signal cancels the block, and is raised
again when the server has stopped. A signal handler that the program or an inner block
installs takes precedence. Linux's PR_SET_PDEATHSIG does not help: it belongs to the
thread that started the server, and fires when that thread ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio
from psycopg.conninfo import make_conninfo

from tocsin._concurrency.nursery import open_nursery_bare

from ._directories import begin_log, make_directory, socket_directory
from ._installation import initdb, server_version, usable_wheel, wheel
from ._locks import owned
from ._processes import Account
from ._server import EmbeddedServer

__all__ = ["serve"]


@asynccontextmanager
async def serve(
    directory: Path,
    *,
    settings: Mapping[str, str] | None = None,
    port: int | None = None,
    installation: Path | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Run the PostgreSQL server whose data is in the directory, for the block.

    The first call makes the directory and the data, which later calls keep. A server
    that a killed process has left behind is stopped first. When the block ends, the
    server has stopped. SIGTERM cancels the block where it would end the process at
    once, and ends the process when the server has stopped.

    Args:
        directory: Where the data is, such as `default_directory`, on a file system that
            has flock.
        settings: Settings of the server, such as ``{"shared_preload_libraries":
            "pg_stat_statements"}``.
        port: A port of 127.0.0.1 on which the server listens, too, for sessions with a
            password.
        installation: The directory of another PostgreSQL than the wheel's, such as
            ``/usr/lib/postgresql/15``. It has ``bin/initdb`` and ``bin/postgres``.

    Raises:
        ModuleNotFoundError: The extra ``tocsin[embedded]`` is not installed.
        FileNotFoundError: There is no PostgreSQL in ``installation``.
        ServerBusy: Another process, or another block of this one, uses the directory.
        ServerFailed: ``initdb`` or the server ended too early.

    Cancellation:
        The server has stopped when the block ends, after Ctrl-C, too.
    """
    if installation is None:
        wheel()  # before any directory is created
    account = Account.choose()
    directory = make_directory(directory, account)
    data, log_path = directory / "data", directory / "server.log"
    options = {"listen_addresses": "" if port is None else "127.0.0.1", **(settings or {})}
    async with _terminated_in_order():
        with ExitStack() as stack:
            stack.enter_context(owned(directory))
            begin_log(log_path)
            if installation is None:
                installation, version = await usable_wheel(directory, account, log_path)
            else:
                version = await server_version(installation, account, log_path)
            binaries = installation / "bin"
            if not data.exists():
                await initdb(binaries, data, account, log_path, sync=options.get("fsync") != "off")
            sockets = stack.enter_context(socket_directory(account))
            command = [str(binaries / "postgres"), f"-D{data}", f"-k{sockets}", f"-p{port or 5432}"]
            command += [f"--{name}={value}" for name, value in options.items()]
            dsn = make_conninfo(
                host=str(sockets), port=port or 5432, user="postgres", dbname="postgres"
            )
            server = EmbeddedServer(directory, version, dsn, sockets, command)
            try:
                await server.start()
                yield server
            finally:
                with trio.CancelScope(shield=True):  # stop() has its own time limit
                    await server.stop()


@asynccontextmanager
async def _terminated_in_order() -> AsyncIterator[None]:
    """Have SIGTERM cancel the block, and end the process after it.

    A program that handles that signal keeps its handler.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    terminated = False

    @trio.lowlevel.enable_ki_protection
    async def listen(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        nonlocal terminated
        async for _ in signals:
            terminated = True
            scope.cancel()

    try:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with open_nursery_bare() as nursery:
                nursery.start_soon(listen, signals, nursery.cancel_scope)
                yield
                nursery.cancel_scope.cancel()
    finally:
        if terminated:
            signal.raise_signal(signal.SIGTERM)
