"""Hostile search paths, hostile names and payloads, and secrets: behaviour stays as it
is, and nothing leaks."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import PATIENCE, connect_blocking, open_connection, query, servers
from tests.support.commands import Call
from tocsin._database.schema import functions

# Search paths

CALLS = {
    "create_queue": "('made')",
    "ensure_queue": "('made', vt => '7 s')",
    "update_queue": "('made', retry_factor => 3)",
    "find_queue": "('made')",
    "list_queues": "()",
    "pause_queue": "('made')",
    "resume_queue": "('made')",
    "grant_queue": "('made', 'pg_monitor')",
    "revoke_queue": "('made', 'pg_monitor')",
    "queue_channel": "('made')",
    "purge_queue": "('made', true, true, true, true, null, false)",
    "queue_metrics": "('made')",
    "store_stats": "()",
    "queue_health": "('made')",
    "maintain": "()",
    "reclaim": "()",
    "enqueue": (
        """('q', '{"n": 1}', delay => '0 s', headers => '{"h": 1}', key => 'k', expires_in => '1 h', max_deliveries => 2,
                   ring_early => true)"""
    ),
    "wait_for_flush": "()",
    "enqueue_many": "('q', '[2, 3, 4]')",
    "reschedule": "(queue => 'q', key => 'k', delay => '0 s')",
    "reprioritise": "(queue => 'q', key => 'k', priority => 1)",
    "cancel": "(tocsin.enqueue('q', '6'))",
    "enqueue_each": """('q', '[{"payload": 5, "delay": "0 s"}]')""",
    "register_process": "('h', 1, 'v', '1 s')",
    "process_channel": "(1)",
    "attach_process": "(1)",
    "register_worker": "('q', 'consumer', 'w', 1, 'h', 1, 'v')",
    "queue_of": "(1)",
    "worker_heartbeat": "(1)",
    "list_workers": "()",
    "worker_stats": "('q')",
    "interrupt": "(1, '1 s')",
    "suspend": "(1, true)",
    "resume": "(1)",
    "begin_poll": "(1, 1)",
    "begin_waiting": "('{1, 2}')",
    "unrung_transactions": "('{1, 2}')",
    "end_waiting": "('{1, 2}')",
    "claim": "(1, 1, 10)",
    "extend": "({ids}, {leases}, '1 min')",
    "archive": "({ids}, {leases})",
    "delete": "({ids}, {leases})",
    "release": "({ids}, {leases}, '1 s')",
    "fail": "({ids}, {leases}, '{{an error}}', '{{a traceback}}')",
    "limit_lock_wait": "()",
    "locked_messages": "({ids})",
    "list_messages": "('q', 'archived')",
    "get_message": "(1)",
    "list_dead_letters": "('q', error => 'e')",
    "get_dead_letter": "(1)",
    "replay": (
        "(queue => 'q', reason => 'r', error => 'e', older_than => '0 s', max_letters => 1, delay"
        " => '1 s')"
    ),
    "archive_dead_letters": "('{1}')",
    "purge_dead_letters": "('{1}')",
    "archived_count": "(1)",
    "settle_rate": "(1)",
    "purge_archive": "(1, '1 s', true)",
    "release_messages": "(1)",
    "release_others": "(1, 1, '{}', '{}')",
    "complete_poll": "(1, 1)",
    "heartbeat": "(1, '{1}')",
    "detach_process": "(1)",
    "unregister_worker": "(1, 1)",
    "unregister_process": "(1)",
    "shutdown": "(1)",
    "stop": "(1)",
    "delete_worker": "(1)",
    "purge_workers": "('0 s', 'q')",
    "delete_queue": "('q', true)",
}
"""A call of each entry point, in an order in which most of them find something to do.
Those that settle get one held message each."""


def occupy(connection: psycopg.Connection[Any]) -> int:
    """Make a schema whose operators, functions, types and tables look like those that
    the contract uses, and raise; return how many."""
    connection.execute("create schema evil")
    connection.execute(
        "create function evil.raise() returns void language plpgsql as $$ begin raise exception 'an"
        " object of evil was used'; end $$"
    )
    made = 0

    def attempt(*statements: str) -> None:
        nonlocal made
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement.encode())
        except psycopg.Error:  # a type that PL/pgSQL does not take, such as internal
            return
        made += 1

    words = sorted(set(re.findall(r"[a-z_]{2,}", functions())))
    raises = "language plpgsql as $$ begin perform evil.raise(); end $$"
    for name, arguments, result in connection.execute(
        "select proname::text, pg_get_function_identity_arguments(oid), pg_get_function_result(oid)"
        " from pg_catalog.pg_proc where pronamespace = 'pg_catalog'::regnamespace and proname = any"
        " (%s) and prokind in ('f', 'a') and not proretset",
        [words],
    ).fetchall():
        attempt(f'create function evil."{name}"({arguments}) returns {result} {raises}')
    for number, (name, left, right, result) in enumerate(
        connection.execute(
            "select oprname::text, nullif(oprleft, 0)::regtype::text, oprright::regtype::text,"
            " oprresult::regtype::text from pg_catalog.pg_operator where oprname = any (%s)",
            [
                [
                    "=",
                    "<>",
                    "<",
                    ">",
                    "<=",
                    ">=",
                    "+",
                    "-",
                    "*",
                    "/",
                    "||",
                    "->",
                    "->>",
                    "?",
                    "@>",
                    "~",
                    "!~",
                    "^",
                ]
            ],
        ).fetchall()
    ):
        operands = f"leftarg = {left}, rightarg = {right}" if left else f"rightarg = {right}"
        attempt(
            f"create function evil.operator_{number}({', '.join(filter(None, (left, right)))})"
            f" returns {result} {raises}",
            f"create operator evil.{name} (function = evil.operator_{number}, {operands})",
        )
    for name in ("text", "name", "jsonb", "timestamptz", "float8", "regrole", "oid", "tid"):
        attempt(f"create domain evil.{name} as pg_catalog.int4 check (false)")
    for (table,) in connection.execute(
        "select relname::text from pg_class where relnamespace = 'tocsin'::regnamespace and relkind"
        " in ('r', 'p')"
    ).fetchall():
        attempt(f"create table evil.{table} (like tocsin.{table})")
        attempt(f"create temporary table {table} (like tocsin.{table})")
    for table in ("pg_class", "pg_roles", "pg_locks", "pg_proc", "pg_namespace"):
        attempt(f"create table evil.{table} ()", f"create temporary table {table} ()")
    return made


def play(connection: psycopg.Connection[Any]) -> list[tuple[str, object]]:
    """Call each entry point, and return what came of it: an answer's shape, or the
    refusal."""
    outcomes: list[tuple[str, object]] = []
    held: list[tuple[int, int]] = []
    for name, arguments in CALLS.items():
        if "{ids}" in arguments:
            message_id, lease = held.pop(0)
            arguments = arguments.format(ids=f"'{{{message_id}}}'", leases=f"'{{{lease}}}'")
        try:
            rows = connection.execute(f"select * from tocsin.{name}{arguments}".encode()).fetchall()
        except psycopg.Error as error:
            outcomes.append((name, f"{error.sqlstate} {error.diag.message_primary}"))
        else:
            if name == "claim":
                held = [(row[0], row[1]) for row in rows]
            outcomes.append((name, [tuple(type(value).__name__ for value in row) for row in rows]))
    return outcomes


TABLES = ("messages", "archive", "dead_letters", "queues", "workers", "processes")


async def test_every_entry_point_has_a_call_here(store_dsn: str) -> None:
    entry_points = await query(
        store_dsn, "select function::text from tocsin._access() where roles <> '{}'"
    )
    assert {name for (name,) in entry_points} == set(CALLS)


async def test_nothing_of_a_hostile_search_path_is_used(
    store_dsn: str, database_factory: Callable[[], str]
) -> None:
    undisturbed = database_factory()
    async with tocsin.connect(undisturbed) as store:
        await store.install()
    outcomes = []
    for dsn in (undisturbed, store_dsn):
        with connect_blocking(dsn) as connection, connect_blocking(dsn) as sleeper:
            connection.execute(
                "select tocsin.create_queue('q', vt => '1 h', retry_base => '1 h', max_string =>"
                " 99, required_keys => '{}')"
            )
            # so that there is somebody to ring for
            sleeper.execute("select tocsin.begin_waiting(array(select id from tocsin.queues))")
            # a heartbeat says when it is due
            connection.execute("update tocsin.maintenance set due_at = 'infinity'")
            if dsn == store_dsn:
                assert occupy(connection) > 500
                connection.execute("set search_path = pg_temp, evil, pg_catalog")
                with pytest.raises(psycopg.errors.RaiseException, match="evil was used"):
                    connection.execute("select octet_length('a'::pg_catalog.text)")
            outcomes.append(play(connection))
    assert outcomes[1] == outcomes[0]
    settled = dict(outcomes[0])
    assert settled["claim"]
    for operation in ("archive", "delete", "release", "fail"):
        assert settled[operation] == [("list",)], operation
    for table in TABLES:
        counts = [
            await query(dsn, f"select count(*) from tocsin.{table}")
            for dsn in (undisturbed, store_dsn)
        ]
        assert counts[0] == counts[1], table
    assert [await query(store_dsn, f"select * from evil.{table}") for table in TABLES] == [
        []
    ] * len(TABLES)


async def test_installing_and_verifying_use_nothing_that_anybody_has_put_into_public(
    dsn: str,
) -> None:
    """A function in `public` that fits better goes before PostgreSQL's own; up to
    PostgreSQL 14 everybody may put one there."""
    for signature, result in (
        ("hashtextextended(text, integer)", "bigint"),
        ("format(text, text)", "text"),
        ("format(text, name)", "text"),
        ("concat_ws(text, text, text, text)", "text"),
        ("concat_ws(text, text, text, text, text, text)", "text"),
        ('concat_ws(text, "char", "char", text)', "text"),
    ):
        await query(
            dsn,
            f"create function public.{signature} returns {result} language sql as 'select (1 /"
            f" 0)::{result}'",
        )
    async with tocsin.connect(dsn) as store:
        await store.install()
        assert await store.verify() == ()
        await query(dsn, "update tocsin.contract set digest = 'of an older version'")
        await store.install()
        await store.uninstall()


# Names and payloads

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
"""Names that are legal, and that nobody should choose."""

names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(lambda t: len(t.encode()) <= 255)


@pytest.mark.parametrize("name", HOSTILE)
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
    async with store.consumer(name) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.handle, fail)
        with trio.fail_after(PATIENCE):
            while not await store.dead_letters.list(name):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return message_id


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_that_is_nobodys_is_just_not_found(
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
        payload = psycopg.types.json.Jsonb({text: text})
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


@pytest.fixture
def connection(store_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with connect_blocking(store_dsn) as connection:
        yield connection


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ""])
async def test_what_is_no_text_is_refused_everywhere_and_changes_nothing(
    store: tocsin.Store, name: str, store_dsn: str
) -> None:
    await store.queues.create("q")

    async def consume(queue: str, worker: str | None) -> None:
        async with store.consumer(queue, name=worker):
            pass

    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.queues.create(name),
        lambda: store.queues.ensure(name),
        lambda: store.queues.get(name),
        lambda: store.queues.pause(name),
        lambda: store.queues.grant("q", name),
        lambda: store.produce(name, 1),
        lambda: consume(name, None),
        lambda: consume("q", name),
    ]
    if name:  # an empty key, payload or header is as good as any
        attempts += [
            lambda: store.produce("q", 1, key=name),
            lambda: store.produce("q", name),
            lambda: store.produce("q", {name: 1}),
            lambda: store.produce("q", 1, headers={"h": name}),
        ]
    for attempt in attempts:
        with pytest.raises((tocsin.TocsinError, ValueError)) as refused:
            await attempt()
        assert not isinstance(refused.value, UnicodeError)
    assert [q.name for q in await store.queues.list()] == ["q"]
    assert await store.workers.list() == []
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


# Arguments of every public call

NO_TEXT: list[Any] = ["a\0b", "\ud800", 5, b"q", ["q"]]
NO_NUMBER: list[Any] = [2**31, 2**63, 2**70, -1, -(2**63) - 1, True, "1", 1.5, math.nan]
NO_DURATION: list[Any] = [
    math.nan,
    math.inf,
    -1,
    1e300,
    -timedelta(1),
    timedelta.max,
    timedelta.min,
    "1 s",
    True,
]
NO_TIME: list[Any] = [
    datetime(2026, 1, 1),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    "now",
]
NO_JSON: list[Any] = ["a\0b", "\ud800", {"\ud800": 1}, {1: 1}, math.nan, object(), [[b""]]]
NO_LIST: list[Any] = [5, ["a\0b"], ["\ud800"], [5], [object()], [2**70]]
USUAL: dict[str, Any] = {
    "name": "q", "queue": "q", "role": "pg_monitor", "payload": 1, "payloads": [1], "worker_id": 1, "message_id": 1, "message": 1,
    "messages": [1], "older_than": 1, "max_age": 1, "seconds": 1, "size": 1, "handler": print, "once": True,
}  # fmt: skip
"""What is given for the arguments that a call must have, or would not end without."""


def hostile_values(hint: Any) -> list[Any]:
    """What nobody should give for an argument of this type."""
    if get_origin(hint) in (Union, UnionType):
        return [value for part in get_args(hint) for value in hostile_values(part)]
    if get_origin(hint) is Literal:
        return ["nonsense", *NO_TEXT]
    if get_origin(hint) in (Iterable, Collection):
        return NO_LIST
    known: dict[Any, list[Any]] = {
        str: NO_TEXT, int: NO_NUMBER, float: NO_DURATION, timedelta: NO_DURATION, datetime: NO_TIME, object: NO_JSON
    }  # fmt: skip
    return known.get(hint, [])


def hostile_calls(
    function: Callable[..., Any], given: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments for a function, all usual or given but for one."""
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function)
    usual = given | {
        p.name: USUAL[p.name]
        for p in parameters
        if p.name in USUAL and (p.default is p.empty or p.name == "once")
    }
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from (((value,), usual) for value in hostile_values(hint))
        elif parameter.kind is parameter.VAR_KEYWORD:
            options = get_type_hints(get_args(hint)[0])
            yield from (
                ((), {**usual, name: value})
                for name, kind in options.items()
                for value in hostile_values(kind)
            )
            yield (), {**usual, "nonsense": 1}
        elif parameter.name != "self":
            yield from (((), {**usual, parameter.name: value}) for value in hostile_values(hint))


