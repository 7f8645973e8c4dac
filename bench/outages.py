"""``python -m bench.outages``: test a service during outages.

The command writes the table of ``docs/outages.md``. A service produces ten messages a
second and consumes them, with Tocsin's defaults. Each trial then changes or disturbs
the server, the database, the role or the network. It records which calls of the
producer failed, and how long the service took to recover. Recovery is the time from the
end of the outage, or from its beginning if it does not end, until a message that was
enqueued later is handled. At the end, each message whose enqueueing succeeded must have
been handled unchanged. Otherwise the command reports the fault and exits with 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin.embedded import EmbeddedServer, serve

from . import remote
from .__main__ import EMBEDDED, installation
from .frame import execute
from .proxy import Proxy, running
from .remote import Remote

PATIENCE = 60.0
"""Seconds after which a service counts as not recovered."""
PAUSE = 0.1
"""Seconds between two messages."""
WRONG = "wrong:"
"""Prefix of a table cell whose trial has failed."""
PASSWORD = secrets.token_hex(8)


@attrs.frozen
class Environment:
    """The environment of a trial."""

    server: EmbeddedServer
    """The server."""
    admin: str
    """Connection string of the database for a superuser, without the proxy."""
    dsn: str
    """Connection string that the service uses."""
    proxy: Proxy
    """The proxy in the service's connection."""
    standby: EmbeddedServer | None = None
    """A hot standby of the server."""
    standby_port: int = 0
    """Port of the standby on 127.0.0.1."""
    remote: Remote | None = None
    """Another host, if there is one."""
    remote_dsn: str = ""
    """The connection string for the other host."""

    async def promote(self) -> None:
        """Make the standby a primary."""
        assert self.standby is not None
        await execute(self.standby.dsn, b"select pg_promote()")

    async def set(self, setting: str) -> None:
        """Change a setting of the database for later sessions."""
        name = str(conninfo_to_dict(self.admin)["dbname"])
        await execute(
            self.server.dsn,
            sql.SQL("alter database {} set {}").format(sql.Identifier(name), sql.SQL(setting)),
        )

    async def terminate(self) -> None:
        """End all sessions of the service."""
        await execute(
            self.admin,
            b"select pg_terminate_backend(pid) from pg_stat_activity where application_name ="
            b" 'tocsin'",
        )


@attrs.frozen
class Trial:
    """A setting or an outage to test."""

    name: str
    """The change, as the table describes it."""
    happens: str
    """The effect, as the table describes it."""
    act: Callable[[Environment], Awaitable[float | None]]
    """Function that makes the change. It returns at the end of an outage that ends, and
    may return its own measurement of the recovery."""
    before: bool = False
    """Whether the change is made before the service starts."""
    since: int = 0
    """The first major version of PostgreSQL that supports the trial."""
    standby: bool = False
    """Whether the trial needs a standby."""
    remote: bool = False
    """Whether the trial needs another host."""


@attrs.frozen
class Outcome:
    """The result of a trial."""

    failed: Counter[str]
    """Numbers of errors that calls of the producer raised, by name."""
    recovery: float
    """Seconds from the outage's end until a message that was enqueued later is handled.
    """
    repeated: int
    """Number of messages that were handled twice."""


