"""Workers that are killed while functions run in tasks, threads and processes."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest
import trio

import tocsin
from tests.support import query, until_query
from tests.support.child import run_script
from tests.support.children import run_jobs_anywhere

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    ("jobs", "kills"),
    [
        pytest.param(9, 2, marks=pytest.mark.slow),
        pytest.param(300, 60, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
async def test_each_attempt_under_kills_is_recorded_and_no_job_is_lost(
    store: tocsin.Store, store_dsn: str, jobs: int, kills: int
) -> None:
    dice = random.Random(4711)
    await store.queues.ensure("q")
    tasks = [run_jobs_anywhere.in_task, run_jobs_anywhere.in_thread, run_jobs_anywhere.in_process]
    submitted = [await tasks[n % 3].submit(store, n) for n in range(jobs)]
    began: Counter[int] = Counter()
    killed = 0

    async def kill_again_and_again() -> None:
        nonlocal killed
        while True:
            async with run_script("run_jobs_anywhere.py", store_dsn) as child:
                with suppress(trio.TooSlowError):  # the other worker may have all jobs
                    for _ in range(dice.randint(1, 8) if killed < kills else 10**6):
                        _, job_id, attempt = (await child.line()).split()
                        began[int(job_id)] = max(began[int(job_id)], int(attempt))
            killed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(kill_again_and_again)
        await until_query(
            store_dsn, "select 1 from tocsin.messages limit 1", gives=[], patience=800
        )
        nursery.cancel_scope.cancel()
    assert killed >= kills // 2
    assert [await job.result() for job in submitted] == [2 * n for n in range(jobs)]
    assert await store.dead_letters.list("q") == []
    for job in submitted:
        attempts = await job.attempts()
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        assert len(attempts) >= began[job.id], "an attempt that had begun is missing"
        assert [a.outcome for a in attempts[:-1]] == ["worker_died"] * (len(attempts) - 1)
        assert attempts[-1].outcome == "succeeded"
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(jobs,)]