async def call_to_the_end(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with trio.fail_after(PATIENCE):
        result = function(*arguments, **options)
        if hasattr(result, "__aenter__"):
            async with result:
                pass
        elif inspect.isawaitable(result):
            await result


async def test_no_argument_of_any_public_call_has_an_error_come_out_that_is_none_of_ours(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    await store.produce_many("q", range(3))
    tried, wrong = set[str](), list[str]()
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        open_connection(store_dsn) as connection,
    ):
        (message,) = await consumer.dequeue()
        handle = await store.workers.get(producer.worker_id)
        with connect_blocking(store_dsn) as blocking:
            calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
                (tocsin.enqueue, {"connection": blocking}),
                (tocsin.enqueue_many, {"connection": blocking}),
                (tocsin.enqueue_async, {"connection": connection}),
                (tocsin.enqueue_many_async, {"connection": connection}),
            ]
            for thing in (
                store,
                store.queues,
                store.workers,
                store.messages,
                store.dead_letters,
                producer,
                consumer,
                handle,
                message,
            ):
                kind = type(thing)
                calls += [
                    (getattr(thing, n), {})
                    for n in dir(kind)
                    if n[0] != "_" and inspect.isfunction(getattr(kind, n))
                ]
            for function, given in calls:
                name = function.__qualname__
                for arguments, options in hostile_calls(function, given):
                    tried.add(name)
                    try:
                        await call_to_the_end(function, *arguments, **options)
                    except Exception as error:
                        if not isinstance(
                            error, (tocsin.TocsinError, ValueError, TypeError)
                        ) or isinstance(error, UnicodeError):
                            wrong.append(f"{name}{arguments!a}{options!a}: {error!a}")
    assert not wrong, "\n".join(wrong)
    assert len(tried) > 40
    assert [q.name for q in await store.queues.list()] == ["q"]


