"""The command line where standard input or output is closed, full, broken, narrow, or
in another encoding."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support import ENDS_WITHIN, connect_blocking
from tests.support.commands import Call
from tests.support.sweeps import sweep
from tests.support.terminal import terminal


def shell(dsn: str, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``tocsin`` is the command."""
    line = re.sub(r"\btocsin\b", f"{sys.executable} -m tocsin", words)
    settings = {**os.environ, "TOCSIN_DSN": dsn, **environment}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=ENDS_WITHIN, env=settings
    )


@sweep(
    ("words", "code", "says"),
    [
        ("enqueue q <&-", 2, "standard input is closed"),
        ("queue list > /dev/full", 1, "cannot write to standard output: No space left"),
        ("worker list <&- >&- 2>&-", 1, ""),
        ("queue purge q --ready <&-", 1, "use --yes"),
        ("queue list >&-", 1, "cannot write to standard output"),
        (
            "queue list --format json > /dev/full",
            1,
            "cannot write to standard output: No space left",
        ),
        ("--help > /dev/full", 1, "cannot write to standard output: No space left"),
        ("queue list 2>&-", 0, ""),
    ],
    quick=3,
)
def test_a_stream_that_cannot_be_used_is_said_in_one_line(
    cli: Call, store_dsn: str, words: str, code: int, says: str
) -> None:
    cli("queue", "create", "q")
    ended = shell(store_dsn, f"tocsin {words}")
    assert ended.returncode == code
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == bool(says)


@pytest.mark.slow
def test_a_pipe_that_is_closed_early_is_not_spoken_of(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", *map(str, range(100)))
    for format in ("table", "json"):
        ended = shell(store_dsn, f"tocsin queue messages q --format {format} | head -c 1")
        assert (ended.returncode, ended.stderr) == (0, "")


@sweep(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    quick=1,
)
def test_an_encoding_without_a_character_gets_an_escape_sequence(
    cli: Call, store_dsn: str, environment: dict[str, str]
) -> None:
    cli("queue", "create", "grüße")
    cli("enqueue", "grüße", '"☃"')
    table = shell(store_dsn, "tocsin queue list", **environment)
    assert (table.returncode, r"gr\xfc\xdfe" in table.stdout) == (0, True), table.stderr
    (message,) = json.loads(
        shell(
            store_dsn, "tocsin queue messages grüße --format json", PYTHONIOENCODING="ascii"
        ).stdout
    )
    assert (message["queue"], message["payload"]) == ("grüße", "☃")


UNREADABLE = {
    "deep": "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "half as deep as Python reads": "(repeat('[', 600) || repeat(']', 600))::jsonb",
    "of many digits": "repeat('9', 5000)::jsonb",
    "beyond all floats": "'1.5e400'::jsonb",
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
def test_a_payload_that_python_cannot_read_hides_no_other_message(
    cli: Call, store_dsn: str, payload: str
) -> None:
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute(f"select tocsin.enqueue('q', {payload}, headers => {payload})".encode())
        ((text,),) = connection.execute("select payload::text from tocsin.messages").fetchall()
    cli("enqueue", "q", '"findable"')
    assert "findable" in cli("queue", "messages", "q").out
    unreadable, readable = cli("queue", "messages", "q", "--format", "json").json
    assert (readable["payload"], "payload_text" in readable) == ("findable", False)
    # what some version of Python can read, is the payload
    assert unreadable.get("payload_text", json.dumps(unreadable["payload"])) == text
    assert (
        (unreadable["payload"] is None)
        == ("payload_text" in unreadable)
        == ("headers_text" in unreadable)
    )
    assert text in cli("message", "get", "1").out


@pytest.mark.parametrize("number", ["-5", "-0.5", "-1e3"])
def test_a_negative_number_is_a_payload(cli: Call, number: str) -> None:
    cli("queue", "create", "q")
    assert cli("enqueue", "q", number, "--priority", "-3").code == 0
    (message,) = cli("queue", "messages", "q", "--format", "json").json
    assert (message["payload"], message["priority"]) == (json.loads(number), -3)


def test_what_is_no_number_is_an_option(cli: Call) -> None:
    cli("queue", "create", "q")
    assert (cli("enqueue", "q", "-x").code, cli("enqueue", "q", "--5").code) == (2, 2)


@pytest.mark.slow
def test_80_columns_show_whole_words(cli: Call, store_dsn: str) -> None:
    name = "a-queue-with-a-rather-long-name"
    cli("queue", "create", name)
    cli(
        "enqueue",
        name,
        json.dumps("a payload that is longer than a line " * 3),
        "--key",
        "welcome-ada@example.org",
    )
    for words, header in {
        "queue list": "NAME PAUSED VT DELIVERIES RETENTION",
        f"queue messages {name}": "ID STATE AGE KEY ERROR PAYLOAD",
        "worker health": "QUEUE HEALTHY CONSUMERS READY OLDEST PROBLEMS",
    }.items():
        with terminal(store_dsn, *words.split(), columns=80) as screen:
            first, *lines = screen.read_to_end().splitlines()
        assert first.split() == header.split()
        assert max(map(len, lines)) <= 80
        assert name in "".join(re.sub(r"  .*", "", line) for line in lines) or "messages" in words
