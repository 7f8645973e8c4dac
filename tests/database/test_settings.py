"""Settings: each of them has its effect, from each of its sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import until
from tests.support.settings_file import write_file
from tests.support.sweeps import sweep
from tocsin._durations import parse_duration
from tocsin.settings import PREFIX, Settings

NAMES = [field.name for field in attrs.fields(Settings)]
LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without settings."""
    monkeypatch.chdir(tmp_path)


# What each does


async def dsn_decides_the_database(store: tocsin.Store, value: str | None) -> None:
    async with store.transaction() as connection:
        cursor = await connection.execute("select current_setting('application_name')")
        assert await cursor.fetchall() == [
            ("tocsin" if value is None else conninfo_to_dict(value)["application_name"],)
        ]


async def schema_is_where_it_is_installed(store: tocsin.Store, value: str | None) -> None:
    await store.install()
    async with store.transaction() as connection:
        cursor = await connection.execute(
            "select nspname from pg_namespace where nspname like 'tocsin%'"
        )
        assert await cursor.fetchall() == [(value or "tocsin",)]


async def listen_dsn_is_for_listen_alone(store: tocsin.Store, value: str | None) -> None:
    await store.install()
    await store.queues.ensure("q")
    async with store.consumer("q"), store.transaction() as connection:
        assert store.statistics().listening
        sessions = (
            "select distinct a.application_name from pg_stat_activity a "
            "where a.datname = current_database() and a.backend_type = 'client backend' "
            "and {} (select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory')"
        )
        lines = await (await connection.execute(sessions.format("exists").encode())).fetchall()
        others = await (await connection.execute(sessions.format("not exists").encode())).fetchall()
    assert lines == [("tocsin" if value is None else conninfo_to_dict(value)["application_name"],)]
    assert others == [("tocsin",)]


async def pool_size_limits_the_connections(store: tocsin.Store, value: int | None) -> None:
    size = value or 8
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(size):
            await stack.enter_async_context(store._database.connection())
        nursery.start_soon(store.queues.list)
        await until(lambda: store.statistics().pool.waiting)
        pool = store.statistics().pool
        assert (pool.size, pool.in_use) == (size, size)
        nursery.cancel_scope.cancel()


async def heartbeat_is_the_interval_in_the_registry(
    store: tocsin.Store, value: float | str | None
) -> None:
    await store.install()
    await store.queues.ensure("q")
    every = timedelta(seconds=2) if value is None else parse_duration(str(value))
    async with store.producer("q"), store.transaction() as connection:
        assert await (
            await connection.execute("select every from tocsin.processes")
        ).fetchall() == [(every,)]


Effect = Callable[[tocsin.Store, Any], Awaitable[None]]
EFFECTS: dict[str, tuple[Effect, list[Any]]] = {
    # setting: (what shows its effect, values to try); a DSN stands for one that names
    # itself so
    "dsn": (dsn_decides_the_database, ["argument", "variable", "file"]),
    "schema": (
        schema_is_where_it_is_installed,
        ["tocsin_argument", "tocsin_variable", "tocsin_file"],
    ),
    "listen_dsn": (listen_dsn_is_for_listen_alone, ["argument", "variable", "file"]),
    "pool_size": (pool_size_limits_the_connections, [3, 4, 5]),
    "heartbeat": (heartbeat_is_the_interval_in_the_registry, [3, "250ms", "1.5s"]),
}


def test_every_setting_is_exercised() -> None:
    assert list(EFFECTS) == NAMES


@asynccontextmanager
async def connected(
    monkeypatch: pytest.MonkeyPatch,
    dsn: str,
    arguments: dict[str, Any],
    variables: dict[str, Any],
    table: dict[str, Any],
) -> AsyncIterator[tocsin.Store]:
    """A store whose settings come from these sources; where they do not say so, libpq's
    environment says where the server is."""
    for name, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv(LIBPQ[name], str(value))
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name.upper(), str(value))
    write_file(table)
    async with tocsin.connect(**arguments) as store:
        yield store


@sweep("source", ["argument", "variable", "file", "default"], quick=["argument", "default"])
@pytest.mark.parametrize("name", NAMES)
async def test_setting_from_each_source(
    monkeypatch: pytest.MonkeyPatch, dsn: str, name: str, source: str
) -> None:
    """The nearest counts; what is behind it may be wrong."""
    effect, values = EFFECTS[name]
    if name.endswith("dsn"):
        values = [make_conninfo(dsn, application_name=value) for value in values]
    sources = ["argument", "variable", "file"]
    given = [{name: value} if s == source else {} for s, value in zip(sources, values, strict=True)]
    if source != "default":
        for further in given[sources.index(source) + 1 :]:
            further[name] = "=" if name.endswith("dsn") else "no such value"
    async with connected(monkeypatch, dsn, *given) as store:
        await effect(store, None if source == "default" else values[sources.index(source)])


async def test_what_is_not_known_of_a_connection_string_is_libpqs_affair(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    async with connected(monkeypatch, dsn, {"dsn": "application_name=mine"}, {}, {}) as store:
        await dsn_decides_the_database(store, "application_name=mine")
    async with connected(
        monkeypatch, dsn, {"dsn": "postgresql://"}, {"dsn": "host=/nowhere"}, {}
    ) as store:
        await dsn_decides_the_database(store, None)


# The documentation


# Connection strings as other programs write them
