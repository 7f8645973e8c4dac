"""Submitting jobs: with options, in the caller's transaction, and from SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, open_connection, query, since, statements, until_blocked
from tests.support.jobs import working
from tocsin.telemetry import EnqueueCall

from . import tasks


async def message(store: tocsin.Store, job: tocsin.Job[Any]) -> tocsin.MessageInfo:
    return await store.messages.get(job.id)


async def test_a_job_is_a_message_with_its_arguments(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    job = await tasks.ship.submit(store, tasks.Order(7))
    found = await message(store, job)
    assert found.payload == {"order": {"id": 7, "total": 0.0}}
    assert (found.queue, found.state, found.max_deliveries) == ("default", "ready", 3)
    assert repr(job) == f"<tocsin.Job {job.id} of task tests.jobs.tasks.ship>"


async def test_a_call_may_choose_its_options(store: tocsin.Store) -> None:
    for queue in "default", "other":
        await store.queues.ensure(queue)
    job = await tasks.double.using(
        delay=60, priority=-5, headers={"trace": "1"}, max_attempts=7, queue="other"
    ).submit(store, 1)
    found = await message(store, job)
    assert (found.queue, found.state, found.priority) == ("other", "delayed", -5)
    assert (found.headers, found.max_deliveries) == ({"trace": "1"}, 7)
    at = datetime.now(UTC) + timedelta(hours=1)
    assert (await message(store, await tasks.double.using(at=at).submit(store, 1))).due == at


async def test_a_key_submits_a_job_once(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    first = await tasks.double.using(key="k").submit(store, 1)
    second = await tasks.double.using(key="k").submit(store, 2)
    assert second.id == first.id
    assert (await message(store, second)).payload == {"number": 1}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"delay": -1}, ValueError, "delay must be at least 0"),
        ({"max_attempts": 0}, ValueError, "max_attempts must be at least 1"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"priority": "1"}, TypeError, "priority must be an integer"),
        ({"retries": 1}, TypeError, "a job has no option retries"),
    ],
)
async def test_options_out_of_their_range_submit_nothing(
    store: tocsin.Store, store_dsn: str, options: Any, error: type[Exception], said: str
) -> None:
    await store.queues.ensure("default")
    with pytest.raises(error, match=said):
        await tasks.double.using(**options).submit(store, 1)
    assert await query(store_dsn, "select * from tocsin.messages") == []


async def test_arguments_that_do_not_fit_submit_nothing(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    with pytest.raises(tocsin.ArgumentsInvalid, match=r"at \$.number: must be int, not str"):
        await tasks.double.submit(store, "1")  # type: ignore[arg-type]
    with pytest.raises(tocsin.ArgumentsInvalid, match="missing a required argument: 'number'"):
        await tasks.double.submit(store)  # type: ignore[call-arg]
    assert await query(store_dsn, "select * from tocsin.messages") == []


async def test_large_arguments_are_refused(store: tocsin.Store) -> None:
    await store.queues.ensure("default", max_payload=20)
    with pytest.raises(tocsin.PayloadTooLarge):
        await tasks.ship.submit(store, tasks.Order(10**20))


async def test_calls_of_a_moment_share_a_statement(dsn_of_quiet_store: str) -> None:
    dsn = dsn_of_quiet_store
    jobs: list[tocsin.Job[int]] = []
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("default")

        async def submit(number: int) -> None:
            jobs.append(await tasks.double.using(timeout=number + 1).submit(store, number))

        before = await statements(dsn)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(submit, number)
        ran = since(before, await statements(dsn))
        assert 1 <= sum(n for text, n in ran.items() if "enqueue" in text) <= 3
        async with working(store, tasks.double):
            results = {job.id: await job.result(timeout=PATIENCE) for job in jobs}
    assert sorted(results.values()) == [2 * n for n in range(50)]


# In the caller's transaction


async def test_a_job_is_submitted_with_the_callers_rows(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    await query(store_dsn, "create table orders (id int)")
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as connection:
            await connection.execute("insert into orders values (1)")
            await tasks.double.submit(connection, 1)
            raise ZeroDivisionError
    assert await query(store_dsn, "select 1 from tocsin.messages") == []
    async with store.transaction() as connection:
        await connection.execute("insert into orders values (2)")
        job = await tasks.double.submit(connection, 2)
        assert await query(store_dsn, "select 1 from tocsin.messages") == []
    async with working(store, tasks.double):
        assert await job.result(timeout=PATIENCE) == 4


async def test_a_blocking_connection_submits_too(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    with psycopg.connect(store_dsn) as connection:
        job = await store.jobs.submit(tasks.double.call(2), connection=connection)
        connection.rollback()
    with pytest.raises(tocsin.JobNotFound):
        await job.info()


# From SQL


async def test_sql_submits_a_registered_task(store: tocsin.Store, store_dsn: str) -> None:
    async with working(store, tasks.double, tasks.elsewhere):
        ((by_name, by_place, other),) = await query(
            store_dsn,
            "select tocsin.submit(%s, '{\"number\": 4}'), tocsin.submit(%s, '[5]', priority => 3),"
            " tocsin.submit(%s, '[6]', key => 'k', timeout => '1 min', max_attempts => 9)",
            tasks.double.name,
            tasks.double.name,
            tasks.elsewhere.name,
        )
        for job_id, definition, result in (
            (by_name, tasks.double.definition, 8),
            (by_place, tasks.double.definition, 10),
            (other, tasks.elsewhere.definition, -6),
        ):
            job = tocsin.Job(store._database, store._process, job_id, definition)
            assert await job.result(timeout=PATIENCE) == result


async def test_sql_takes_the_options_of_the_task(store: tocsin.Store, store_dsn: str) -> None:
    tuned = tocsin.task(
        name="tuned", queue="other", max_attempts=8, priority=-2, timeout=None, description="Tuned"
    )(tasks.double.function)
    await store.queues.ensure("other")
    async with store.worker([tuned]):
        ((job_id,),) = await query(store_dsn, "select tocsin.submit('tuned', '[1]')")
    found = await store.messages.get(job_id)
    assert (found.queue, found.priority, found.max_deliveries) == ("other", -2, 8)
    ((name, queue, attempts, priority, timeout, description),) = await query(
        store_dsn,
        "select name, queue, max_deliveries, priority, timeout, description"
        " from tocsin.list_tasks()",
    )
    assert (name, queue, attempts, priority) == ("tuned", "other", 8, -2)
    assert (timeout, description) == (None, "Tuned")


async def test_a_task_takes_its_new_options_with_the_next_worker(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("default")
    for attempts in 3, 5:
        tuned = tocsin.task(name="tuned", max_attempts=attempts)(tasks.double.function)
        async with store.worker([tuned]):
            pass
    assert await query(store_dsn, "select max_deliveries from tocsin.tasks") == [(5,)]


async def test_sql_is_told_of_a_task_that_no_worker_has_registered(store_dsn: str) -> None:
    async with open_connection(store_dsn) as connection:
        with pytest.raises(psycopg.Error, match='no worker has registered a task "nothing"') as e:
            await connection.execute("select tocsin.submit('nothing')")
    assert e.value.sqlstate == "TC041"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("'double', '5'", "arguments must be a JSON array or object"),
        ("'double', '[1]', timeout => '0 s'", "timeout must be positive"),
        ("'double', null", "arguments must be a JSON array or object"),
        ("'double', '[1]', delay => '-1 s'", "delay must not be negative"),
        ("'double', '[1]', max_attempts => 0", "max_deliveries must be positive"),
    ],
)
async def test_sql_refuses_options_out_of_their_range(
    store: tocsin.Store, store_dsn: str, call: str, said: str
) -> None:
    await store.queues.ensure("default")
    async with store.worker([tocsin.task(name="double")(tasks.double.function)]):
        pass
    async with open_connection(store_dsn) as connection:
        with pytest.raises(psycopg.Error, match=said) as refused:
            await connection.execute(f"select tocsin.submit({call})".encode())
    assert refused.value.sqlstate == "TC022"


async def test_a_job_is_submitted_by_the_name_of_its_task(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    with pytest.raises(tocsin.TaskUnknown):
        await store.jobs.submit_by_name(tasks.double.name, [1])
    async with working(store, tasks.double):
        job_id = await store.jobs.submit_by_name(tasks.double.name, {"number": 4})
        assert (await store.jobs.wait(job_id, timeout=PATIENCE)).result == 8
        job_id = await store.jobs.submit_by_name(
            tasks.double.name, [1], delay=60, priority=2, key="k", headers={"a": 1}, max_attempts=2
        )
        found = await store.messages.get(job_id)
        assert (found.state, found.priority, found.key) == ("delayed", 2, "k")
        assert (found.headers, found.max_deliveries) == ({"a": 1}, 2)
        with pytest.raises(TypeError, match="no option queue"):
            await store.jobs.submit_by_name("t", queue="q")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="array or object"):
            await store.jobs.submit_by_name(tasks.double.name, 1)


async def test_a_queue_is_deleted_with_its_tasks(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default")
    async with store.worker([tasks.double]):
        pass
    await store.queues.delete("default", force=True)
    assert await query(store_dsn, "select * from tocsin.tasks") == []


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("", None),
        ("t" * 2000, None),
        ("t", "[1]"),
        ("t", '{"timeout": "x"}'),
        ("t", '{"timeout": 0}'),
        ("t", '{"timeout": 1e30}'),
        ("t", '{"other": 1}'),
    ],
)
async def test_enqueue_takes_no_job_that_no_worker_could_read(
    store: tocsin.Store, store_dsn: str, task: str, options: str | None
) -> None:
    await store.queues.ensure("default")
    async with open_connection(store_dsn) as connection:
        with pytest.raises(psycopg.Error) as refused:
            await connection.execute(
                "select tocsin.enqueue('default', '[]', task => %s, options => %s::jsonb)",
                [task, options],
            )
    assert refused.value.sqlstate == "TC022"


# Many


async def test_many_are_submitted_in_one_statement(dsn_of_quiet_store: str) -> None:
    dsn = dsn_of_quiet_store
    async with tocsin.connect(dsn, heartbeat=3600) as store:
        for queue in "default", "other":
            await store.queues.ensure(queue)
        before = await statements(dsn)
        jobs = await store.jobs.submit_many(
            [
                tasks.double.call(1),
                tasks.elsewhere.using(delay=60).call(2),
                tasks.double.using(timeout=5, priority=-1, headers={"trace": "1"}).call(3),
                tasks.double.using(key="k").call(4),
            ]
        )
        ran = since(before, await statements(dsn))
        assert [(text, n) for text, n in ran.items() if "enqueue" in text] == [
            ('select "tocsin".enqueue_jobs($1::jsonb, $2)', 1)
        ]
        found = [await message(store, job) for job in jobs]
    assert [m.payload for m in found] == [{"number": n} for n in (1, 2, 3, 4)]
    assert [m.queue for m in found] == ["default", "other", "default", "default"]
    assert (found[1].state, found[2].priority, found[2].headers) == ("delayed", -1, {"trace": "1"})
    assert found[3].key == "k"


async def test_many_are_submitted_all_or_none(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("default", max_payload=20)
    for options in tocsin.SubmitOptions(), tocsin.SubmitOptions(key="k"):
        large = tasks.double.using(**options).call(10**20)
        with pytest.raises(tocsin.PayloadTooLarge) as refused:
            await store.jobs.submit_many([tasks.double.call(1), large, tasks.double.call(2)])
        assert refused.value.index == 1
    with pytest.raises(tocsin.QueueNotFound, match="other"):
        await store.jobs.submit_many([tasks.double.call(1), tasks.elsewhere.call(1)])
    assert await query(store_dsn, "select * from tocsin.messages") == []
    assert await store.jobs.submit_many([]) == []


async def test_an_error_names_the_index_over_several_statements(store: tocsin.Store) -> None:
    @tocsin.task(name="keep")
    async def keep(value: dict[str, int]) -> None:
        raise NotImplementedError

    await store.queues.ensure("default", forbidden_keys=["secret"])
    calls = [keep.call({"secret" if n == 3500 else "open": n}) for n in range(4001)]
    with pytest.raises(tocsin.PayloadInvalid) as refused:
        await keep.submit_many(store, calls)
    assert refused.value.index == 3500


async def test_any_number_can_be_submitted(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    jobs = await tasks.double.submit_many(store, [tasks.double.call(n) for n in range(4001)])
    assert len({job.id for job in jobs}) == 4001
    assert (await message(store, jobs[4000])).payload == {"number": 4000}


async def test_many_of_a_task_are_calls_of_this_task(store: tocsin.Store) -> None:
    with pytest.raises(TypeError, match=r"is no call of task tests\.jobs\.tasks\.double"):
        await tasks.double.submit_many(store, [tasks.elsewhere.call(1)])


async def test_instruments_and_events_see_many(store_dsn: str) -> None:
    seen: list[EnqueueCall] = []

    class Instrument:
        def handling(self, messages: object) -> Any:
            return nullcontext()

        @contextmanager
        def enqueueing(self, call: EnqueueCall) -> Iterator[None]:
            call.headers = {"trace": call.queue}
            yield
            seen.append(call)

    async with tocsin.connect(store_dsn, instruments=[Instrument()]) as store:
        for queue in "default", "other":
            await store.queues.ensure(queue)
        jobs = await store.jobs.submit_many(
            [tasks.double.call(1), tasks.elsewhere.call(2), tasks.double.using(headers=7).call(3)]
        )
        assert {call.queue: call.ids for call in seen} == {
            "default": [jobs[0].id, jobs[2].id],
            "other": [jobs[1].id],
        }
        headers = [(await message(store, job)).headers for job in jobs]
    assert headers == [{"trace": "default"}, {"trace": "other"}, 7]


# Keys


@pytest.mark.parametrize("holder", ["a message", "another task"])
async def test_a_key_that_something_else_has_is_refused(store: tocsin.Store, holder: str) -> None:
    await store.queues.ensure("default")
    if holder == "a message":
        held, task = await store.produce("default", 1, key="k"), None
    else:
        held, task = (await tasks.halve.using(key="k").submit(store, 1)).id, tasks.halve.name
    for submit in (
        lambda: tasks.double.using(key="k").submit(store, 1),
        lambda: tasks.double.submit_many(store, [tasks.double.using(key="k").call(1)]),
    ):
        with pytest.raises(tocsin.KeyConflict, match='has the key "k"') as refused:
            await submit()
        error = refused.value
        assert (error.key, error.message_id, error.task) == ("k", held, task)


async def test_two_programs_submit_the_same_keys_in_opposite_orders(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Each waits for the other's keys in the order of the keys."""
    await store.queues.ensure("default")
    one, two = (tasks.double.using(key=key).call(1) for key in "ab")
    async with open_connection(store_dsn) as first:
        await first.execute("begin")
        await tasks.double.submit_many(first, [one])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.double.submit_many, store, [two, one])
            await until_blocked(store_dsn, "enqueue_jobs")
            await tasks.double.submit_many(first, [two])
            await first.commit()
    assert [job.key for job in await store.jobs.list()] == ["a", "b"]


async def test_a_message_does_not_take_a_job_for_itself(store: tocsin.Store) -> None:
    await store.queues.ensure("default")
    await tasks.double.using(key="k").submit(store, 1)
    with pytest.raises(tocsin.KeyConflict):
        await store.produce("default", 1, key="k")


def test_an_option_that_does_not_exist_is_refused_where_it_is_given() -> None:
    with pytest.raises(TypeError, match="a job has no option nonsense"):
        tasks.double.using(nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="delay must be at least 0"):
        tasks.double.using(delay=-1)
