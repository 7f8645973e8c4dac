"""A queue's settings stand in one table of SQL and one of Python; these tests compare
what has to be spelled again."""

from __future__ import annotations

import inspect

import attrs
import click

import tocsin
from tests.support import query
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