class Service:
    """A service that produces and consumes, and records the results."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._sent: dict[int, float] = {}
        self._kept: set[int] = set()
        self._handled: dict[int, float] = {}
        self._pending = 0
        self._producing = True
        self._changed = trio.lowlevel.ParkingLot()
        self._over = trio.Event()
        self.repeated = 0
        self.failed: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Produce and consume until cancelled."""
        async with (
            tocsin.connect(self._dsn) as store,
            store.consumer("q") as consumer,
            open_nursery_bare() as nursery,
        ):
            nursery.start_soon(self._produce, store)
            task_status.started()
            await consumer.handle(self._handle, concurrency=5)

    async def _handle(self, message: tocsin.Message) -> None:
        if message.payload != {"n": message.payload["n"], "text": "é"}:
            raise RuntimeError(f"the payload has changed on its way: {message.payload}")
        self.repeated += message.payload["n"] in self._handled
        self._handled.setdefault(message.payload["n"], trio.current_time())
        self._changed.unpark_all()
        if message.payload["n"] == 0:  # a long handler, whose lease must be extended
            await self._over.wait()

    async def _produce(self, store: tocsin.Store) -> None:
        async with open_nursery_bare() as nursery:
            while self._producing:
                nursery.start_soon(self._send, store, len(self._sent))
                await trio.sleep(PAUSE)

    async def _send(self, store: tocsin.Store, number: int) -> None:
        self._sent[number] = trio.current_time()
        self._pending += 1
        try:
            await store.produce("q", {"n": number, "text": "é"})
        except Exception as error:
            self.failed[type(error).__name__] += 1
        else:
            self._kept.add(number)
        finally:
            self._pending -= 1
            self._changed.unpark_all()

    async def steady(self) -> None:
        """Return when messages are handled."""
        await self._until(lambda: len(self._handled) >= 20, "no message is handled at all")

    async def recover(self, since: float) -> float:
        """Return the seconds from a time until a message sent after it is handled."""

        def later() -> list[float]:
            return [t for n, t in self._handled.items() if self._sent[n] >= since]

        await self._until(lambda: bool(later()), "no message is handled any more")
        return min(later()) - since

    async def finish(self) -> None:
        """Stop producing, and return when all enqueued messages are handled."""
        self._producing = False
        await self._until(lambda: not self._pending, "calls of the producer do not end")
        await self._until(lambda: self._kept <= self._handled.keys(), "messages are not handled")
        self._over.set()

    async def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        with trio.move_on_after(PATIENCE):
            while not holds():
                await self._changed.park()
            return
        raise RuntimeError(otherwise)


def set_before(setting: str) -> Callable[[Environment], Awaitable[float | None]]:
    """Return a function that changes a setting of the database."""

    async def act(environment: Environment) -> None:
        await environment.set(setting)

    return act


def setting(
    setting: str, happens: str = "Tocsin's sessions set their own value.", since: int = 0
) -> Trial:
    """Return the trial of a setting of the database, which could also be a role's."""
    return Trial(f"`{setting}`", happens, set_before(setting), before=True, since=since)


async def restart(environment: Environment) -> None:
    """Restart the server."""
    await environment.server.restart("fast")


async def crash(environment: Environment) -> None:
    """Let the server crash and recover."""
    await environment.server.restart("immediate")


async def terminate_again_and_again(environment: Environment) -> None:
    """Terminate all sessions repeatedly for three seconds."""
    for _ in range(15):
        await environment.terminate()
        await trio.sleep(0.2)


async def cancel_again_and_again(environment: Environment) -> None:
    """Cancel all statements repeatedly for three seconds."""
    for _ in range(300):
        await execute(
            environment.admin,
            b"select pg_cancel_backend(pid) from pg_stat_activity where application_name ="
            b" 'tocsin'",
        )
        await trio.sleep(0.01)


async def read_only(environment: Environment) -> None:
    """Make the database read-only for five seconds."""
    await environment.set("default_transaction_read_only = on")
    await environment.terminate()
    await trio.sleep(5)
    await environment.set("default_transaction_read_only = off")
    await environment.terminate()


async def lock_messages(environment: Environment) -> None:
    """Hold an exclusive lock on the table of messages for five seconds."""
    await execute(
        environment.admin,
        b"begin; lock table tocsin.messages in access exclusive mode; select pg_sleep(5); commit",
    )


async def lock_messages_by_timeout(environment: Environment) -> None:
    """Lock the messages exclusively, with a timeout of a second for transactions."""
    await environment.set("transaction_timeout = '1s'")
    await environment.terminate()
    await trio.sleep(1)
    await execute(
        environment.admin,
        b"set transaction_timeout = 0; begin; lock table tocsin.messages in access exclusive mode;"
        b" select pg_sleep(5); commit",
    )


async def limit_role(environment: Environment) -> None:
    """Limit the role to fewer connections than the pool may have."""
    role = sql.Identifier(str(conninfo_to_dict(environment.dsn)["user"]))
    await execute(environment.admin, sql.SQL("alter role {} connection limit 3").format(role))
    await environment.terminate()


async def take_all_connections(environment: Environment) -> None:
    """Allow the role no connection for five seconds, and end its sessions."""
    role = sql.Identifier(str(conninfo_to_dict(environment.dsn)["user"]))
    await execute(environment.admin, sql.SQL("alter role {} connection limit 0").format(role))
    await environment.terminate()
    await trio.sleep(5)
    await execute(environment.admin, sql.SQL("alter role {} connection limit -1").format(role))


