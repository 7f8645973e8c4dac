"""Arguments and results that are encoded, or kept elsewhere."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from contextlib import suppress
from typing import Any

import attrs
import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, query
from tests.support.jobs import working


class Zlib:
    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data)


@attrs.define
class Memory:
    kept: dict[str, bytes] = attrs.Factory(dict)
    threads: set[bool] = attrs.Factory(set)
    fails: bool = False

    def put(self, data: bytes) -> str:
        self._note()
        reference = f"n{len(self.kept)}"
        self.kept[reference] = data
        return reference

    def get(self, reference: str) -> bytes:
        self._note()
        return self.kept[reference]

    def _note(self) -> None:
        if self.fails:
            raise OSError("the store does not answer")
        self.threads.add(threading.current_thread() is threading.main_thread())


def make_task(**packing: Any) -> Any:
    @tocsin.task(name="packed", max_attempts=2, retry=0, packing=tocsin.Packing(**packing))
    def echo(value: Any) -> Any:
        return value

    return echo


async def stored(dsn: str, job: tocsin.Job[Any]) -> list[Any]:
    """What the database has of a finished job."""
    return list(
        *await query(dsn, "select payload, result from tocsin.archive where id = %s", job.id)
    )


async def test_a_codec_encodes_arguments_and_results(store: tocsin.Store, store_dsn: str) -> None:
    echo = make_task(codec=Zlib())
    async with working(store, echo):
        job = await echo.submit(store, "a" * 10_000)
        assert await job.result(timeout=PATIENCE) == "a" * 10_000
    arguments, result = await stored(store_dsn, job)
    for kept, value in (arguments, {"value": "a" * 10_000}), (result, "a" * 10_000):
        assert list(kept) == ["$packed"]
        assert json.loads(zlib.decompress(base64.b64decode(kept["$packed"]))) == value


async def test_a_store_keeps_what_is_large(store: tocsin.Store, store_dsn: str) -> None:
    memory = Memory()
    echo = make_task(payload_store=memory, store_above=20)
    async with working(store, echo):
        small = await echo.submit(store, 1)
        large = await echo.submit(store, "a" * 50)
        assert await small.result(timeout=PATIENCE) == 1
        assert await large.result(timeout=PATIENCE) == "a" * 50
    assert await stored(store_dsn, small) == [{"value": 1}, 1]
    assert await stored(store_dsn, large) == [{"$stored": "n0"}, {"$stored": "n1"}]
    assert memory.kept == {
        "n0": json.dumps({"value": "a" * 50}, separators=(",", ":")).encode(),
        "n1": json.dumps("a" * 50).encode(),
    }
    assert memory.threads == {False}  # trio's thread never waits for it


async def test_a_codec_and_a_store_go_together(store: tocsin.Store, store_dsn: str) -> None:
    memory = Memory()
    echo = make_task(codec=Zlib(), payload_store=memory, store_above=1)
    async with working(store, echo):
        jobs = await echo.submit_many(store, [echo.call(n) for n in range(2)])
        assert [await job.result(timeout=PATIENCE) for job in jobs] == [0, 1]
    assert json.loads(zlib.decompress(memory.kept["n0"])) == {"value": 0}


async def test_a_blocking_program_packs_and_unpacks(store: tocsin.Store, store_dsn: str) -> None:
    echo = make_task(codec=Zlib(), payload_store=Memory(), store_above=1)

    def program() -> Any:
        with psycopg.connect(store_dsn) as connection:
            job = echo.submit_blocking(connection, [1, 2])
            (twin,) = echo.submit_many_blocking(connection, [echo.call([3])])
            connection.commit()
            return job.result(timeout=PATIENCE) + twin.result(timeout=PATIENCE)

    async with working(store, echo):
        assert await trio.to_thread.run_sync(program) == [1, 2, 3]


async def test_a_job_that_is_done_in_a_transaction_keeps_a_packed_result(
    store: tocsin.Store, store_dsn: str
) -> None:
    @tocsin.task(name="finish", packing=tocsin.Packing(codec=Zlib()))
    async def finish() -> str:
        job = tocsin.current_job()
        async with job.transaction():
            await job.done("abc")
        return "abc"

    async with working(store, finish):
        job = await finish.submit(store)
        assert await job.result(timeout=PATIENCE) == "abc"
    assert list((await stored(store_dsn, job))[1]) == ["$packed"]


async def test_sql_may_give_plain_arguments(store: tocsin.Store, store_dsn: str) -> None:
    echo = make_task(codec=Zlib())
    async with working(store, echo):
        ((job_id,),) = await query(store_dsn, "select tocsin.submit('packed', '[5]')")
        assert await echo.job(store, job_id).result(timeout=PATIENCE) == 5


@pytest.mark.parametrize("value", [{"$stored": "n7"}, {"$packed": "x"}], ids=str)
async def test_a_value_that_looks_packed_comes_back(store: tocsin.Store, value: Any) -> None:
    echo = make_task(payload_store=Memory())
    async with working(store, echo):
        assert await (await echo.submit(store, value)).result(timeout=PATIENCE) == value


async def test_arguments_that_cannot_be_read_fail_the_attempt(store: tocsin.Store) -> None:
    memory = Memory()
    echo = make_task(payload_store=memory, store_above=1)
    await store.queues.ensure("default")
    job = await echo.submit(store, 1)
    memory.kept.clear()
    async with working(store, echo):
        with pytest.raises(tocsin.JobFailed, match="cannot be read: KeyError: 'n0'") as failed:
            await job.result(timeout=PATIENCE)
    assert failed.value.attempts == 2


async def test_a_result_that_cannot_be_read_is_an_error_of_the_wait(store: tocsin.Store) -> None:
    memory = Memory()
    echo = make_task(payload_store=memory, store_above=1)
    async with working(store, echo):
        job = await echo.submit(store, "abc")
        await job.result(timeout=PATIENCE)
    memory.fails = True
    with pytest.raises(tocsin.ValueUnreadable, match="the store does not answer") as unreadable:
        await job.result(timeout=PATIENCE)
    assert unreadable.value.task == "packed"
    assert unreadable.value.reason == "OSError: the store does not answer"
    with pytest.raises(OSError, match="the store does not answer"):
        await echo.submit(store, 1)  # nothing is submitted


async def test_a_result_that_cannot_be_kept_fails_the_attempt(store: tocsin.Store) -> None:
    memory = Memory()

    @tocsin.task(
        name="break",
        max_attempts=1,
        packing=tocsin.Packing(payload_store=memory, store_above=20),
    )
    def break_store() -> str:
        memory.fails = True
        return "a" * 50

    async with working(store, break_store):
        job = await break_store.submit(store)
        with pytest.raises(tocsin.JobFailed, match="OSError: the store does not answer"):
            await job.result(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ValueError, "a codec, a payload store or both"),
        ({"codec": zlib}, TypeError, "the methods encode and decode"),
        ({"payload_store": {}}, TypeError, "the methods put and get"),
        ({"codec": Zlib(), "store_above": 0}, ValueError, "store_above must be at least 1"),
    ],
    ids=["nothing", "codec", "store", "size"],
)
def test_a_packing_is_checked_where_it_is_made(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        tocsin.Packing(**options)


async def test_a_result_that_is_packed_too_late_fails_the_attempt(store: tocsin.Store) -> None:
    memory = Memory()

    @tocsin.task(
        name="late",
        timeout=0.01,
        max_attempts=1,
        packing=tocsin.Packing(payload_store=memory, store_above=1),
    )
    async def return_late() -> str:
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        return "late"

    async with working(store, return_late):
        job = await return_late.submit(store)
        with pytest.raises(tocsin.JobTimedOut):
            await job.result(timeout=PATIENCE)
