"""Schedules: each tick submits one job, whatever workers, clocks and rows do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    move_clock,
    open_connection,
    query,
    since,
    statements,
    until,
    until_blocked,
    until_query,
    until_true,
)
from tests.support.jobs import working
from tests.support.sweeps import sweep

from . import tasks

HOUR = 3600
TICK_MESSAGES = "select state::text, due from tocsin.messages where task = '$tick'"
JOBS = (
    "select count(*) from (select from tocsin.messages where task <> '$tick'"
    " union all select from tocsin.archive) x"
)


@pytest.fixture(autouse=True)
def queue(store_dsn: str) -> None:
    with psycopg.connect(store_dsn) as connection:
        connection.execute("select tocsin.create_queue('default')")


async def ticks_of_jobs(dsn: str) -> list[datetime]:
    """For which ticks there are jobs, finished or not."""
    rows = await query(
        dsn,
        "select (options ->> 'tick')::timestamptz from tocsin.messages where options ? 'tick' union"
        " all select (options ->> 'tick')::timestamptz from tocsin.archive where options ? 'tick'"
        " order by 1",
    )
    return [tick for (tick,) in rows]


async def until_jobs(dsn: str, number: int) -> None:
    await until_query(dsn, JOBS, gives=[(number,)])


async def move_to(dsn: str, moment: datetime) -> None:
    """Move the server's clock to a moment, and wake the workers."""
    await move_clock(dsn, (moment - datetime.now(UTC)).total_seconds())


async def make_due(dsn: str) -> None:
    """Have the tick message be due now, as if the schedule had been made long ago."""
    await query(
        dsn,
        "update tocsin.messages set due = tocsin._clock(), vt = tocsin._clock(), payload = payload"
        " || jsonb_build_object('handled_to', tocsin._clock() - interval '90 minutes') where task ="
        " '$tick'",
    )
    await query(dsn, "update tocsin.schedules set handled_to = now() - interval '90 minutes'")
    await query(dsn, "select tocsin._ring(id) from tocsin.queues")


@asynccontextmanager
async def other_worker(dsn: str, *some: tocsin.Task[..., Any]) -> AsyncIterator[None]:
    async with tocsin.connect(dsn) as store, working(store, *some):
        yield


# Set


async def test_a_schedule_has_one_message_at_its_next_tick(
    store: tocsin.Store, store_dsn: str
) -> None:
    assert await store.schedules.set(
        "nightly", tasks.double.call(21), cron="0 3 * * *", zone="Europe/Vienna"
    )
    schedule = await store.schedules.get("nightly")
    assert await query(store_dsn, TICK_MESSAGES) == [("delayed", schedule.next_tick)]
    (first, second) = await store.schedules.next_ticks("nightly", 2)
    assert first == schedule.next_tick
    assert (first.hour, first.minute, second.date()) == (3, 0, first.date() + timedelta(days=1))
    assert (schedule.task, schedule.arguments) == (tasks.double.name, {"number": 21})


async def test_setting_the_same_again_changes_nothing(store: tocsin.Store, store_dsn: str) -> None:
    async def set_it(**options: Any) -> bool:
        given: dict[str, Any] = {"every": HOUR, "timeout": 5, "headers": {"a": 1}, **options}
        return await store.schedules.set("hourly", tasks.double.call(1), **given)

    assert await set_it()
    rows = "select * from tocsin.schedules", "select * from tocsin.messages"
    before = [await query(store_dsn, row) for row in rows]
    assert not await set_it()
    assert [await query(store_dsn, row) for row in rows] == before
    assert await set_it(timeout=6)
    assert await query(store_dsn, "select count(*), max(due) from tocsin.messages") == [
        (1, (await store.schedules.get("hourly")).next_tick)
    ]


