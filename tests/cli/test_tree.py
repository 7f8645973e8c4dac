"""The whole tree of commands: each has help with examples, each option of each is used
here, and docs/cli.md is what they say."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.core import ParameterSource

from tests.support import ENDS_WITHIN, connect_blocking
from tests.support.cli_manual import PAGE, walk, write_manual
from tests.support.commands import Call, one_line, started
from tocsin._cli import tocsin
from tocsin._cli.options import DURATIONS
from tocsin._cli.program import Command, Group
from tocsin._database.schema import functions
from tocsin._durations import parse_duration
from tocsin._queue.admin.dead_letters import REASONS

TREE = dict(walk(tocsin, "tocsin"))
COMMANDS = {path: command for path, command in TREE.items() if not isinstance(command, Group)}


def test_the_tree_is_the_documented_one() -> None:
    names = {
        "admin": "install verify sql stats reclaim maintain uninstall",
        "queue": (
            "create list get update messages metrics pause resume grant revoke purge delete"
            " archive-dlq replay dead-letters purge-dlq"
        ),
        "worker": (
            "list get messages release-messages suspend resume interrupt shutdown stop purge delete"
            " heartbeat stats health run"
        ),
        "message": "get cancel reschedule reprioritise",
        "flow": "list show cancel requeue",
        "limit": "list set reset",
        "schedule": "list show set pause resume run-now remove next",
        "job": ("submit list show attempts result stats cancel requeue reschedule edit clear"),
    }
    expected = {f"tocsin {group} {name}" for group, some in names.items() for name in some.split()}
    assert set(COMMANDS) == expected | {
        "tocsin enqueue",
        "tocsin demo",
        "tocsin top",
        "tocsin completion",
    }


@pytest.mark.parametrize("path", TREE)
def test_each_command_and_each_option_has_help(call: Call, path: str) -> None:
    command = TREE[path]
    shown = call(*path.split()[1:], "--help")
    assert (shown.code, shown.error) == (0, "")
    first = inspect.cleandoc(str(command.help)).split(".")[0]
    assert " ".join(first.split()) in " ".join(shown.out.split())
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith((".", ")", "]")), option.help


@pytest.mark.parametrize("path", COMMANDS)
def test_each_example_can_be_typed(path: str) -> None:
    command = COMMANDS[path]
    assert isinstance(command, Command)
    assert command.examples
    for example in command.examples:
        words = shlex.split(example, comments=True)
        if "eval" in words:
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        for end in ("<", "|"):
            words = words[: words.index(end)] if end in words else words
        name = path.split()
        assert words[: len(name)] == name, example
        command.make_context(path, words[len(name) :])


def test_the_examples_of_groups_can_be_typed() -> None:
    for example in (
        e for command in TREE.values() if isinstance(command, Group) for e in command.examples
    ):
        words = shlex.split(example, comments=True)
        path = next(" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in COMMANDS)
        COMMANDS[path].make_context(path, words[len(path.split()) :])


def test_the_manual_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_manual(), (
        "run: uv run python -m tests.support.cli_manual"
    )


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_says_how_durations_are_written(call: Call, path: str) -> None:
    takes = any(parameter.type.name == "duration" for parameter in COMMANDS[path].params)
    assert (DURATIONS in call(*path.split()[1:], "--help").out) == takes
    for example in re.findall(r"\b[0-9.]+(?:ms|[smhdw])\b", DURATIONS):
        parse_duration(example)


@pytest.mark.parametrize("command", ["dead-letters", "replay", "archive-dlq", "purge-dlq"])
def test_the_help_names_the_reasons_of_dead_letters(call: Call, command: str) -> None:
    text = " ".join(call("queue", command, "--help").out.split())
    for reason in REASONS:
        assert f'"{reason}"' in text
        assert f"'{reason}'" in functions()


# Each option of each command, in the order in which they make sense. The second word of
# a line is the exit code.

INVOCATIONS = """
0  --dsn DSN --schema elsewhere --format json admin install
0  admin --dsn DSN --schema elsewhere --format json verify
0  admin uninstall --schema elsewhere --dsn DSN --format json --yes
0  admin install --dsn DSN --schema tocsin --format json
0  admin verify --dsn DSN --schema tocsin --format table
0  admin sql --schema tocsin --format json --from 1
2  admin sql --from 99
0  queue --dsn DSN --schema tocsin --format json list
0  worker --dsn DSN --schema tocsin --format json list
0  queue create q EVERYWHERE --vt 1m --max-deliveries 3 --retry-base 1s --retry-factor 2 \
   --retry-max 1h --retry-jitter 0.1 \
   --max-payload 1000 --max-string 100 --max-depth 5 --required-keys '' --forbidden-keys x,y \
   --retention 7d \
   --dead-letter-retention forever --notify on_demand --if-missing
