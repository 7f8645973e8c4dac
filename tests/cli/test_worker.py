"""``tocsin worker``: what operators do to workers of other processes; and ``admin
reclaim``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import ENDS_WITHIN, connect_blocking, move_clock
from tests.support.commands import Call, line_with, one_line, started
from tests.support.sweeps import sweep


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with connect_blocking(dsn) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def register(dsn: str, name: str, *, holds: int = 0) -> int:
    """Register a consumer of queue q without a process, and claim messages for it."""
    ((worker_id, registration),) = ask(
        dsn,
        f"select id, registration from tocsin.register_worker('q', 'consumer', '{name}', null,"
        " 'far.example.org', 7, '1.2.3')",
    )
    if holds:
        ask(dsn, f"select tocsin.enqueue('q', '1') from generate_series(1, {holds})")
        ask(dsn, f"select tocsin.claim({worker_id}, {registration}, {holds})")
    return int(worker_id)


@pytest.fixture
def queue(cli: Call) -> str:
    assert cli("queue", "create", "q").code == 0
    return "q"


def test_list_shows_the_workers(cli: Call, store_dsn: str, queue: str) -> None:
    assert cli("worker", "list") == (0, "no workers\n", "")
    register(store_dsn, "a", holds=2)
    register(store_dsn, "b")
    cli("queue", "create", "other")
    header, first, second = cli("worker", "list", "--queue", "q").rows
    assert header == [
        "ID",
        "NAME",
        "KIND",
        "QUEUE",
        "STATUS",
        "HOLDS",
        "RUNNING",
        "MESSAGE",
        "HEARTBEAT",
        "HOST",
        "PID",
        "VERSION",
        "TASKS",
    ]
    assert first[:6] == ["1", "a", "consumer", "q", "ready", "2"]
    assert first[9:] == ["far.example.org", "7", "1.2.3", "-"]
    assert second[1] == "b"
    assert cli("worker", "list", "--queue", "other") == (0, "no workers\n", "")
    code, _, error = cli("worker", "list", "--queue", "none")
    assert (code, one_line(error)) == (1, True)


def test_json_has_the_names_of_the_fields(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a", holds=2)
    (info,) = cli("worker", "list", "--queue", "q", "--format", "json").json
    assert {
        k: info[k]
        for k in (
            "id",
            "name",
            "kind",
            "queue",
            "status",
            "hostname",
            "pid",
            "version",
            "shutdown_at",
            "held",
        )
    } == {
        "id": 1,
        "name": "a",
        "kind": "consumer",
        "queue": "q",
        "status": "ready",
        "hostname": "far.example.org",
        "pid": 7,
        "version": "1.2.3",
        "shutdown_at": None,
        "held": 2,
    }
    assert info["started_at"].endswith("+00:00")
    assert cli("worker", "get", "1", "--format", "json").json.keys() == info.keys()


def test_an_id_is_an_argument_or_an_option(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a")
    assert cli("worker", "get", "1").rows[:2] == [["id", "1"], ["name", "a"]]
    assert cli("worker", "get", "--id", "1").code == 0
    assert cli("worker", "get", "1", "--id", "1").code == 0
    for arguments in ([], ["1", "--id", "2"], ["0"], ["one"], [str(2**63)]):
        code, _, error = cli("worker", "get", *arguments)
        assert (code, one_line(error)) == (2, True), arguments


@sweep(
    "command",
    [
        "get",
        "messages",
        "release-messages",
        "suspend",
        "resume",
        "interrupt",
        "shutdown",
        "stop",
        "delete",
        "heartbeat",
    ],
    quick=2,
)
def test_a_worker_that_does_not_exist(cli: Call, queue: str, command: str) -> None:
    code, out, error = cli("worker", command, "42", *(["--yes"] if command == "delete" else []))
    assert (code, out, one_line(error)) == (1, "", True)
    assert "worker 42 does not exist" in error


def test_suspend_resume_interrupt_shutdown(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a", holds=1)
    code, _, error = cli("worker", "suspend", "1")
    assert (code, one_line(error)) == (1, True)
    assert "holds 1 message" in error
    assert cli("worker", "suspend", "1", "--drain") == (
        0,
        "worker 1 ('a') is suspended, and holds 1 messages\n",
        "",
    )
    assert cli("worker", "shutdown", "1").code == 1  # it holds a message
    assert cli("worker", "resume", "1").out == "worker 1 ('a') is ready, and holds 1 messages\n"
    assert (
        cli("worker", "suspend", "1", "--release").out
        == "worker 1 ('a') is suspended, and holds 0 messages\n"
    )
    assert cli("worker", "resume", "1").code == 0
    assert (
        cli("worker", "interrupt", "1", "--grace", "1.5s", "--format", "json").json["status"]
        == "interrupted"
    )
    assert ask(store_dsn, "select extract(epoch from grace)::float8 from tocsin.workers") == [
        (1.5,)
    ]
    assert cli("worker", "shutdown", "1").code == 1
    assert cli("worker", "suspend", "1").code == 0
    assert cli("worker", "shutdown", "1").out == "worker 1 ('a') is stopped, and holds 0 messages\n"
    code, _, error = cli("worker", "heartbeat", "1")
    assert (code, one_line(error)) == (1, True)


def test_suspend_cannot_drain_and_release(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a")
    code, _, error = cli("worker", "suspend", "1", "--drain", "--release")
    assert (code, one_line(error)) == (2, True)


def test_stop_from_any_state(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a", holds=3)
    assert cli("worker", "stop", "--id", "1") == (
        0,
        "worker 1 is stopped, and has released 3 messages\n",
        "",
    )
    assert ask(store_dsn, "select status from tocsin.workers") == [("stopped",)]


def test_messages_that_a_worker_holds(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a", holds=3)
    register(store_dsn, "b")
    assert cli("worker", "messages", "2").out == "worker 2 holds no messages\n"
    assert [
        m["id"] for m in cli("worker", "messages", "1", "--limit", "2", "--format", "json").json
    ] == [1, 2]
    assert [row[:2] for row in cli("worker", "messages", "1", "--after", "2").rows[1:]] == [
        ["3", "leased"]
    ]
    assert cli("worker", "release-messages", "1").out == "worker 1 has released 3 messages\n"
    assert cli("worker", "messages", "1").out == "worker 1 holds no messages\n"


def test_heartbeat(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a")
    ask(store_dsn, "update tocsin.workers set heartbeat_at = now() - interval '1 hour'")
    assert cli("worker", "heartbeat", "1").code == 0
    assert ask(
        store_dsn, "select heartbeat_at > now() - interval '1 minute' from tocsin.workers"
    ) == [(True,)]


def test_stats(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a", holds=3)
    register(store_dsn, "b")
    cli("worker", "stop", "2")
    stats = cli("worker", "stats", "--queue", "q", "--format", "json").json
    assert (stats["total"], stats["held"], stats["by_kind"]["consumer"]) == (2, 3, 2)
    assert (stats["by_status"]["ready"], stats["by_status"]["stopped"]) == (1, 1)
    assert cli("worker", "stats").rows[:2] == [
        ["total", "2"],
        ["by_status", "1", "ready,", "1", "stopped"],
    ]


def test_health_exits_with_4_when_there_is_a_problem(cli: Call, store_dsn: str, queue: str) -> None:
    assert cli("worker", "health").code == 0
    register(store_dsn, "a")
    assert cli("worker", "health", "--queue", "q", "--max-age", "300").code == 0
    ask(store_dsn, "update tocsin.workers set heartbeat_at = now() - interval '10 minutes'")
    code, out, _ = cli("worker", "health", "--queue", "q", "--max-age", "5m")
    assert code == 4
    assert out.splitlines()[1].split()[:2] == ["q", "no"]
    assert cli("worker", "health", "--max-age", "1h").code == 0


def test_messages_wait_and_no_consumer_is_there(cli: Call, store_dsn: str, queue: str) -> None:
    ask(store_dsn, "select tocsin.enqueue('q', '1')")
    ask(store_dsn, "update tocsin.messages set due = '2000-01-01', vt = '2000-01-01'")
    ask(store_dsn, "update tocsin.queues set created_at = '2000-01-01'")
    ended = cli("worker", "health", "--max-age", "5m", "--format", "json")
    assert ended.code == 4
    assert "no consumer is active" in ended.out


def test_health_says_when_messages_wait_in_a_paused_queue(
    cli: Call, store_dsn: str, queue: str
) -> None:
    cli("queue", "pause", "q")
    assert cli("worker", "health").out.count("\n") == 2
    ask(store_dsn, "select tocsin.enqueue('q', '1') from generate_series(1, 2)")
    ask(store_dsn, "update tocsin.queues set paused_at = now() - interval '3 hours'")
    code, out, _ = cli("worker", "health")
    assert code == 0
    assert (
        out.splitlines()[-1]
        == "queue 'q' has been paused for 3h, and at least 2 messages wait; `tocsin queue resume q`"
        " ends the pause"
    )
    (found,) = cli("worker", "health", "--format", "json").json
    assert (found["healthy"], found["ready"], round(found["paused_for"], -1)) == (True, 2, 10800)


def test_purge_forgets_those_that_were_stopped_long_ago(
    cli: Call, store_dsn: str, queue: str
) -> None:
    cli("queue", "create", "other")
    for name in ("a", "b", "c"):
        register(store_dsn, name)
    cli("worker", "stop", "1")
    cli("worker", "stop", "2")
    ask(store_dsn, "update tocsin.workers set shutdown_at = now() - interval '8 days' where id = 1")
    assert [
        w["id"]
        for w in cli("worker", "purge", "--older-than", "7d", "--dry-run", "--format", "json").json
    ] == [1]
    assert (
        cli("worker", "purge", "--older-than", "7d", "--queue", "other", "--yes").out
        == "purged 0 workers\n"
    )
    code, out, error = cli("worker", "purge", "--older-than", "7d")
    assert (code, out, one_line(error)) == (1, "", True)
    assert "--yes" in error
    assert len(ask(store_dsn, "select 1 from tocsin.workers")) == 3
    assert cli("worker", "purge", "--older-than", "7d", "--yes") == (0, "purged 1 workers\n", "")
    assert ask(store_dsn, "select id from tocsin.workers order by id") == [(2,), (3,)]
    assert cli("worker", "purge", "--yes").code == 2  # how old?


def test_delete_forgets_a_stopped_worker(cli: Call, store_dsn: str, queue: str) -> None:
    register(store_dsn, "a")
    code, _, error = cli("worker", "delete", "1", "--yes")
    assert (code, one_line(error)) == (1, True)  # it is not stopped
    cli("worker", "stop", "1")
    assert cli("worker", "delete", "1").code == 1  # no terminal
    assert cli("worker", "delete", "1", "--yes") == (0, "worker 1 is deleted\n", "")
    assert ask(store_dsn, "select 1 from tocsin.workers") == []


def make_deadly(dsn: str) -> None:
    """Record that the server has been up for long enough to declare a process dead, and
    make heartbeats overdue."""
    ask(
        dsn,
        "insert into tocsin.uptime (since) values ('2000-01-01') on conflict (only_row) do update"
        " set since = excluded.since",
    )
    ask(dsn, "update tocsin.processes set heartbeat_at = '2000-01-01'")
    trio.run(move_clock, dsn, 20)


def test_reclaim_takes_back_what_the_dead_and_expired_leases_hold(
    cli: Call, store_dsn: str, queue: str
) -> None:
    assert cli("admin", "reclaim").out == "0 dead workers stopped, 0 messages requeued\n"
    ask(store_dsn, "select tocsin.register_process('far.example.org', 1, '1', '1 s')")
    register(store_dsn, "alive", holds=4)
    register(store_dsn, "dead", holds=3)
    ask(store_dsn, "update tocsin.workers set process_id = 1 where name = 'dead'")
    ask(store_dsn, "update tocsin.messages set vt = now() - interval '1 s' where id <= 2")
    make_deadly(store_dsn)
    assert cli("admin", "reclaim", "--format", "json").json == {"workers": 1, "messages": 5}
    assert ask(store_dsn, "select name, status from tocsin.workers order by 1") == [
        ("alive", "ready"),
        ("dead", "stopped"),
    ]
    assert ask(
        store_dsn, "select array_agg(id order by id) from tocsin.messages where state = 'leased'"
    ) == [([3, 4],)]
    assert cli("admin", "reclaim").out == "0 dead workers stopped, 0 messages requeued\n"


def test_reclaim_declares_no_process_dead_before_it_knows_how_long_the_server_is_up(
    cli: Call, store_dsn: str, queue: str
) -> None:
    ask(store_dsn, "select tocsin.register_process('far.example.org', 1, '1', '1 s')")
    register(store_dsn, "dead", holds=3)
    ask(store_dsn, "update tocsin.workers set process_id = 1")
    make_deadly(store_dsn)
    # by crash recovery: the postmaster's start stays what it was
    ask(store_dsn, "truncate tocsin.uptime")
    assert cli("admin", "reclaim").out == "0 dead workers stopped, 0 messages requeued\n"
    trio.run(move_clock, store_dsn, 31)
    assert cli("admin", "reclaim").out == "1 dead workers stopped, 3 messages requeued\n"


HANG = """
import logging, trio

