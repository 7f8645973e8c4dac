"""``tocsin job``: submit jobs, look at them in every state, and change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import ENDS_WITHIN, connect_blocking
from tests.support.commands import Call, one_line, started
from tests.support.terminal import terminal

REGISTER = """select tocsin.register_tasks('[{"name": "mail.confirm", "queue": "mails",
    "max_deliveries": 3, "priority": 5, "description": "", "timeout": 60}]')"""
RUN = """update tocsin.messages m set state = 'leased', lease = 7, read_ct = 1,
    dequeued_at = now(), vt = now() + interval '1 hour', consumer_worker_id = 1,
    progress = '{"lease": 7, "at": "2026-01-31T08:00:00Z", "done": 3, "total": 12,
                  "text": "copies"}'
    where id = %s"""
FAIL = (
    "select tocsin.fail(array[%s], array[7]::bigint[], '{{ValueError: v}}', '{{the trace}}',"
    " '{{{}}}')"
)


@pytest.fixture
def mails(cli: Call, store_dsn: str) -> Call:
    """The command line, and a store with a task."""
    cli("queue", "create", "mails")
    with connect_blocking(store_dsn) as connection:
        connection.execute(REGISTER)
    return cli


def change(dsn: str, statement: str, job_id: int) -> None:
    with connect_blocking(dsn) as connection:
        connection.execute(statement.encode(), [job_id])


def fail(dsn: str, job_id: int, delay: str = "Infinity") -> None:
    change(dsn, RUN, job_id)
    change(dsn, FAIL.format(delay), job_id)


