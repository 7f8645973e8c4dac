"""``tocsin top``: one frame into a pipe, and the whole screen of a terminal."""

from __future__ import annotations

import pytest

import tocsin
from tests.support import connect_blocking, since, statements
from tests.support.commands import Call, one_line
from tests.support.sweeps import sweep
from tests.support.terminal import terminal
from tocsin._cli.render import write_count
from tocsin._cli.top import look
from tocsin.embedded import EmbeddedServer


def test_once_prints_a_frame(cli: Call, store_dsn: str) -> None:
    assert cli("top", "--once") == (0, "no queues\n\nno workers\n", "")
    cli("queue", "create", "q")
    cli("enqueue", "q", "1", "2")
    with connect_blocking(store_dsn) as connection:
        connection.execute(
            "select tocsin.register_worker('q', 'consumer', n, null, 'h', 1, '1') from"
            " unnest('{a,b}'::text[]) n"
        )
    cli("worker", "stop", "2")
    queues, workers = cli("top", "--once").out.split("\n\n")
    assert queues.splitlines()[1].split()[:4] == ["q", "2", "0", "0"]
    assert [line.split()[:5] for line in workers.splitlines()[1:]] == [
        ["1", "a", "consumer", "q", "ready"]
    ]
    assert cli("top").out.splitlines()[0] == queues.splitlines()[0]  # into a pipe it is the same
    frame = cli("top", "--format", "json").json
    assert (frame["queues"][0]["ready"], frame["workers"][0]["name"]) == (2, "a")


def test_a_frame_has_the_tasks_that_have_jobs(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute(
            "select tocsin.enqueue('q', '[]', task => t) from"
            " unnest('{mail.send,mail.send,a}'::text[]) t"
        )
    _, shown, workers = cli("top", "--once").out.split("\n\n")
    assert workers == "no workers\n"
    assert [line.split() for line in shown.splitlines()] == [
        ["TASK", "WAITING", "RUNNING", "FAILED", "DONE/S", "COUNTED"],
        ["a", "1", "0", "0", "0.0", "exactly"],
        ["mail.send", "2", "0", "0", "0.0", "exactly"],
    ]
    frame = cli("top", "--format", "json").json
    assert [(task["task"], task["waiting"]) for task in frame["tasks"]] == [
        ("a", 1),
        ("mail.send", 2),
    ]


async def test_tasks_cost_a_frame_one_statement(dsn_of_quiet_store: str) -> None:
    async with tocsin.connect(dsn_of_quiet_store) as store:
        await store.queues.create("q")
        await look(store)
        before = await statements(dsn_of_quiet_store)
        await look(store)
        sent = since(before, await statements(dsn_of_quiet_store))
    assert [n for text, n in sent.items() if "task_metrics" in text] == [1]
    assert sum(sent.values()) <= 4  # and one for the queues, the workers, and this count


@sweep("key", [b"q", b"\x03"], quick=1)
def test_the_screen_follows_the_queues_until_a_key_ends_it(
    cli: Call, store_dsn: str, key: bytes
) -> None:
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


@sweep(
    "keys",
    [b"\x1b", b"\x1b[A", b"\x1bOB", b"\x1b[1;5q"],
    quick=1,
    ids=["escape", "up", "down", "some other"],
)
def test_a_key_that_moves_a_cursor_does_not_end_it(cli: Call, store_dsn: str, keys: bytes) -> None:
    cli("queue", "create", "mails", "--notify", "always")
    with terminal(store_dsn, "top", "--interval", "50ms") as screen:
        screen.read_until(r"no workers")
        screen.press(keys)
        cli("enqueue", "mails", "1")
        screen.read_until(r"mails +1 ")
        screen.press(b"q")
        assert screen.wait() == 0


@pytest.mark.slow
def test_80_columns_show_every_column_that_they_have(cli: Call, store_dsn: str) -> None:
    name = "a-queue-with-a-rather-long-name"
    cli("queue", "create", name)
    cli("queue", "pause", name)
    with connect_blocking(store_dsn) as connection:
        connection.execute(
            "select tocsin.enqueue_many(%s, (select jsonb_agg(n) from generate_series(1, 1234) n))",
            [name],
        )
        connection.execute(
            "select tocsin.register_worker(%s, 'consumer', 'mailer-7f9c-' || n, null,"
            " 'mailer-7f9c.example.org', 4194304, '1.2.3') from generate_series(1, 3) n",
            [name],
        )
    with terminal(store_dsn, "top", "--once", columns=80) as screen:
        lines = screen.read_to_end().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "QUEUE",
        "READY",
        "DELAYED",
        "LEASED",
        "DEAD",
        "OLDEST",
        "IN/S",
        "DONE/S",
        "CONSUMERS",
    ]
    assert {"1234", "paused"} <= set(lines[1].split())
    second = [line.split()[:1] == ["ID"] for line in lines].index(True)
    assert lines[second].split() == [
        "ID",
        "NAME",
        "QUEUE",
        "STATUS",
        "HOLDS",
        "RUNNING",
        "HEARTBEAT",
        "HOST",
    ]
    assert lines[second + 1].split()[0] == "1"
    assert {"ready", "0"} <= set(lines[second + 1].split())
    # folded, not cut
    assert name in "".join(
        line[: lines[0].index("READY")].strip() for line in lines[1 : second - 1]
    )
    for words, header in ((["queue", "metrics"], lines[0]), (["worker", "list"], lines[second])):
        with terminal(store_dsn, *words, columns=80) as screen:
            assert screen.read_to_end().splitlines()[0].split() == header.split()
    with terminal(store_dsn, "top", "--once", columns=200) as screen:
        assert "VERSION" in screen.read_to_end()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (99_999, "99999"),
        (123_456, "123k"),
        (999_999, "1000k"),
        (1_234_567, "1.2M"),
        (123_456_789, "123M"),
        (10**12, "1000G"),
    ],
)
def test_a_large_number_is_short(number: int, text: str) -> None:
    assert write_count(number) == text


@pytest.mark.slow
def test_without_a_ring_the_screen_follows_by_itself(cli: Call, store_dsn: str) -> None:
    cli("queue", "create", "mails")
    with terminal(store_dsn, "top", "--interval", "50ms") as screen:
        screen.read_until(r"no workers")
        cli("enqueue", "mails", "1")  # no consumer waits, so nothing rings
        screen.read_until(r"mails +1 ")


@pytest.mark.slow
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
