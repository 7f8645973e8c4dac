"""Dead letters: how messages become dead letters, and reading, replaying, archiving and
purging them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import (
    connect_blocking,
    move_clock,
    open_connection,
    query,
    until_blocked,
    until_idle,
)
from tests.support.cancel_sweep import cancel_sweep
from tests.support.dead_letters import kill, make_dead
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin._durations import MAX_DURATION

HOSTILE = [
    {
        "unicode": "\N{SNOWMAN}\U0001f600",
        "quotes": "'\"; drop table tocsin.messages; --",
        "big": 2**80,
        "float": 1e23,
        "nested": [[{}]],
    },
    None,
    "",
    [1.5, True, "\\u0000 \\ %"],
]


async def test_too_many_deliveries_move_by_itself_with_reason_error_and_history(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.ensure("q", max_deliveries=3, retry_base=0, retry_jitter=0, vt=10)
    message_id = await store.produce("q", {"n": 1}, headers={"trace": "t"}, priority=7, key="k")
    async with store.consumer("q", name="mailer") as consumer:
        await kill(consumer, "ValueError: no")
        (released,) = await consumer.dequeue()
        await released.release()
        (expired,) = await consumer.dequeue()
        await move_clock(store_dsn, 11)
        assert await consumer.dequeue() == []
    letter = await store.dead_letters.get(message_id)
    assert (letter.id, letter.queue, letter.queue_id) == (message_id, "q", queue.id)
    assert (letter.payload, letter.headers, letter.priority, letter.key) == (
        {"n": 1},
        {"trace": "t"},
        7,
        "k",
    )
    assert (letter.read_ct, letter.reason, letter.error) == (3, "lease_expired", "ValueError: no")
    assert (letter.producer_worker_id, letter.consumer_worker_id) == (None, consumer.worker_id)
    assert [(d.delivery, d.outcome, d.error) for d in letter.history] == [
        (1, "handler_failed", "ValueError: no"),
        (2, "released", None),
        (3, "lease_expired", None),
    ]
    assert {(d.worker_id, d.worker) for d in letter.history} == {(consumer.worker_id, "mailer")}
    assert letter.history[2].dequeued_at == expired.dequeued_at
    assert all(d.dequeued_at <= d.ended_at for d in letter.history)
    assert letter.history[2].ended_at <= letter.died_at


async def test_per_message_maximum_of_deliveries_goes_before_the_queues(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q", max_deliveries=2, retry_base=0, retry_jitter=0)
    few = await store.produce("q", "few", max_deliveries=1)
    many = await store.produce("q", "many", max_deliveries=3)
    usual = await store.produce("q", "usual")
    async with store.consumer("q") as consumer:
        while await kill(consumer, limit=3):
            pass
    letters = await store.dead_letters.list("q")
    assert [(d.id, d.read_ct, d.max_deliveries) for d in letters] == [
        (few, 1, 1),
        (many, 3, 3),
        (usual, 2, None),
    ]


async def test_a_dead_worker_is_in_the_history(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    first = await store.produce("q", 1, max_deliveries=1)
    second = await store.produce("q", 2)
    async with store.consumer("q", name="doomed") as consumer:
        assert len(await consumer.dequeue(2)) == 2
        await query(
            store_dsn,
            "select tocsin.unregister_process(process_id, died => true) from tocsin.workers",
        )
        letter = await store.dead_letters.get(first)
        assert letter.reason == "worker_died"
        for history in (letter.history, (await store.messages.get(second)).history):
            ((delivery, worker, outcome),) = [(d.delivery, d.worker, d.outcome) for d in history]
            assert (delivery, worker, outcome) == (1, "doomed", "worker_died")


async def test_what_did_not_count_is_not_in_the_history(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    message_id = await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        await consumer.dequeue()
        await consumer.suspend(release=True)
        await consumer.resume()
        await consumer.dequeue()  # and leaving releases
    message = await store.messages.get(message_id)
    assert (message.read_ct, message.history) == (0, ())


async def test_history_keeps_the_last_twenty_and_the_beginning_of_an_error(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q", max_deliveries=23, retry_base=0, retry_jitter=0)
    message_id = await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        for n in range(1, 24):
            await kill(consumer, f"{n} " + "\N{SNOWMAN}" * 5000)
    letter = await store.dead_letters.get(message_id)
    assert [d.delivery for d in letter.history] == list(range(4, 24))
    assert [d.error for d in letter.history] == [
        (f"{n} " + "\N{SNOWMAN}" * 5000)[:1000] for n in range(4, 24)
    ]
    assert letter.error == "23 " + "\N{SNOWMAN}" * 5000


async def test_a_message_that_failed_before_keeps_its_history_in_the_archive(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q", retry_base=0, retry_jitter=0)
    failed, fine = [await store.produce("q", n) for n in range(2)]
    async with store.consumer("q") as consumer:
        await kill(consumer)
        await consumer.archive_many(await consumer.dequeue(2))
    assert [d.outcome for d in (await store.messages.get(failed)).history] == ["handler_failed"]
    assert (await store.messages.get(fine)).history == ()


async def test_a_message_that_cannot_become_a_dead_letter_keeps_its_history(
    store: tocsin.Store, store_dsn: str
) -> None:
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    await store.queues.ensure("q")
    lucky, unlucky = [await store.produce("q", n, max_deliveries=1) for n in (1, 13)]
    async with store.consumer("q") as consumer:
        await kill(consumer, limit=2)
    assert [d.outcome for d in (await store.dead_letters.get(lucky)).history] == ["handler_failed"]
    message = await store.messages.get(unlucky)
    assert (message.state, [d.error for d in message.history]) == ("delayed", ["it failed"])


@sweep("payload", HOSTILE, quick=1, ids=str)
async def test_payload_and_headers_come_back_exactly(store: tocsin.Store, payload: object) -> None:
    await store.queues.ensure("q")
    (message_id,) = await make_dead(store, "q", payload, headers=[payload])
    letter = await store.dead_letters.get(message_id)
    assert (letter.payload, letter.headers) == (payload, [payload])
    assert await store.dead_letters.replay(message_id) == [message_id]
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        assert (message.payload, message.headers) == (payload, [payload])


async def test_one_payload_that_python_cannot_read_spoils_no_list(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    # more digits than Python converts
    await query(store_dsn, "select tocsin.enqueue('q', repeat('9', 5000)::jsonb)")
    await store.produce("q", "fine")
    async with store.consumer("q") as consumer:
        await kill(consumer, limit=2)
    unreadable, fine = await store.dead_letters.list("q")
    assert fine.payload == "fine"
    assert unreadable.payload_text == "9" * 5000
    with pytest.raises(ValueError, match="digits"):
        _ = unreadable.payload


# Replay


async def test_replay_by_id_counts_deliveries_from_zero_and_keeps_the_rest(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer:
        message_id = await producer.enqueue(
            1, headers={"h": 1}, priority=3, key="k", expires_in=10, max_deliveries=2
        )
        async with store.consumer("q", name="first") as consumer:
            (before,) = await kill(consumer)
            await move_clock(store_dsn, 5)
            await kill(consumer)
        letter = await store.dead_letters.get(message_id)
        assert letter.read_ct == 2
        await move_clock(store_dsn, 60)
        waits = await store.produce("q", 2, priority=3)
        assert await store.dead_letters.replay(message_id) == [message_id]
        with pytest.raises(tocsin.MessageNotFound, match=f"dead letter {message_id}") as gone:
            await store.dead_letters.get(message_id)
        assert gone.value.message_id == message_id
        message = await store.messages.get(message_id)
        assert (message.state, message.read_ct, message.max_deliveries) == ("ready", 0, 2)
        assert (message.payload, message.headers, message.priority, message.key) == (
            1,
            {"h": 1},
            3,
            "k",
        )
        assert (message.enqueued_at, message.expires_at) == (before.enqueued_at, None)
        assert (message.producer_worker_id, message.consumer_worker_id) == (
            producer.worker_id,
            consumer.worker_id,
        )
        assert (message.last_error, message.history) == ("it failed", letter.history)
        assert await store.produce("q", 1, key="k") == message_id
    async with store.consumer("q", name="second") as consumer:
        # not before what waits
        assert [(m.id, m.read_ct) for m in await consumer.dequeue(2)] == [
            (waits, 1),
            (message_id, 1),
        ]
        await move_clock(store_dsn, 1000)
        await kill(consumer, limit=2)
        await move_clock(store_dsn, 2000)
        await kill(consumer, "again", limit=2)
    history = (await store.dead_letters.get(message_id)).history
    assert [(d.delivery, d.worker) for d in history] == [
        (1, "first"),
        (2, "first"),
        (1, "second"),
        (2, "second"),
    ]


async def test_replay_with_a_delay_is_due_later_and_wakes_a_waiting_consumer(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    now, later = await make_dead(store, "q", "now", "later")
    async with store.consumer("q") as consumer, running(consumer) as run:
        await until_idle(store)
        await store.dead_letters.replay(later, delay=timedelta(hours=1))
        assert (await store.messages.get(later)).state == "delayed"
        await store.dead_letters.replay(now)
        await run.handled.wait(1)
        await move_clock(store_dsn, 3601)
        await run.handled.wait(2)
    assert [m.id for m in run.handled.messages] == [now, later]


async def test_replay_by_queue_filter_and_count(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    old = await make_dead(store, "q", 1, 2, error="timeout")
    elsewhere = await make_dead(store, "r", 3, error="timeout")
    stale = await store.produce("q", 4, expires_in=10)
    await move_clock(store_dsn, 100)
    async with store.consumer("q") as consumer:
        assert await consumer.dequeue() == []
    await move_clock(store_dsn, 200)
    young = await make_dead(store, "q", 5, 6, error="bad address")
    replay, every = store.dead_letters.replay, store.dead_letters.list

    assert [d.id for d in await every("q", error="bad")] == young
    assert [d.id for d in await every("q", reason="expired")] == [stale]
    assert [d.id for d in await every("q", older_than=150)] == old
    assert await replay(queue="q", error="nothing has this") == []
    assert await replay(*elsewhere, queue="q") == []
    assert await replay(queue="q", reason="handler_failed", older_than=150, limit=1) == old[:1]
    assert await replay(queue="q", error="address") == young
    assert await replay(queue="q", reason="expired") == [stale]
    assert await replay(*elsewhere, *old, error="timeout", limit=1) == old[1:]
    assert await replay(queue="r") == elsewhere
    assert await replay(queue="r") == []
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(6,)]


@sweep(
    "text",
    ["100%", "_", "\\", "\\%", "'", "''; --", '"', "%s", "$1", "ẞ\N{SNOWMAN}", "(", "[a-z]+", ".*"],
    quick=["100%", "\\%", ".*"],
)
async def test_error_is_taken_literally(store: tocsin.Store, text: str) -> None:
    await store.queues.ensure("q")
    await make_dead(store, "q", 1, error="an a100b error without any of them")
    (hit,) = await make_dead(store, "q", 2, error=f"before {text} after")
    assert [d.id for d in await store.dead_letters.list("q", error=text)] == [hit]
    assert await store.dead_letters.purge(queue="q", error=text, dry_run=True) == 1
    assert await store.dead_letters.replay(queue="q", error=text) == [hit]


async def test_two_replays_at_once_give_one_message(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    ids = await make_dead(store, "q", *range(20))
    got: list[list[int]] = []

    async def replay(**which: Any) -> None:
        got.append(await store.dead_letters.replay(*([] if which else ids), **which))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(replay)
            nursery.start_soon(lambda: replay(queue="q"))
    assert sorted(i for some in got for i in some) == ids
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(20,)]
    assert await store.dead_letters.list("q") == []


async def test_a_replay_by_id_waits_for_another_and_one_by_queue_passes_over(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    first, second = await make_dead(store, "q", 1, 2)
    got: list[list[int]] = []

    async def replay() -> None:
        got.append(await store.dead_letters.replay(first))

    for rolled_back in (True, False):
        async with (
            trio.open_nursery() as nursery,
            open_connection(store_dsn) as connection,
            connection.transaction(force_rollback=rolled_back),
        ):
            await connection.execute("select tocsin.replay(array[%s::bigint])", [first])
            nursery.start_soon(replay)
            await until_blocked(store_dsn)
            if rolled_back:
                assert await store.dead_letters.replay(queue="q") == [second]
        if rolled_back:
            assert got == [[first]]
            await query(store_dsn, "delete from tocsin.messages")
            (first,) = await make_dead(store, "q", 3)
            got.clear()
    assert got == [[]]  # the other one has it


async def test_a_key_that_was_taken_in_between(store: tocsin.Store, store_dsn: str) -> None:
    """A dead letter's key is free; by id its replay is refused while another has it, by
    queue it is passed over."""
    await store.queues.ensure("q")
    (dead,) = await make_dead(store, "q", 1, key="k")
    (twin,) = await make_dead(store, "q", 1, key="k")
    (free,) = await make_dead(store, "q", 3, key="free")
    assert len({dead, twin}) == 2
    holder = await store.produce("q", 2, key="k")
    with pytest.raises(
        tocsin.KeyTaken, match=f"dead letter {dead}, {twin} cannot be replayed"
    ) as taken:
        await store.dead_letters.replay(dead, twin, free)
    assert taken.value.ids == (dead, twin)
    assert [d.id for d in await store.dead_letters.list("q")] == [dead, twin, free]
    assert await store.dead_letters.replay(queue="q") == [free]
    assert [d.id for d in await store.dead_letters.list("q")] == [dead, twin]
    async with store.consumer("q") as consumer:
        by_id = {m.id: m for m in await consumer.dequeue(9)}
        await by_id[holder].archive()
    # the first of two that want the same
    assert await store.dead_letters.replay(queue="q") == [dead]
    with pytest.raises(tocsin.KeyTaken):
        await store.dead_letters.replay(twin)


async def test_after_a_replay_all_former_leases_are_fenced(
    store: tocsin.Store, store_dsn: str
) -> None:
    """They are fenced also when the clock has gone back."""
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)
    await move_clock(store_dsn, 3600)
    async with store.consumer("q", name="a") as a, store.consumer("q", name="b") as b:
        (former,) = await a.dequeue(vt=1)
        await move_clock(store_dsn, 3602)
        assert await b.dequeue() == []
        await move_clock(store_dsn, 0)
        assert await store.dead_letters.replay(queue="q") == [former.id]
        with pytest.raises(tocsin.LeaseLost):
            await former.archive()
        (message,) = await b.dequeue()
        assert message.lease_token > former.lease_token
        with pytest.raises(tocsin.LeaseLost):
            await former.archive()
        await message.archive()


# Archive and purge


async def test_archive_acknowledges(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    first, second = await make_dead(store, "q", 1, 2, key=None, headers={"h": 1})
    (other,) = await make_dead(store, "q", 3, error="other")
    stale = await store.produce("q", 4, expires_in=1)
    await move_clock(store_dsn, 2)
    async with store.consumer("q") as consumer:
        await consumer.dequeue()
    letter = await store.dead_letters.get(first)
    assert await store.dead_letters.archive(queue="q", error="it failed", limit=1) == 1
    info = await store.messages.get(first)
    assert info.state == "archived"
    assert info.archived_at is not None
    assert info.archived_at >= letter.died_at
    assert (info.payload, info.headers, info.read_ct, info.last_error) == (
        1,
        {"h": 1},
        1,
        "it failed",
    )
    assert info.history == letter.history
    assert await store.dead_letters.archive(first, second) == 1
    assert [d.id for d in await store.dead_letters.list("q")] == [other, stale]
    assert await store.dead_letters.archive(queue="q") == 2
    assert (await store.messages.get(stale)).last_error == "expired"
    assert await store.dead_letters.archive(queue="q") == 0
    assert await query(store_dsn, "select tocsin.archived_count(id) from tocsin.queues") == [(4,)]


async def test_archive_keeps_nothing_where_nothing_is_kept(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", retention=0)
    await make_dead(store, "q", 1)
    assert await store.dead_letters.archive(queue="q") == 1
    assert await store.dead_letters.list("q") == []
    assert await store.messages.list("q", state="archived") == []
    assert await query(store_dsn, "select tocsin.archived_count(id) from tocsin.queues") == [(0,)]


async def test_purge_deletes_and_a_dry_run_only_counts(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("r")
    old = await make_dead(store, "q", 1, 2)
    kept = await make_dead(store, "r", 3)
    await move_clock(store_dsn, 100)
    young = await make_dead(store, "q", 4, error="other")
    purge = store.dead_letters.purge
    for dry_run in (True, False):
        assert await purge(old[0], 999, dry_run=dry_run) == 1
    for dry_run in (True, False):
        assert await purge(queue="q", older_than=50, limit=5, dry_run=dry_run) == 1
    assert [d.id for d in await store.dead_letters.list("q")] == young
    assert await purge(queue="q", limit=1, dry_run=True) == 1
    assert await purge(queue="q") == 1
    assert await purge(queue="q") == 0
    assert [d.id for d in await store.dead_letters.list("r")] == kept
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(0,)]


# Lists and refusals


async def test_list_goes_by_pages(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    ids = await make_dead(store, "q", *range(7))
    page = await store.dead_letters.list("q", limit=3)
    pages = [[d.id for d in page]]
    while page:
        await store.dead_letters.purge(page[-1].id)  # what happens between two pages shifts nothing
        page = await store.dead_letters.list("q", limit=3, after=page[-1].id)
        pages.append([d.id for d in page])
    assert pages == [ids[:3], ids[3:6], ids[6:], []]


@sweep(
    ("call", "raises", "named"),
    [
        (lambda s: s.dead_letters.replay(), ValueError, "queue"),
        (lambda s: s.dead_letters.replay(reason="handler_failed"), ValueError, "queue"),
        (lambda s: s.dead_letters.purge(error="x", dry_run=True), ValueError, "queue"),
        (lambda s: s.dead_letters.archive(older_than=1), ValueError, "queue"),
        (lambda s: s.dead_letters.replay(queue="q'; --"), tocsin.QueueNotFound, "q'; --"),
        (lambda s: s.dead_letters.list("nothing"), tocsin.QueueNotFound, "nothing"),
        (lambda s: s.dead_letters.purge(queue="q", dry_run=True, typo=1), TypeError, "typo"),
        (lambda s: s.dead_letters.replay("1"), tocsin.QueueNotFound, "1"),
        (lambda s: s.dead_letters.replay(1, "q"), TypeError, "id"),
        (lambda s: s.dead_letters.replay(True), TypeError, "id"),
        (lambda s: s.dead_letters.purge(2**63), ValueError, "id"),
        (lambda s: s.dead_letters.get(2**63), ValueError, "message_id"),
        (lambda s: s.dead_letters.get(404), tocsin.MessageNotFound, "404"),
        (lambda s: s.dead_letters.list("q", limit=0), ValueError, "limit"),
        (lambda s: s.dead_letters.list("q", after="1"), TypeError, "after"),
        (lambda s: s.dead_letters.list("q", error="nul\0"), ValueError, "error"),
        (lambda s: s.dead_letters.replay(queue="q", reason="\0"), ValueError, "reason"),
        (lambda s: s.dead_letters.replay(queue="q", older_than=-1), ValueError, "older_than"),
        (lambda s: s.dead_letters.replay(queue="q", delay=-1), ValueError, "delay"),
        (
            lambda s: s.dead_letters.replay(queue="q", delay=timedelta(days=500_000)),
            ValueError,
            "delay",
        ),
    ],
    quick=2,
)
async def test_bad_arguments_name_themselves_and_change_nothing(
    store: tocsin.Store,
    call: Callable[[Any], Awaitable[object]],
    raises: type[Exception],
    named: str,
) -> None:
    await store.queues.ensure("q")
    ids = await make_dead(store, "q", 1)
    with pytest.raises(raises, match=named):
        await call(store)
    assert [d.id for d in await store.dead_letters.list("q")] == ids


async def test_the_longest_duration_means_long_ago(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await make_dead(store, "q", 1)
    assert await store.dead_letters.list("q", older_than=MAX_DURATION) == []
    with pytest.raises(ValueError, match="at most a thousand years"):
        await store.dead_letters.list("q", older_than=timedelta.max)


async def test_sql_refuses_the_same(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("q")
    with connect_blocking(store_dsn) as connection:
        for statement, code in (
            ("select tocsin.replay()", "TC022"),
            ("select tocsin.archive_dead_letters(error => 'x')", "TC022"),
            ("select tocsin.purge_dead_letters(dry_run => true)", "TC022"),
            ("select tocsin.purge_dead_letters()", "TC022"),
            ("select tocsin.replay(queue => 'q', delay => '-1 s')", "TC022"),
            ("select tocsin.replay(queue => 'q', older_than => '-1 s')", "TC022"),
            ("select tocsin.archive_dead_letters(queue => 'q', older_than => '-1 day')", "TC022"),
            ("select tocsin.purge_dead_letters(queue => 'q', older_than => '-1 day')", "TC022"),
            (
                (
                    "select tocsin.purge_dead_letters(queue => 'q', older_than => '-1 day', dry_run"
                    " => true)"
                ),
                "TC022",
            ),
            ("select tocsin.list_dead_letters('q', older_than => '-1 day')", "TC022"),
            ("select tocsin.replay(queue => 'nothing')", "TC001"),
            ("select tocsin.list_dead_letters('nothing')", "TC001"),
        ):
            with pytest.raises(psycopg.DatabaseError) as refused:
                connection.execute(statement.encode())
            assert refused.value.sqlstate == code, statement


async def test_cancelled_at_every_checkpoint_it_has_happened_or_not(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    everywhere = (
        "select id from tocsin.messages union all select id from tocsin.archive union all select id"
        " from tocsin.dead_letters"
    )
    (message_id,) = await make_dead(store, "q", 1)

    async def reset() -> None:
        assert await query(store_dsn, everywhere) == [(message_id,)]
        async with store.consumer("q") as consumer:
            await kill(consumer)

    await cancel_sweep(lambda: store.dead_letters.replay(message_id), reset)
    await cancel_sweep(lambda: store.dead_letters.list("q"), reset)
    await cancel_sweep(lambda: store.dead_letters.get(message_id), reset)
    await cancel_sweep(lambda: store.dead_letters.purge(queue="q", dry_run=True), reset)
    await cancel_sweep(lambda: store.dead_letters.archive(message_id), reset)


async def test_a_queue_stands_first_as_it_does_in_a_list(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.queues.ensure("other")
    first, second, third = await make_dead(store, "q", 1, 2, 3)
    (foreign,) = await make_dead(store, "other", 4)
    assert await store.dead_letters.replay("q", first, foreign) == [first]
    assert await store.dead_letters.archive("q", limit=1) == 1
    assert [d.id for d in await store.dead_letters.list("q")] == [third]
    assert await store.dead_letters.purge("q") == 1
    assert await store.dead_letters.replay("other") == [foreign]
    assert second not in [m.id for m in await store.messages.list("q")]


async def test_a_queue_is_named_once_and_an_id_is_a_number(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    with pytest.raises(TypeError, match="once"):
        await store.dead_letters.replay("q", queue="q")
    with pytest.raises(TypeError, match="id must be"):
        await store.dead_letters.replay(1, "q")
    with pytest.raises(ValueError, match="name a queue"):
        await store.dead_letters.purge()


async def test_always_fails_dead_letter_replay_runs_again(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks", max_deliveries=3, retry_base=0, retry_jitter=0)
    repaired = False

    async def handle(message: tocsin.Message) -> None:
        if not repaired:
            raise RuntimeError(f"attempt {message.read_ct}")

    async with store.consumer("tasks", name="a") as consumer, running(consumer, handle) as run:
        message_id = await store.produce("tasks", {"n": 1}, key="k")
        await run.settled(3, "failed")
        (letter,) = await store.dead_letters.list("tasks")
        assert (letter.id, letter.payload, letter.read_ct) == (message_id, {"n": 1}, 3)
        assert (letter.reason, letter.error) == ("handler_failed", "RuntimeError: attempt 3")
        assert letter.traceback is not None
        assert "raise RuntimeError" in letter.traceback
        assert [(d.delivery, d.worker, d.outcome, d.error) for d in letter.history] == [
            (n, "a", "handler_failed", f"RuntimeError: attempt {n}") for n in (1, 2, 3)
        ]
        await until_idle(store)
        repaired = True
        assert await store.dead_letters.replay(message_id) == [message_id]
        await run.handled.wait(4)
    assert [(m.id, m.read_ct) for m in run.handled.messages] == [
        (message_id, n) for n in (1, 2, 3, 1)
    ]
    message = await store.messages.get(message_id)
    assert (message.state, message.read_ct, message.history) == ("archived", 1, letter.history)
    assert await store.dead_letters.list("tasks") == []
