"""``tocsin top``: one frame into a pipe, and the whole screen of a terminal."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from commands import Call, one_line
from support import PATIENCE, connect_blocking

import tocsin
from tocsin.embedded import EmbeddedServer

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A terminal in which the command runs."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.raw = ""

    def read_until(self, pattern: str) -> str:
        """Read until something like this has been shown since the last call; return what was shown."""
        shown = ""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, _ESCAPES.sub("", shown)):
            ready, _, _ = select.select([self._descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {shown!r}"
            text = os.read(self._descriptor, 65536).decode()
            shown += text
            self.raw += text
        return _ESCAPES.sub("", shown)

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._descriptor, keys)

    def wait(self) -> int:
        """Return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._descriptor], [], [], 0.01)[0]:  # it may wait for its last words to be read
                try:
                    self.raw += os.read(self._descriptor, 65536).decode()
                except OSError:
                    break
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(dsn: str, *arguments: str) -> Iterator[Terminal]:
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40", "TOCSIN_DSN": dsn}
    process = subprocess.Popen(
        [sys.executable, "-m", "tocsin", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(ours)


def test_once_prints_a_frame(cli: Call, store_dsn: str) -> None:
    assert cli("top", "--once") == (0, "no queues\n\nno workers\n", "")
    cli("queue", "create", "q")
    cli("enqueue", "q", "1", "2")
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.register_worker('q', 'consumer', n, null, 'h', 1, '1') from unnest('{a,b}'::text[]) n")
    cli("worker", "stop", "2")
    queues, workers = cli("top", "--once").out.split("\n\n")
    assert queues.splitlines()[1].split()[:4] == ["q", "2", "0", "0"]
    assert [line.split()[:5] for line in workers.splitlines()[1:]] == [["1", "a", "consumer", "q", "ready"]]
    assert cli("top").out.splitlines()[0] == queues.splitlines()[0]  # into a pipe it is the same
    frame = cli("top", "--format", "json").json
    assert (frame["queues"][0]["ready"], frame["workers"][0]["name"]) == (2, "a")


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_the_screen_follows_the_queues_until_a_key_ends_it(cli: Call, store_dsn: str, key: bytes) -> None:
    cli("queue", "create", "mails", "--notify", "always")
    with terminal(store_dsn, "top", "--interval", "1h") as screen:
        screen.read_until(r"no workers")
        cli("enqueue", "mails", "1")  # the interval is an hour: the bell does it
        screen.read_until(r"mails +1 ")
        screen.press(b"x")
        screen.press(key)
        assert screen.wait() == 0
    assert screen.raw.startswith("\x1b[?1049h")  # a screen of its own,
    assert screen.raw.endswith("\x1b[?25h\x1b[?1049l")  # left as it was


def test_without_a_ring_the_screen_follows_by_itself(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "mails")
    with terminal(store_dsn, "top", "--interval", "50ms") as screen:
        screen.read_until(r"no workers")
        cli("enqueue", "mails", "1")  # nobody sleeps, so nobody rings
        screen.read_until(r"mails +1 ")


async def test_it_goes_on_after_the_server_was_away(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.create("mails")
    with terminal(own_server.dsn, "top", "--interval", "50ms") as screen:
        screen.read_until(r"no workers")
        await own_server.stop()
        shown = screen.read_until(r"no connection, trying again")
        await own_server.start()
        async with tocsin.connect(own_server.dsn) as store:
            await store.produce("mails", 1)
        shown += screen.read_until(r"mails +1 ")
    assert "password" not in shown


def test_an_interval_of_nothing_is_bad_usage(cli: Call) -> None:
    code, _, error = cli("top", "--interval", "0")
    assert (code, one_line(error)) == (2, True)