0  queue update q EVERYWHERE --vt 2m --max-deliveries 4 --retry-base 2s --retry-factor 3 \
   --retry-max 2h --retry-jitter 0.2 \
   --max-payload 2000 --max-string 200 --max-depth 6 --required-keys '' \
   --forbidden-keys '["x"]' --retention forever \
   --dead-letter-retention 1w --notify always
0  admin install --roles --producer-role PRODUCER --consumer-role CONSUMER --admin-role ADMIN
0  queue grant q PRODUCER EVERYWHERE
0  queue revoke q PRODUCER EVERYWHERE
0  queue list EVERYWHERE
0  queue get q EVERYWHERE
0  enqueue q '{"n": 1}' EVERYWHERE --delay 1ms --priority 1 --key k --headers '{"h": 1}' \
   --expires-in 1d --max-deliveries 2
0  enqueue q '{"n": 2}' --at 2030-01-01T00:00:00Z
0  queue messages q EVERYWHERE --state delayed --limit 5 --after 1
0  queue messages q --worker 1
0  queue metrics q EVERYWHERE
0  queue pause q EVERYWHERE
0  queue resume q EVERYWHERE
0  message get 1 EVERYWHERE
0  message --dsn DSN --schema tocsin --format json get --id 1
0  message reprioritise 2 EVERYWHERE --priority -1
0  message reprioritise --queue q --key k --priority 1
0  message reprioritise --id 2 --priority 1
0  message reschedule EVERYWHERE --queue q --key k --at 2030-01-01T00:00:00Z
0  message reschedule 2 EVERYWHERE --delay 1h
0  message reschedule --id 2 --delay 2h
0  message cancel 2 EVERYWHERE
1  message cancel --id 2
2  message cancel 2 --id 3
0  message cancel --queue q --key k
1  message cancel --queue q --key k
2  message cancel 2 --key k
0  queue dead-letters q EVERYWHERE --reason 'handler_failed' --error x --older-than 1d \
   --limit 5 --after 1
0  queue replay q EVERYWHERE --reason 'handler_failed' --error x --older-than 1d --limit 5 \
   --delay 1m
0  queue replay q --yes
1  queue replay q 1
0  queue archive-dlq q EVERYWHERE --reason 'handler_failed' --error x --older-than 1d --limit 5
0  queue archive-dlq q --yes
1  queue archive-dlq q 1
0  queue purge-dlq q EVERYWHERE --reason 'handler_failed' --error x --older-than 1d --limit 5 \
   --dry-run
