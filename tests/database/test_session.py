"""Databases, roles and environments with settings of their own: Tocsin's sessions and
functions do the same under all of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import query, servers
from tests.support.everyday_use import TEXT, alter, use_everything
from tests.support.sweeps import sweep
from tocsin._database import schema, session
from tocsin.driver import TrioConnection

CHARACTERS = {"LATIN1": "é", "EUC_JP": "日本", "SQL_ASCII": TEXT}
"""Text that a database of this encoding can hold."""
LIMITS = {
    "statement_timeout": "1min",
    "lock_timeout": "2min",
    "idle_in_transaction_session_timeout": "3min",
    "idle_session_timeout": "4min",
    "transaction_timeout": "5min",
}
STRANGE = {
    "client_encoding": "latin1",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kolkata",
    "extra_float_digits": "-3",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "plan_cache_mode": "force_custom_plan",
}


def in_utf8(dsn: str) -> str:
    return make_conninfo(dsn, client_encoding="UTF8")


@sweep(
    "name",
    [*STRANGE, *LIMITS],
    quick=["client_encoding", "datestyle", "search_path", "statement_timeout"],
)
async def test_a_setting_of_the_database_changes_nothing(store_dsn: str, name: str) -> None:
    alter(
        store_dsn,
        STRANGE | LIMITS if name == "client_encoding" else {name: (STRANGE | LIMITS)[name]},
    )
    await use_everything(store_dsn)
    assert await query(
        in_utf8(store_dsn), "select payload from tocsin.messages where key = 'ké'"
    ) == [({"é": TEXT},)]


async def test_an_encoding_of_the_environment_changes_nothing(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    await use_everything(store_dsn)


async def test_an_encoding_in_the_connection_string_changes_nothing(store_dsn: str) -> None:
    await use_everything(make_conninfo(store_dsn, client_encoding="LATIN1"))


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "EUC_JP"])
def encoded_dsn(request: pytest.FixtureRequest, server: servers.Server) -> Iterator[str]:
    """An empty database of another encoding, in which sessions have that one unless
    they say otherwise."""
    name = f"tocsin_test_{secrets.token_hex(6)}"
    with psycopg.connect(server.admin_dsn, autocommit=True) as connection:
        statement = sql.SQL(
            "create database {} template template0 encoding {} lc_collate 'C' lc_ctype 'C'"
        )
        connection.execute(statement.format(sql.Identifier(name), sql.Literal(request.param)))
    yield server.dsn(name)
    server.drop_database(name)


async def test_in_a_database_of_another_encoding(encoded_dsn: str) -> None:
    async with tocsin.connect(encoded_dsn) as store:
        await store.install()
        assert await store.verify() == ()
        await store.queues.ensure("q")
        ((encoding,),) = await query(in_utf8(encoded_dsn), "select getdatabaseencoding()::text")
        text = CHARACTERS[encoding]
        async with store.consumer("q", name=text) as consumer:
            await store.produce("q", text, headers={text: text})
            await store.produce_many("q", [text])
            for message in await consumer.dequeue(2):
                assert message.payload == text
                await message.archive()
        if encoding == "SQL_ASCII":
            latin1 = make_conninfo(encoded_dsn, client_encoding="LATIN1")
            # no consumer could be sent it
            with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
                await query(latin1, "select tocsin.enqueue('q', %s::jsonb)", '"é"')


async def test_install_where_the_database_names_its_own_tablespace(dsn: str) -> None:
    alter(dsn, {"default_tablespace": "pg_default"})
    async with tocsin.connect(dsn) as store:
        await store.install()
        assert await store.verify() == ()


async def enqueue_on_own(dsn: str, text: str) -> None:
    """Enqueue this text on connections of each kind."""
    with psycopg.connect(dsn) as blocking:
        blocking.execute("set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'")
        tocsin.enqueue(
            blocking,
            "q",
            text,
            at=datetime(2020, 2, 1, tzinfo=UTC),
            expires_in=1e9,
            headers={text: text},
            key=text,
        )
        tocsin.enqueue_many(blocking, "q", [text], headers=text)
    async with await TrioConnection.connect(dsn) as own:
        await tocsin.enqueue_async(own, "q", text)
        await tocsin.enqueue_many_async(own, "q", [text], headers=text)
    async with tocsin.connect(dsn) as store, store.transaction() as connection:
        await connection.execute(
            "select set_config('client_encoding', %s, true)",
            [conninfo_to_dict(dsn)["client_encoding"]],
        )
        await store.produce("q", text, connection=connection)


@sweep("encoding", ["LATIN1", "SQL_ASCII", "WIN1252", "SJIS", "UTF8"], quick=2)
async def test_on_a_connection_of_the_users_with_another_encoding(
    store_dsn: str, encoding: str
) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        await enqueue_on_own(make_conninfo(store_dsn, client_encoding=encoding), TEXT)
        assert (await store.messages.list("q"))[0].due == datetime(2020, 2, 1, tzinfo=UTC)
        async with store.consumer("q") as consumer:
            messages = await consumer.dequeue(10)
            assert [m.payload for m in messages] == [TEXT] * 5
            assert [m.headers for m in messages] == [{TEXT: TEXT}, TEXT, None, TEXT, None]
            assert messages[0].key == TEXT


async def test_on_a_connection_of_the_users_in_a_database_of_another_encoding(
    encoded_dsn: str,
) -> None:
    async with tocsin.connect(encoded_dsn) as store:
        await store.install()
        await store.queues.ensure("q")
        ((encoding,),) = await query(in_utf8(encoded_dsn), "select getdatabaseencoding()::text")
        text = CHARACTERS[encoding]
        for own in ("UTF8", "SQL_ASCII", encoding):
            await enqueue_on_own(make_conninfo(encoded_dsn, client_encoding=own), text)
            async with store.consumer("q") as consumer:
                messages = await consumer.dequeue(10)
                assert [m.payload for m in messages] == [text] * 5
                await consumer.archive_many(messages)


async def test_a_character_that_the_database_does_not_have(encoded_dsn: str) -> None:
    async with tocsin.connect(encoded_dsn) as store:
        await store.install()
        await store.queues.ensure("q", max_deliveries=1)
        ((encoding,),) = await query(in_utf8(encoded_dsn), "select getdatabaseencoding()::text")
        if encoding == "SQL_ASCII":
            pytest.skip("it knows no characters, so it lacks none")
        with pytest.raises(tocsin.CharacterUnsupported) as lacking:
            await store.produce("q", {"euro": "€ or 👋"})
        assert (lacking.value.character, lacking.value.encoding) == ("€", encoding)
        with psycopg.connect(encoded_dsn) as own, pytest.raises(tocsin.CharacterUnsupported):
            tocsin.enqueue(own, "q", "👋")
        await store.produce("q", 1)

        async def fail(message: tocsin.Message) -> None:
            raise ValueError("👋")

        async with store.consumer("q") as consumer:
            with pytest.raises(tocsin.Suspended):
                await consumer.handle(fail, once=True)
        (letter,) = await store.dead_letters.list("q")
        assert letter.error == r"ValueError: \U0001f44b"


def test_the_sql_is_ascii_and_means_the_same_everywhere() -> None:
    """A database of any encoding can store it, and ``standard_conforming_strings``
    makes no difference to it."""
    for migration in (*schema.migrations(), schema.Migration(0, "functions", schema.functions())):
        assert migration.text.isascii(), migration.name
        assert "\\" not in migration.text, migration.name


async def test_the_listen_connection_has_the_same_settings(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(store_dsn, STRANGE | LIMITS)
    set_up, found = session.set_up, list[dict[str, str]]()

    async def set_up_and_read(connection: TrioConnection[Any]) -> None:
        await set_up(connection)
        cursor = await connection.execute(
            "select name, setting from pg_settings where name = any (%s)", [list(session.SETTINGS)]
        )
        found.append(dict(await cursor.fetchall()))

    monkeypatch.setattr(session, "set_up", set_up_and_read)
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
        async with store.consumer("q"):
            assert store.statistics().listening
    assert len(found) == store.statistics().pool.opened + 1
    for settings in found:
        assert settings["DateStyle"] == "ISO, DMY"
        assert (
            settings.items()
            >= {
                n: v
                for n, v in session.SETTINGS.items()
                if n in settings and n[:3] not in ("Dat", "tcp")
            }.items()
        )


async def test_the_users_limits_count_in_a_lent_transaction(store_dsn: str) -> None:
    alter(store_dsn, LIMITS)
    async with tocsin.connect(store_dsn, pool_size=2) as store:
        for _ in range(2):
            async with store.transaction() as connection:
                cursor = await connection.execute(
                    "select name, current_setting(name) from pg_settings where name = any (%s)",
                    [list(LIMITS)],
                )
                found = dict(await cursor.fetchall())
                assert found == {name: value for name, value in LIMITS.items() if name in found} | {
                    "idle_session_timeout": "0"
                }
