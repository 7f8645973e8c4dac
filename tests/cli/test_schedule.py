"""``tocsin schedule``: set, show, pause, resume, run and remove schedules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import connect_blocking
from tests.support.commands import Call, one_line
from tests.support.terminal import terminal

REGISTER = """select tocsin.register_tasks('[{"name": "reports.nightly", "queue": "default",
    "max_deliveries": 3, "priority": 0, "description": ""}]')"""
SET = "schedule", "set", "nightly", "reports.nightly"


@pytest.fixture
def reports(cli: Call, store_dsn: str) -> Call:
    """The command line, and a store with a task."""
    cli("queue", "create", "default")
    with connect_blocking(store_dsn) as connection:
        connection.execute(REGISTER)
    return cli


def test_a_schedule_is_set_listed_paused_and_removed(reports: Call, store_dsn: str) -> None:
    assert reports("schedule", "list").out == "no schedules\n"
    made = reports(*SET, '{"n": 1}', "--cron", "0 3 * * *", "--zone", "Europe/Vienna")
    assert made.out.startswith("schedule 'nightly' is set; the next tick is at 2")
    again = reports(*SET, '{"n": 1}', "--cron", "0 3 * * *", "--zone", "Europe/Vienna")
    assert again.out.startswith("schedule 'nightly' is as it was; ")
    with terminal(store_dsn, "schedule", "list", columns=80) as screen:
        header, row = screen.read_to_end().splitlines()
    assert header.split() == ["NAME", "TASK", "WHEN", "NEXT", "LAST", "JOB"]
    assert max(len(header), len(row)) <= 80
    assert row.split()[:7] == ["nightly", "reports.nightly", "0", "3", "*", "*", "*"]
    shown = reports("schedule", "show", "nightly", "--format", "json").json
    assert (shown["arguments"], shown["zone"], shown["missed"]) == (
        {"n": 1},
        "Europe/Vienna",
        "once",
    )
    ticks = reports("schedule", "next", "nightly", "--limit", "2").out.splitlines()
    assert [tick.split()[1][:8] for tick in ticks] == ["03:00:00", "03:00:00"]
    assert "is paused" in reports("schedule", "pause", "nightly").out
    assert "was already paused" in reports("schedule", "pause", "nightly").out
    assert "paused" in reports("schedule", "list").rows[1]
    assert reports(*SET, "--every", "5m").out == "schedule 'nightly' is set; it is paused\n"
    assert reports("schedule", "resume", "nightly").out.endswith("is no longer paused\n")
    assert reports("schedule", "resume", "nightly").out.endswith("was not paused\n")
    assert "every 5m" in reports("schedule", "list").out
    job = reports("schedule", "run-now", "nightly").out.strip()
    assert reports("job", "list", "--format", "json").json[0]["id"] == int(job)
    assert reports("schedule", "remove", "nightly").code == 1  # there is no terminal to ask at
    assert reports("schedule", "remove", "nightly", "--yes").out == "deleted schedule 'nightly'\n"
    gone = reports("schedule", "show", "nightly")
    assert (gone.code, one_line(gone.error)) == (1, True)
    assert "`tocsin schedule list` shows the schedules that exist" in gone.error


def test_options_are_kept_and_shown(reports: Call) -> None:
    options = {
        "--every": "90s",
        "--start": "2030-01-31T08:00:00Z",
        "--missed": "3",
        "--overlap": "skip",
        "--priority": "2",
        "--headers": '{"h": 1}',
        "--expires-in": "1d",
        "--max-attempts": "2",
        "--timeout": "30s",
        "--queue": "default",
    }
    assert reports(*SET, *[word for option in options.items() for word in option]).code == 0
    shown = {row[0]: row[1:] for row in reports("schedule", "show", "nightly").rows}
    assert (shown["every"], shown["missed"], shown["timeout"], shown["expires_in"]) == (
        ["90s"],
        ["3"],
        ["30s"],
        ["1d"],
    )
    document = reports("schedule", "show", "nightly", "--format", "json").json
    assert (document["missed"], document["every"], document["headers"]) == (
        {"max": 3},
        90.0,
        {"h": 1},
    )


def test_what_could_not_tick_is_bad_usage(reports: Call) -> None:
    for words, text in (
        (["--cron", "0 25 * * *"], "cron.hour"),
        (["--cron", "@daily", "--zone", "Europe/Atlantis"], "zone"),
        (["--every", "0s"], "every"),
        ([], "give --cron or --every"),
        (["--cron", "@daily", "--every", "5m"], "give --cron or --every"),
        (["--every", "5m", "--missed", "twice"], "is not skip, once, or a number"),
    ):
        ended = reports(*SET, *words)
        assert (ended.code, one_line(ended.error)) == (2, True), ended
        assert text in ended.error
    unknown = reports("schedule", "set", "s", "reports.unknown", "--cron", "@daily")
    assert (unknown.code, one_line(unknown.error)) == (1, True)
    assert "`tocsin worker run --tasks MODULE`" in unknown.error


def test_a_task_of_a_module_needs_no_worker(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feeds.py").write_text(
        "import tocsin\n@tocsin.task\ndef read(feed: str) -> None: ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cli("queue", "create", "default")
    command = ["schedule", "set", "poll", "feeds.read"]
    refused = cli(*command, "[1]", "--every", "5m", "--tasks", "feeds")
    assert (refused.code, "$.feed" in refused.error) == (1, True)
    assert cli(*command, '["news"]', "--every", "5m", "--tasks", "feeds").code == 0
    assert cli("schedule", "show", "poll", "--format", "json").json["arguments"] == {"feed": "news"}