0  queue purge-dlq q --yes
1  queue purge-dlq q 1 --yes
0  worker list EVERYWHERE --queue q
0  worker get 1 EVERYWHERE
0  worker get --id 1
0  worker messages 1 EVERYWHERE --limit 5 --after 1
0  worker messages --id 1
0  worker release-messages 1 EVERYWHERE
0  worker release-messages --id 1
0  worker suspend 1 EVERYWHERE --drain
0  worker resume 1 EVERYWHERE
0  worker suspend --id 1 --release
0  worker resume --id 1
0  worker heartbeat 1 EVERYWHERE
0  worker heartbeat --id 1
0  worker interrupt 1 EVERYWHERE --grace 1s
0  worker suspend 1
0  worker shutdown 1 EVERYWHERE
0  worker stop 2 EVERYWHERE
1  worker interrupt --id 2
1  worker shutdown --id 2
0  worker stop --id 2
0  worker stats EVERYWHERE --queue q
0  worker health EVERYWHERE --queue q --max-age 300 --max-running 2h
0  worker purge EVERYWHERE --older-than 7d --queue q --dry-run
0  worker purge --older-than 7d --yes
0  worker delete 1 EVERYWHERE --yes
0  worker delete --id 2 --yes
0  top EVERYWHERE --once --interval 2s
0  completion bash
0  admin stats EVERYWHERE
0  flow EVERYWHERE list
0  flow list EVERYWHERE --limit 5
1  flow show 1 EVERYWHERE --draw mermaid
1  flow show --id 1
1  flow cancel 1 EVERYWHERE
1  flow cancel --id 1
1  flow requeue 1 EVERYWHERE
1  flow requeue --id 1
0  job submit t '{"n": 1}' EVERYWHERE --delay 1h --priority 1 --key j --headers '{"h": 1}' \
   --expires-in 1d --max-attempts 2 --timeout 1m
0  job submit t --at 2030-01-01T00:00:00Z
0  job --dsn DSN --schema tocsin --format json list
0  job list EVERYWHERE --task t --queue q --state waiting --key j --since 2020-01-01T00:00:00Z \
   --until 2100-01-01T00:00:00Z --oldest-first --limit 5 --after 1
0  job show 3 EVERYWHERE
0  job show --id 3
0  job attempts 3 EVERYWHERE
0  job attempts --id 3
0  job stats EVERYWHERE
0  job edit 3 EVERYWHERE --priority -1 --arguments '{"n": 2}'
0  job edit --id 3 --priority 1
0  job reschedule 3 EVERYWHERE --delay 2h
0  job reschedule --id 3 --at 2030-01-01T00:00:00Z
0  job cancel 3 EVERYWHERE --reason r
0  job requeue 3 EVERYWHERE
0  job cancel --id 3
0  job requeue --id 3
1  job result 3 EVERYWHERE --timeout 0s
1  job result --id 4711
0  job clear EVERYWHERE --state cancelled --task t --older-than 1d --dry-run
0  job clear --yes
0  limit --dsn DSN --schema tocsin --format json list
0  limit list EVERYWHERE
1  limit list nothing
2  limit set nothing 0
1  limit set nothing 1 EVERYWHERE
1  limit reset nothing EVERYWHERE
0  schedule set s t '{"n": 1}' EVERYWHERE --cron @daily --zone Europe/Vienna --missed 3 \
   --overlap skip --queue q --priority 1 --headers '{"h": 1}' --expires-in 1d --max-attempts 2 \
   --timeout 1m