async def hang(message):
    logging.info("began")
    await trio.sleep_forever()
"""


def test_stop_ends_a_running_process(cli: Call, store_dsn: str, queue: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(HANG)
    with started(store_dsn, "worker", "run", "q", "service:hang", folder=tmp_path) as process:
        cli("enqueue", "q", "1")
        line_with(process, "began")
        assert "released 1 messages" in cli("worker", "stop", "1").out
        rest = process.communicate(timeout=ENDS_WITHIN)[1]
    assert process.returncode == 0
    assert "stopped by a command; 0 handled, 1 released" in rest
    assert "WARNING" not in rest
    assert cli("worker", "get", "1", "--format", "json").json["ended"] == "stopped"
    assert ask(store_dsn, "select state::text, read_ct from tocsin.messages") == [("ready", 0)]


def test_reclaim_takes_back_what_a_killed_process_held(
    cli: Call, store_dsn: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text(HANG)
    with started(store_dsn, "worker", "run", "q", "service:hang", folder=tmp_path) as process:
        cli("enqueue", "q", "1")
        line_with(process, "began")
        process.kill()
        process.wait(ENDS_WITHIN)
    make_deadly(store_dsn)
    # the server may not have noticed yet that the connection is gone
    while cli("admin", "reclaim").rows[0][0] != "1":
        assert ask(store_dsn, "select status from tocsin.workers") == [("polling",)]
    assert ask(store_dsn, "select state::text from tocsin.messages") == [("ready",)]
    assert "stopped (died)" in cli("worker", "list").out
    assert cli("worker", "get", "1", "--format", "json").json["ended"] == "died"


HANG_IF_TOLD = """
import logging, trio

async def hang(message):
    logging.info("began %s", message.payload)
    if message.payload == "hang":
        await trio.sleep_forever()
"""


def test_interrupt_with_grace_from_the_command_line(
    cli: Call, store_dsn: str, tmp_path: Path
) -> None:
    """A worker in another process ends by it: what it has finished is archived, what
    still runs after the grace is requeued."""
    (tmp_path / "service.py").write_text(HANG_IF_TOLD)
    cli("queue", "create", "q", "--vt", "1h")
    cli("enqueue", "q", '"quick"', '"hang"')
    with started(store_dsn, "worker", "run", "q", "service:hang", folder=tmp_path) as process:
        line_with(process, "began hang")
        assert cli("worker", "interrupt", "1", "--grace", "10ms").code == 0
        assert process.wait(ENDS_WITHIN) == 0
    (waiting,) = cli("queue", "messages", "q", "--format", "json").json
    assert (waiting["payload"], waiting["state"], waiting["read_ct"]) == ("hang", "ready", 0)
    (done,) = cli("queue", "messages", "q", "--state", "archived", "--format", "json").json
    assert (done["payload"], done["consumer_worker_id"]) == ("quick", 1)
