"""The progress that functions report: what is written of it, when, and for how long."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio

import tocsin
from tests.support import PATIENCE, query, since, statements, until_query
from tests.support.jobs import working
from tocsin._jobs.progress import MOST_TEXT, describe_progress

REPORTED = "select (progress ->> 'done')::int from tocsin.jobs where progress is not null"


async def test_every_reader_sees_what_an_async_function_has_reported(
    store: tocsin.Store, store_dsn: str
) -> None:
    go_on = trio.Event()

    @tocsin.task(name="copies")
    async def copy() -> None:
        tocsin.current_job().progress(3, 12, "copying é\0")
        await go_on.wait()

    async with working(store, copy):
        job = await copy.submit(store)
        await until_query(store_dsn, REPORTED, gives=[(3,)])
        progress = (await job.info()).progress
        assert progress is not None
        assert (progress.done, progress.total, progress.text) == (3, 12, "copying é\\0")
        assert progress.fraction == 0.25
        assert await job.progress() == progress
        (listed,) = await store.jobs.list(state="running")
        assert listed.progress == progress
        go_on.set()
        await job.result(timeout=PATIENCE)
        assert (await job.progress(), (await store.jobs.list())[0].progress) == (None, None)


async def test_a_function_in_a_thread_reports_and_is_cut_off_by_nothing(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of many reports is written, though most are not."""
    monkeypatch.setattr("tocsin._queue.consuming.progress.EVERY", 0.05)

    @tocsin.task(name="counts")
    def count() -> None:
        for number in range(10_000):
            tocsin.current_job().progress(number)
        trio.from_thread.run(trio.sleep_forever)

    async with working(store, count):
        job = await count.submit(store)
        await until_query(store_dsn, REPORTED, gives=[(9_999,)])
        await job.cancel()
        with pytest.raises(tocsin.JobCancelled):
            await job.result(timeout=PATIENCE)


async def test_many_reports_of_many_jobs_share_a_few_statements(dsn_of_quiet_store: str) -> None:
    ended = 0

    @tocsin.task(name="reports")
    async def report() -> None:
        nonlocal ended
        for number in range(1000):
            tocsin.current_job().progress(number, 1000)
            await trio.lowlevel.checkpoint()
        ended += 1

    async with tocsin.connect(dsn_of_quiet_store) as store:
        await store.queues.ensure("default")
        jobs = [await report.submit(store) for _ in range(10)]
        before = await statements(dsn_of_quiet_store)
        began = trio.current_time()
        async with working(store, report, concurrency=10):
            for job in jobs:
                await job.result(timeout=PATIENCE)
        seconds = trio.current_time() - began
        sent = since(before, await statements(dsn_of_quiet_store))
    assert ended == 10
    # each job is written once, and then once a second
    assert 0 < sum(n for text, n in sent.items() if ".extend(" in text) <= 10 * (1 + seconds)


async def test_an_attempt_without_the_lease_writes_nothing(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._queue.consuming.progress.EVERY", 0.05)
    go_on = trio.Event()
    begun: list[int] = []

    @tocsin.task(name="loses")
    async def lose() -> None:
        if not begun:
            begun.append(1)
            tocsin.current_job().progress(1)
            try:
                await go_on.wait()
            finally:
                tocsin.current_job().progress(2)
        await trio.sleep_forever()

    async with working(store, lose):
        job = await lose.submit(store)
        await until_query(store_dsn, REPORTED, gives=[(1,)])
        ((worker, lease),) = await query(
            store_dsn, "select consumer_worker_id, lease from tocsin.messages"
        )
        await query(store_dsn, f"select tocsin.release_messages({worker})")
        await until_query(
            store_dsn,
            f"select state::text from tocsin.messages where lease > {lease}",
            gives=[("leased",)],
        )
        assert await job.progress() is None
        assert await query(store_dsn, "select progress ->> 'done' from tocsin.messages") == [("1",)]
        await job.cancel()
        with pytest.raises(tocsin.JobCancelled):
            await job.result(timeout=PATIENCE)


@tocsin.task(runs="process", max_attempts=1)
def report_in_process() -> None:
    tocsin.current_job().progress(1)


@pytest.mark.slow
async def test_a_function_in_another_process_cannot_report(store: tocsin.Store) -> None:
    async with working(store, report_in_process):
        job = await report_in_process.submit(store)
        with pytest.raises(tocsin.JobFailed, match="cannot report progress"):
            await job.result(timeout=PATIENCE)


async def test_a_text_that_the_database_cannot_hold_costs_no_lease(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tocsin._jobs.progress.json.dumps", lambda _: r'{"done": 1, "text": "\u0000"}'
    )
    go_on = trio.Event()

    @tocsin.task(name="speaks")
    async def speak() -> str:
        tocsin.current_job().progress(1)
        await go_on.wait()
        return "done"

    async with working(store, speak):
        job = await speak.submit(store)
        await until_query(
            store_dsn, "select vt > dequeued_at + '30 s' from tocsin.messages", gives=[(True,)]
        )
        assert await job.progress() is None
        go_on.set()
        assert await job.result(timeout=PATIENCE) == "done"


@pytest.mark.parametrize(
    ("report", "error"),
    [
        ((True,), TypeError),
        (("1",), TypeError),
        ((-1,), ValueError),
        ((math.nan,), ValueError),
        ((math.inf,), ValueError),
        ((1, -1), ValueError),
        ((1, 2, b"x"), TypeError),
    ],
)
def test_a_wrong_report_is_refused(report: Any, error: type[Exception]) -> None:
    padded = (*report, None, None)[:3]
    with pytest.raises(error, match="must be"):
        describe_progress(*padded)


def test_a_report_keeps_the_beginning_of_its_text() -> None:
    assert describe_progress(0, 0, "x" * 2000)["text"] == "x" * MOST_TEXT
    assert tocsin.Progress(1, 0, None, None).fraction is None  # type: ignore[arg-type]
    assert tocsin.Progress(3, 2, None, None).fraction == 1  # type: ignore[arg-type]
