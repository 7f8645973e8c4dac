"""What the command line says when something is refused: commands and options, and
nothing of Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import tocsin
from tests.support import ENDS_WITHIN, connect_blocking
from tests.support.cli_manual import walk
from tests.support.commands import Call, one_line, started
from tocsin import errors
from tocsin._cli import tocsin as program
from tocsin._cli.advice import describe
from tocsin._cli.program import Group

TREE = dict(walk(program, "tocsin"))
OPTIONS = {
    name
    for command in TREE.values()
    for option in command.params
    if isinstance(option, click.Option)
    for name in option.opts
}
PYTHON = re.compile(r"store\.|await|argument|\w\((?!s\))|_queue|release or drain|=|ensure")


def refused(
    from_: str, to: str | None, code: str = "wrong_state", retry_after: float | None = None
) -> tocsin.StateTransitionError:
    kind = tocsin.WorkerStopped if from_ == "stopped" else tocsin.StateTransitionError
    return kind(
        f"worker 42 is {from_}",
        "Resume it.",
        from_=from_,
        to=to,
        code=code,
        reason="no",
        worker_id=42,
        retry_after=retry_after,
    )


ADVISED: list[tocsin.TocsinError] = [
    tocsin.QueueNotFound("my mails"),
    tocsin.QueueAlreadyExists("mails"),
    tocsin.QueueNotEmpty(
        "it has workers", "Delete it with force.", queue="my mails", workers=1, messages=2
    ),
    tocsin.WorkerNotFound("worker 42 does not exist", "List the workers.", worker_id=42),
    tocsin.PendingMessages(
        "worker 42 holds 2 message(s)", "Suspend with release or drain.", count=2, worker_id=42
    ),
    tocsin.MessageNotFound("message 7 does not exist", message_id=7),
    *(
        tocsin.MessageNotWaiting("x", message_id=7, state=state)
        for state in ("leased", "dead", "archived", "ready")
    ),
    tocsin.JobNotFound(7),
    tocsin.JobFailed(7, task="t", reason="r", attempts=1, error="e", traceback=""),
    tocsin.JobTimedOut(7, task="t", reason="r", attempts=1, error="e", traceback=""),
    tocsin.JobCancelled(7, task="t", reason="r"),
    tocsin.TaskUnknown("t"),
    tocsin.FlowNotFound(7),
    tocsin.ScheduleNotFound("s"),
    tocsin.LimitNotFound("l"),
    tocsin.QueueBusy('queue "q" is in use', "Try again.", queue="q"),
    tocsin.KeyConflict(
        'message 7 has the key "k"',
        "Choose keys that begin with the name of the task.",
        key="k",
        message_id=7,
        task=None,
    ),
    tocsin.KeyTaken("dead letter 7 cannot be replayed", "Wait.", ids=(7, 8)),
    tocsin.PayloadTooLarge(
        "9 bytes", "Raise the queue's max_payload.", actual=9, maximum=8, index=None
    ),
    tocsin.PermissionDenied(
        "role x may not enqueue", "Grant the queue to the role with grant_queue.", role="x"
    ),
    tocsin.RoleNotFound(
        "role x does not exist", "Create the role first, with create role.", role="x"
    ),
    tocsin.SchemaBusy("tocsin"),
    tocsin.DependentObjects(
        "the upgrade changes a function", "Drop it.", objects=("view public.v",)
    ),
    tocsin.SchemaMissing("tocsin"),
    tocsin.SchemaMissing("elsewhere"),
    tocsin.SchemaNewer("tocsin", 3, 1, 2),
    tocsin.SchemaOutdated("tocsin", 0, 1),
    tocsin.SchemaOutdated("tocsin", 1, 1),
    tocsin.ConnectionLost("localhost:5432", "refused"),
    tocsin.ConfigError("argument dsn", "is empty"),
    refused("suspended", "interrupted"),
    refused("interrupted", "interrupted"),
    refused("polling", "ready"),
    refused("polling", "stopped"),
    refused("ready", None, "not_stopped"),
    refused("ready", "ready", "name_in_use"),
    refused("ready", "ready", "name_in_use", 1.5),
    refused("stopped", "ready"),
]
NOT_ADVISED = {
    tocsin.CharacterUnsupported,
    tocsin.TocsinError,  # says all in its text
    tocsin.PayloadInvalid,  # the same
    tocsin.PayloadUnreadable,  # the same; lists show such a payload as text
    tocsin.LeaseLost,  # a handler's affair
    tocsin.Suspended,  # no failure
    tocsin.RateLimited,  # no command has a limit
    tocsin.ArgumentsInvalid,  # says all in its text
    tocsin.JobError,  # the base of others
    tocsin.ResultInvalid,  # only workers write results
    tocsin.ValueUnreadable,  # the command shows values as they are stored
    tocsin.FlowInvalid,  # no command submits a flow
    tocsin.ScheduleInvalid,  # says all in its text
}


def test_every_error_is_advised_on() -> None:
    named = [getattr(errors, name) for name in errors.__all__]
    known = {found for found in named if issubclass(found, Exception)}
    assert known == {type(error) for error in ADVISED} | NOT_ADVISED


@pytest.mark.parametrize("error", ADVISED, ids=lambda e: type(e).__name__)
def test_the_advice_is_a_command_or_an_option_that_there_is(error: tocsin.TocsinError) -> None:
    line = describe(error)
    assert not PYTHON.search(line), line
    for quoted in re.findall(r"`tocsin ([^`]*)`", line):
        words = shlex.split(quoted)
        path = next(
            " ".join(["tocsin", *words[:n]])
            for n in (2, 1)
            if " ".join(["tocsin", *words[:n]]) in TREE
        )
        assert not isinstance(TREE[path], Group), line
        options = {
            name
            for option in TREE[path].params
            if isinstance(option, click.Option)
            for name in option.opts
        }
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, line
    assert set(re.findall(r"--[a-z-]+", line)) <= OPTIONS | {"--help"}, line
    if not isinstance(error, tocsin.ConfigError):
        assert line.startswith(f"{error.problem}; ")


def test_without_a_schema_it_says_how_to_install_it(call: Call, dsn: str) -> None:
    code, _, error = call("queue", "list", "--dsn", dsn, "--schema", "elsewhere")
    assert (code, one_line(error)) == (1, True)
    assert "`tocsin admin install --schema elsewhere`" in error
    assert "store" not in error


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["--dsn", "http://x"], "--dsn:"),
        (["--dsn", ""], "--dsn:"),
        (["--schema", "no such"], "--schema:"),
        (["--producer-role", "pg_x"], "--producer-role:"),
    ],
)
def test_a_value_that_cannot_be_understood_is_named_by_its_option(
    call: Call, dsn: str, monkeypatch: pytest.MonkeyPatch, words: list[str], source: str
) -> None:
    if "--dsn" not in words:
        monkeypatch.setenv("TOCSIN_DSN", dsn)
    code, _, error = call("admin", "install", *words)
    assert (code, one_line(error)) == (2, True)
    assert error.startswith(f"tocsin: {source}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["queue", "update", "q", "--retry-factor", "0.5"], "--retry-factor must be at least 1"),
        (
            ["enqueue", "q", "1", "--delay", "1s", "--at", "2030-01-01T00:00:00Z"],
            "give --delay or --at, not both",
        ),
        (
            ["enqueue", "q", "1", "--at", "2030-01-01T00:00:00Z", "--expires-in", "400000d"],
            "--expires-in must be at most a thousand",
        ),
        (
            ["queue", "messages", "q", "--state", "dead", "--worker", "1"],
            "--worker chooses among leased messages",
        ),
        (
            ["worker", "suspend", "1", "--drain", "--release"],
            "--release and --drain exclude each other",
        ),
    ],
)
def test_what_makes_no_sense_is_named_by_its_option(
    cli: Call, store_dsn: str, words: list[str], text: str
) -> None:
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.register_worker('q', 'consumer', 'a', null, 'h', 1, '1')")
    code, _, error = cli(*words)
    assert (code, one_line(error)) == (2, True)
    assert text in error


def test_refusals_of_the_database_name_commands(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        ((registration,),) = connection.execute(
            "select registration from tocsin.register_worker('q', 'consumer', 'a', null, 'h', 1,"
            " '1')"
        ).fetchall()
        connection.execute("select tocsin.enqueue('q', '1')")
        connection.execute("select tocsin.claim(1, %s, 1)", [registration])
    for words, text in (
        (["worker", "suspend", "1"], "`tocsin worker messages 1` shows them"),
        (["worker", "shutdown", "1"], "first `tocsin worker suspend 1 --drain`"),
        (["worker", "resume", "1"], "it is not suspended"),
        (["worker", "delete", "1", "--yes"], "`tocsin worker stop 1`"),
        (["queue", "delete", "q", "--yes"], "--force deletes the queue with both"),
        (["queue", "get", "r"], "`tocsin queue create r` creates it"),
    ):
        code, _, error = cli(*words)
        assert (code, one_line(error)) == (1, True), error
        assert text in error
        assert not PYTHON.search(error)


def test_a_name_in_use_says_which_worker_has_it(cli: Call, store_dsn: str, tmp_path: Path) -> None:
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.register_worker('q', 'consumer', 'a', null, 'h', 1, '1')")
    with started(
        store_dsn, "worker", "run", "q", "math:sqrt", "--name", "a", folder=tmp_path
    ) as process:
        _, error = process.communicate(timeout=ENDS_WITHIN)
    assert (process.returncode, one_line(error)) == (1, True)
    assert "another --name, or stop that worker: `tocsin worker stop 1`" in error