async def fill_notify_queue(environment: Environment) -> None:
    """Fill PostgreSQL's queue of notifications for five seconds.

    A session that does not read its notifications keeps the queue full.
    """

    def fill() -> None:
        with (
            psycopg.connect(environment.admin, autocommit=True) as stuck,
            psycopg.connect(environment.admin, autocommit=True) as other,
        ):
            for statement in ("listen somewhere", "begin", "select 1"):
                stuck.execute(statement)
            try:
                while True:
                    other.execute(
                        "select pg_notify('somewhere', repeat('x', 7000) || clock_timestamp())"
                    )
            except psycopg.errors.ProgramLimitExceeded:
                other.execute("select pg_sleep(5)")

    await trio.to_thread.run_sync(fill)


async def silence_pool(environment: Environment) -> None:
    """Silence all open connections except the newest, the LISTEN connection."""
    environment.proxy.silence(*range(1, environment.proxy.accepted))


async def silence_listener(environment: Environment) -> None:
    """Silence the LISTEN connection, which is the second that was opened."""
    environment.proxy.silence(2)


async def silence_open(environment: Environment) -> None:
    """Silence all open connections."""
    environment.proxy.silence()


async def silence_network(environment: Environment) -> None:
    """Silence all connections, also new ones, for twenty seconds."""
    environment.proxy.silence_all()
    await trio.sleep(20)
    environment.proxy.restore()