@pytest.mark.parametrize(
    "name", ['x"; drop schema tocsin cascade; --', "x'", "x.y", "x y", "é", "\0", ""]
)
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
    assert (
        subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE).returncode
        == 2
    )


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


# Secrets

SECRET = "s3cr3t-hunter2"


def said(error: BaseException | None) -> str:
    """All that an error says, its causes included, as text and as a program sees it."""
    text = ""
    while error is not None:
        text += (
            "".join(traceback.format_exception(error))
            + repr(error)
            + repr(error.args)
            + repr(vars(error))
        )
        error = error.__cause__ or error.__context__
    return text


def dsns(server: servers.Server, database: str) -> dict[str, str]:
    """Connection strings with the secret in them, none of which leads anywhere."""
    good = server.dsn(database)
    on_server = {"password": SECRET, "connect_timeout": "5"}
    return {
        "nobody listens": f"postgresql://ada:{SECRET}@127.0.0.1:1/app",
        "no such host": f"postgresql://ada:{SECRET}@host.invalid/app",
        "no such socket": f"host=/no/such/directory user=ada password={SECRET}",
        "several hosts": f"postgresql://ada:{SECRET}@127.0.0.1:1,127.0.0.1:2/app",
        "no such role": make_conninfo(good, user="tocsin_test_nobody", **on_server),
        "no such database": make_conninfo(
            good,
            dbname="tocsin_test_none",
            **({} if server.kind == "dsn" else {"password": servers.PASSWORD}),
        ),
        "bad option": f"postgresql://ada:{SECRET}@127.0.0.1/app?no_such_option=1",
        "bad port": f"postgresql://ada:{SECRET}@127.0.0.1:port/app",
        "bad value": f"postgresql://ada:{SECRET}@127.0.0.1:1/app?sslmode=nonsense",
        "bad timeout": f"postgresql://ada:{SECRET}@127.0.0.1:1/app?connect_timeout=soon",
        "a slash in the password": f"postgresql://ada:{SECRET}/x@127.0.0.1/app",
        "a question mark in the password": f"postgresql://ada:{SECRET}?x@127.0.0.1/app",
        "an at sign in the password": f"postgresql://ada:x@{SECRET}@127.0.0.1/app",
        "unbalanced": f"postgresql://ada:{SECRET}@[::1/app",
        "a password that is none": f"host=127.0.0.1 port=1 password='{SECRET}",
        "an equals sign too few": f"host=127.0.0.1 {SECRET}",
        "percent": f"postgresql://ada:{SECRET}%zz@127.0.0.1/app",
        "a NUL": f"postgresql://ada:{SECRET}\0@127.0.0.1/app",
        "a surrogate": f"postgresql://ada:{SECRET}\ud800@127.0.0.1/app",
    }


