"""A queue's settings stand in one table of SQL and one of Python; these tests compare
what has to be spelled again."""

from __future__ import annotations

import inspect
import math
from datetime import timedelta
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing

import tocsin
from tests.support import query, until_idle, until_true
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin._cli.queue import create, update
from tocsin._cli.render import to_text, write_duration
from tocsin._durations import to_timedelta
from tocsin._queue.admin.queue_settings import SETTINGS, check_delay, check_retention

NOT_SETTINGS = {"id", "name", "ruled", "paused_at", "created_at", "channel"}


async def test_the_columns_are_the_settings(store_dsn: str) -> None:
    columns = await query(
        store_dsn,
        "select attname::text from pg_attribute where attrelid = 'tocsin.queues'::regclass"
        " and attnum > 0 order by attnum",
    )
    assert [name for (name,) in columns if name not in NOT_SETTINGS] == list(SETTINGS)


async def test_each_sql_function_takes_each_setting_by_name(store_dsn: str) -> None:
    functions = await query(
        store_dsn,
        "select proname::text, proargnames[2:] from pg_proc where pronamespace ="
        " 'tocsin'::regnamespace and proname like any ('{create_queue,ensure_queue,update_queue}')"
        " order by 1",
    )
    assert functions == [
        (name, list(SETTINGS)) for name in ("create_queue", "ensure_queue", "update_queue")
    ]


def test_the_types_of_python_have_each_setting() -> None:
    assert list(tocsin.QueueSettings.__annotations__) == list(SETTINGS)
    fields = [f.name for f in attrs.fields(tocsin.Queue) if f.name not in NOT_SETTINGS]
    assert fields == list(SETTINGS)
    source = inspect.getsource(tocsin.QueueSettings)
    assert [name for name in SETTINGS if f"    {name}: " not in source] == []


def test_the_command_line_has_an_option_for_each_setting() -> None:
    for command in (create, update):
        options = {p.name for p in command.params if isinstance(p, click.Option)}
        assert set(SETTINGS) <= options


async def test_the_defaults_that_are_named_are_those_of_the_database(store: tocsin.Store) -> None:
    queue = await store.queues.create("q")
    lengths = {to_timedelta, check_delay, check_retention}
    found = {
        name: write_duration(value) if setting.check in lengths else to_text(value)
        for name, setting in SETTINGS.items()
        for value in [getattr(queue, name)]
    }
    assert found == {
        name: {"none": "-"}.get(setting.default, setting.default)
        for name, setting in SETTINGS.items()
    }