async def freeze_server(environment: Environment) -> None:
    """Stop all of the server's processes for fifteen seconds."""
    postmaster = int(
        (environment.server.directory / "data" / "postmaster.pid").read_text().split()[0]
    )
    processes = [postmaster, *_children(postmaster)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        await trio.sleep(15)
    finally:
        for process in processes:
            try:
                os.kill(process, signal.SIGCONT)
            except ProcessLookupError:
                continue


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


async def fail_over(environment: Environment) -> None:
    """Disconnect the primary's host, and promote the standby.

    The service's connection string names both.
    """
    environment.proxy.silence_all()
    await environment.promote()


async def lead_to_standby(environment: Environment) -> None:
    """Redirect the service to the standby, as a virtual address does.

    The standby is promoted five seconds later.
    """
    environment.proxy.address = "127.0.0.1", environment.standby_port
    await environment.terminate()
    await trio.sleep(5)
    await environment.promote()


async def lose_consumer(environment: Environment) -> float:
    """Disconnect a host on which a consumer holds a message.

    Return the seconds until another consumer has the message.
    """
    assert environment.remote is not None
    async with tocsin.connect(environment.dsn) as store:
        await store.queues.ensure("held", vt=3600)
        await store.produce("held", None)
        command = [*environment.remote.prefix(), sys.executable, "-c", HOLD, environment.remote_dsn]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            if not await process.stdout.receive_some():
                raise RuntimeError("the consumer on the other host has not begun")
            await trio.sleep(10)  # no process is declared dead in a server's first ten seconds
            environment.remote.vanish()
            began = trio.current_time()
            async with store.consumer("held") as consumer:
                (message,) = await consumer.dequeue(wait=PATIENCE)
                await message.archive()
            return trio.current_time() - began
        finally:
            process.kill()
            with trio.move_on_after(1, shield=True):
                await process.wait()


HOLD = """
import sys, tocsin, trio

async def handle(message):
    print("holding", flush=True)
    await trio.sleep_forever()

async def main():
    async with tocsin.connect(sys.argv[1]) as store, store.consumer("held") as consumer:
        await consumer.handle(handle)

trio.run(main)
"""
"""The program that runs on the other host."""


TRIALS: Sequence[Trial] = (
    setting("client_encoding = 'latin1'"),
    setting("datestyle = 'German, DMY'"),
    setting("intervalstyle = 'sql_standard'"),
    setting("timezone = 'Europe/Berlin'"),
    setting("statement_timeout = '50ms'"),
    setting("lock_timeout = '1ms'"),
    setting("idle_in_transaction_session_timeout = '50ms'"),
    setting("idle_session_timeout = '300ms'"),
    setting("transaction_timeout = '50ms'", since=17),
    setting("default_transaction_isolation = 'serializable'"),
    setting("default_transaction_deferrable = on"),
    setting("bytea_output = 'escape'"),
    setting("standard_conforming_strings = off"),
    setting("search_path = ''"),
    setting("jit_above_cost = 0", "Tocsin's functions turn JIT off where they steer the planner."),
    Trial("the server is restarted", "Tocsin reconnects automatically.", restart),
    Trial("the server crashes and recovers", "Tocsin reconnects automatically.", crash),
    Trial(
        "each session is terminated, again and again, for 3 s",
        "Tocsin reconnects automatically.",
        terminate_again_and_again,
    ),
    Trial(
        "each statement is cancelled, again and again, for 3 s",
        "Statements of the consumer are repeated.",
        cancel_again_and_again,
    ),
    Trial(
        "the database is read-only for 5 s",
        "Consumers wait; calls raise `ConnectionLost`.",
        read_only,
    ),
    Trial("another session locks the table of messages for 5 s", "Statements wait.", lock_messages),
    Trial(
        "another session locks the table for 5 s, with a `transaction_timeout` of 1 s",
        "Statements wait.",
        lock_messages_by_timeout,
        since=17,
    ),
    Trial(
        "the role may have 3 connections, the pool 8",
        "Tasks wait until another task returns a connection.",
        limit_role,
    ),
    Trial(
        "the role may have no connection for 5 s",
        "Consumers wait; calls raise `ConnectionLost`.",
        take_all_connections,
    ),
    Trial(
        "PostgreSQL's notification queue is full for 5 s",
        "Messages are enqueued; consumers find them by heartbeat.",
        fill_notify_queue,
        since=17,
    ),
    Trial(
        "the pool's connections fall silent",
        "Each is closed when a statement gets no answer.",
        silence_pool,
    ),
    Trial(
        "the LISTEN connection falls silent",
        "It is closed when a heartbeat gets no answer.",
        silence_listener,
    ),
    Trial(
        "all open connections fall silent",
        "They are closed, and new connections are opened.",
        silence_open,
    ),
    Trial(
        "the network is silent for 20 s",
        "Calls raise `ConnectionLost`; Tocsin tries to connect until it succeeds.",
        silence_network,
    ),
    Trial(
        "the server is frozen for 15 s (SIGSTOP)",
        "Calls raise `ConnectionLost` until the server continues.",
        freeze_server,
    ),
    Trial(
        "the primary's host vanishes, the standby is promoted; the DSN names both",
        "Attempts to connect to the vanished host time out, and the other host is tried.",
        fail_over,
        standby=True,
    ),
    Trial(
        "one address leads to a standby, which is promoted 5 s later",
        "Connections to a read-only server are closed.",
        lead_to_standby,
        standby=True,
    ),
    Trial(
        "a consumer's host vanishes while it holds a message",
        "The server detects the loss, and another consumer handles the message.",
        lose_consumer,
        remote=True,
    ),
)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory that another user can pass through.

    If this process is root, a server runs as another user.
    """
    with tempfile.TemporaryDirectory(prefix="tocsin-outages-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@asynccontextmanager
async def new_environment(server: EmbeddedServer, port: int) -> AsyncIterator[Environment]:
    """Yield an environment: a new database with Tocsin, and a new role that owns it."""
    name = f"outages_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    await execute(
        server.dsn,
        sql.SQL("create role {} login password {}").format(identifier, sql.Literal(PASSWORD)),
    )
    await execute(server.dsn, sql.SQL("create database {} owner {}").format(identifier, identifier))
    try:
        direct = make_conninfo(
            host="127.0.0.1", port=port, dbname=name, user=name, password=PASSWORD
        )
        async with running(direct) as proxy:
            async with tocsin.connect(direct) as store:
                await store.install()
                await store.queues.ensure("q", vt=10)
            yield Environment(server, make_conninfo(server.dsn, dbname=name), proxy.dsn(), proxy)
    finally:
        with trio.CancelScope(shield=True):
            await execute(server.dsn, sql.SQL("drop database {} with (force)").format(identifier))
            await execute(server.dsn, sql.SQL("drop role {}").format(identifier))


@asynccontextmanager
async def with_standby(
    environment: Environment, port: int, installed: Path | None
) -> AsyncIterator[Environment]:
    """Add a hot standby of the server.

    The service's connection string names the primary first and the standby second.
    """
    await environment.server.stop()
    with temporary_directory() as base:
        directory = base / "standby"
        directory.mkdir(mode=0o711)
        await trio.to_thread.run_sync(
            _copy_data,
            environment.server.directory / "data",
            directory / "data",
            environment.server.dsn,
        )
        await environment.server.start()
        async with (
            serve(directory, port=port, installation=installed) as standby,
            running(environment.dsn, ("127.0.0.1", port)) as proxy,
        ):
            dsn = make_conninfo(
                environment.dsn,
                host="127.0.0.1,127.0.0.1",
                port=f"{environment.proxy.port},{proxy.port}",
                target_session_attrs="read-write",
            )
            yield attrs.evolve(environment, dsn=dsn, standby=standby, standby_port=port)


def _copy_data(data: Path, copy: Path, primary: str) -> None:
    shutil.copytree(data, copy)
    (copy / "standby.signal").touch()
    with (copy / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = '{primary}'\n")
    owner = data.stat()
    for path in (copy, *copy.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


async def observe(trial: Trial, environment: Environment) -> Outcome:
    """Run the service through a trial."""
    if trial.before:
        await trial.act(environment)
    service = Service(environment.dsn)
    async with open_nursery_bare() as nursery:
        await nursery.start(service.run)
        await service.steady()
        recovery = None if trial.before else await trial.act(environment)
        if recovery is None:
            recovery = await service.recover(trio.current_time())
        await service.finish()
        nursery.cancel_scope.cancel()
    return Outcome(service.failed, recovery, service.repeated)


def describe(outcome: Outcome) -> str:
    """Return the table cell of an outcome."""
    failed = ", ".join(f"{count} {name}" for name, count in outcome.failed.items())
    repeated = f"{outcome.repeated} handled twice" if outcome.repeated else ""
    return "; ".join([f"{outcome.recovery:.1f} s", *filter(None, (failed, repeated))])


async def run_on(which: str, trials: Sequence[Trial]) -> tuple[str, list[str]]:
    """Run trials on a new server, and return its version and a cell for each trial."""
    cells = []
    installed = installation(which)
    port = 54_000 + os.getpid() % 1000 * 2
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        host = (
            stack.enter_context(remote.running())
            if remote.is_possible() and any(trial.remote for trial in trials)
            else None
        )
        settings = {"max_notify_queue_pages": "64"} if installed is None else {}
        if host is not None:
            settings["listen_addresses"] = f"127.0.0.1,{remote.ADDRESS}"
        server = await stack.enter_async_context(
            serve(directory / "server", port=port, settings=settings, installation=installed)
        )
        if host is not None:
            await _admit(server)
        for trial in trials:
            cell = ""
            if trial.since <= int(server.version.partition(".")[0]) and (
                host is not None or not trial.remote
            ):
                try:
                    cell = describe(await _try(trial, server, port, installed, host))
                except Exception as error:
                    cell = f"{WRONG} {error!r}"
                sys.stderr.write(f"PostgreSQL {server.version}: {trial.name}: {cell}\n")
            cells.append(cell)
    return server.version, cells


async def _try(
    trial: Trial, server: EmbeddedServer, port: int, installed: Path | None, host: Remote | None
) -> Outcome:
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(new_environment(server, port))
        if trial.standby:
            environment = await stack.enter_async_context(
                with_standby(environment, port + 1, installed)
            )
        if trial.remote:
            direct = make_conninfo(environment.dsn, host=remote.ADDRESS, port=port)
            environment = attrs.evolve(environment, remote=host, remote_dsn=direct)
        return await observe(trial, environment)


async def _admit(server: EmbeddedServer) -> None:
    """Allow sessions from the other host with a password."""
    rules = await trio.Path(server.directory / "data" / "pg_hba.conf").open("a")
    async with rules:
        await rules.write(f"host all all {remote.REMOTE_ADDRESS}/32 scram-sha-256\n")
    await execute(server.dsn, b"select pg_reload_conf()")


async def run(servers: Sequence[str], only: Sequence[str]) -> int:
    """Run the trials on each server, print the table, and return the exit status."""
    trials = [trial for trial in TRIALS if not only or any(word in trial.name for word in only)]
    columns = [await run_on(which, trials) for which in servers]
    lines = [
        f"| change | effect | {' | '.join(f'PostgreSQL {version}' for version, _ in columns)} |",
        f"| --- | --- | {' | '.join('---' for _ in columns)} |",
        *(
            f"| {t.name} | {t.happens} | {' | '.join(cells[n] for _, cells in columns)} |"
            for n, t in enumerate(trials)
        ),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(cell.startswith(WRONG) for _, cells in columns for cell in cells))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Exits if an argument is not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.outages",
        description="Test a service during outages of its database or network.",
    )
    parser.add_argument(
        "--on",
        action="append",
        help="'embedded' (the default) or the directory of an installation; may be repeated",
    )
    parser.add_argument(
        "--only", action="append", default=[], help="run the trials with these words in their name"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parse(sys.argv[1:])
    logging.getLogger("tocsin").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    sys.exit(trio.run(run, given.on or [EMBEDDED], given.only))
