"""Hostile search paths: no object that another role has put there is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import tocsin
from tests.support import connect_blocking, query
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
    "purge_queue": "('made', true, true, true, true, true, null, false)",
    "queue_metrics": "('made')",
    "store_stats": "()",
    "maintain": "()",
    "reclaim": "()",
    "enqueue": (
        """('q', '{"n": 1}', delay => '0 s', headers => '{"h": 1}', key => 'k', expires_in => '1 h',
                   max_deliveries => 2, ring_early => true)"""
    ),
    "wait_for_flush": "()",
    "register_tasks": """('[{"name": "t", "queue": "q", "max_deliveries": 3, "priority": 0,
                           "timeout": 60, "description": ""}]')""",
    "list_tasks": "()",
    "list_limits": "('queue q')",
    "set_limit": "('queue q', 1)",
    "submit": "('t', '[1]', delay => '0 s', priority => 1, key => 'j', timeout => '1 s')",
    "enqueue_jobs": (
        """('[{"queue": "q", "task": "t", "payload": [1]},"""
        """ {"queue": "q", "task": "t", "payload": [1], "key": "j"}]')"""
    ),
    "await_job": "(1)",
    "leave_job": "(1, 1, false)",
    "server_time": "()",
    "set_schedule": """('s', 't', '[1]', every => '1 h', timeout => '1 s', expires_in => '1 h',
                         next_tick => '2100-01-01')""",
    "pause_schedule": "('s')",
    "resume_schedule": "('s', next_tick => '2100-01-01')",
    "tick": "(1, 1, '{}', '2100-01-01')",
    "run_schedule": "('s')",
    "list_schedules": "()",
    "job_outcomes": "(array[1, 2, 3]::bigint[])",
    "job_attempts": "(2)",
    "submit_flow": """('f', '[{"queue": "q", "task": "t", "payload": [1]}, {"queue": "q",
                        "task": "t", "payload": [1], "parents": [{"job": 0}]}]')""",
    "list_flows": "()",
    "list_flow_jobs": "(1)",
    "list_edges": "(1)",
    "cancel_flow": "(1)",
    "requeue_flow": "(1)",
    "list_jobs": (
        "(task => 't', queue => 'q', state => 'failed', key => 'k', after => 1, job_id => 2)"
    ),
    "job_stats": "()",
    "task_metrics": "()",
    "edit_job": """(tocsin.enqueue('q', '[]', task => 't'), 1, '{"a": 1}')""",
    "requeue_job": "(1)",
    "clear_jobs": "(task => 't', older_than => '1 s')",
    "await_jobs": "(array[1, 2, 3]::bigint[], 1)",
    "leave_jobs": "(array[1, 2, 3]::bigint[], 1)",
    "begin_awaiting": "(array[1])",
    "begin_awaiting_jobs": "(array[1, 2, 3]::bigint[], array[]::integer[])",
    "unannounced_outcomes": "(array[1])",
    "end_awaiting": "(array[1])",
    "enqueue_many": "('q', '[2, 3, 4]')",
    "reschedule": "(queue => 'q', key => 'k', delay => '0 s')",
    "reprioritise": "(queue => 'q', key => 'k', priority => 1)",
    "cancel": "(tocsin.enqueue('q', '6'))",
    "enqueue_each": """('q', '[{"payload": 5, "delay": "0 s"}]')""",
    "register_process": "('h', 1, 'v', '1 s')",
    "process_channel": "(1)",
    "attach_process": "(1)",
    "register_worker": "('q', 'consumer', 'w', 1, 'h', 1, 'v', tasks => '{t}')",
    "queue_health": "('q')",
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
    "extend": """({ids}, {leases}, '1 min', '[{{"done": 1}}]')""",
    "archive": "({ids}, {leases})",
    "delete": "({ids}, {leases})",
    "release": "({ids}, {leases}, '1 s')",
    "fail": "({ids}, {leases}, '{{an error}}', '{{a traceback}}')",
    "limit_lock_wait": "()",
    "cancel_reasons": "({ids}, {leases})",
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
    "delete_schedule": "('s')",
    "delete_queue": "('q', true)",
}
"""A call of each entry point, in an order in which most of them find something to do.
Those that settle get one held message each."""


def occupy(connection: psycopg.Connection[Any]) -> int:
    """Make a schema whose operators, functions, types and tables have the names of
    those that the contract uses, and raise; return how many."""
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
                held = [(row[1], row[2]) for row in rows]
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
        with connect_blocking(dsn) as connection, connect_blocking(dsn) as listening:
            connection.execute(
                "select tocsin.create_queue('q', vt => '1 h', retry_base => '1 h', max_string =>"
                " 99, required_keys => '{}')"
            )
            # so that there is a session to ring for
            listening.execute("select tocsin.begin_waiting(array(select id from tocsin.queues))")
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


async def test_installing_and_verifying_use_nothing_from_public(
    dsn: str,
) -> None:
    """A function in `public` that fits better goes before PostgreSQL's own; up to
    PostgreSQL 14 every role may put one there."""
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


# Secrets
