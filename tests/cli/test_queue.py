"""``tocsin queue``, ``tocsin message`` and ``tocsin enqueue``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import connect_blocking
from tests.support.commands import Call, ask_at_a_terminal, one_line
from tests.support.sweeps import sweep


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with connect_blocking(dsn) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def kill(dsn: str, *payloads: str, queue: str = "q", error: str = "ValueError: no good") -> None:
    """Make dead letters of these."""
    with connect_blocking(dsn) as connection:
        for payload in payloads:
            connection.execute(
                "select tocsin.enqueue(%s, %s, max_deliveries => 1)", [queue, payload]
            )
            ((worker_id, registration),) = connection.execute(
                "select id, registration from tocsin.register_worker(%s, 'consumer', null, null,"
                " 'h', 1, '1')",
                [queue],
            ).fetchall()
            ((message_id, lease),) = connection.execute(
                "select id, lease from tocsin.claim(%s, %s, 1)", [worker_id, registration]
            ).fetchall()
            connection.execute(
                "select tocsin.fail(%s, %s, %s, %s)",
                [[message_id], [lease], [error], ["Traceback:\n  here"]],
            )
            connection.execute("select tocsin.stop(%s)", [worker_id])


# Queues


SETTINGS = {
    "vt": ("2m", 120),
    "max-deliveries": ("7", 7),
    "retry-base": ("250ms", 0.25),
    "retry-factor": ("1.5", 1.5),
    "retry-max": ("30m", 1800),
    "retry-jitter": ("0", 0),
    "max-payload": ("1000", 1000),
    "max-string": ("100", 100),
    "max-depth": ("4", 4),
    "required-keys": ("b,a", ["a", "b"]),
    "forbidden-keys": ('["x,y"]', ["x,y"]),
    "retention": ("7d", 604_800),
    "dead-letter-retention": ("1w", 604_800),
    "notify": ("always", "always"),
}


@pytest.mark.parametrize("command", ["create", "update"])
def test_each_setting_of_a_queue_can_be_given(cli: Call, command: str) -> None:
    if command == "update":
        cli("queue", "create", "q")
    arguments = [word for name, (text, _) in SETTINGS.items() for word in (f"--{name}", text)]
    made = cli("queue", command, "q", *arguments, "--format", "json").json
    assert {name: made[name.replace("-", "_")] for name in SETTINGS} == {
        name: value for name, (_, value) in SETTINGS.items()
    }
    assert cli("queue", "get", "q", "--format", "json").json == made


def test_what_was_set_can_be_taken_back(cli: Call) -> None:
    cli("queue", "create", "q", "--required-keys", "a", "--retention", "7d")
    changed = cli(
        "queue", "update", "q", "--required-keys", "", "--retention", "forever", "--format", "json"
    ).json
    assert (changed["required_keys"], changed["retention"]) == ([], None)


def test_create_refuses_a_queue_that_exists_unless_told_otherwise(cli: Call) -> None:
    assert cli("queue", "create", "q").code == 0
    code, out, error = cli("queue", "create", "q")
    assert (code, out, one_line(error)) == (1, "", True)
    assert (
        cli("queue", "create", "q", "--if-missing", "--vt", "1h", "--format", "json").json["vt"]
        == 30
    )


def test_list_and_get_show_settings_as_they_can_be_typed(cli: Call) -> None:
    assert cli("queue", "list") == (0, "no queues\n", "")
    cli("queue", "create", "a", "--vt", "90s")
    cli("queue", "create", "b", "--retry-base", "1.5s", "--retention", "forever")
    cli("queue", "pause", "b")
    header, first, second = cli("queue", "list").rows
    assert header == ["NAME", "PAUSED", "VT", "DELIVERIES", "RETRY", "RETENTION", "NOTIFY"]
    assert first == ["a", "-", "90s", "5", "1s", "x2", "to", "1h", "30d", "on_demand"]
    assert second[0] == "b"
    assert second[2:] == ["30s", "5", "1.5s", "x2", "to", "1h", "forever", "on_demand"]
    shown = cli("queue", "get", "a").rows
    assert ["vt", "90s"] in shown
    assert ["retention", "30d"] in shown


def test_a_hostile_name_stays_text(cli: Call) -> None:
    name = "\x1b[2J\"; drop table x; --'\n"
    assert cli("queue", "create", name, "--format", "json").json["name"] == name
    code, out, _ = cli("queue", "list")
    assert code == 0
    assert "\x1b" not in out
    assert "\\x1b[2J" in out
    assert len(out.splitlines()) == 2
    code, _, error = cli("queue", "get", "no\x1b[2J")
    assert (code, one_line(error), "\x1b" in error) == (1, True, False)


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_that_no_queue_can_have_is_bad_usage(cli: Call, name: str) -> None:
    code, _, error = cli("queue", "create", name)
    assert (code, one_line(error)) == (2, True)


def test_pause_and_resume(cli: Call) -> None:
    cli("queue", "create", "q")
    assert cli("queue", "pause", "q").code == 0
    assert cli("queue", "get", "q", "--format", "json").json["paused_at"] is not None
    assert cli("queue", "resume", "q", "--format", "json").json["paused_at"] is None


@sweep(
    "arguments",
    [
        ["get"],
        ["update", "--vt", "1s"],
        ["messages"],
        ["metrics"],
        ["pause"],
        ["resume"],
        ["purge", "--ready", "--yes"],
        ["delete", "--yes"],
        ["dead-letters"],
        ["replay"],
        ["archive-dlq"],
        ["purge-dlq", "--yes"],
    ],
    quick=3,
    ids=lambda a: a[0],
)
def test_a_queue_that_does_not_exist(cli: Call, arguments: list[str]) -> None:
    command, *options = arguments
    code, out, error = cli("queue", command, "nowhere", *options)
    assert (code, out, one_line(error)) == (1, "", True)
    assert "queue 'nowhere' does not exist" in error


@sweep(
    ("arguments", "reason"),
    [
        (["create", "q", "--vt", "soon"], "soon"),
        (["update", "q"], "nothing to change"),
        (["purge", "q", "--yes"], "--ready"),
        (["get"], "QUEUE"),
        (["create", "q", "--vt", "7x"], "7x"),
        (["create", "q", "--vt", "-1s"], "-1s"),
        (["create", "q", "--vt", "0"], "vt must be greater than 0"),
        (["create", "q", "--retention", "ever"], "ever"),
        (["create", "q", "--max-deliveries", "0"], "0 is not between 1"),
        (["create", "q", "--max-deliveries", "many"], "'many' is not a whole number"),
        (["create", "q", "--retry-factor", "0.5"], "--retry-factor must be at least 1"),
        (["create", "q", "--retry-jitter", "2"], "--retry-jitter must be"),
        (["create", "q", "--notify", "never"], "never"),
        (["create", "q", "--required-keys", "[1]"], "each key must be a string"),
        (["create", "q", "--required-keys", "[1"], "not a JSON array"),
        (["messages", "q", "--state", "gone"], "gone"),
        (["messages", "q", "--state", "dead", "--worker", "1"], "worker"),
        (["list", "--format", "xml"], "xml"),
        (["list", "--nonsense"], "--nonsense"),
    ],
    quick=4,
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(
    cli: Call, arguments: list[str], reason: str
) -> None:
    cli("queue", "create", "q")
    code, out, error = cli("queue", *arguments)
    assert (code, out, one_line(error)) == (2, "", True)
    assert reason in error


def test_a_delayed_message_is_shown_with_the_time_of_its_next_delivery(
    cli: Call, store_dsn: str
) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", "1", "--at", "2040-01-01T00:00:00Z")
    # as of one that failed in an ordered run
    ask(store_dsn, "update tocsin.messages set vt = '2050-01-01T00:00:00Z' returning id")
    shown = cli("queue", "messages", "q").out
    assert "2050-01-01" in shown
    assert "2040-01-01" not in shown


def test_how_to_name_a_message_and_its_time_is_told_in_options(cli: Call) -> None:
    assert "by its id, or by --queue and --key" in cli("message", "cancel", "--key", "k").error
    assert "by its id, or by --queue and --key" in cli("message", "cancel").error
    assert "give --delay or --at" in cli("message", "reschedule", "1").error
    assert (
        "give --delay or --at, not both"
        in cli("message", "reschedule", "1", "--delay", "1", "--at", "2030-01-01T00:00:00Z").error
    )


# Enqueueing


def test_enqueue_payloads(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    assert cli("enqueue", "q", '{"to": "ada"}') == (0, "1\n", "")
    assert cli("enqueue", "q", "null", "12345678901234567890", '"ü"', "--format", "json").json == {
        "queue": "q",
        "ids": [2, 3, 4],
    }
    assert [
        p for (p,) in ask(store_dsn, "select payload::text from tocsin.messages order by id")
    ] == [
        '{"to": "ada"}',
        "null",
        "12345678901234567890",
        '"ü"',
    ]


def test_enqueue_with_each_option(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    given = [
        "--delay",
        "1h",
        "--priority",
        "-3",
        "--key",
        "k",
        "--headers",
        '{"trace": 1}',
        "--expires-in",
        "2d",
        "--max-deliveries",
        "9",
    ]
    assert cli("enqueue", "q", "1", *given).out == "1\n"
    assert cli("enqueue", "q", "2", *given).out == "1\n"  # the key is taken
    assert ask(
        store_dsn,
        "select state::text, due > now() + interval '50 min', priority, key, headers, expires_at >"
        " now() + interval '47 h', max_deliveries from tocsin.messages",
    ) == [("delayed", True, -3, "k", {"trace": 1}, True, 9)]
    assert cli("enqueue", "q", "3", "--at", "2100-01-01T00:00:00+02:00").out == "3\n"
    assert ask(
        store_dsn, "select due = '2099-12-31 22:00:00+00' from tocsin.messages where id = 3"
    ) == [(True,)]


def test_enqueue_json_lines_from_standard_input(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    lines = b"\n".join(b'{"n": %d}' % n for n in range(5000)) + b"\n\n  \n" + '"ü"'.encode()
    assert (
        cli("enqueue", "q", "--priority", "1", stdin=lines).out
        == "enqueued 5001 messages, with ids from 1 to 5001\n"
    )
    assert ask(
        store_dsn,
        "select count(*)::int, sum((payload ->> 'n')::int)::int, min(priority) from"
        " tocsin.messages",
    ) == [(5001, 12497500, 1)]
    assert cli("enqueue", "q", "--format", "json", stdin=b"1\n2").json == {
        "queue": "q",
        "ids": [5002, 5003],
    }
    assert cli("enqueue", "q").out == "enqueued 0 messages\n"


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"{", 2, "line 2502 is not JSON"),
        (b"\xff", 2, "line 2502 is not JSON"),
        (b'{"a": "\\u0000"}', 1, "line 2502, at $.a: PostgreSQL cannot store the character NUL"),
        (b"[NaN]", 1, "line 2502, at $[0]: nan"),
        (
            b'"' + b"x" * 2000 + b'"',
            1,
            "line 2502: 2002 bytes of JSON, the limit of the queue is 1000",
        ),
    ],
)
def test_standard_input_is_enqueued_as_a_whole_and_an_error_names_its_line(
    cli: Call, store_dsn: str, line: bytes, code: int, reason: str
) -> None:
    cli("queue", "create", "q", "--max-payload", "1000")
    ended = cli("enqueue", "q", stdin=b"1\n\n" * 1250 + b"3\n" + line + b"\n4\n")
    assert (ended.code, ended.out, one_line(ended.error)) == (code, "", True)
    assert reason in ended.error
    assert ask(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]


@sweep(
    ("arguments", "code"),
    [
        (["q", "text"], 2),
        (["q", "1", '"\\u0000"'], 1),
        (["nowhere"], 1),
        (["q", "{"], 2),
        (["q", "1", "--headers", "{"], 2),
        (["q", "1", "--at", "tomorrow"], 2),
        (["q", "1", "--at", "2100-01-01T00:00:00"], 2),
        (["q", "1", "--at", "2100-01-01T00:00:00Z", "--delay", "1s"], 2),
        (["q", "1", "2", "--key", "k"], 2),
        (["q", "--key", "k"], 2),
        (["q", "1", "--priority", str(2**31)], 2),
        (["nowhere", "1"], 1),
    ],
    quick=3,
)
def test_what_cannot_be_enqueued(
    cli: Call, store_dsn: str, arguments: list[str], code: int
) -> None:
    cli("queue", "create", "q")
    ended = cli("enqueue", *arguments)
    assert (ended.code, ended.out, one_line(ended.error)) == (code, "", True)
    assert ask(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]


# Messages


def test_messages_by_state(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    assert cli("queue", "messages", "q").out == "no messages found\n"
    kill(store_dsn, '"dead"')
    cli("enqueue", "q", '{"n": 1}', '"\\u001b[2J"')
    cli("enqueue", "q", '"later"', "--delay", "1h")
    assert [m["id"] for m in cli("queue", "messages", "q", "--format", "json").json] == [2, 3, 4]
    for state, ids in {
        "ready": [2, 3],
        "delayed": [4],
        "leased": [],
        "dead": [1],
        "archived": [],
    }.items():
        found = cli("queue", "messages", "q", "--state", state, "--format", "json").json
        assert [(m["id"], m["state"]) for m in found] == [(i, state) for i in ids]
    assert [
        m["id"]
        for m in cli(
            "queue", "messages", "q", "--limit", "1", "--after", "2", "--format", "json"
        ).json
    ] == [3]
    assert cli("queue", "messages", "q", "--worker", "1").out == "no messages found\n"
    out = cli("queue", "messages", "q").out
    assert '{"n": 1}' in out
    assert "\x1b" not in out


def test_message_get_shows_all_of_it(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    cli("enqueue", "q", '{"n": [1, 2]}', "--headers", '{"trace": 7}')
    shown = cli("message", "get", "1", "--format", "json").json
    assert (shown["payload"], shown["headers"], shown["state"], shown["read_ct"]) == (
        {"n": [1, 2]},
        {"trace": 7},
        "ready",
        0,
    )
    assert {"payload_text", "headers_text"}.isdisjoint(shown)
    assert ["payload", '{"n":', "[1,", "2]}"] in cli("message", "get", "--id", "1").rows
    code, _, error = cli("message", "get", "99")
    assert (code, one_line(error)) == (1, True)


def test_message_get_of_a_dead_letter_shows_its_traceback_and_deliveries(
    cli: Call, store_dsn: str
) -> None:
    cli("queue", "create", "q")
    kill(store_dsn, '"dead"')
    shown = cli("message", "get", "1", "--format", "json").json
    assert shown["state"] == "dead"
    assert (shown["error"], shown["traceback"]) == ("ValueError: no good", "Traceback:\n  here")
    assert [(d["delivery"], d["outcome"], d["error"]) for d in shown["history"]] == [
        (1, "handler_failed", "ValueError: no good")
    ]
    assert "outcome=handler_failed" in cli("message", "get", "1").out
    assert [d["state"] for d in cli("queue", "dead-letters", "q", "--format", "json").json] == [
        "dead"
    ]


@pytest.mark.parametrize("state", ["ready", "delayed", "held", "leased", "dead", "archived"])
def test_each_message_has_its_state_wherever_it_is_shown(
    cli: Call, store_dsn: str, state: str
) -> None:
    cli("queue", "create", "q")
    if state == "dead":
        kill(store_dsn, "1")
    else:
        cli("enqueue", "q", "1", *(["--delay", "1h"] if state == "delayed" else []))
    if state == "held":
        ask(store_dsn, "update tocsin.messages set state = 'held'")
    if state in ("leased", "archived"):
        ask(store_dsn, "select tocsin.register_worker('q', 'consumer', 'a', null, 'h', 1, '1')")
        ask(store_dsn, "select tocsin.claim(1, (select registration from tocsin.workers), 1)")
    if state == "archived":
        ask(store_dsn, "select tocsin.archive(array[id], array[lease]) from tocsin.messages")
    assert cli("message", "get", "1", "--format", "json").json["state"] == state
    assert ["state", state] in cli("message", "get", "1").rows
    assert [
        m["state"] for m in cli("queue", "messages", "q", "--state", state, "--format", "json").json
    ] == [state]


# Dead letters


def test_dead_letters_are_found_by_reason_error_and_age(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    assert cli("queue", "dead-letters", "q").out == "no dead letters found\n"
    kill(store_dsn, "1", "2", error="timeout")
    kill(store_dsn, "3", error="100% wrong")
    ask(
        store_dsn, "update tocsin.dead_letters set died_at = now() - interval '8 days' where id = 1"
    )

    def ids(*arguments: str) -> list[int]:
        return [
            d["id"] for d in cli("queue", "dead-letters", "q", *arguments, "--format", "json").json
        ]

    assert ids() == [1, 2, 3]
    assert ids("--error", "timeout") == [1, 2]
    assert ids("--error", "0% wr") == [3]
    assert ids("--older-than", "7d") == [1]
    assert ids("--reason", "handler_failed") == [1, 2, 3]
    assert ids("--reason", "expired") == []
    assert ids("--limit", "1", "--after", "1") == [2]
    header, first, *_ = cli("queue", "dead-letters", "q").out.splitlines()
    assert header.split() == ["ID", "DIED", "DELIVERIES", "REASON", "ERROR", "PAYLOAD"]
    assert "handler_failed" in first


def test_replay_by_id_and_by_filter(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    kill(store_dsn, "1", "2", "3", error="timeout")
    kill(store_dsn, "4", error="no such user")
    assert cli("queue", "replay", "q", "1").out == "replayed 1 dead letters\n"
    assert cli(
        "queue",
        "replay",
        "q",
        "--error",
        "timeout",
        "--limit",
        "1",
        "--delay",
        "1h",
        "--format",
        "json",
    ).json == {"ids": [2]}
    assert ask(store_dsn, "select id, state::text, read_ct from tocsin.messages order by id") == [
        (1, "ready", 0),
        (2, "delayed", 0),
    ]
    assert (
        cli("queue", "replay", "q", "--reason", "handler_failed", "--older-than", "1d").out
        == "replayed 0 dead letters\n"
    )
    code, out, error = cli("queue", "replay", "q", "3", "1")
    assert (code, out, one_line(error)) == (1, "replayed 1 dead letters\n", True)
    assert cli("queue", "replay", "q", "--yes").out == "replayed 1 dead letters\n"


@sweep(
    ("command", "what", "done"),
    [("replay", "Replay", "replayed"), ("archive-dlq", "Archive", "archived")],
    quick=1,
)
def test_all_dead_letters_are_taken_only_when_that_is_confirmed(
    cli: Call, store_dsn: str, command: str, what: str, done: str
) -> None:
    cli("queue", "create", "q")
    # there is nothing to ask about
    assert cli("queue", command, "q").out == f"{done} 0 dead letters\n"
    kill(store_dsn, "1", "2", "3")
    for more in ([], ["--format", "json"], *([["--delay", "1h"]] if command == "replay" else [])):
        code, out, error = cli("queue", command, "q", *more)
        assert (code, out, one_line(error)) == (1, "", True)
        assert "--yes" in error
    assert ask_at_a_terminal(store_dsn, "queue", command, "q", answer="n").startswith(
        f"{what} all 3 dead letters of queue 'q'? [y/N]: tocsin: nothing was changed"
    )
    assert ask(store_dsn, "select count(*)::int from tocsin.dead_letters") == [(3,)]
    ask_at_a_terminal(store_dsn, "queue", command, "q", answer="y")
    assert ask(store_dsn, "select count(*)::int from tocsin.dead_letters") == [(0,)]


def test_archive_dlq(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    kill(store_dsn, "1", "2", "3")
    kill(store_dsn, "4", error="other")
    assert cli("queue", "archive-dlq", "q", "1").out == "archived 1 dead letters\n"
    assert cli("queue", "archive-dlq", "q", "--error", "other", "--format", "json").json == {
        "archived": 1
    }
    assert (
        cli("queue", "archive-dlq", "q", "--older-than", "1d", "--reason", "handler_failed").out
        == "archived 0 dead letters\n"
    )
    assert cli("queue", "archive-dlq", "q", "--limit", "1").out == "archived 1 dead letters\n"
    assert ask(store_dsn, "select array_agg(id order by id) from tocsin.archive") == [([1, 2, 4],)]
    assert cli("queue", "archive-dlq", "q", "4").code == 1


def test_purge_dlq(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    kill(store_dsn, "1", "2", "3")
    assert (
        cli("queue", "purge-dlq", "q", "--dry-run", "--limit", "2").out
        == "would purge 2 dead letters\n"
    )
    code, out, error = cli("queue", "purge-dlq", "q")
    assert (code, out, one_line(error)) == (1, "", True)
    assert ask(store_dsn, "select count(*)::int from tocsin.dead_letters") == [(3,)]
    assert cli("queue", "purge-dlq", "q", "2", "--yes").out == "purged 1 dead letters\n"
    assert (
        cli(
            "queue",
            "purge-dlq",
            "q",
            "--older-than",
            "1d",
            "--error",
            "x",
            "--reason",
            "x",
            "--yes",
        ).out
        == "purged 0 dead letters\n"
    )
    assert cli("queue", "purge-dlq", "q", "--yes", "--format", "json").json == {"purged": 2}


# Purging, deleting, metrics


def fill(cli: Call, dsn: str) -> None:
    """One message of each kind, and one that is leased."""
    kill(dsn, '"dead"')
    with connect_blocking(dsn) as connection:
        for payload, archive in (('"archived"', True), ('"leased"', False)):
            connection.execute("select tocsin.enqueue('q', %s)", [payload])
            row = connection.execute(
                "select w.id, w.registration from tocsin.register_worker('q', 'consumer', null,"
                " null, 'h', 1, '1') w"
            ).fetchone()
            claimed = connection.execute(
                "select id, lease from tocsin.claim(%s, %s, 1)", row
            ).fetchone()
            assert claimed is not None
            if archive:
                connection.execute("select tocsin.archive(%s, %s)", [[claimed[0]], [claimed[1]]])
    cli("enqueue", "q", '"ready"')
    cli("enqueue", "q", '"delayed"', "--delay", "1h")
    cli("enqueue", "q", '"held"')
    ask(dsn, "update tocsin.messages set state = 'held' where payload = '\"held\"'")


def payloads(dsn: str) -> set[str]:
    found = ask(
        dsn,
        "select payload #>> '{}' from tocsin.messages union select payload #>> '{}' from"
        " tocsin.archive union select payload #>> '{}' from tocsin.dead_letters",
    )
    return {p for (p,) in found}


ALL = {"ready", "delayed", "held", "leased", "archived", "dead"}


@pytest.mark.parametrize("kind", ["ready", "delayed", "held", "archived", "dead"])
def test_purge_by_kind(cli: Call, store_dsn: str, kind: str) -> None:
    cli("queue", "create", "q")
    fill(cli, store_dsn)
    assert cli("queue", "purge", "q", f"--{kind}", "--dry-run") == (
        0,
        f"would purge 1 {kind}\n",
        "",
    )
    code, out, error = cli("queue", "purge", "q", f"--{kind}")
    assert (code, out, one_line(error)) == (1, "", True)
    assert "--yes" in error
    assert payloads(store_dsn) == ALL
    assert (
        cli("queue", "purge", "q", f"--{kind}", "--older-than", "1d", "--yes").out
        == f"purged 0 {kind}\n"
    )
    assert cli("queue", "purge", "q", f"--{kind}", "--yes") == (0, f"purged 1 {kind}\n", "")
    assert payloads(store_dsn) == ALL - {kind}


def test_purge_of_everything_leaves_what_is_leased(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    fill(cli, store_dsn)
    purged = cli(
        "queue",
        "purge",
        "q",
        "--ready",
        "--delayed",
        "--held",
        "--archived",
        "--dead",
        "--yes",
        "--format",
        "json",
    ).json
    assert purged == {"ready": 1, "delayed": 1, "held": 1, "archived": 1, "dead": 1}
    assert payloads(store_dsn) == {"leased"}


def test_delete_is_refused_while_there_is_work_unless_forced(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    fill(cli, store_dsn)
    code, out, error = cli("queue", "delete", "q", "--yes")
    assert (code, out, one_line(error)) == (1, "", True)
    would = cli("queue", "delete", "q", "--dry-run", "--force", "--format", "json").json
    assert (would["messages"], would["archived"], would["dead_letters"]) == (4, 1, 1)
    assert cli("queue", "delete", "q", "--force").code == 1  # no terminal
    assert payloads(store_dsn) == ALL
    assert "deleted queue 'q' with" in cli("queue", "delete", "q", "--force", "--yes").out
    assert payloads(store_dsn) == set()
    assert cli("queue", "list").out == "no queues\n"


def test_delete_asks_with_what_would_go(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    fill(cli, store_dsn)
    assert ask_at_a_terminal(store_dsn, "queue", "delete", "q", "--force", answer="n").startswith(
        "Delete queue 'q' with 3 workers, 4 messages, 1 archived, 1 dead letters? [y/N]: tocsin:"
        " nothing was changed"
    )
    assert payloads(store_dsn) == ALL
    ask_at_a_terminal(store_dsn, "queue", "purge", "q", "--ready", answer="yes")
    assert payloads(store_dsn) == ALL - {"ready"}


def test_delete_of_an_idle_queue(cli: Call) -> None:
    cli("queue", "create", "q")
    assert cli("queue", "delete", "q", "--yes").code == 0


def test_metrics(cli: Call, store_dsn: str) -> None:
    assert cli("queue", "metrics") == (0, "no queues\n", "")
    cli("queue", "create", "q")
    cli("queue", "create", "other")
    fill(cli, store_dsn)
    metrics = cli("queue", "metrics", "q", "--format", "json").json
    assert {
        k: metrics[k]
        for k in (
            "queue",
            "paused",
            "ready",
            "delayed",
            "held",
            "leased",
            "dead",
            "archived",
            "exact",
        )
    } == {
        "queue": "q",
        "paused": False,
        "ready": 1,
        "delayed": 1,
        "held": 1,
        "leased": 1,
        "dead": 1,
        "archived": 1,
        "exact": True,
    }
    assert [m["queue"] for m in cli("queue", "metrics", "--format", "json").json] == ["other", "q"]
    header, row = cli("queue", "metrics", "q").rows
    assert header[:7] == ["QUEUE", "READY", "DELAYED", "HELD", "LEASED", "DEAD", "ARCHIVED"]
    assert row[:7] == ["q", "1", "1", "1", "1", "1", "1"]


def test_what_to_do_about_a_queue_is_said_in_commands(cli: Call) -> None:
    assert "`tocsin queue list`" in cli("queue", "get", "q").error
    cli("queue", "create", "q")
    assert "--if-missing" in cli("queue", "create", "q").error
