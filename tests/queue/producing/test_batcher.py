"""The batcher: concurrent calls share statements, and only the speed shows it."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, query, until
from tests.support.cancel_sweep import cancel_sweep
from tests.support.enqueue_calls import Calls, closed_gate

PAYLOADS = "select payload from tocsin.messages order by id"
WAITING = "enqueue"
SHARED = "enqueue_each"


# Sharing


async def test_a_lone_call_goes_at_once_and_those_that_come_during_it_share_a_statement(
    dsn_of_quiet_store: str,
) -> None:
    async with tocsin.connect(dsn_of_quiet_store) as store:
        await store.queues.ensure("q")
        async with closed_gate(dsn_of_quiet_store) as gate, trio.open_nursery() as nursery:
            calls = Calls(nursery)
            await calls.produce(store, *range(50))
            await gate.wait_for(WAITING)
            gate.open()
            ids = await calls.wait_for(*range(50))
        assert ids == sorted(ids)  # type: ignore[type-var]
        assert await query(dsn_of_quiet_store, PAYLOADS) == [(n,) for n in range(50)]
        statements = await query(
            dsn_of_quiet_store,
            "select calls::int from pg_stat_statements where query like 'select%.enqueue%' and"
            " toplevel and dbid = (select oid from pg_database where datname = current_database())"
            " order by query",
        )
        assert statements == [(1,), (1,)]


async def test_ten_loops_each_get_the_ids_of_their_own_messages(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    got: dict[int, str] = {}

    async def loop(name: int) -> None:
        ids = []
        for n in range(50):
            ids.append(await producer.enqueue(f"{name}-{n}"))
            got[ids[-1]] = f"{name}-{n}"
        assert ids == sorted(ids)

    async with store.producer("q") as producer, trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(loop, name)
    assert dict(await query(store_dsn, "select id, payload from tocsin.messages")) == got
    assert len(got) == 500
    assert not store._batcher._busy


async def test_options_mean_the_same_alone_and_together(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    options: list[dict[str, Any]] = [
        {"delay": 1.5},
        {"delay": 90000.000001, "priority": -3},
        {"at": datetime(2040, 5, 6, 7, 8, 9, 10, tzinfo=UTC), "headers": {"a": ['"\\ü😀', None]}},
        {"expires_in": 7200, "max_deliveries": 2},
        {},
    ]
    payloads = ['quoted " \\ \x7f', None, [1.0, 1e22, {"ü": "😀"}], {"payload": 1}, 0]
    columns = (
        "select payload, priority, state::text, headers, max_deliveries, producer_worker_id, due -"
        " enqueued_at between '0' and '10 d', case when due < '2040-01-01' then due - enqueued_at"
        " else due - '2040-01-01' end, expires_at - enqueued_at, vt = due from tocsin.messages"
        " where payload <> '\"gate\"' order by id"
    )
    async with store.producer("q") as producer:
        for payload, chosen in zip(payloads, options, strict=True):
            await producer.enqueue(payload, **chosen)
        alone = await query(store_dsn, columns)
        await query(store_dsn, "truncate tocsin.messages")
        async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
            calls = Calls(nursery)
            await calls.produce(store, "gate")
            for n, (payload, chosen) in enumerate(zip(payloads, options, strict=True)):
                await calls.call(n, partial(producer.enqueue, payload, **chosen))
            gate.open()
        assert await query(store_dsn, columns) == alone
        assert len(alone) == 5


# Errors


async def test_a_refused_message_fails_its_own_caller_only(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_payload=10)
    async with store.producer("q") as good, store.producer("q") as suspended:
        await suspended.suspend()
        async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
            calls = Calls(nursery)
            await calls.produce(store, "gate", "a", "x" * 10)
            await calls.call("suspended", lambda: suspended.enqueue("no"))
            await calls.call("good", lambda: good.enqueue("good"))
            await calls.produce(store, "b")
            gate.open()
            large, refused, *ids = await calls.wait_for(
                "x" * 10, "suspended", "gate", "a", "good", "b"
            )
    assert isinstance(large, tocsin.PayloadTooLarge)
    assert (large.actual, large.maximum, large.index) == (12, 10, None)
    assert isinstance(refused, tocsin.StateTransitionError)
    assert ids == sorted(ids)  # type: ignore[type-var]
    assert await query(store_dsn, PAYLOADS) == [("gate",), ("a",), ("good",), ("b",)]


async def test_a_statement_that_fails_as_a_whole_fails_only_those_it_is_about(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    await query(store_dsn, "alter table tocsin.messages add check (payload <> '\"bad\"')")
    async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
        calls = Calls(nursery)
        await calls.produce(store, "gate", "a", "bad", "b", "c")
        gate.open()
        bad, *ids = await calls.wait_for("bad", "a", "b", "c")
    assert isinstance(bad, psycopg.errors.CheckViolation)
    assert ids == sorted(ids)  # type: ignore[type-var]
    assert await query(store_dsn, PAYLOADS) == [("gate",), ("a",), ("b",), ("c",)]


async def test_an_unknown_queue_is_told_to_each(store: tocsin.Store) -> None:
    errors = []

    async def produce() -> None:
        with pytest.raises(tocsin.QueueNotFound) as refused:
            await store.produce("nothing", 1)
        errors.append(refused.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(produce)
    assert len(set(map(id, errors))) == 5


async def test_a_lost_connection_is_told_to_all_and_nothing_is_sent_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
        calls = Calls(nursery)
        await calls.produce(store, "own", "a", "b", "c")
        await gate.kill(WAITING)
        (own,) = await calls.wait_for("own")
        assert isinstance(own, tocsin.ConnectionLost)
        assert calls.results.keys() == {"own"}
        await gate.kill(SHARED)
        lost = await calls.wait_for("a", "b", "c")
        assert all(isinstance(error, tocsin.ConnectionLost) for error in lost)
        assert len(set(map(id, lost))) == 3
        gate.open()
        await calls.produce(store, "after")
        await calls.wait_for("after")
    assert await query(store_dsn, PAYLOADS) == [("after",)]


# Cancellation


async def test_a_caller_cancelled_while_waiting_is_taken_out(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
        calls = Calls(nursery)
        await calls.produce(store, "own", "a", "b", "c")
        calls.scopes["b"].cancel()
        gate.open()
        await calls.wait_for("own", "a", "c")
    assert "b" not in calls.results
    assert await query(store_dsn, PAYLOADS) == [("own",), ("a",), ("c",)]


async def test_a_caller_cancelled_while_its_statement_is_under_way_disturbs_no_other_call(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with closed_gate(store_dsn) as gate, trio.open_nursery() as nursery:
        calls = Calls(nursery)
        await calls.produce(store, "own", "a", "b")
        calls.scopes["own"].cancel()  # its own statement; the other calls go on
        await gate.wait_for(SHARED)
        calls.scopes["a"].cancel()  # a shared one, which goes on too
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
        await calls.wait_for("b")
    assert calls.results.keys() == {"b"}
    assert await query(store_dsn, PAYLOADS) == [("a",), ("b",)]


async def test_cancelled_at_every_checkpoint_in_company(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")

    async def enqueue_some() -> None:
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(store.produce, "q", n)

    async def check() -> None:
        await until(lambda: not (store._batcher._busy or store.statistics().pool.in_use))

    assert await cancel_sweep(enqueue_some, check)
    count = len(await query(store_dsn, PAYLOADS))
    await enqueue_some()
    assert len(await query(store_dsn, PAYLOADS)) == count + 5


# What never shares


async def test_a_call_that_waits_for_a_key_lets_the_other_calls_pass(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with trio.open_nursery() as nursery:
        async with store.transaction() as connection:
            first = await store.produce("q", "first", key="k", connection=connection)
            calls = Calls(nursery)
            await calls.produce(store, "second", key="k")
            with trio.fail_after(PATIENCE):
                await store.produce("q", "other")
                await store.produce("q", "other key", key="l")
                assert calls.results == {}
        assert await calls.wait_for("second") == [first]
    assert await query(store_dsn, PAYLOADS) == [("first",), ("other",), ("other key",)]


# The end


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_store_that_is_closed_tells_calls_that_wait(
    store_dsn: str, interrupted: bool
) -> None:
    async with trio.open_nursery() as nursery, closed_gate(store_dsn) as gate:
        with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
            async with tocsin.connect(store_dsn) as store:
                await store.queues.ensure("q")
                calls = Calls(nursery)
                await calls.produce(store, "own", "a", "b")
                calls.scopes["own"].cancel()
                await gate.wait_for(SHARED)
                await calls.produce(store, "c", "d")
                if interrupted:
                    raise KeyboardInterrupt
        under_way = await calls.wait_for("a", "b")
        waiting = await calls.wait_for("c", "d")
        assert all(
            isinstance(e, tocsin.TocsinError) and "enqueued or not" in str(e) for e in under_way
        )
        assert all(isinstance(e, tocsin.TocsinError) and "not enqueued" in str(e) for e in waiting)
        assert not store._batcher._busy


async def test_a_store_that_is_closed_during_the_first_statement(store_dsn: str) -> None:
    async with trio.open_nursery() as nursery, closed_gate(store_dsn) as gate:
        async with tocsin.connect(store_dsn) as store:
            await store.queues.ensure("q")
            await store._database.contract.check()
            calls = Calls(nursery)
            await calls.produce(store, "own", "a")
        gate.open()
        own, waiting = await calls.wait_for("own", "a")
        assert isinstance(own, int)
        assert isinstance(waiting, tocsin.TocsinError)
        assert "not enqueued" in str(waiting)
    assert await query(store_dsn, PAYLOADS) == [("own",)]