KINDS = list(dsns(servers.Server("dsn", "host=x", 0, None, None), "x"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_password_is_in_no_error_and_no_log_of_the_library(
    server: servers.Server,
    database_factory: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = dsns(server, str(conninfo_to_dict(database_factory())["dbname"]))[kind]
    with pytest.raises((tocsin.ConfigError, tocsin.ConnectionLost)) as refused:
        async with tocsin.connect(dsn) as store:
            await store.queues.list()
    assert SECRET not in said(refused.value)
    assert SECRET not in caplog.text
    assert servers.PASSWORD not in said(refused.value) + caplog.text


@pytest.mark.parametrize("kind", ["nobody listens", "no such role", "unbalanced", "bad value"])
async def test_a_password_is_in_no_error_of_the_listening_connection(
    server: servers.Server, store_dsn: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = dsns(server, str(conninfo_to_dict(store_dsn)["dbname"]))[kind]
    text = ""
    with trio.move_on_after(1):
        try:
            async with tocsin.connect(store_dsn, listen_dsn=dsn) as store:
                await store.queues.ensure("q")
                async with store.consumer("q"):
                    await trio.sleep_forever()
        except (tocsin.ConfigError, tocsin.ConnectionLost) as error:
            text = said(error)
    assert text or "LISTEN connection" in caplog.text
    assert SECRET not in text + caplog.text


async def test_a_live_server_is_not_told_the_password_in_a_statement_nor_others_in_a_refusal(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password = str(conninfo_to_dict(store_dsn).get("password") or SECRET)
    dsn = make_conninfo(store_dsn, password=password)
    errors = ""
    async with tocsin.connect(dsn) as store:
        text = repr(store) + repr(store.statistics()) + repr(vars(store).keys())
        for attempt in (
            store.queues.get("nowhere"),
            store.workers.get(1),
            store.produce("nowhere", 1),
            store.queues.create(""),
        ):
            try:
                await attempt
            except Exception as error:
                errors += said(error)
        rows = await query(
            dsn,
            "select query, application_name from pg_stat_activity where datname ="
            " current_database()",
        )
        await query(
            dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity where datname ="
            " current_database() and pid <> pg_backend_pid()",
        )
        try:
            await store.queues.list()
        except tocsin.ConnectionLost as lost:
            errors += said(lost)
    assert errors
    assert password not in text + errors + caplog.text + repr(rows)


# no environment holds these
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("a NUL", "a surrogate")])
def test_a_password_is_in_nothing_that_the_command_says(
    server: servers.Server,
    dsn: str,
    kind: str,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOCSIN_DSN", dsns(server, str(conninfo_to_dict(dsn)["dbname"]))[kind])
    ended = call("admin", "verify")
    assert ended.code in (2, 3), ended
    assert ended.error.startswith("tocsin: ")
    assert SECRET not in ended.out + ended.error + caplog.text
    assert servers.PASSWORD not in ended.out + ended.error + caplog.text


@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="reads the process list in /proc"
)
def test_a_password_from_the_environment_is_not_in_the_process_list(tmp_path: Path) -> None:
    # takes connections and says nothing, so that the command stays
    with servers.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dsn = f"postgresql://ada:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/app"
        command = [sys.executable, "-m", "tocsin", "admin", "verify"]
        with subprocess.Popen(
            command, env={**os.environ, "TOCSIN_DSN": dsn}, stderr=subprocess.DEVNULL
        ) as process:
            try:
                listener.settimeout(PATIENCE)
                connected, _ = listener.accept()
                with connected:
                    listed = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                    names = Path(f"/proc/{process.pid}/comm").read_bytes()
            finally:
                process.terminate()
    assert b"tocsin" in listed
    assert SECRET.encode() not in listed + names
