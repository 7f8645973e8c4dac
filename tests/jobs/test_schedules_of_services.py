"""Schedules of services that start, stop and are deployed."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

import tocsin
from tests.support import move_clock, query, until_query
from tests.support.jobs import working

from . import tasks

DAY = 24 * 3600
JOBS = "select count(*) from tocsin.archive"
TICKS = "select (options ->> 'tick')::timestamptz from tocsin.archive order by 1"


@pytest.fixture(autouse=True)
def queues(store_dsn: str) -> None:
    with psycopg.connect(store_dsn) as connection:
        connection.execute("select tocsin.create_queue('default'), tocsin.create_queue('other')")


async def move_to(dsn: str, moment: datetime) -> None:
    """Move the server's clock to a moment, and wake the workers."""
    await move_clock(dsn, (moment - datetime.now(UTC)).total_seconds())


@pytest.mark.slow
async def test_a_service_that_restarts_each_day_runs_its_weekly_job(store_dsn: str) -> None:
    """Each start sets the schedule again, which does not move its next tick."""
    ticks = set[datetime | None]()
    for day in range(8):
        await move_clock(store_dsn, day * DAY)
        async with tocsin.connect(store_dsn) as store, working(store, tasks.nothing):
            changed = await store.schedules.set("weekly", tasks.nothing.call(), every=7 * DAY)
            assert changed == (day == 0)
            if day < 7:
                ticks.add((await store.schedules.get("weekly")).next_tick)
                assert await query(store_dsn, JOBS) == [(0,)]
            else:
                await until_query(store_dsn, JOBS, gives=[(1,)])
    assert len(ticks) == 1


async def test_a_deployment_neither_misses_nor_doubles_a_tick(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Each tick is due while no worker runs, and the next version handles it."""
    await store.schedules.set("s", tasks.nothing.call(), cron="* * * * *", missed="skip")
    ticks = await store.schedules.next_ticks("s", 3)
    for number, tick in enumerate(ticks, 1):
        await move_to(store_dsn, tick)
        async with tocsin.connect(store_dsn) as version, working(version, tasks.nothing):
            assert not await version.schedules.set(
                "s", tasks.nothing.call(), cron="* * * * *", missed="skip"
            )
            await until_query(store_dsn, JOBS, gives=[(number,)])
    assert await query(store_dsn, TICKS) == [(tick,) for tick in ticks]


async def test_each_of_two_services_has_its_own_schedules(
    store: tocsin.Store, store_dsn: str
) -> None:
    """No worker is the leader of all schedules, so one service does not need to know
    the tasks of the other one."""
    await store.schedules.set("here", tasks.nothing.call(), cron="* * * * *")
    await store.schedules.set("there", tasks.elsewhere.call(1), cron="* * * * *")
    (tick,) = await store.schedules.next_ticks("here", 1)
    await move_to(store_dsn, tick)
    async with working(store, tasks.nothing):
        await until_query(store_dsn, JOBS, gives=[(1,)])
        assert (await store.schedules.get("there")).last_tick is None
        async with tocsin.connect(store_dsn) as other, working(other, tasks.elsewhere):
            await until_query(store_dsn, JOBS, gives=[(2,)])
    for name in "here", "there":
        assert (await store.schedules.get(name)).last_tick == tick
