"""``tocsin worker run``: handlers, signals, once, reload, logs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support import ENDS_WITHIN, PATIENCE, connect_blocking
from tests.support.commands import Call, line_with, one_line, started
from tests.support.sweeps import sweep
from tocsin._cli import reload

HANDLERS = """
import logging, trio
log = logging.getLogger("service")

async def send(message):
    log.info("sent %s", message.payload)

def plain(message):
    log.info("sent %s", message.payload)

class Mailer:
    @staticmethod
    async def send(message):
        log.info("sent %s", message.payload)

async def many(messages):
    log.info("got %s", [m.payload for m in messages])

async def hang(message):
    log.info("began %s", message.payload)
    await trio.sleep_forever()

async def fail(message):
    raise ValueError("no good")

def decorated(handler):
    return lambda message: handler(message)

unseen = decorated(send)

async def generates(message):
    yield

number = 3

import tocsin

@tocsin.task(queue="q")
async def double(number: int) -> int:
    log.info("doubles %s", number)
    return 2 * number

@tocsin.task(queue="other")
def negate(number: int) -> int:
    log.info("negates %s", number)
    return -number

async def two(first, second): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a service in it."""
    (tmp_path / "service.py").write_text(HANDLERS)
    return tmp_path


def run(dsn: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with started(dsn, "worker", "run", *arguments, folder=folder) as process:
        out, error = process.communicate(timeout=ENDS_WITHIN)
        assert process.returncode is not None
        return subprocess.CompletedProcess([], process.returncode, out, error)


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with connect_blocking(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


ARCHIVED = "select payload #>> '{}' from tocsin.archive order by id"


@sweep("handler", ["send", "plain", "Mailer.send"], quick=1)
def test_once_drains_what_is_there_and_ends(
    cli: Call, store_dsn: str, folder: Path, handler: str
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", *map(str, range(25)))
    cli("enqueue", "q", '"later"', "--delay", "1h")
    ended = run(
        store_dsn,
        folder,
        "q",
        f"service:{handler}",
        "--once",
        "--concurrency",
        "8",
        "--name",
        "mine",
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert [p for (p,) in ask(store_dsn, ARCHIVED)] == [str(n) for n in range(25)]
    assert "25 handled, 0 released" in ended.stderr
    assert ask(store_dsn, "select name, status from tocsin.workers") == [("mine", "stopped")]


def test_once_ends_on_an_empty_queue(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    assert run(store_dsn, folder, "q", "service:send", "--once").returncode == 0


@pytest.mark.slow
def test_batches(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", *map(str, range(5)))
    ended = run(store_dsn, folder, "q", "service:many", "--once", "--batch", "3")
    assert "got [0, 1, 2] queue=q\n" in ended.stderr
    assert "got [3, 4] queue=q\n" in ended.stderr


def test_the_log_says_which_message(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"', '"\\u001b[2J"')
    ended = run(store_dsn, folder, "q", "service:send", "--once")
    assert "INFO    service: sent a queue=q message_id=1 delivery=1\n" in ended.stderr
    # a terminal would have been cleared
    assert "sent \\x1b[2J queue=q message_id=2" in ended.stderr


@sweep("handler", ["send", "plain"], quick=1)
def test_the_log_as_json_is_an_object_per_line(
    cli: Call, store_dsn: str, folder: Path, handler: str
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"')
    ended = run(store_dsn, folder, "q", f"service:{handler}", "--once", "--log-format", "json")
    entries = [json.loads(line) for line in ended.stderr.splitlines()]
    (sent,) = [e for e in entries if e["logger"] == "service"]
    del sent["time"]
    assert sent == {
        "level": "info",
        "logger": "service",
        "message": "sent a",
        "queue": "q",
        "message_id": 1,
        "delivery": 1,
    }


def test_a_failure_is_logged_with_its_traceback(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q", "--max-deliveries", "1")
    cli("enqueue", "q", '"a"')
    ended = run(
        store_dsn,
        folder,
        "q",
        "service:fail",
        "--once",
        "--log-format",
        "json",
        "--log-level",
        "warning",
    )
    (entry,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (entry["level"], entry["message_id"], entry["delivery"], entry["queue"]) == (
        "warning",
        1,
        1,
        "q",
    )
    assert "service.fail failed with message 1, delivery 1" in entry["message"]
    assert entry["traceback"].endswith("ValueError: no good")


def test_a_failed_batch_is_logged_once(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q", "--max-deliveries", "1")
    cli("enqueue", "q", *map(str, range(3)))
    ended = run(
        store_dsn,
        folder,
        "q",
        "service:fail",
        "--batch",
        "3",
        "--once",
        "--log-format",
        "json",
        "--log-level",
        "warning",
    )
    (entry,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (
        entry["message"]
        == "service.fail failed with messages 1, 2, 3: ValueError: no good; 3 are dead letters now"
    )
    assert (entry["queue"], "message_id" in entry) == ("q", False)
    assert ask(store_dsn, "select count(*)::int from tocsin.dead_letters") == [(3,)]


def test_an_async_handler_that_its_decorator_hides_fails_and_archives_nothing(
    cli: Call, store_dsn: str, folder: Path
) -> None:
    cli("queue", "create", "q", "--max-deliveries", "1")
    cli("enqueue", "q", '"a"')
    ended = run(store_dsn, folder, "q", "service:unseen", "--once")
    assert "appears to be asynchronous" in ended.stderr
    assert ask(store_dsn, ARCHIVED) == []
    assert ask(store_dsn, "select payload #>> '{}' from tocsin.dead_letters") == [("a",)]


@pytest.mark.slow
def test_in_order_it_takes_one_at_a_time(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q", "--max-deliveries", "1")
    cli("enqueue", "q", "1", "2")
    assert (
        run(store_dsn, folder, "q", "service:send", "--ordered", "--concurrency", "2").returncode
        == 2
    )
    assert run(store_dsn, folder, "q", "service:send", "--ordered", "--once").returncode == 0
    assert len(ask(store_dsn, ARCHIVED)) == 2


def test_a_handler_that_takes_too_long_has_failed(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q", "--max-deliveries", "1")
    cli("enqueue", "q", '"a"')
    assert (
        run(store_dsn, folder, "q", "service:hang", "--once", "--timeout", "50ms").returncode == 0
    )
    assert ask(store_dsn, "select error from tocsin.dead_letters") == [("TooSlowError",)]


def signal_until_it_cancels(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send the signal again and again; one counts when it comes a second after the
    first."""
    line = ""
    while "cancelling" not in line:
        process.send_signal(number)
        line = line_with(process, f"{number.name}: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_a_second_one_cancels(
    cli: Call, store_dsn: str, folder: Path, number: signal.Signals
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"', '"b"')
    with started(store_dsn, "worker", "run", "q", "service:hang", folder=folder) as process:
        line_with(process, "began a")
        process.send_signal(number)
        line_with(process, f"{number.name}: draining")
        assert ask(
            store_dsn, "select count(*)::int from tocsin.messages where state = 'leased'"
        ) == [(1,)]
        signal_until_it_cancels(process, number)
        assert process.wait(ENDS_WITHIN) == 130
    assert ask(store_dsn, "select state::text, read_ct from tocsin.messages order by id") == [
        ("ready", 0),
        ("ready", 0),
    ]


def test_a_signal_with_a_grace_ends_it_well(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"')
    with started(
        store_dsn, "worker", "run", "q", "service:hang", "--grace", "10ms", folder=folder
    ) as process:
        line_with(process, "began a")
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN) == 0
    assert ask(store_dsn, "select state::text, read_ct from tocsin.messages") == [("ready", 0)]


def test_leases_have_the_length_that_is_asked_for(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"')
    with started(
        store_dsn, "worker", "run", "q", "service:hang", "--vt", "1h", folder=folder
    ) as process:
        line_with(process, "began a")
        assert ask(store_dsn, "select vt > now() + interval '50 min' from tocsin.messages") == [
            (True,)
        ]


def test_an_interruption_from_elsewhere_ends_the_process(
    cli: Call, store_dsn: str, folder: Path
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"')
    with started(store_dsn, "worker", "run", "q", "service:send", folder=folder) as process:
        line_with(process, "sent a")
        assert cli("worker", "interrupt", "1").code == 0
        assert process.wait(ENDS_WITHIN) == 0


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        ("service", "'service' is not a handler; expected module:function"),
        (":send", "expected module:function"),
        (
            "nowhere:send",
            "cannot import nowhere:send: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("service:nothing", "cannot import service:nothing: AttributeError"),
        ("broken:send", "cannot import broken:send: ZeroDivisionError"),
        ("leaves:send", "cannot import leaves:send: SystemExit"),
        ("service:number", "service:number is a int, not a function"),
        ("service:two", "service:two is not a function of one argument"),
        ("service:generates", "handler service.generates is a generator function"),
    ],
)
def test_a_handler_that_cannot_be_imported_is_bad_usage(
    call: Call, monkeypatch: pytest.MonkeyPatch, folder: Path, handler: str, reason: str
) -> None:
    (folder / "broken.py").write_text("1 / 0")
    (folder / "leaves.py").write_text("raise SystemExit('gone')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setitem(sys.modules, "service", None)  # so that it is put back
    del sys.modules["service"]
    code, out, error = call("worker", "run", "q", handler)
    assert (code, out, one_line(error)) == (2, "", True)
    assert reason in error


def test_a_queue_that_does_not_exist_is_refused(store_dsn: str, folder: Path) -> None:
    ended = run(store_dsn, folder, "q", "service:send")
    assert (ended.returncode, one_line(ended.stderr)) == (1, True)


@pytest.mark.slow
def test_reload_restarts_when_a_file_changes_and_passes_signals_on(
    cli: Call, store_dsn: str, folder: Path
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '"a"')
    with started(
        store_dsn, "worker", "run", "q", "service:send", "--reload", folder=folder
    ) as process:
        line_with(process, "sent a")
        (folder / "service.py").write_text("def broken(:")
        line_with(process, "a file has changed; restarting")
        assert "SyntaxError" in line_with(process, "cannot import service:send")
        line_with(process, "ended with 2; waiting for a file to change")
        (folder / "service.py").write_text(HANDLERS.replace("sent %s", "sent again %s"))
        cli("enqueue", "q", '"b"')
        line_with(process, "sent again b")
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN) == 0
    assert ask(store_dsn, "select distinct status from tocsin.workers") == [("stopped",)]


async def test_reload_passes_on_a_signal_that_comes_before_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    look = reload.look

    def look_and_be_signalled(root: Path) -> dict[str, int]:
        monkeypatch.setattr(reload, "look", look)
        signal.raise_signal(signal.SIGTERM)
        return look(root)

    monkeypatch.setattr(reload, "look", look_and_be_signalled)
    with trio.fail_after(PATIENCE):
        code = await reload.run_and_restart(
            [sys.executable, "-c", "import time; time.sleep(3600)"], tmp_path
        )
    assert code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_reload_ends_with_a_run_that_ends_well(cli: Call, store_dsn: str, folder: Path) -> None:
    cli("queue", "create", "q")
    assert run(store_dsn, folder, "q", "service:send", "--once", "--reload").returncode == 0


@pytest.mark.parametrize(
    "words", [["--vt", "0"], ["--timeout", "0"], ["--name", ""], ["--vt", "99999999w"]]
)
def test_an_option_that_makes_no_sense_is_bad_usage_before_anything_begins(
    cli: Call, words: list[str]
) -> None:
    cli("queue", "create", "q")
    code, _, error = cli("worker", "run", "q", "math:sqrt", "--once", *words)
    assert (code, one_line(error)) == (2, True)
    assert cli("worker", "list", "--format", "json").json == []


# Tasks

OUTCOMES = "select task, result from tocsin.archive order by task"


@sweep("tasks", [["service"], ["service:double", "service:negate", "service"]], quick=1)
def test_the_jobs_of_a_modules_tasks_run(
    cli: Call, store_dsn: str, folder: Path, tasks: list[str]
) -> None:
    for queue in "q", "other":
        cli("queue", "create", queue)
    options = [option for task in tasks for option in ("--tasks", task)]
    empty = run(store_dsn, folder, *options, "--once")  # registers the tasks
    assert empty.returncode == 0, empty.stderr
    ask(store_dsn, "select tocsin.submit('service.double', '[21]')")
    ask(store_dsn, "select tocsin.submit('service.negate', '[7]')")
    ended = run(store_dsn, folder, *options, "--once", "--concurrency", "2", "--name", "mine")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert ask(store_dsn, OUTCOMES) == [("service.double", 42), ("service.negate", -7)]
    assert "2 handled, 0 released" in ended.stderr
    for said in "doubles 21 queue=q", "negates 7 queue=other":
        (line,) = [line for line in ended.stderr.splitlines() if said in line]
        assert "delivery=1 task=service." in line


PLACES = """
import multiprocessing, threading
import tocsin

together = threading.Barrier(2)

@tocsin.task(queue="q", timeout=60)
def meet() -> bool:
    together.wait()
    return threading.current_thread() is not threading.main_thread()

@tocsin.task(queue="q", runs="process", timeout=60)
def where() -> bool:
    return multiprocessing.parent_process() is not None
"""


@pytest.mark.slow
def test_a_worker_has_the_given_numbers_of_threads_and_processes(
    cli: Call, store_dsn: str, folder: Path
) -> None:
    (folder / "places.py").write_text(PLACES)
    cli("queue", "create", "q")
    options = ["--tasks", "places", "--threads", "2", "--processes", "1", "--once"]
    empty = run(store_dsn, folder, *options)
    assert empty.returncode == 0, empty.stderr
    for task in "places.meet", "places.meet", "places.where":
        ask(store_dsn, f"select tocsin.submit('{task}')")
    ended = run(store_dsn, folder, *options, "--concurrency", "3")
    assert ended.returncode == 0, ended.stderr
    assert ask(store_dsn, OUTCOMES) == [
        ("places.meet", True),
        ("places.meet", True),
        ("places.where", True),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["q", "service:send", "--threads", "2"], "--threads and --processes belong to --tasks"),
        (["--tasks", "logging"], "module logging has no tasks"),
        (["--tasks", "service:send"], "service:send is not a task; put @tocsin.task before it"),
        (["--tasks", "nowhere"], "cannot import nowhere: ModuleNotFoundError"),
        (["--tasks", "service", "q"], "--tasks does not take a queue and a handler"),
        (["--tasks", "service", "--batch", "2", "--vt", "3"], "does not take --batch, --vt"),
        ([], "expected QUEUE and MODULE:HANDLER, or --tasks"),
        (["q"], "expected QUEUE and MODULE:HANDLER, or --tasks"),
    ],
)
def test_tasks_that_cannot_run_are_refused(
    cli: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    ended = cli("worker", "run", *arguments)
    assert (ended.code, said in ended.error) == (2, True), ended
