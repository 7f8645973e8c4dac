"""The demo: run as a newcomer would, at a terminal and not, interrupted, and with files
that make trouble."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from rich.console import Console

from tests.support import PATIENCE, open_connection, query, servers, until_query
from tocsin._demo import act, files, work
from tocsin._demo.tables import ADD_DIGEST, Tables
from tocsin._demo.view import Report, View

pytestmark = pytest.mark.slow

# Runs the command as a shell would start it: a background job's SIGINT is ignored, and
# tests may be one.
AT_A_TERMINAL = "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tocsin.__main__"
    " import main; main()"
)


class Demo:
    """A demo in a process of its own, and what it has printed so far."""

    def __init__(self, process: trio.Process, receive: Callable[[], AsyncIterator[bytes]]) -> None:
        self.process = process
        self.output = ""
        self._chunks = receive()

    async def until(self, text: str) -> None:
        """Read on until this has been printed."""
        with trio.fail_after(PATIENCE):
            while text not in self.output:
                self.output += (await anext(self._chunks)).decode()

    async def end(self) -> int:
        """Read to the end; return the exit code."""
        with trio.fail_after(PATIENCE):
            async for chunk in self._chunks:
                self.output += chunk.decode()
            return await self.process.wait()


@asynccontextmanager
async def demo(*arguments: str, terminal: bool = False) -> AsyncIterator[Demo]:
    """Start a demo; kill it at the end of the block if it is still there."""
    ours, theirs = os.openpty() if terminal else os.pipe()
    command = [
        sys.executable,
        "-c",
        (AT_A_TERMINAL if terminal else "") + START,
        "demo",
        *arguments,
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("TOCSIN_DSN", "NO_COLOR")} | {
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)

    async def receive() -> AsyncIterator[bytes]:
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # how a terminal says that the other side has closed it
                return
            if not chunk:
                return
            yield chunk

    try:
        yield Demo(process, receive)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(ours)


@pytest.fixture
def data() -> Iterator[Path]:
    """Where an embedded server can be made."""
    with servers.directory() as base:
        yield base / "server"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files that are easy, files that are not, and some that do not
    count."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "deep" / "er" / "letter.txt").write_text("Dear Ada")
    (root / "with space % and \N{SNOWMAN}").write_bytes(b"\0" * 100_000)
    Path(os.fsdecode(os.fsencode(root) + b"/no text \xff")).write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("not to be read")
    (root / "link").symlink_to(tmp_path / "outside" / "secret")
    (root / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "pipe")
    return root


def server_is_gone(data: Path) -> bool:
    return (
        not (data / "data" / "postmaster.pid").exists()
        and "shut down" in (data / "server.log").read_text()
    )


SESSIONS = (
    "select count(*) from pg_stat_activity where datname = current_database() and application_name"
    " = 'tocsin'"
)


async def test_twice_with_the_embedded_server(data: Path, tree: Path) -> None:
    for how in ("created and started", "started"):
        async with demo(str(tree), "--data", str(data)) as run:
            assert await run.end() == 0, run.output
        assert "\x1b" not in run.output
        assert f"embedded, {how} in" in run.output
        assert f"4 files below {tree} " in run.output
        assert "100 single messages from another process" in run.output
        assert "4 messages in one transaction" in run.output
        figures = {
            line.split()[0]: line.split()[1]
            for line in run.output.splitlines()
            if len(line.split()) > 1
        }
        assert (figures["files"], figures["lost"], figures["duplicates"]) == ("4", "0", "0")
        assert "every file once: " in run.output
        assert server_is_gone(data)


async def test_with_a_given_database(dsn: str, tree: Path) -> None:
    async with demo(str(tree), "--dsn", dsn) as run:
        assert await run.end() == 0, run.output
    stored = await query(dsn, "select path, sha256, bytes from tocsin_demo.digests")
    expected = [
        ("deep/er/letter.txt", b"Dear Ada"),
        ("empty", b""),
        ("no%20text%20%FF", b"x"),
        ("with%20space%20%25%20and%20%E2%98%83", b"\0" * 100_000),
    ]
    assert sorted(stored) == [
        (name, hashlib.sha256(content).hexdigest(), len(content)) for name, content in expected
    ]
    assert await query(dsn, SESSIONS) == [(0,)]
    assert await query(dsn, "select nspname from pg_namespace where nspname = 'tocsin'") == []


async def test_two_at_once_in_one_database(dsn: str, tree: Path) -> None:
    async with open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(hashtextextended('tocsin demo', 0))")
        async with demo(str(tree), "--dsn", dsn) as run:
            assert await run.end() == 1
    assert run.output.endswith("tocsin: another demo is running in this database\n")


async def test_nothing_to_do(tmp_path: Path) -> None:
    async with demo(str(tmp_path)) as run:
        assert await run.end() == 2
    assert run.output == f"tocsin: no files below {tmp_path}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["tocsin demo", "  server", "  enqueue"])
async def test_a_signal_in_the_middle(data: Path, moment: str, number: signal.Signals) -> None:
    async with demo("--data", str(data)) as run:
        await run.until(moment)
        run.process.send_signal(number)
        assert await run.end() == 128 + number
    assert run.output.endswith(f"tocsin: ended by {number.name}\n")
    assert "Traceback" not in run.output
    assert "every file once" not in run.output
    assert moment == "tocsin demo" or server_is_gone(data)


async def test_a_signal_leaves_no_process_behind(dsn: str) -> None:
    async with demo("--dsn", dsn) as run:
        await run.until("  server")
        # until the sending process is there
        await until_query(dsn, f"{SESSIONS} and query like '%enqueue(%' having count(*) > 0")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == 130
    await until_query(dsn, SESSIONS, gives=[(0,)])  # a server takes its time to notice


async def test_at_a_terminal(dsn: str) -> None:
    async with demo("--dsn", dsn, terminal=True) as run:
        assert await run.end() == 0, run.output
    for bar in ("wake-up", "files", "north", "south"):
        assert f"  {bar:<9} " in run.output
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 10 in run.output
    assert run.output.rindex("\x1b[?25h") > run.output.rindex("\x1b[?25l"), "the cursor is back"
    assert "every file once" in run.output


async def test_ctrl_c_at_a_terminal(data: Path) -> None:
    async with demo("--data", str(data), terminal=True) as run:
        await run.until("  files ")
        with trio.fail_after(PATIENCE):
            # To each process in the terminal's foreground, as Ctrl-C does.
            os.killpg(run.process.pid, signal.SIGINT)
            assert await run.end() == 130
    assert run.output.replace("\r", "").endswith("tocsin: ended by SIGINT\n")
    assert "Traceback" not in run.output
    assert run.output.rindex("\x1b[?25h") > run.output.rindex("\x1b[?25l"), "the cursor is back"
    assert server_is_gone(data)


async def perform(dsn: str, root: Path, paths: list[str]) -> tuple[Report, str]:
    screen = io.StringIO()
    view = View(Console(file=screen, width=200))
    with trio.fail_after(PATIENCE):
        report = await act.perform(dsn, root, paths, view)
    view.report(report)
    return report, screen.getvalue()


async def test_a_file_that_has_gone(dsn: str, tree: Path) -> None:
    report, screen = await perform(dsn, tree, [*files.find(tree, frozenset()), "gone"])
    assert report.good
    assert (report.outcome.files, report.outcome.dead) == (5, 1)
    assert "such as: FileNotFoundError: " in screen
    assert "interrupted at 5 of 5 files" in screen
    assert await query(
        dsn, "select payload->>'path', read_ct from tocsin_demo_queue.dead_letters"
    ) == [("gone", 3)]


async def test_the_check_finds_a_duplicate(
    dsn: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = (
        f"with once as ({ADD_DIGEST} returning *) insert into tocsin_demo.digests select * from"
        " once"
    )
    monkeypatch.setattr(work, "ADD_DIGEST", twice)
    report, screen = await perform(dsn, tree, ["empty"])
    assert (report.good, report.outcome.duplicates) == (False, 1)
    assert "not every file once" in screen


@pytest.mark.parametrize(
    "damage",
    [
        "delete from tocsin_demo.digests",
        "delete from tocsin_demo_queue.archive where payload ? 'path'",
        "update tocsin_demo.digests set path = 'another'",
    ],
)
async def test_the_check_finds_a_loss(dsn: str, tree: Path, damage: str) -> None:
    await perform(dsn, tree, ["empty"])
    await query(dsn, damage)
    async with open_connection(dsn) as connection:
        assert (await Tables(connection).check()).lost == 1