def test_a_job_of_a_module_is_submitted_run_once_and_shown(
    cli: Call, store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arithmetic.py").write_text(
        "import tocsin\n@tocsin.task\ndef double(number: int) -> int:\n    return 2 * number\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cli("queue", "create", "default")
    submit = ["job", "submit", "arithmetic.double"]
    refused = cli(*submit, '{"number": "x"}', "--tasks", "arithmetic")
    assert (refused.code, one_line(refused.error)) == (1, True)
    assert "$.number" in refused.error
    unknown = cli("job", "submit", "halve", "--tasks", "arithmetic")
    assert (unknown.code, "there is no task 'halve' in arithmetic" in unknown.error) == (2, True)
    assert cli(*submit, '{"number": 42}', "--tasks", "arithmetic").out == "1\n"
    run = "worker", "run", "--tasks", "arithmetic", "--once"
    with started(store_dsn, *run, folder=tmp_path) as process:
        assert process.wait(ENDS_WITHIN) == 0
    shown = cli("job", "show", "1", "--format", "json").json
    assert (shown["job"]["state"], shown["job"]["result"], shown["traceback"]) == (
        "succeeded",
        84,
        None,
    )
    assert [a["outcome"] for a in shown["attempts"]] == ["succeeded"]
    assert cli("job", "result", "1").out == "84\n"
    assert cli("job", "stats").rows[1][:6] == ["arithmetic.double", "0", "0", "1", "0", "0"]


def test_a_job_is_submitted_with_all_options(mails: Call, store_dsn: str) -> None:
    options = {
        "--delay": "1h",
        "--priority": "-1",
        "--key": "k",
        "--headers": '{"h": 1}',
        "--expires-in": "1d",
        "--max-attempts": "2",
        "--timeout": "90s",
    }
    words = [word for option in options.items() for word in option]
    submitted = mails("job", "submit", "mail.confirm", '{"to": "ada"}', *words)
    assert submitted.out == "1\n"
    job = mails("job", "show", "1", "--format", "json").json["job"]
    assert (job["arguments"], job["priority"], job["key"], job["max_attempts"]) == (
        {"to": "ada"},
        -1,
        "k",
        2,
    )
    with connect_blocking(store_dsn) as connection:
        (row,) = connection.execute(
            "select headers, (options ->> 'timeout')::float8, expires_at - enqueued_at = '1 day',"
            " due - enqueued_at = '1 hour' from tocsin.messages"
        ).fetchall()
    assert row == ({"h": 1}, 90, True, True)
    assert mails("job", "submit", "mail.confirm", "--key", "k").out == "1\n"


def test_what_is_not_there_is_refused_with_advice(mails: Call) -> None:
    for words, text in (
        (["submit", "mail.unknown"], "`tocsin worker run --tasks MODULE`"),
        (["show", "4711"], "there is no job 4711"),
        (["attempts", "4711"], "`tocsin job list` shows the jobs that exist"),
        (["result", "4711"], "there is no job 4711"),
        (["cancel", "4711"], "there is no job 4711"),
        (["requeue", "4711"], "there is no job 4711"),
        (["reschedule", "4711", "--delay", "0"], "there is no job 4711"),
        (["edit", "4711", "--priority", "0"], "there is no job 4711"),
        (["list", "--queue", "nowhere"], "`tocsin queue create nowhere` creates it"),
    ):
        ended = mails("job", *words)
        assert (ended.code, one_line(ended.error)) == (1, True), ended
        assert text in ended.error
    for words, text in (
        (["reschedule", "1"], "give --delay or --at"),
        (["edit", "1"], "give --priority or --arguments"),
        (["edit", "1", "--arguments", "[1]"], "must be a JSON object"),
        (["submit", "mail.confirm", "{"], "is not JSON"),
        (["submit", "mail.confirm", "1"], "JSON array or object"),
        (["show"], "missing the job's ID"),
    ):
        ended = mails("job", *words)
        assert (ended.code, one_line(ended.error)) == (2, True), ended
        assert text in ended.error


def test_lists_are_filtered_and_continue_after_the_last_id(mails: Call, store_dsn: str) -> None:
    assert mails("job", "list").out == "no jobs found\n"
    for number in range(4):
        mails("job", "submit", "mail.confirm", "--key", f"k{number}", "--delay", "1h")
    change(store_dsn, RUN, 3)
    mails("job", "cancel", "2", "--reason", "not needed")

    def ids(*words: str) -> list[int]:
        return [job["id"] for job in mails("job", "list", *words, "--format", "json").json]

    assert ids() == [4, 3, 2, 1]
    assert ids("--oldest-first") == [1, 2, 3, 4]
    assert ids("--limit", "2") == [4, 3]
    assert ids("--limit", "2", "--after", "3") == [2, 1]
    assert ids("--oldest-first", "--after", "3") == [4]
    assert ids("--state", "waiting") == [4, 1]
    assert ids("--state", "cancelled", "--queue", "mails", "--task", "mail.confirm") == [2]
    assert ids("--key", "k2") == [3]
    assert ids("--task", "mail.other") == []
    assert ids("--since", "2100-01-01T00:00:00Z") == []
    page = mails("job", "list", "--limit", "2").out.splitlines()
    assert page[-1] == "there may be more: --after 3 shows the next ones"
    assert "25% copies" in page[2]


def test_80_columns_show_each_state_and_the_progress(mails: Call, store_dsn: str) -> None:
    for _ in range(3):
        mails("job", "submit", "mail.confirm")
    fail(store_dsn, 1)
    change(store_dsn, RUN, 2)
    with terminal(store_dsn, "job", "list", columns=80) as screen:
        lines = screen.read_to_end().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["ID", "TASK", "STATE", "AGE", "ATTEMPTS", "PROGRESS", "ERROR"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["3", "mail.confirm", "waiting"],
        ["2", "mail.confirm", "running"],
        ["1", "mail.confirm", "failed"],
    ]
    assert "25% copies" in lines[2]
    assert "ValueError: v" in lines[3]


def test_show_has_all_values_attempts_and_the_traceback(mails: Call, store_dsn: str) -> None:
    mails("job", "submit", "mail.confirm", '{"to": "ada"}')
    assert mails("job", "attempts", "1").out == "no attempt has begun\n"
    fail(store_dsn, 1, delay="0")
    change(store_dsn, RUN, 1)
    running = mails("job", "show", "1").out
    assert "25% copies" in running
    assert mails("job", "attempts", "1").rows[2][-2:] == ["running", "-"]
    fail(store_dsn, 1)
    shown = mails("job", "show", "1").out
    for text in ("mail.confirm", '{"to": "ada"}', "ValueError: v", "handler_failed", "the trace"):
        assert text in shown
    rows = mails("job", "attempts", "1").rows
    assert [row[0] for row in rows] == ["ATTEMPT", "1", "1"]
    document = mails("job", "show", "1", "--format", "json").json
    assert document["job"]["arguments"] == {"to": "ada"}
    assert document["traceback"] == "the trace"
    assert mails("job", "attempts", "1", "--format", "json").json == document["attempts"]


def test_a_job_is_changed_while_it_waits(mails: Call, store_dsn: str) -> None:
    mails("job", "submit", "mail.confirm", '{"to": "ada"}')
    assert mails("job", "edit", "1", "--priority", "7").out == "edited job 1\n"
    assert mails("job", "edit", "1", "--arguments", '{"to": "bob"}').code == 0
    moved = mails("job", "reschedule", "1", "--at", "2030-01-31T08:00:00Z")
    assert moved.out == "rescheduled job 1\n"
    job = mails("job", "show", "1", "--format", "json").json["job"]
    assert (job["priority"], job["arguments"], job["due"]) == (
        7,
        {"to": "bob"},
        "2030-01-31T08:00:00+00:00",
    )
    refused = mails("job", "requeue", "1")
    assert (refused.code, one_line(refused.error)) == (1, True)
    assert "`tocsin job reschedule 1 --delay 0` runs it now" in refused.error
    change(store_dsn, RUN, 1)
    assert "`tocsin job cancel 1` ends it" in mails("job", "edit", "1", "--priority", "1").error


def test_a_job_is_cancelled_and_run_again(mails: Call, store_dsn: str) -> None:
    mails("job", "submit", "mail.confirm")
    assert mails("job", "cancel", "1", "--reason", "withdrawn").out == "cancelled job 1\n"
    cancelled = mails("job", "result", "1")
    assert (cancelled.code, one_line(cancelled.error)) == (1, True)
    assert "was cancelled: withdrawn" in cancelled.error
    assert "`tocsin job requeue 1` runs it again" in mails("job", "cancel", "1").error
    assert mails("job", "requeue", "1").out == "requeued job 1\n"
    fail(store_dsn, 1)
    failed = mails("job", "result", "1")
    assert "has failed after 1 attempts: ValueError: v" in failed.error
    assert mails("job", "requeue", "1").code == 0
    late = mails("job", "result", "1", "--timeout", "0")
    assert (late.code, one_line(late.error)) == (1, True)
    assert "job 1 is not finished" in late.error


def test_finished_jobs_are_counted_and_cleared(mails: Call, store_dsn: str) -> None:
    assert mails("job", "stats").out == "no jobs\n"
    for _ in range(4):
        mails("job", "submit", "mail.confirm")
    fail(store_dsn, 1)
    mails("job", "cancel", "2")
    change(store_dsn, RUN, 3)
    assert mails("job", "stats").rows == [
        ["TASK", "WAITING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "COUNTED"],
        ["mail.confirm", "1", "1", "0", "1", "1", "exactly"],
    ]
    assert {(c["state"], c["count"]) for c in mails("job", "stats", "--format", "json").json} == {
        ("waiting", 1),
        ("running", 1),
        ("failed", 1),
        ("cancelled", 1),
    }
    assert mails("job", "clear", "--dry-run").out == "would delete 1 jobs\n"
    assert mails("job", "clear").code == 1  # there is no terminal to ask at
    assert mails("job", "clear", "--older-than", "1d").out == "deleted 0 jobs\n"
    everything: list[Any] = ["--state", "failed", "--state", "cancelled", "--task", "mail.confirm"]
    assert mails("job", "clear", *everything, "--yes").out == "deleted 2 jobs\n"
    assert mails("job", "stats").rows[1][1:6] == ["1", "1", "0", "0", "0"]