async def test_per_queue_settings_changed_live_count_for_a_run_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Apart from the visibility timeout (tests/queue/admin/test_queues.py) and the mode
    of notifying (tests/queue/process/test_ring.py)."""
    await store.queues.ensure("q", max_deliveries=5, retry_base=0, retry_jitter=0)

    async def fail(message: tocsin.Message) -> None:
        if message.payload != "good":
            raise RuntimeError

    async def due_in() -> list[tuple[float]]:
        return await query(
            store_dsn,
            "select extract(epoch from due - tocsin._clock())::float8 from tocsin.messages where"
            " state = 'delayed'",
        )

    async with store.consumer("q") as consumer, running(consumer, fail) as run:
        await store.produce("q", "five times")
        await run.settled(5, "failed")
        assert len(await store.dead_letters.list("q")) == 1
        assert [m.read_ct for m in run.handled.messages] == [1, 2, 3, 4, 5]

        await store.queues.update("q", max_deliveries=1)
        await store.produce("q", "once")
        await run.settled(6, "failed")
        dead = await query(store_dsn, "select read_ct from tocsin.dead_letters order by id")
        assert dead == [(5,), (1,)]

        await store.queues.update("q", max_deliveries=9, retry_base=600, retry_max=600)
        await store.produce("q", "later")
        await run.settled(7, "failed")
        ((seconds,),) = await due_in()
        assert 500 < seconds <= 600

        await store.queues.update("q", max_payload=6)
        assert await store.produce("q", "good")
        with pytest.raises(tocsin.PayloadTooLarge):
            await store.produce("q", "longer")
        await run.settled(1, "archived")
        await store.queues.update("q", retention=0)
        last = await store.produce("q", "good")
        await run.handled.wait(9)
    with pytest.raises(tocsin.MessageNotFound):  # it is finished, and was not kept
        await store.messages.get(last)
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(1,)]


@sweep(
    ("settings", "named"),
    [
        ({"vt": 0}, "vt"),
        ({"max_deliveries": 0}, "max_deliveries"),
        ({"retry_base": -1}, "retry_base"),
        ({"retry_factor": 0.5}, "retry_factor"),
        ({"retry_factor": math.nan}, "retry_factor"),
        ({"retry_jitter": 2}, "retry_jitter"),
        ({"max_payload": 0}, "max_payload"),
        ({"retention": -1}, "retention"),
        ({"dead_letter_retention": 0}, "dead_letter_retention"),
        ({"notify": "never"}, "notify"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "ä" * 128}, "name"),
        ({"name": "q\0"}, "name"),
    ],
    quick=2,
)
async def test_bad_queue_settings_name_the_argument(
    store: tocsin.Store, settings: dict[str, object], named: str
) -> None:
    for make in (store.queues.create, store.queues.ensure):
        with pytest.raises(ValueError, match=named):
            await make(**{"name": "q", **settings})  # type: ignore[arg-type]
    assert await store.queues.count() == 0


async def test_an_unknown_setting_is_refused_and_the_known_ones_named(store: tocsin.Store) -> None:
    with pytest.raises(
        TypeError, match=r"'max_retries' is not a setting of a queue; there are vt, max_deliveries"
    ):
        await store.queues.ensure("q", max_retries=3)  # type: ignore[call-arg]


CHANGES: dict[str, Any] = {
    "vt": 7.5,
    "max_deliveries": 3,
    "retry_base": 0.0,
    "retry_factor": 1.5,
    "retry_max": 60.0,
    "retry_jitter": 0.0,
    "max_payload": 100,
    "max_string": 10,
    "max_depth": 4,
    "required_keys": ("a", "b"),
    "forbidden_keys": ("c",),
    "retention": math.inf,
    "dead_letter_retention": 86400.0,
    "notify": "always",
}


async def test_per_queue_settings(store: tocsin.Store) -> None:
    """Each is given at creation, or changed live alone, and stays; the rest keep
    their values."""
    default = await store.queues.create("q")
    assert set(CHANGES) == set(tocsin.QueueSettings.__annotations__)
    before = default
    for setting, value in CHANGES.items():
        changed = await store.queues.update("q", **{setting: value})
        assert changed == attrs.evolve(before, **{setting: value})
        before = changed
    created = await store.queues.create("r", **CHANGES)
    assert created == attrs.evolve(
        before, id=created.id, name="r", created_at=created.created_at, channel=created.channel
    )
    with pytest.raises(tocsin.QueueNotFound):
        await store.queues.update("s", vt=1)


async def test_a_visibility_timeout_changed_live_counts_for_a_run_under_way(
    store: tocsin.Store, store_dsn: str
) -> None:
    """What a claim brings is kept alive as the setting is now, not as it was when the
    consumer came."""
    await store.queues.ensure("q", vt=3600)
    release = trio.Event()

    async def wait(_: tocsin.Message) -> None:
        await release.wait()

    async with store.consumer("q") as consumer, running(consumer, wait) as run:
        await until_idle(store)
        await store.queues.update("q", vt=0.5)
        await store.produce("q", 1)
        await run.handled.wait(1)
        ((first,),) = await query(store_dsn, "select vt from tocsin.messages")
        await until_true(store_dsn, "vt > %s from tocsin.messages", first)
        await consumer.interrupt()
        release.set()
    assert [m.read_ct for m in run.handled.messages] == [1]
    assert run.suspended.handled == 1


async def test_no_duration_is_longer_than_a_thousand_years(store: tocsin.Store) -> None:
    for setting in ("vt", "retry_base", "retry_max"):
        too_long: dict[str, Any] = {setting: 4_000_000 * 86400}
        with pytest.raises(ValueError, match="at most a thousand years"):
            await store.queues.ensure("q", **too_long)
    await store.queues.ensure("q", retention=timedelta.max)
    for option in ("delay", "expires_in"):
        with pytest.raises(ValueError, match="at most a thousand years"):
            await store.produce("q", 1, **{option: 4_000_000 * 86400})  # type: ignore[arg-type]
    for refused in ("delay => '3000000 days'", "expires_in => '3000000 days'"):
        with pytest.raises(ValueError, match="a thousand years"):
            await store.queues._database.fetch(f"select tocsin.enqueue('q', '1', {refused})")