async def test_many_processes_set_the_same_schedule(store: tocsin.Store, store_dsn: str) -> None:
    changed: list[bool] = []

    async def set_it() -> None:
        changed.append(await store.schedules.set("s", tasks.double.call(1), cron="@daily"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(set_it)
    assert sorted(changed) == [False] * 9 + [True]
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(1,)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cron": "0 25 * * *"}, "cron.hour"),
        ({"cron": "@daily", "zone": "Europe/Atlantis"}, "zone"),
        ({"every": 0}, "every"),
        ({"every": -1}, "every"),
    ],
)
async def test_an_invalid_schedule_is_refused(
    store: tocsin.Store, store_dsn: str, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(tocsin.ScheduleInvalid) as refused:
        await store.schedules.set("s", tasks.double.call(1), **options)
    assert refused.value.field == field
    assert await query(store_dsn, "select from tocsin.schedules") == []


async def test_an_unknown_task_is_refused(store: tocsin.Store) -> None:
    with pytest.raises(tocsin.TaskUnknown):
        await store.schedules.set("s", "no.such.task", cron="@daily")


async def test_other_wrong_values_are_refused(store: tocsin.Store) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"cron": "@daily", "every": 5},
        {"cron": "@daily", "start": datetime.now(UTC)},
        {"every": 5, "start": datetime(2026, 1, 1)},
        {"cron": "@daily", "missed": "twice"},
        {"cron": "@daily", "overlap": "queue"},
        {"cron": "@daily", "max_attempts": 0},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            await store.schedules.set("s", tasks.double.call(1), **options)
    with pytest.raises(TypeError, match="no option key"):
        await store.schedules.set("s", tasks.double.using(key="k").call(1), cron="@daily")
    with pytest.raises(tocsin.QueueNotFound):
        await store.schedules.set("s", tasks.double.call(1), cron="@daily", queue="missing")
    assert await store.schedules.list() == []


@sweep("argument", ["start", "since", "next_tick"], quick=1)
@sweep("time", ["infinity", "0001-01-01 UTC", "20000-01-01 UTC"], quick=1)
async def test_a_time_that_no_client_reads_is_refused(
    store_dsn: str, argument: str, time: str
) -> None:
    definition = {"name": "t", "queue": "default", "max_deliveries": 3, "priority": 0}
    definition |= {"description": ""}
    await query(store_dsn, "select tocsin.register_tasks(%s::jsonb)", json.dumps([definition]))
    with pytest.raises(psycopg.Error, match=f"{argument} must be within the years"):
        await query(
            store_dsn,
            f"select tocsin.set_schedule('s', 't', every => '1 hour', {argument} => %s)",
            time,
        )
    await query(store_dsn, "select tocsin.set_schedule('s', 't', every => '1 hour')")
    if argument != "start":
        await query(store_dsn, "select tocsin.pause_schedule('s')")
        with pytest.raises(psycopg.Error, match=f"{argument} must be within the years"):
            await query(store_dsn, f"select tocsin.resume_schedule('s', {argument} => %s)", time)


async def test_ticks_end_with_the_calendar(store: tocsin.Store) -> None:
    await store.schedules.set("rare", tasks.nothing.call(), every=timedelta(days=900 * 365))
    ticks = await store.schedules.next_ticks("rare", 20)
    assert 2 < len(ticks) < 20
    assert ticks[-1].year > 9000


async def test_the_message_of_a_tick_is_no_job(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    assert await store.jobs.list() == []
    assert await store.jobs.stats() == []
    assert await query(store_dsn, "select from tocsin.jobs") == []


async def test_a_tick_that_is_restored_is_of_the_schedule_as_it_is(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await store.queues.purge("default", ready=True, delayed=True)
    async with open_connection(store_dsn) as maintenance:
        await maintenance.execute("begin")
        await maintenance.execute("select tocsin._restore_ticks()")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(store.schedules.set, "s", tasks.nothing.call(), every=2 * HOUR)
            )
            await until_blocked(store_dsn, "set_schedule")
            await maintenance.commit()
    same = await query(
        store_dsn,
        "select s.generation = (m.payload ->> 'generation')::bigint from tocsin.schedules s join"
        " tocsin.messages m on m.task = '$tick'",
    )
    assert same == [(True,)]


async def test_a_schedule_is_not_found(store: tocsin.Store) -> None:
    schedules = store.schedules
    for call in (
        schedules.get,
        schedules.pause,
        schedules.resume,
        schedules.run_now,
        schedules.delete,
        schedules.next_ticks,
    ):
        with pytest.raises(tocsin.ScheduleNotFound, match="nothing"):
            await call("nothing")


def test_the_task_of_ticks_is_reserved() -> None:
    with pytest.raises(ValueError, match="the task of schedules"):

        @tocsin.task(name="$tick")
        def tick() -> None: ...


async def test_only_schedules_enqueue_ticks(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.double.call(1), cron="@daily")
    ((message,),) = await query(store_dsn, "select id from tocsin.messages")
    with pytest.raises(ValueError, match="next tick of schedule"):
        await store.messages.cancel(message)
    with pytest.raises(Exception, match="only schedules enqueue"):
        await query(store_dsn, "select tocsin.enqueue('default', '1', task => '$tick')")


# Tick


async def test_a_tick_submits_a_job_and_the_next_tick(store: tocsin.Store, store_dsn: str) -> None:
    seen: list[tuple[int, datetime | None]] = []

    @tocsin.task(name="note")
    async def note(number: int) -> None:
        await trio.lowlevel.checkpoint()
        seen.append((number, tocsin.current_job().tick))

    await store.schedules.set("nightly", note.call(5), cron="0 3 * * *", zone="Europe/Vienna")
    ticks = await store.schedules.next_ticks("nightly", 3)
    async with working(store, note):
        for n, tick in enumerate(ticks, 1):
            await move_to(store_dsn, tick)
            await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(n,)])
    assert seen == [(5, tick) for tick in ticks]
    schedule = await store.schedules.get("nightly")
    assert schedule.last_tick == ticks[-1]
    assert schedule.last_job_id is not None
    assert (await store.jobs.get(schedule.last_job_id)).state == "succeeded"
    assert await query(store_dsn, TICK_MESSAGES) == [("delayed", schedule.next_tick)]