0  schedule set s t --every 1h --start 2030-01-01T00:00:00Z
2  schedule set s t --every 1h --missed twice
0  schedule --dsn DSN --schema tocsin --format json list
0  schedule list EVERYWHERE
0  schedule show s EVERYWHERE
0  schedule next s EVERYWHERE --limit 3
0  schedule pause s EVERYWHERE
0  schedule resume s EVERYWHERE
0  schedule run-now s EVERYWHERE
0  schedule remove s EVERYWHERE --yes
1  schedule show s
0  admin reclaim EVERYWHERE
0  admin maintain EVERYWHERE
0  queue purge q EVERYWHERE --ready --delayed --held --archived --dead --older-than 1d --dry-run
0  queue purge q --ready --yes
0  queue delete q EVERYWHERE --dry-run --force
0  queue delete q --force --yes
0  --version
""".replace("\\\n", "")

TASKS = """[{"name": "t", "queue": "q", "max_deliveries": 3, "priority": 0, "description": ""}]"""
IN_A_PROCESS_OF_ITS_OWN = (
    "worker run q service:many --once --concurrency 2 --batch 3 --grace 1s --timeout 10s --vt 1m"
    " --name w --reload --log-level debug --log-format json --schema tocsin --dsn DSN"
)
ELSEWHERE = {
    "test_demo.py": [("tocsin demo", "--data"), ("tocsin demo", "--dsn")],
    "test_run.py": [
        ("tocsin worker run", "--ordered"),
        ("tocsin worker run", "--tasks"),
        ("tocsin worker run", "--threads"),
        ("tocsin worker run", "--processes"),
    ],
    "test_job.py": [("tocsin job submit", "--tasks")],
    "test_schedule.py": [("tocsin schedule set", "--tasks")],
}


@pytest.mark.slow
def test_every_option_of_every_command_is_used(
    new_role: Callable[..., str],
    call: Call,
    store_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    used = set[tuple[str, str]]()
    note = click.Context.set_parameter_source

    def set_parameter_source(context: click.Context, name: str, source: ParameterSource) -> None:
        if source is ParameterSource.COMMANDLINE:
            used.add((context.command_path, name))
        note(context, name, source)

    monkeypatch.setattr(click.Context, "set_parameter_source", set_parameter_source)
    monkeypatch.setenv("TOCSIN_DSN", store_dsn)

    roles = {
        kind: new_role(kind.lower(), create=False) for kind in ("PRODUCER", "CONSUMER", "ADMIN")
    }
    for line in INVOCATIONS.strip().splitlines():
        for kind, role in roles.items():
            line = line.replace(kind, role)
        code, *words = shlex.split(
            line.replace("EVERYWHERE", "--dsn DSN --schema tocsin --format json").replace(
                "DSN", shlex.quote(store_dsn)
            )
        )
        ended = call(*words)
        assert (ended.code, one_line(ended.error)) == (int(code), code != "0"), (line, ended)
        if words[1:3] == ["get", "q"]:
            with connect_blocking(store_dsn) as connection:
                connection.execute(
                    "select tocsin.register_worker('q', 'consumer', null, null, 'h', 1, '1') from"
                    " generate_series(1, 2)"
                )
                connection.execute("select tocsin.register_tasks(%s::jsonb)", [TASKS])

    (tmp_path / "service.py").write_text("def many(messages): ...")
    assert call("queue", "create", "q").code == 0
    words = shlex.split(IN_A_PROCESS_OF_ITS_OWN)
    with started(store_dsn, *words[:-2], folder=tmp_path) as process:
        assert process.wait(ENDS_WITHIN) == 0
    COMMANDS["tocsin worker run"].make_context("tocsin worker run", words[2:])

    for file, options in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        for path, name in options:
            assert f'"{name}"' in text
            used.add((path, name.removeprefix("--")))

    known = {
        (path, str(p.name))
        for path, command in TREE.items()
        for p in command.params
        if isinstance(p, click.Option) and p.name != "help"
    }
    assert known - used == set()


# Completion


@pytest.mark.parametrize(
    ("shell", "word"),
    [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files")],
)
def test_completion_prints_a_script(call: Call, shell: str, word: str) -> None:
    code, out, error = call("completion", shell)
    assert (code, error) == (0, "")
    assert word in out
    assert "_TOCSIN_COMPLETE" in out


def test_completion_knows_commands_and_options(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(line: str, word: int) -> str:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(word))
        return call().out

    monkeypatch.setenv("_TOCSIN_COMPLETE", "bash_complete")
    assert "plain,purge-dlq" in complete("tocsin queue ", 2)
    assert "plain,--drain" in complete("tocsin worker suspend --d", 3)
    assert "plain,archived" in complete("tocsin queue messages q --state a", 5)


def test_an_unknown_shell_is_bad_usage(call: Call) -> None:
    code, _, error = call("completion", "tcsh")
    assert (code, one_line(error)) == (2, True)
