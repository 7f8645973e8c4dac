"""Limits of tasks: their keys, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import tocsin
from tests.support import query
from tests.support.jobs import working

from . import tasks


async def limits_of(dsn: str) -> list[Any]:
    rows = await query(dsn, "select options -> 'limits' from tocsin.messages order by id")
    return [sorted((limit["name"], limit.get("key")) for limit in row[0]) for row in rows]


async def test_the_key_of_a_limit_is_an_argument_or_computed(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    await tasks.fetch.submit(store, "a.example")
    await tasks.fetch.submit(store, page=2, host="b.example")
    await tasks.bill.submit(store, tasks.Order(7))
    assert await limits_of(store_dsn) == [
        [("host", "a.example"), ("smtp", None)],
        [("host", "b.example"), ("smtp", None)],
        [("customer", "7")],
    ]


async def test_a_job_from_sql_has_the_same_limits(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    async with store.worker([tasks.fetch, tasks.bill]):
        for arguments in '["a.example"]', '{"host": "a.example"}':
            await query(store_dsn, f"select tocsin.submit('tests.jobs.tasks.fetch', '{arguments}')")
        with pytest.raises(Exception, match='the key of limit "customer" is computed'):
            await query(
                store_dsn, """select tocsin.submit('tests.jobs.tasks.bill', '[{"id": 1}]')"""
            )
    assert await limits_of(store_dsn) == [[("host", "a.example"), ("smtp", None)]] * 2


async def test_jobs_with_limits_run_to_their_end(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    jobs = [await tasks.fetch.submit(store, "abc"[n % 3], n) for n in range(12)]
    async with working(store, tasks.fetch, concurrency=8):
        with trio.fail_after(30):
            assert [await job.result() for job in jobs] == list(range(12))
    assert await query(store_dsn, "select * from tocsin.slots") == []


async def test_an_operator_changes_a_limit_while_jobs_wait(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    async with store.worker([tasks.fetch]):
        assert [(line.name, line.key) for line in await store.limits.list()] == [
            ("host", None),
            ("smtp", None),
        ]
        for host in "abcde":
            await tasks.fetch.submit(store, host)
    async with store.consumer("default") as consumer:
        assert len(await consumer.dequeue(9)) == 2
        await store.limits.set("smtp", 4)
        assert len(await consumer.dequeue(9)) == 2
        (line,) = await store.limits.list("smtp")
        assert line == tocsin.LimitInfo("smtp", None, 4, None, False, holders=4, waiting=1)
        assert sorted((x.key, x.holders) for x in await store.limits.list("host")) == [
            ("a", 1),
            ("b", 1),
            ("c", 1),
            ("d", 1),
            ("e", 0),
        ]
        await store.limits.set("smtp", None)
        assert [line.n for line in await store.limits.list("smtp")] == [2]


async def test_what_is_wrong_with_the_number_of_a_limit(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    async with store.worker([tasks.fetch, tasks.bill]):
        with pytest.raises(ValueError, match="n must be at least 1"):
            await store.limits.set("smtp", 0)
        with pytest.raises(ValueError, match="an ordered limit has n = 1"):
            await store.limits.set("customer", 2)
        with pytest.raises(tocsin.LimitNotFound, match="there is no limit 'other'") as missing:
            await store.limits.set("other", 1)
        assert missing.value.limit == "other"
        with pytest.raises(tocsin.LimitNotFound):
            await store.limits.list("other")


@pytest.mark.parametrize(
    ("limits", "error", "said"),
    [
        (lambda: [tocsin.Limit("smtp", 0)], ValueError, "n must be at least 1"),
        (lambda: [tocsin.Limit("", 1)], ValueError, "name of a limit must have between"),
        (lambda: [tocsin.Limit("smtp", 2, ordered=True)], ValueError, "n must be 1"),
        (lambda: [tocsin.Limit("smtp", key=7)], TypeError, "key must be the name"),  # type: ignore[arg-type]
        (lambda: [tocsin.Limit("smtp", key="user")], TypeError, "'user', which is no parameter"),
        (lambda: [tocsin.Rate("api", 1, per=0)], ValueError, "per must be greater than 0"),
        (lambda: [tocsin.Rate("api", 1, 1, burst=0)], ValueError, "burst must be at least 1"),
        (lambda: [tocsin.Limit("a"), tocsin.Rate("a", 1, 1)], ValueError, "two limits have"),
        (lambda: ["smtp"], TypeError, "must be a Limit or a Rate, not str"),
        (lambda: tocsin.Limit("smtp"), TypeError, "must be a list"),
    ],
)
def test_bad_limits_are_refused_where_the_task_is_defined(
    limits: Any, error: type[Exception], said: str
) -> None:
    def send(host: str) -> None:
        del host

    with pytest.raises(error, match=said):
        tocsin.task(name="send", limits=limits())(send)


async def test_a_name_is_a_limit_or_a_rate(store: tocsin.Store) -> None:
    @tocsin.task(name="a", limits=[tocsin.Limit("x")])
    def first() -> None:
        pass

    @tocsin.task(name="b", limits=[tocsin.Rate("x", 1, 1)])
    def second() -> None:
        pass

    said = 'limit "x" is neither a rate nor ordered'
    await store.queues.ensure("default")
    with pytest.raises(ValueError, match='limit "x" is of two kinds'):
        async with store.worker([first, second]):
            pass
    async with store.worker([first]):
        with pytest.raises(ValueError, match=said):
            await second.submit(store)
        with pytest.raises(ValueError, match=said):
            async with store.worker([second]):
                pass