async def test_a_tick_wakes_a_worker_when_it_is_due(store: tocsin.Store) -> None:
    ran = trio.Event()

    @tocsin.task(name="ring")
    async def ring() -> None:
        await trio.lowlevel.checkpoint()
        ran.set()

    async with working(store, ring):
        await store.schedules.set("soon", ring.call(), every=0.2)
        with trio.fail_after(PATIENCE):
            await ran.wait()


async def test_a_job_is_as_the_schedule_or_else_the_task_says(
    store: tocsin.Store, store_dsn: str
) -> None:
    @tocsin.task(name="t", max_attempts=7, priority=3)
    async def task() -> None: ...

    await store.schedules.set("as the task", task.call(), cron="@daily")
    await store.schedules.set(
        "as chosen", task.call(), cron="@daily", priority=-1, max_attempts=2, timeout=9, headers=[1]
    )
    for name in ("as the task", "as chosen"):
        await store.schedules.run_now(name)
    assert await query(
        store_dsn,
        "select priority, max_deliveries, options -> 'timeout', headers from tocsin.messages"
        " where task = 't' order by id",
    ) == [(3, 7, None, None), (-1, 2, 9, [1])]


async def test_a_schedule_of_sql_ticks(store: tocsin.Store, store_dsn: str) -> None:
    async with working(store, tasks.double):
        await query(
            store_dsn,
            "select tocsin.set_schedule('s', %s, '[2]', cron => '@hourly', zone =>"
            " 'Europe/Vienna')",
            tasks.double.name,
        )
        await until_true(store_dsn, "(select next_tick is not null from tocsin.schedules)")
        schedule = await store.schedules.get("s")
        assert schedule.next_tick == (await store.schedules.next_ticks("s", 1))[0]
        assert schedule.next_tick is not None
        await move_to(store_dsn, schedule.next_tick)
        await until_jobs(store_dsn, 1)


# Workers


async def test_two_workers_submit_each_tick_once(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), cron="* * * * *")
    ticks = await store.schedules.next_ticks("s", 5)
    async with working(store, tasks.nothing), other_worker(store_dsn, tasks.nothing):
        for n, tick in enumerate(ticks, 1):
            await move_to(store_dsn, tick)
            await until_jobs(store_dsn, n)
    assert await ticks_of_jobs(store_dsn) == ticks


