"""Names and payloads with quotes, line breaks and other characters are plain text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

import tocsin
from tests.support import ENDS_WITHIN, PATIENCE, connect_blocking
from tests.support.runs import running
from tests.support.sweeps import sweep

HOSTILE = [
    "'; drop schema tocsin cascade; --",
    '"; drop schema tocsin cascade; --',
    "'); select pg_terminate_backend(pg_backend_pid()); --",
    "$$; $1 %s %(x)s %% {0} {}",
    "\\'; \\x00 E'\\047'",
    "tocsin.messages",
    "NULL",
    "-1",
    "*",
    " ",
    "\t\r\n",
    "\x01\x1b[2J\x7f",
    "\u202e\u2066\ufeff\u200b",
    "é" * 127,
    "😀" * 63,
    "a" * 255,
    "../../etc/passwd",
    "${HOME} $(id) `id`",
]
"""Names that are legal, and that no program should choose."""


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(lambda t: len(t.encode()) <= 255)


@pytest.fixture
def connection(store_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with connect_blocking(store_dsn) as connection:
        yield connection


@sweep("name", HOSTILE, quick=3)
async def test_a_hostile_name_is_a_name_like_any_other(
    store: tocsin.Store, store_dsn: str, name: str
) -> None:
    queue = await store.queues.create(name)
    assert queue.name == name
    assert await store.queues.exists(name)
    assert [q.name for q in await store.queues.list()] == [name]
    async with (
        store.consumer(name, name=name) as consumer,
        store.producer(name, name=name) as producer,
    ):
        first = await producer.enqueue({name: name}, headers={name: [name]}, key=name)
        assert await store.produce(name, None, key=name) == first
        (message,) = await consumer.dequeue(wait=PATIENCE)
        assert (message.id, message.payload, message.headers) == (
            first,
            {name: name},
            {name: [name]},
        )
        assert [(w.name, w.queue) for w in await store.workers.list(name)] == [(name, name)] * 2
        await consumer.archive(message)
    await store.queues.pause(name)
    await store.queues.resume(name)
    dead = await fail_for_good(store, name)
    assert [d.id for d in await store.dead_letters.list(name, error=name)] == [dead]
    assert (
        await store.dead_letters.list(name, error=f"{name}!")
        == await store.dead_letters.list(name, reason=name)
        == []
    )
    assert await store.dead_letters.purge(queue=name, error=name, dry_run=True) == 1
    assert [m.id for m in await store.messages.list(name, state="dead")] == [dead]
    assert (await store.queues.metrics(name)).dead == 1
    for attempt in (store.queues.grant(name, name), store.queues.revoke(name, name)):
        with pytest.raises(tocsin.RoleNotFound, match="does not exist"):
            await attempt
    with pytest.raises(tocsin.QueueAlreadyExists):
        await store.queues.create(name)
    await store.queues.delete(name, force=True)
    assert await store.queues.list() == []
    assert await store.verify() == ()


async def fail_for_good(store: tocsin.Store, name: str) -> int:
    """Enqueue a message whose handler fails with this name as its error, once and for
    all; return its id."""

    async def fail(message: tocsin.Message) -> None:
        raise ValueError(name)

    message_id = await store.produce(name, 1, max_deliveries=1)
    async with store.consumer(name) as consumer, running(consumer, fail) as run:
        await run.settled(1, "failed")
    return message_id


@sweep("name", HOSTILE, quick=2)
async def test_a_hostile_name_that_no_queue_has_is_just_not_found(
    store: tocsin.Store, name: str
) -> None:
    for attempt in (
        store.produce(name, 1),
        store.queues.get(name),
        store.queues.pause(name),
        store.queues.resume(name),
        store.queues.update(name, vt=1),
        store.queues.grant(name, name),
        store.queues.purge(name, ready=True),
        store.queues.delete(name),
        store.queues.metrics(name),
        store.messages.list(name),
        store.dead_letters.list(name),
        store.dead_letters.replay(queue=name),
    ):
        with pytest.raises(tocsin.QueueNotFound) as refused:
            await attempt
        assert refused.value.queue == name
    assert await store.workers.list(name) == []
    assert await store.verify() == ()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(queue=names, worker=names, key=names, text=names)
def test_any_text_is_a_name_a_key_or_a_payload_in_sql(
    connection: psycopg.Connection[Any], queue: str, worker: str, key: str, text: str
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("select tocsin.create_queue(%s)", [queue])
        registered = connection.execute(
            "select id, registration, name, kind from tocsin.register_worker(%s, 'consumer', %s,"
            " null, %s, 1, %s)",
            [queue, worker, text, text],
        ).fetchone()
        assert registered is not None
        worker_id, registration, name, _ = registered
        assert name == worker
        payload = Jsonb({text: text})
        ids = [
            connection.execute(
                "select tocsin.enqueue(%s, %s, key => %s, headers => %s)",
                [queue, payload, key, payload],
            ).fetchone()
            for _ in range(2)
        ]
        assert ids[0] == ids[1]
        claimed = connection.execute(
            "select id, lease, payload::jsonb from tocsin.claim(%s, %s, 1)",
            [worker_id, registration],
        ).fetchone()
        assert claimed is not None
        assert claimed[2] == {text: text}
        failed = connection.execute(
            "select tocsin.fail(array[%s::bigint], array[%s::bigint], array[%s], array[%s])",
            [claimed[0], claimed[1], text, text],
        ).fetchone()
        assert failed is not None
        assert failed[0][0] >= 0
        assert connection.execute("select last_error from tocsin.messages").fetchone() == (text,)


@sweep("name", ['x"; drop schema tocsin cascade; --', "x'", "x.y", "x y", "é", "\0", ""], quick=1)
def test_a_hostile_name_of_a_schema_is_refused_everywhere(
    connection: psycopg.Connection[Any], name: str
) -> None:
    with pytest.raises(tocsin.ConfigError):
        tocsin.enqueue(connection, "q", 1, schema=name)
    with pytest.raises(tocsin.ConfigError):
        tocsin.enqueue_many(connection, "q", [1], schema=name)
    environment = {
        **os.environ,
        "TOCSIN_DSN": "host=/no/such/directory",
        **({} if "\0" in name else {"TOCSIN_SCHEMA": name}),
    }
    arguments = ["--schema", name] if "\0" not in name else ["--schema", "x y"]
    command = [sys.executable, "-m", "tocsin", "admin", "uninstall", "--yes", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=ENDS_WITHIN)
    assert ended.returncode == 2


@pytest.mark.parametrize(
    "name",
    [
        'tocsin_test "; drop schema tocsin cascade; --',
        "tocsin_test ' %s \\ $$",
        "tocsin_test_Ünïcödé 😀",
    ],
)
async def test_a_hostile_role_is_a_role_like_any_other(
    store: tocsin.Store, store_dsn: str, name: str
) -> None:
    roles = tocsin.Roles(producer=name, consumer=None, admin=None)
    try:
        await store.install(roles=roles)
        assert await store.verify() == ()
        await store.queues.create("q")
        with connect_blocking(store_dsn) as connection:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(name)))
            with pytest.raises(psycopg.Error, match="may not enqueue") as refused:
                connection.execute("select tocsin.enqueue('q', '1')")
            assert name in str(refused.value)
            await store.queues.grant("q", name)
            connection.execute("select tocsin.enqueue('q', '1')")
        await store.uninstall()
    finally:
        with connect_blocking(store_dsn) as connection:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