async def test_a_worker_that_has_lost_its_lease_submits_nothing(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with store.consumer("default") as late, store.consumer("default") as heir:
        (first,) = await late.dequeue(1)
        await query(store_dsn, "update tocsin.messages set vt = tocsin._clock()")
        (second,) = await heir.dequeue(1)
        assert first.id == second.id
        tick = "select tocsin.tick(%s, %s, array[tocsin._clock()], now() + interval '1 hour')"
        assert await query(store_dsn, tick, first.id, first.lease_token) == [(False,)]
        await until_jobs(store_dsn, 0)
        assert await query(store_dsn, tick, second.id, second.lease_token) == [(True,)]
        assert await query(store_dsn, tick, second.id, second.lease_token) == [(False,)]
        await until_jobs(store_dsn, 1)


async def test_a_tick_does_not_wait_behind_a_backlog(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    for number in range(3):
        await tasks.double.using(priority=-1000).submit(store, number)
    await make_due(store_dsn)
    async with store.worker([tasks.double, tasks.nothing]) as worker:
        assert await worker.process_one()
    assert len(await ticks_of_jobs(store_dsn)) == 1


async def test_a_tick_that_was_handled_before_submits_nothing(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Whatever a worker has computed from an earlier state of the schedule."""
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with store.consumer("default") as consumer:
        (message,) = await consumer.dequeue(1)
        assert await query(
            store_dsn,
            "select tocsin.tick(%s, %s, array[now() - interval '1 day', now() - interval '2 h',"
            " now() - interval '1 h'], now() + interval '1 h')",
            message.id,
            message.lease_token,
        ) == [(True,)]
    assert len(await ticks_of_jobs(store_dsn)) == 1


async def test_a_tick_of_a_worker_that_dies_is_submitted_by_another(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with store.consumer("default") as dying:
        await dying.dequeue(1)
        # the death takes the lease away; the message has no last delivery
        await query(store_dsn, "update tocsin.messages set vt = tocsin._clock(), read_ct = 1000")
        async with other_worker(store_dsn, tasks.nothing):
            await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(1,)])
    assert [state for state, _ in await query(store_dsn, TICK_MESSAGES)] == ["delayed"]


async def test_a_worker_without_the_task_ticks(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with working(store, tasks.double):
        await until_jobs(store_dsn, 1)


async def test_a_plain_consumer_leaves_ticks_to_workers(
    store: tocsin.Store, store_dsn: str
) -> None:
    handled: list[Any] = []

    async def handle(message: tocsin.Message) -> None:
        await trio.lowlevel.checkpoint()
        handled.append(message.payload)

    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    await store.produce("default", "plain")
    async with store.consumer("default") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handle, once=True)
    assert handled == ["plain"]
    assert [state for state, _ in await query(store_dsn, TICK_MESSAGES)] == ["delayed"]


async def test_a_tick_does_not_hold_up_an_ordered_consumer(
    store: tocsin.Store, store_dsn: str
) -> None:
    handled: list[Any] = []

    async def handle(message: tocsin.Message) -> None:
        await trio.lowlevel.checkpoint()
        handled.append(message.payload)

    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    for number in range(3):
        await store.produce("default", number)
    async with store.consumer("default") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handle, once=True, ordered=True)
    assert handled == [0, 1, 2]
    assert [state for state, _ in await query(store_dsn, TICK_MESSAGES)] == ["delayed"]


async def test_a_batch_handler_leaves_ticks_to_workers(store: tocsin.Store, store_dsn: str) -> None:
    handled: list[Any] = []

    async def handle(messages: list[tocsin.Message]) -> None:
        await trio.lowlevel.checkpoint()
        handled.extend(m.payload for m in messages)

    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with store.consumer("default") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle_batches(handle, size=3, once=True)
    assert handled == []
    assert [state for state, _ in await query(store_dsn, TICK_MESSAGES)] == ["delayed"]


# What was missed


@pytest.mark.parametrize(
    ("missed", "jobs"), [("skip", 0), ("once", 1), (tocsin.All(max=4), 4), (tocsin.All(99), 14)]
)
async def test_a_database_that_was_away_for_two_weeks(
    store: tocsin.Store, store_dsn: str, missed: Any, jobs: int
) -> None:
    await store.schedules.set("daily", tasks.nothing.call(), cron="@daily", missed=missed)
    ticks = await store.schedules.next_ticks("daily", 15)
    await move_to(store_dsn, ticks[13] + timedelta(hours=5))
    async with working(store, tasks.nothing):
        await until_true(store_dsn, "(select next_tick = %s from tocsin.schedules)", ticks[14])
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(jobs,)])
        await move_to(store_dsn, ticks[14])
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(jobs + 1,)])
    assert await ticks_of_jobs(store_dsn) == ticks[14 - jobs :]


async def test_ticks_go_on_when_the_clock_was_ahead(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("hourly", tasks.nothing.call(), cron="@hourly")
    (tick,) = await store.schedules.next_ticks("hourly", 1)
    async with working(store, tasks.nothing):
        await move_clock(store_dsn, 400 * 24 * HOUR)
        await until_jobs(store_dsn, 1)
    await move_clock(store_dsn, 0)
    await query(store_dsn, "update tocsin.maintenance set clock_was_ahead = true")

    async def corrected() -> bool:
        await store.maintain()  # does nothing during the maintenance of another session
        return (await store.schedules.next_ticks("hourly", 1))[0] - tick < timedelta(hours=2)

    await until(corrected)
    async with working(store, tasks.nothing):
        await until_true(
            store_dsn,
            "(select next_tick < now() + interval '2 hours' from tocsin.schedules)",
        )


# Overlap


async def test_overlapping_jobs_are_skipped(store: tocsin.Store, store_dsn: str) -> None:
    go_on = trio.Event()

    @tocsin.task(name="long", timeout=None)
    async def long() -> None:
        await go_on.wait()

    await store.schedules.set("s", long.call(), cron="@hourly", overlap="skip")
    ticks = await store.schedules.next_ticks("s", 4)
    async with working(store, long, concurrency=3):
        for tick, after in pairwise(ticks):
            await move_to(store_dsn, tick)
            await until_true(store_dsn, "(select next_tick = %s from tocsin.schedules)", after)
        await until_jobs(store_dsn, 1)
        job_id = (await store.schedules.get("s")).last_job_id
        assert await store.schedules.run_now("s") == job_id
        go_on.set()
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(1,)])
        await move_to(store_dsn, ticks[3])
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(2,)])
    assert await ticks_of_jobs(store_dsn) == [ticks[0], ticks[3]]


async def test_jobs_may_overlap(store: tocsin.Store, store_dsn: str) -> None:
    async with store.worker([tasks.nothing]):
        pass
    await store.schedules.set("s", "tests.jobs.tasks.nothing", every=HOUR)
    assert await store.schedules.run_now("s") != await store.schedules.run_now("s")
    await until_jobs(store_dsn, 2)


# Change


async def test_a_paused_schedule_does_not_tick(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), cron="@hourly")
    assert await store.schedules.pause("s")
    assert not await store.schedules.pause("s")
    schedule = await store.schedules.get("s")
    assert schedule.paused_at is not None
    assert schedule.next_tick is None
    assert await query(store_dsn, TICK_MESSAGES) == []
    await store.maintain()
    assert await query(store_dsn, TICK_MESSAGES) == []
    assert not await store.schedules.set("s", tasks.nothing.call(), cron="@hourly")
    assert await store.schedules.set("s", tasks.nothing.call(), cron="@daily")
    assert await query(store_dsn, TICK_MESSAGES) == []

    ticks = await store.schedules.next_ticks("s", 3)
    await move_to(store_dsn, ticks[1])
    assert await store.schedules.resume("s")
    assert not await store.schedules.resume("s")
    assert (await store.schedules.get("s")).next_tick == ticks[2]  # what was missed does not count
    assert await query(store_dsn, TICK_MESSAGES) == [("delayed", ticks[2])]


async def test_running_now_does_not_move_the_next_tick(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.double.call(4), cron="@hourly")
    before = await query(store_dsn, TICK_MESSAGES)
    async with working(store, tasks.double):
        job_id = await store.schedules.run_now("s")
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(1,)])
    assert (await store.jobs.get(job_id)).result == 8
    assert await query(store_dsn, TICK_MESSAGES) == before
    await store.schedules.pause("s")
    await store.schedules.run_now("s")
    assert (await store.schedules.get("s")).paused_at is not None


async def test_a_deleted_schedule_leaves_no_message(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await store.schedules.delete("s")
    assert await query(store_dsn, "select from tocsin.messages") == []
    assert await store.schedules.list() == []


@pytest.mark.parametrize("change", ["edit", "pause", "delete", "move"])
async def test_a_change_while_a_worker_holds_the_tick(
    store: tocsin.Store, store_dsn: str, change: str
) -> None:
    await store.queues.ensure("other")
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    async with store.consumer("default") as worker:
        (held,) = await worker.dequeue(1)
        match change:
            case "edit":
                await store.schedules.set("s", tasks.nothing.call(), every=2 * HOUR)
            case "pause":
                await store.schedules.pause("s")
            case "delete":
                await store.schedules.delete("s")
            case "move":
                await store.schedules.set("s", tasks.nothing.call(), every=HOUR, queue="other")
        rest = "select queue_id, key, due, payload from tocsin.messages"
        left = await query(store_dsn, rest)
        assert len(left) == (0 if change in ("pause", "delete") else 1)
        assert await query(
            store_dsn,
            "select tocsin.tick(%s, %s, array[tocsin._clock()], now() + interval '1 hour')",
            held.id,
            held.lease_token,
        ) == [(False,)]
        assert await query(store_dsn, rest) == left


async def test_a_tick_message_of_an_earlier_generation_has_no_effect(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    await make_due(store_dsn)
    await query(store_dsn, "update tocsin.schedules set generation = generation + 1")
    async with store.consumer("default") as consumer:
        (held,) = await consumer.dequeue(1)
        assert await query(
            store_dsn,
            "select tocsin.tick(%s, %s, array[tocsin._clock()], now() + interval '1 hour')",
            held.id,
            held.lease_token,
        ) == [(True,)]
    assert await query(store_dsn, "select from tocsin.messages") == []


async def test_changes_and_ticks_race(store: tocsin.Store, store_dsn: str) -> None:
    """A schedule that is changed under way has one tick message of its generation."""
    await store.schedules.set("s", tasks.nothing.call(), every=0.01)
    async with working(store, tasks.nothing), other_worker(store_dsn, tasks.nothing):
        for n in range(20):
            await store.schedules.set("s", tasks.nothing.call(), every=0.01 + n % 3 / 1000)
            await store.schedules.pause("s")
            await store.schedules.resume("s")
        await until_true(store_dsn, f"({JOBS}) > 0")
        await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
        assert await query(
            store_dsn,
            "select count(*) from tocsin.messages m join tocsin.schedules s on (m.payload ->>"
            " 'generation')::bigint = s.generation where m.task = '$tick'",
        ) == [(1,)]
    ticks = await ticks_of_jobs(store_dsn)
    assert len(ticks) == len(set(ticks))


async def test_arguments_change_without_moving_the_tick(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.schedules.set("s", tasks.double.call(1), every=HOUR)
    before = await query(store_dsn, TICK_MESSAGES)
    await move_clock(store_dsn, 600)
    assert await store.schedules.set("s", tasks.double.call(2), every=HOUR)
    assert await query(store_dsn, TICK_MESSAGES) == before


# Queues


async def test_a_purged_tick_is_enqueued_again(store: tocsin.Store, store_dsn: str) -> None:
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR)
    before = await query(store_dsn, TICK_MESSAGES)
    await store.queues.purge("default", delayed=True)
    assert await query(store_dsn, TICK_MESSAGES) == []
    await store.maintain()
    assert await query(store_dsn, TICK_MESSAGES) == before


async def test_a_schedule_ends_with_its_queue(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("mail")
    await store.schedules.set("s", tasks.nothing.call(), every=HOUR, queue="mail")
    with pytest.raises(tocsin.QueueNotEmpty):
        await store.queues.delete("mail")
    await store.queues.delete("mail", force=True)
    assert await store.schedules.list() == []
    assert await query(store_dsn, "select from tocsin.messages") == []
    await store.queues.delete("default")
    with pytest.raises(tocsin.QueueNotFound):
        await store.schedules.set("s", tasks.halve.call(1), every=HOUR)


@pytest.mark.slow
async def test_idle_schedules_send_no_statement(dsn_of_quiet_store: str) -> None:
    dsn = dsn_of_quiet_store
    async with tocsin.connect(dsn, heartbeat=HOUR) as store, working(store, tasks.nothing):
        await store.schedules.set("model", tasks.nothing.call(), cron="@yearly", zone="Asia/Tokyo")
        await query(
            dsn,
            "select tocsin.set_schedule('s' || n, %s, '[]', cron => '@yearly', next_tick => now() +"
            " n * interval '1 hour') from generate_series(1, 10000) n",
            tasks.nothing.name,
        )
        await until_query(dsn, "select count(*) from tocsin.schedules", gives=[(10001,)])
        before = await statements(dsn)
        await trio.testing.wait_all_tasks_blocked(0.3)
        assert since(before, await statements(dsn)) == {}


async def test_scheduled_jobs_keep_the_limits_of_their_task(
    store: tocsin.Store, store_dsn: str
) -> None:
    inside: list[int] = []
    most = 0

    @tocsin.task(name="limited", limits=[tocsin.Limit("scarce", 1)])
    async def limited() -> None:
        nonlocal most
        inside.append(1)
        most = max(most, len(inside))
        await trio.lowlevel.checkpoint()
        inside.pop()

    await store.schedules.set("s", limited.call(), every=HOUR)
    for _ in range(4):
        await store.schedules.run_now("s")
    async with working(store, limited, concurrency=4):
        await until_query(store_dsn, "select count(*) from tocsin.archive", gives=[(4,)])
    assert most == 1
