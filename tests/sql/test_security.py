"""Roles: what each may do, what none may, and that `verify` sees a change."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import connect_blocking, query, servers
from tests.support.runs import running
from tests.support.sweeps import sweep
from tocsin.embedded import EmbeddedServer

REFUSED = psycopg.errors.InsufficientPrivilege
TABLES = (
    "select relname::text from pg_class where relnamespace = 'tocsin'::regnamespace and relkind in"
    " ('r', 'p', 'v')"
)


@attrs.frozen
class Cast:
    """Roles of this test's own, since roles belong to the whole server, and logins that
    are members of them."""

    dsn: str
    """Connection string of the schema's owner."""
    roles: tocsin.Roles
    """The roles that are let in."""
    producer: str
    """Name of a login that is a producer."""
    other_producer: str
    """Name of another."""
    consumer: str
    """Name of a login that is a consumer."""
    admin: str
    """Name of a login that is an administrator."""
    stranger: str
    """Name of a login that is nothing."""

    def as_(self, login: str) -> str:
        """Connection string for one of the logins."""
        return make_conninfo(self.dsn, user=login, password=servers.PASSWORD)


@pytest.fixture
async def cast(new_role: Callable[..., str], store_dsn: str) -> Cast:
    """A store with roles, and two queues of which one is granted to the producers."""
    roles = tocsin.Roles(
        *(new_role(kind, create=False) for kind in ("producers", "consumers", "admins"))
    )
    async with tocsin.connect(store_dsn) as store:
        await store.install(roles=roles)
        producer, other = (new_role("producer", roles.producer) for _ in range(2))
        for name in ("granted", "closed"):
            await store.queues.create(name)
        await store.queues.grant("granted", producer)
        await store.queues.grant("granted", other)
    consumer, admin = new_role("consumer", roles.consumer), new_role("admin", roles.admin)
    return Cast(store_dsn, roles, producer, other, consumer, admin, new_role("stranger"))


async def functions_by_role(dsn: str) -> dict[str, list[str] | None]:
    """Return each function with the roles that may call it, as sql/security/access.sql
    says; None for an internal one."""
    names = await query(
        dsn,
        "select distinct proname::text from pg_proc where pronamespace = 'tocsin'::regnamespace",
    )
    entry_points = await query(dsn, "select function::text, roles from tocsin._access()")
    internal: dict[str, list[str] | None] = {name: None for (name,) in names}
    return internal | dict(entry_points)


async def signatures(dsn: str) -> list[tuple[str, str]]:
    """Name and signature of each function in the schema."""
    return await query(
        dsn,
        "select proname::text, oid::regprocedure::text from pg_proc where pronamespace ="
        " 'tocsin'::regnamespace",
    )


# What `public` may: nothing.


async def test_a_function_is_listed_once_as_an_entry_point_or_has_an_underscore(
    store_dsn: str,
) -> None:
    listed = [
        name for (name,) in await query(store_dsn, "select function::text from tocsin._access()")
    ]
    assert len(listed) == len(set(listed))
    assert {name for name, _ in await signatures(store_dsn) if not name.startswith("_")} == set(
        listed
    )


async def test_entry_points_run_with_their_owners_rights_and_a_safe_path_and_nothing_else_does(
    store_dsn: str,
) -> None:
    access = await functions_by_role(store_dsn)
    rows = await query(
        store_dsn,
        "select proname::text, prosecdef, coalesce('search_path=pg_catalog, pg_temp' = any"
        " (proconfig), false) from pg_proc where pronamespace = 'tocsin'::regnamespace",
    )
    for name, definer, safe_path in rows:
        roles = access[name]
        assert (name, definer, safe_path) == (name, bool(roles), roles is not None)


@pytest.mark.parametrize("with_roles", [False, True])
async def test_nothing_is_open_to_every_role(
    store_dsn: str, new_role: Callable[..., str], request: pytest.FixtureRequest, with_roles: bool
) -> None:
    if with_roles:
        request.getfixturevalue("cast")
    outsider = new_role("outsider")
    assert not await open_to(store_dsn, outsider)
    usage = "select has_schema_privilege(%s, 'tocsin', 'usage, create')"
    assert await query(store_dsn, usage, outsider) == [(False,)]


async def open_to(dsn: str, role: str) -> set[str]:
    """Names of all functions, tables, columns and sequences that a role may do anything
    with."""
    rows = await query(
        dsn,
        """
        select p.proname::text from pg_proc p
        where p.pronamespace = 'tocsin'::regnamespace and has_function_privilege(%s, p.oid,
            'execute')
        union
        select c.relname::text from pg_class c
        where c.relnamespace = 'tocsin'::regnamespace and c.relkind in ('r', 'p', 'v')
          and (has_table_privilege(%s, c.oid,
              'select, insert, update, delete, truncate, references, trigger')
               or has_any_column_privilege(%s, c.oid, 'select, insert, update, references'))
        union
        select c.relname::text from pg_class c
        where c.relnamespace = 'tocsin'::regnamespace
          and case when c.relkind = 'S' then
              has_sequence_privilege(%s, c.oid, 'usage, select, update') end
        """,
        *[role] * 4,
    )
    return {name for (name,) in rows}


@pytest.mark.parametrize("kind", ["producer", "consumer", "admin"])
async def test_each_role_may_call_what_is_listed_for_it_and_nothing_else(
    cast: Cast, kind: str
) -> None:
    access = await functions_by_role(cast.dsn)
    tables = {name for (name,) in await query(cast.dsn, TABLES)}
    readable = tables if kind == "admin" else {"migrations", "contract"}
    assert (
        await open_to(cast.dsn, getattr(cast, kind))
        == {name for name, roles in access.items() if kind in (roles or [])} | readable
    )
    writable = await query(
        cast.dsn,
        "select relname::text from pg_class c where relnamespace = 'tocsin'::regnamespace and"
        " relkind in ('r', 'p') and has_table_privilege(%s, c.oid, 'insert, update, delete,"
        " truncate, references, trigger')",
        getattr(cast, kind),
    )
    assert writable == []


async def test_a_login_that_is_nothing_is_told_so(cast: Cast) -> None:
    async with tocsin.connect(cast.as_(cast.stranger)) as store:
        for attempt in (
            store.produce("granted", 1),
            store.queues.list(),
            store.workers.list(),
            store.install(),
            store.verify(),
        ):
            with pytest.raises(
                tocsin.PermissionDenied,
                match=r"permission denied for .*; use the role of Tocsin's owner",
            ):
                await attempt


async def test_what_the_users_own_statements_are_refused_is_left_as_it_is(cast: Cast) -> None:
    await query(cast.dsn, "create table public.secrets ()")
    async with tocsin.connect(cast.as_(cast.producer)) as store:
        with pytest.raises(REFUSED):
            async with store.transaction() as connection:
                await connection.execute("select * from public.secrets")
        async with store.producer("granted") as producer:
            with pytest.raises(tocsin.PermissionDenied):
                async with store.transaction() as connection:
                    await store.produce("closed", 1, connection=connection)
            await producer.enqueue(1)


# The producer


async def test_a_producer_sees_no_arguments_of_schedules_and_changes_no_limit(cast: Cast) -> None:
    definition = {"name": "t", "queue": "granted", "max_deliveries": 3, "priority": 0}
    definition |= {"description": "", "limits": [{"name": "few", "n": 1}]}
    await query(cast.dsn, "select tocsin.register_tasks(%s::jsonb)", json.dumps([definition]))
    await query(
        cast.dsn,
        "select tocsin.set_schedule('s', 't', '{\"secret\": 1}', headers => '{\"a\": 1}',"
        " every => '1 day')",
    )
    producer = cast.as_(cast.producer)
    seen = await query(producer, "select arguments, headers from tocsin.list_schedules()")
    assert seen == [(None, None)]
    own = definition | {"name": "own", "limits": [{"name": "few", "n": 1000}]}
    await query(
        producer,
        "select tocsin.set_schedule('s2', 'own', every => '1 day', definition => %s::jsonb)",
        json.dumps(own),
    )
    assert await query(cast.dsn, "select n from tocsin.limits") == [(1,)]


async def test_a_producer_enqueues_in_every_way_to_the_queue_it_was_granted(cast: Cast) -> None:
    async with tocsin.connect(cast.as_(cast.producer)) as store, tocsin.connect(cast.dsn) as owners:
        async with store.producer("granted", name="p") as producer:
            first = await producer.enqueue(1, key="k")
            assert await producer.enqueue(2, key="k") == first
            assert len(await producer.enqueue_many([2, 3])) == 2
            async with trio.open_nursery() as nursery:
                for number in range(4, 20):
                    nursery.start_soon(producer.enqueue, number)
            async with store.transaction() as connection:
                await producer.enqueue(20, connection=connection)
            await producer.heartbeat()
            assert (await producer.info()).status == "ready"
            assert [w.name for w in await store.workers.list()] == ["p"]
            assert await store.workers.list("closed") == []
        await store.produce("granted", 21)
        async with owners.consumer("granted") as consumer:
            messages = await consumer.dequeue(limit=100)
            assert sorted(m.payload for m in messages) == list(range(1, 22))
            assert {m.producer_worker_id for m in messages} == {producer.worker_id, None}
            assert all(await consumer.archive_many(messages))
    assert await query(
        cast.dsn, "select count(*) from tocsin.workers where status <> 'stopped'"
    ) == [(0,)]
    assert await query(cast.dsn, "select count(*) from tocsin.processes") == [(0,)]


@pytest.mark.parametrize("login", ["producer", "consumer"])
async def test_a_queue_that_was_not_granted_is_refused_in_every_way(cast: Cast, login: str) -> None:
    async with tocsin.connect(cast.as_(getattr(cast, login))) as store:
        for attempt in (
            partial(store.produce, "closed", 1),
            partial(store.produce, "closed", 1, key="k"),
            partial(store.produce, "closed", 1, priority=3),
        ):
            with pytest.raises(
                tocsin.PermissionDenied, match='may not enqueue to queue "closed"'
            ) as refused:
                await attempt()
            assert refused.value.role == getattr(cast, login)
        with pytest.raises(tocsin.PermissionDenied):
            async with store.producer("closed"):
                pass
    for statement in (
        "select tocsin.enqueue('closed', '1')",
        "select tocsin.enqueue_many('closed', '[1]')",
        """select tocsin.enqueue_each('closed', '[{"payload": 1}]')""",
    ):
        with pytest.raises(psycopg.errors.Error, match='may not enqueue to queue "closed"'):
            await query(cast.as_(getattr(cast, login)), statement)
    assert await query(cast.dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_a_producer_sees_jobs_of_its_queues_without_their_arguments(cast: Cast) -> None:
    ids = [
        number
        for queue in ("granted", "closed")
        for (number,) in await query(
            cast.dsn, f"select tocsin.enqueue('{queue}', '[]', task => 't')"
        )
    ]
    for login, seen in ((cast.producer, 1), (cast.consumer, 2), (cast.admin, 2)):
        async with tocsin.connect(cast.as_(login)) as store:
            for job_id in ids[:seen]:
                assert await store.jobs.attempts(job_id) == []
                listed = await store.jobs.get_listed(job_id)
                assert listed.arguments == (None if seen == 1 else [])
            for job_id in ids[seen:]:
                for ask in (store.jobs.attempts, store.jobs.get_listed, store.jobs.wait):
                    with pytest.raises(tocsin.JobNotFound):
                        await ask(job_id)
            if login != cast.admin:
                with pytest.raises(tocsin.PermissionDenied):
                    await store.jobs.metrics()


async def test_a_producer_needs_no_store(cast: Cast) -> None:
    with connect_blocking(cast.as_(cast.producer)) as connection:
        tocsin.enqueue(connection, "granted", 1)
        with pytest.raises(tocsin.PermissionDenied, match='may not enqueue to queue "closed"'):
            tocsin.enqueue(connection, "closed", 1)
        with pytest.raises(tocsin.PermissionDenied, match='may not enqueue to queue "closed"'):
            tocsin.enqueue_many(connection, "closed", [1, 2])
    with (
        connect_blocking(cast.as_(cast.stranger)) as connection,
        pytest.raises(tocsin.PermissionDenied, match="schema tocsin"),
    ):
        tocsin.enqueue(connection, "granted", 1)


@pytest.mark.slow
async def test_the_command_line_does_for_each_role_what_that_may(
    cast: Cast, tmp_path: Path
) -> None:
    (tmp_path / "handlers.py").write_text("def handle(message):\n    print(message.payload)\n")

    async def call(login: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        environment = {**os.environ, "TOCSIN_DSN": cast.as_(login)}
        command = [sys.executable, "-m", "tocsin", *arguments]
        ended = await trio.run_process(
            command,
            env=environment,
            cwd=tmp_path,
            stdin=stdin.encode(),
            capture_stdout=True,
            check=False,
        )
        return ended.returncode, ended.stdout.decode()

    assert (await call(cast.producer, "enqueue", "granted", '"a"'))[0] == 0
    assert (await call(cast.producer, "enqueue", "granted", stdin='"b"\n"c"\n'))[0] == 0
    assert (await call(cast.producer, "enqueue", "closed", stdin="1\n"))[0] == 1
    assert (await call(cast.producer, "queue", "list"))[0] == 1
    assert await call(cast.consumer, "worker", "run", "granted", "handlers:handle", "--once") == (
        0,
        "a\nb\nc\n",
    )
    (tmp_path / "tasks.py").write_text(
        "import tocsin\n@tocsin.task(queue='granted')\ndef double(n: int) -> int: return 2 * n\n"
    )
    job = ("job", "submit", "tasks.double", "[21]")
    assert (await call(cast.producer, *job))[0] == 1  # no worker has registered it
    (code, job_id) = await call(cast.producer, *job, "--tasks", "tasks")
    assert code == 0
    assert (await call(cast.consumer, "worker", "run", "--tasks", "tasks", "--once"))[0] == 0
    assert await call(cast.producer, "job", "result", job_id.strip()) == (0, "42\n")
    shown = (await call(cast.producer, "job", "show", job_id.strip()))[1].splitlines()
    assert [line.split() for line in shown if line.startswith("arguments")] == [["arguments", "-"]]
    for command in ("list", "attempts"):
        identity = [job_id.strip()] if command == "attempts" else []
        assert (await call(cast.producer, "job", command, *identity))[0] == 0
    assert (await call(cast.producer, "job", "requeue", job_id.strip()))[0] == 0
    assert (await call(cast.producer, "job", "stats"))[0] == 1
    assert (await call(cast.producer, "job", "clear", "--yes"))[0] == 1
    assert (await call(cast.producer, "schedule", "set", "s", "tasks.double", "--every", "1h"))[
        0
    ] == 0
    assert (await call(cast.producer, "schedule", "run-now", "s"))[0] == 0
    assert (await call(cast.producer, "schedule", "remove", "s", "--yes"))[0] == 0
    assert (await call(cast.consumer, "queue", "pause", "granted"))[0] == 1
    assert (await call(cast.admin, "queue", "pause", "granted"))[0] == 0
    assert (await call(cast.admin, "top", "--once"))[0] == 0


async def test_concurrent_enqueues_that_are_refused_are_each_told(cast: Cast) -> None:
    refused: list[tocsin.PermissionDenied] = []

    async def enqueue(store: tocsin.Store, number: int) -> None:
        with pytest.raises(tocsin.PermissionDenied) as caught:
            await store.produce("closed", number)
        refused.append(caught.value)

    async with tocsin.connect(cast.as_(cast.producer)) as store, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(enqueue, store, number)
    assert len(refused) == 10


async def test_a_grant_counts_at_once_and_so_does_its_end(cast: Cast) -> None:
    async with tocsin.connect(cast.as_(cast.producer)) as store, tocsin.connect(cast.dsn) as owners:
        async with store.producer("granted") as producer:
            for _ in range(2):
                await owners.queues.revoke("granted", cast.producer)
            with pytest.raises(tocsin.PermissionDenied):
                await producer.enqueue(1)
            for _ in range(2):
                await owners.queues.grant("granted", cast.producer)
            await producer.enqueue(2)
        for attempt in (
            owners.queues.grant("granted", "no such role"),
            owners.queues.revoke("granted", "no such role"),
        ):
            with pytest.raises(tocsin.RoleNotFound, match='role "no such role" does not exist'):
                await attempt
        with pytest.raises(tocsin.QueueNotFound):
            await owners.queues.grant("nowhere", cast.producer)


async def test_a_grant_reaches_a_role_that_inherits_from_the_role(
    cast: Cast, new_role: Callable[..., str]
) -> None:
    group = new_role("group", options="nologin")
    member = new_role("member", group, cast.roles.producer)
    not_inheriting = new_role("other", group, cast.roles.producer, options="login noinherit")
    async with tocsin.connect(cast.dsn) as owners:
        await owners.queues.grant("closed", group)
    enqueue = "select tocsin.enqueue('closed', '1')"
    assert await query(cast.as_(member), enqueue)
    with pytest.raises(REFUSED):
        await query(cast.as_(not_inheriting), enqueue)


async def test_the_caller_is_the_role_that_set_role_has_chosen(cast: Cast) -> None:
    def attempt(connection: psycopg.Connection[tuple[object, ...]], role: str, queue: str) -> bool:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        try:
            connection.execute("select tocsin.enqueue(%s, '1')", [queue])
        except psycopg.Error as error:
            assert error.sqlstate in ("TC030", "42501")
            return False
        return True

    with connect_blocking(cast.dsn) as connection:  # the owner's own session
        assert attempt(connection, cast.producer, "granted")
        assert not attempt(connection, cast.producer, "closed")
        assert not attempt(connection, cast.stranger, "granted")
        assert attempt(connection, cast.admin, "closed")
        connection.execute("reset role")
        connection.execute("select tocsin.enqueue('closed', '1')")


async def test_a_role_that_is_created_again_has_not_what_the_former_one_was_granted(
    cast: Cast, new_role: Callable[..., str]
) -> None:
    name = new_role("short", cast.roles.producer)
    async with tocsin.connect(cast.dsn) as owners:
        await owners.queues.grant("closed", name)
    await query(cast.as_(name), "select tocsin.enqueue('closed', '1')")
    await query(cast.dsn, f"drop role {name}")
    await query(
        cast.dsn,
        f"create role {name} login password '{servers.PASSWORD}' in role {cast.roles.producer}",
    )
    with pytest.raises(psycopg.Error, match="may not enqueue"):
        await query(cast.as_(name), "select tocsin.enqueue('closed', '1')")
    async with tocsin.connect(cast.dsn) as owners:
        assert await owners.verify() == ()


async def test_a_producer_can_neither_read_nor_settle_nor_claim_nor_purge(cast: Cast) -> None:
    await query(cast.dsn, """select tocsin.enqueue('granted', '"secret"')""")
    for statement in (
        "select * from tocsin.messages",
        "select payload from tocsin.messages",
        "select id from tocsin.messages",
        "select * from tocsin.archive",
        "select * from tocsin.dead_letters",
        "select * from tocsin.queues",
        "select * from tocsin.workers",
        "select * from tocsin.queue_grants",
        "select * from tocsin.claim(1, 1, 1)",
        "select tocsin.archive('{1}', '{1}')",
        "select tocsin.delete('{1}', '{1}')",
        "select tocsin.extend('{1}', '{1}', '1 s')",
        "select tocsin.release('{1}', '{1}')",
        "select tocsin._move_to_dead_letters('{1}', 'gone')",
        "select tocsin.find_queue('granted')",
        "select tocsin.grant_queue('closed', session_user::text)",
        "delete from tocsin.messages",
        "truncate tocsin.messages",
        (
            "insert into tocsin.messages (queue_id, due, vt, enqueued_at, payload) values (1,"
            " now(), now(), now(), '1')"
        ),
        "copy tocsin.messages to stdout",
        "create table tocsin.mine ()",
        "create function tocsin.enqueue() returns int language sql as 'select 1'",
        "alter function tocsin._clock() owner to current_user",
        "drop schema tocsin cascade",
        "select nextval('tocsin.messages_id_seq')",
    ):
        with pytest.raises(REFUSED):
            await query(cast.as_(cast.producer), statement)
    assert await query(cast.dsn, "select payload from tocsin.messages") == [("secret",)]


async def test_a_role_with_a_grant_learns_that_a_task_is_unknown_and_no_other_role_does(
    cast: Cast, new_role: Callable[..., str]
) -> None:
    for queue in ("granted", "closed"):
        async with tocsin.connect(cast.dsn) as owners:
            task = tocsin.task(name=f"of_{queue}", queue=queue)(_do_nothing)
            async with owners.worker([task]):
                pass
    without = new_role("without", cast.roles.producer)
    submit = "select tocsin.submit('{}')"
    assert await query(cast.as_(cast.producer), submit.format("of_granted"))
    for role, task_name, refused in (
        (cast.producer, "of_closed", "TC030"),
        (cast.producer, "of_nothing", "TC041"),
        (without, "of_closed", "TC030"),
        (without, "of_nothing", "TC030"),
        (cast.stranger, "of_nothing", "42501"),
    ):
        with pytest.raises(psycopg.Error) as error:
            await query(cast.as_(role), submit.format(task_name))
        assert error.value.sqlstate == refused, (role, task_name)


async def test_a_producer_edits_jobs_of_the_queues_it_was_granted(cast: Cast) -> None:
    for queue in ("granted", "closed"):
        ((job,),) = await query(cast.dsn, f"select tocsin.enqueue('{queue}', '[]', task => 't')")
        edit = f"select tocsin.edit_job({job}, 1, '[2]')"
        if queue == "granted":
            assert await query(cast.as_(cast.producer), edit) == [(job,)]
            continue
        with pytest.raises(psycopg.Error, match='may not change messages of queue "closed"'):
            await query(cast.as_(cast.producer), edit)


async def _do_nothing() -> None:
    pass


async def test_a_producer_changes_what_waits_in_the_queues_it_was_granted_and_nowhere_else(
    cast: Cast,
) -> None:
    changes = ("cancel({})", "reschedule({}, '1 h')", "reprioritise({}, 1)")
    for queue in ("granted", "closed"):
        for change in changes:
            ((message_id,),) = await query(
                cast.dsn, f"select tocsin.enqueue('{queue}', '1', delay => '1 min')"
            )
            call = f"select tocsin.{change.format(message_id)}"
            if queue == "granted":
                assert await query(cast.as_(cast.producer), call) == [(message_id,)]
                continue
            with pytest.raises(psycopg.Error, match='may not change messages of queue "closed"'):
                await query(cast.as_(cast.producer), call)
            await query(cast.dsn, f"select tocsin.cancel({message_id})")
            # it does not learn of its end
            with pytest.raises(psycopg.Error, match='may not change messages of queue "closed"'):
                await query(cast.as_(cast.producer), call)
    with pytest.raises(psycopg.Error, match='may not change messages of queue "closed"'):
        await query(cast.as_(cast.producer), "select tocsin.cancel(queue => 'closed', key => 'k')")
    for role in (cast.consumer, cast.stranger):
        with pytest.raises(psycopg.Error, match=r"may not change|permission denied"):
            await query(cast.as_(role), "select tocsin.cancel(queue => 'closed', key => 'k')")


async def test_no_role_acts_for_the_workers_and_processes_of_another_role(cast: Cast) -> None:
    async with (
        tocsin.connect(cast.as_(cast.producer)) as store,
        store.producer("granted", name="p") as producer,
    ):
        state = (
            "select w.*, p.id, p.every, p.lifeline from tocsin.workers w left join tocsin.processes"
            " p on p.id = w.process_id"
        )
        ((process_id,),) = await query(cast.dsn, "select id from tocsin.processes")
        before = await query(cast.dsn, state)
        worker = producer.worker_id
        ((token,),) = await query(cast.dsn, "select registration from tocsin.workers")
        refused = [
            ("suspend(%s)", [worker]),
            ("resume(%s)", [worker]),
            ("shutdown(%s)", [worker]),
            ("worker_heartbeat(%s)", [worker]),
            ("enqueue('granted', '1', worker_id => %s)", [worker]),
            ("enqueue_many('granted', '[1]', worker_id => %s)", [worker]),
            (
                (
                    "enqueue_each('granted', jsonb_build_array(jsonb_build_object('payload', 1,"
                    " 'worker_id', %s)))"
                ),
                [worker],
            ),
            ("register_worker('granted', 'producer', 'x', %s, 'h', 1, 'v')", [process_id]),
            ("register_worker('granted', 'producer', 'p', null, 'h', 1, 'v')", []),
            ("register_worker('granted', 'consumer', 'c', null, 'h', 1, 'v')", []),
        ]
        for call, parameters in refused:
            with pytest.raises(psycopg.Error) as error:
                await query(cast.as_(cast.other_producer), f"select tocsin.{call}", *parameters)
            assert (error.value.sqlstate or "").startswith("TC"), call
        for call in (
            f"unregister_worker({worker}, {token})",
            f"unregister_process({process_id})",
            f"unregister_process({process_id}, true)",
        ):
            await query(cast.as_(cast.other_producer), f"select tocsin.{call}")
        assert await query(
            cast.as_(cast.other_producer), "select kind from tocsin.heartbeat(%s, '{}')", process_id
        ) == [("dead",)]
        assert (
            await query(cast.as_(cast.other_producer), "select * from tocsin.list_workers()") == []
        )
        assert await query(
            cast.as_(cast.other_producer), "select id from tocsin.queue_of(%s)", worker
        ) == [(None,)]
        for call, parameters in [
            ("interrupt(%s)", [worker]),
            ("stop(%s)", [worker]),
            ("release_messages(%s)", [worker]),
            ("begin_poll(%s, %s)", [worker, token]),
            ("claim(%s, %s, 1)", [worker, token]),
        ]:
            with pytest.raises(psycopg.Error, match="may not act for worker"):
                await query(cast.as_(cast.consumer), f"select tocsin.{call}", *parameters)
        for call in (
            f"complete_poll({worker}, {token})",
            f"release_others({worker}, {token}, '{{}}', '{{}}')",
            f"detach_process({process_id})",
        ):
            await query(cast.as_(cast.consumer), f"select tocsin.{call}")
        with pytest.raises(psycopg.Error, match=f"may not act for process {process_id}"):
            await query(cast.as_(cast.consumer), "select tocsin.attach_process(%s)", process_id)
        assert await query(cast.dsn, state) == before
    assert await query(cast.dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_the_due_times_of_a_queue_are_no_business_of_a_producers(cast: Cast) -> None:
    await query(cast.dsn, "select tocsin.enqueue('closed', '1')")
    heartbeat = (
        "select kind from tocsin.heartbeat(tocsin.register_process('h', 1, 'v', '1 s'), (select"
        " array_agg(n) from generate_series(1, 9) n))"
    )
    assert await query(cast.as_(cast.producer), heartbeat) == []
    assert await query(cast.as_(cast.consumer), heartbeat) == [("queue",)]


# The consumer


async def test_a_consumer_consumes_in_every_way_and_hears_the_bell(cast: Cast) -> None:
    async def handle(message: tocsin.Message) -> None:
        if message.payload == "fails" and message.read_ct == 1:
            raise ValueError(message.payload)

    async with tocsin.connect(cast.as_(cast.consumer)) as store, tocsin.connect(cast.dsn) as owners:
        await owners.queues.update("closed", retry_base=0)
        async with store.consumer("closed") as consumer:
            assert store.statistics().listening
            async with running(consumer, handle) as run:
                await owners.produce("closed", "rung for")
                await run.handled.wait(1)
                await owners.produce("closed", "fails")
                await run.handled.wait(3)
            await consumer.resume()
            for payload in ("archive", "delete", "release"):
                await owners.produce("closed", payload)
            by_name = {m.payload: m for m in await consumer.dequeue(limit=3)}
            await consumer.extend(by_name["archive"], 60)
            await consumer.archive(by_name["archive"])
            await consumer.delete(by_name["delete"])
            await consumer.release(by_name["release"])
            await query(
                cast.as_(cast.consumer), "select tocsin.release_messages(%s)", consumer.worker_id
            )
            await consumer.stop()
            assert [w.id for w in await store.workers.list()] == [consumer.worker_id]
            assert store.statistics().listening
    assert await query(cast.dsn, "select payload from tocsin.archive order by id") == [
        ("rung for",),
        ("fails",),
        ("archive",),
    ]
    assert await query(cast.dsn, "select payload from tocsin.messages") == [("release",)]


async def test_a_consumers_handlers_enqueue_to_what_it_was_granted(cast: Cast) -> None:
    async with tocsin.connect(cast.as_(cast.consumer)) as store, tocsin.connect(cast.dsn) as owners:
        with pytest.raises(tocsin.PermissionDenied):
            await store.produce("closed", 1)
        await owners.queues.grant("closed", str(cast.roles.consumer))
        await store.produce("closed", 2)


async def test_a_consumer_is_no_administrator(cast: Cast) -> None:
    async with (
        tocsin.connect(cast.dsn) as owners,
        owners.consumer("granted") as other,
        tocsin.connect(cast.as_(cast.consumer)) as store,
    ):
        handle = tocsin.WorkerHandle(store._database, other.worker_id)
        for attempt in (
            store.queues.create("mine"),
            store.queues.update("granted", vt=1),
            store.queues.pause("granted"),
            store.queues.list(),
            store.queues.grant("granted", cast.consumer),
            handle.suspend(),
            handle.interrupt(),
            handle.heartbeat(),
        ):
            with pytest.raises(tocsin.PermissionDenied):
                await attempt
        with pytest.raises(tocsin.WorkerNotFound):
            await store.workers.get(other.worker_id)


async def test_a_consumers_process_does_the_maintenance_with_the_owners_rights(cast: Cast) -> None:
    async with (
        tocsin.connect(cast.as_(cast.consumer)) as store,
        tocsin.connect(cast.as_(cast.producer)) as producers,
    ):
        with pytest.raises(tocsin.PermissionDenied):
            await producers.maintain()
        assert (await store.maintain()).partitions_created > 0
    rows = await query(
        cast.dsn,
        "select distinct relowner::regrole = session_user::regrole from pg_class where relname like"
        " 'archive_%%h_%%'",
    )
    assert rows == [(True,)]
    async with tocsin.connect(cast.dsn) as owners:
        assert await owners.verify() == ()
        (partition,) = (
            await query(
                cast.dsn,
                "select min(oid::regclass::text) from pg_class where relname like 'archive_%%h_%%'"
                " and relkind = 'r'",
            )
        )[0]
        await query(cast.dsn, f"grant select on {partition} to {cast.stranger}")
        assert [d.kind for d in await owners.verify()] == ["privileges"]


async def test_default_privileges_open_no_partition_of_the_archive(cast: Cast) -> None:
    await query(cast.dsn, "alter default privileges grant select on tables to public")
    async with tocsin.connect(cast.dsn) as store:
        await store.maintain()
        await store.maintain()
        await query(cast.dsn, "alter default privileges revoke select on tables from public")
        assert await store.verify() == ()
    partitions = await query(cast.dsn, "select name from tocsin._archive_partitions()")
    assert len(partitions) == 2
    for (partition,) in [*partitions, ("archive_rest",)]:
        with pytest.raises(REFUSED):
            await query(cast.as_(cast.producer), f"select * from tocsin.{partition}")
        await query(cast.as_(cast.admin), f"select * from tocsin.{partition}")


# The administrator


async def test_an_administrator_does_everything_and_reads_every_table(cast: Cast) -> None:
    async with (
        tocsin.connect(cast.as_(cast.admin)) as store,
        tocsin.connect(cast.as_(cast.consumer)) as consumers,
    ):
        await store.queues.create("mine", vt=5)
        await store.queues.update("mine", vt=6)
        await store.queues.pause("mine")
        await store.queues.resume("mine")
        await store.queues.grant("mine", cast.producer)
        await store.queues.revoke("mine", cast.producer)
        assert [q.name for q in await store.queues.list()] == ["closed", "granted", "mine"]
        await store.produce("mine", "any")
        async with consumers.consumer("mine") as consumer:
            handle = await store.workers.get(consumer.worker_id)
            await handle.suspend()
            await handle.resume()
            async with store.consumer("mine") as own, store.producer("mine") as producer:
                await producer.enqueue("more")
                (message,) = await own.dequeue(limit=1)
                assert (await store.messages.get(message.id)).consumer_worker_id == own.worker_id
                await own.archive(message)
        assert [m.payload for m in await store.messages.list("mine")] == ["more"]
        assert await store.dead_letters.list("mine") == []
        assert await store.dead_letters.replay(queue="mine") == []
        assert (await store.queues.metrics("mine")).ready == 1
        assert (await store.stats()).queues == 3
        assert (await store.reclaim()).messages == 0
        assert (await store.workers.stats("mine")).by_status[tocsin.WorkerStatus.STOPPED] == 3
        assert [h.queue for h in await store.workers.health("mine")] == ["mine"]
        assert len(await store.workers.purge(0, queue="mine")) == 3
        await store.queues.create("short-lived")
        await store.queues.purge("short-lived", ready=True)
        await store.queues.delete("short-lived")
        for (table,) in await query(cast.dsn, TABLES):
            await query(cast.as_(cast.admin), f"select * from tocsin.{table} limit 1")
        assert await store.verify() == ()  # which only reads
        for attempt in (store.uninstall(), store.install(roles=cast.roles)):
            with pytest.raises(tocsin.PermissionDenied):
                await attempt
    assert await query(cast.dsn, "select payload from tocsin.archive") == [("any",)]


# Installing


async def test_the_usual_roles(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install(roles=True)
        assert await query(
            own_server.dsn, "select kind, role::text from tocsin.roles order by kind"
        ) == [
            ("admin", "tocsin_admin"),
            ("consumer", "tocsin_consumer"),
            ("producer", "tocsin_producer"),
        ]
        assert await query(
            own_server.dsn,
            "select count(*) from pg_roles where rolname like 'tocsin%%' and not rolcanlogin",
        ) == [(3,)]
        assert await store.verify() == ()
        await store.uninstall()
        await store.install()
        assert await query(own_server.dsn, "select * from tocsin.roles") == []


async def test_installing_roles_again_changes_nothing_and_without_roles_they_stay(
    cast: Cast,
) -> None:
    marks = (
        "select oid, xmin::text from pg_proc where pronamespace = 'tocsin'::regnamespace union all"
        " select oid, xmin::text from pg_class where relnamespace = 'tocsin'::regnamespace union"
        " all select oid, xmin::text from pg_authid order by 1"
    )
    before = await query(cast.dsn, marks)
    async with tocsin.connect(cast.dsn) as store:
        await store.install(roles=cast.roles)
        await store.install()
        assert await query(cast.dsn, marks) == before
        await query(cast.dsn, "update tocsin.contract set digest = 'of an older version'")
        await store.install()
        assert await store.verify() == ()
    async with tocsin.connect(cast.as_(cast.producer)) as store:
        await store.produce("granted", 1)


async def test_a_role_that_is_let_in_no_more_loses_its_privileges(cast: Cast) -> None:
    async with tocsin.connect(cast.dsn) as store:
        await store.install(roles=attrs.evolve(cast.roles, producer=None, consumer=cast.stranger))
        assert await store.verify() == ()
    for login in (cast.producer, cast.consumer):
        assert not await open_to(cast.dsn, login)
    assert "claim" in await open_to(cast.dsn, cast.stranger)


async def test_a_role_that_was_dropped_stops_neither_verifying_nor_installing(cast: Cast) -> None:
    async with tocsin.connect(cast.dsn) as store:
        await store.queues.grant("closed", str(cast.roles.producer))
        await query(cast.dsn, f"drop owned by {cast.roles.producer}")
        await query(cast.dsn, f"drop role {cast.roles.producer}")
        assert [(d.kind, d.name, d.found) for d in await store.verify()] == [
            ("role", "producer", None)
        ]
        await query(cast.dsn, "update tocsin.contract set digest = 'of an older version'")
        await store.install()
        assert await store.verify() == ()
        assert await query(cast.dsn, "select kind from tocsin.roles order by kind") == [
            ("admin",),
            ("consumer",),
        ]
        assert (
            await query(
                cast.dsn,
                "select g.role::text from tocsin.queue_grants g where g.role::text ~ '^[0-9]+$'",
            )
            == []
        )
        await store.install(roles=cast.roles)
        assert await store.verify() == ()
    assert "enqueue" in await open_to(cast.dsn, str(cast.roles.producer))


async def test_creating_roles_needs_createrole_and_says_so(
    database_factory: Callable[[], str], new_role: Callable[..., str], server: servers.Server
) -> None:
    owner = new_role("owner")
    wanted = tocsin.Roles(
        *(new_role(kind, create=False) for kind in ("producers", "consumers", "admins"))
    )
    dsn = database_factory()
    await query(
        dsn,
        f"do $$ begin execute format('grant create on database %I to {owner}', current_database());"
        " end $$",
    )
    owners_dsn = make_conninfo(dsn, user=owner, password=servers.PASSWORD)
    async with tocsin.connect(owners_dsn) as store:
        with pytest.raises(tocsin.PermissionDenied, match="requires CREATEROLE") as refused:
            await store.install(roles=wanted)
        assert refused.value.role == owner
        assert (
            f"run: create role {wanted.producer} nologin; create role {wanted.consumer} nologin;"
            f" create role {wanted.admin} nologin." in str(refused.value)
        )
        assert await query(dsn, "select count(*) from pg_namespace where nspname = 'tocsin'") == [
            (0,)
        ]
        for name in (wanted.producer, wanted.consumer, wanted.admin):
            await query(dsn, f"create role {name}")
        await store.install(roles=wanted)  # they exist, so that is not needed any more
        assert await store.verify() == ()
        await store.uninstall()
    await query(
        dsn,
        f"do $$ begin execute format('revoke create on database %I from {owner}',"
        " current_database()); end $$",
    )


async def test_an_upgrade_by_a_superuser_leaves_nothing_with_a_superusers_rights(
    dsn: str, new_role: Callable[..., str]
) -> None:
    owner = new_role("owner")
    await query(dsn, f"create schema tocsin authorization {owner}")
    async with tocsin.connect(make_conninfo(dsn, user=owner, password=servers.PASSWORD)) as store:
        await store.install()
    await query(
        dsn,
        "drop function tocsin._next_due; update tocsin.contract set digest = 'of an older version'",
    )
    async with tocsin.connect(dsn) as store:
        await store.install()
        assert await store.verify() == ()
    rows = await query(
        dsn,
        "select distinct proowner::regrole::text from pg_proc where pronamespace ="
        " 'tocsin'::regnamespace",
    )
    assert rows == [(owner,)]
    await query(dsn, f"drop owned by {owner}")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "not the name"),
        ("x" * 64, "not the name"),
        ("a\0b", "not the name"),
        ("pg_mine", "reserved by PostgreSQL"),
        ("none", "reserved by PostgreSQL"),
    ],
)
def test_a_name_that_no_role_can_have_is_refused(name: str, why: str) -> None:
    with pytest.raises(tocsin.ConfigError, match=why) as refused:
        tocsin.Roles(consumer=name)
    assert refused.value.source == "roles.consumer"


# Verifying


@sweep("with_roles", [False, True], quick=1)
@sweep(
    ("damage", "kind", "name"),
    [
        ("grant select on tocsin.messages to public", "privileges", "messages"),
        (
            "grant select (payload) on tocsin.messages to {outsider}",
            "privileges",
            "messages.payload",
        ),
        ("grant usage on sequence tocsin.lifelines to {outsider}", "privileges", "lifelines"),
        ("grant create on schema tocsin to {outsider}", "privileges", "schema"),
        ("grant execute on function tocsin._clock() to public", "privileges", "_clock()"),
        ("alter table tocsin.archive owner to {outsider}", "owner", "archive"),
        ("alter function tocsin._clock() owner to {outsider}", "owner", "_clock()"),
        ("alter function tocsin.list_queues() security invoker", "function", "list_queues()"),
        ("alter function tocsin.list_queues() reset search_path", "function", "list_queues()"),
        ("alter function tocsin._clock() security definer", "function", "_clock()"),
    ],
    quick=2,
)
async def test_verify_notices_a_changed_privilege_owner_or_attribute(
    dsn: str, new_role: Callable[..., str], with_roles: bool, damage: str, kind: str, name: str
) -> None:
    outsider = new_role("outsider")
    roles = tocsin.Roles(*(new_role(k, create=False) for k in ("producers", "consumers", "admins")))
    async with tocsin.connect(dsn) as store:
        await store.install(roles=with_roles and roles)
        assert await store.verify() == ()
        await query(dsn, damage.format(outsider=outsider))
        assert [(d.kind, d.name) for d in await store.verify()] == [(kind, name)]
    await query(dsn, "drop schema tocsin cascade")
    await query(dsn, f"drop owned by {outsider}")


@sweep(
    ("damage", "name"),
    [
        (
            "revoke execute on function tocsin.pause_queue(text) from {admin}",
            "pause_queue(queue text)",
        ),
        (
            "grant execute on function tocsin.pause_queue(text) to {producer}",
            "pause_queue(queue text)",
        ),
        (
            "grant execute on function tocsin.pause_queue(text) to {admin} with grant option",
            "pause_queue(queue text)",
        ),
        ("revoke usage on schema tocsin from {producer}", "schema"),
        ("grant insert on tocsin.messages to {admin}", "messages"),
        ("revoke select on tocsin.migrations from {consumer}", "migrations"),
    ],
    quick=2,
)
async def test_verify_notices_a_changed_privilege_of_the_roles_and_installing_them_repairs_it(
    cast: Cast, damage: str, name: str
) -> None:
    async with tocsin.connect(cast.dsn) as store:
        await query(cast.dsn, damage.format(**attrs.asdict(cast.roles)))
        assert [(d.kind, d.name) for d in await store.verify()] == [("privileges", name)]
        await store.install(roles=cast.roles)
        assert await store.verify() == ()


# The LISTEN connection's login.


async def test_a_listen_connection_of_another_role_is_refused_in_words(
    cast: Cast, new_role: Callable[..., str]
) -> None:
    another = new_role("another", cast.roles.consumer)
    for login in (another, cast.stranger):
        with pytest.raises(
            tocsin.ConfigError, match=f'role "{another}" may not act|permission denied'
        ) as refused:
            async with (
                tocsin.connect(cast.as_(cast.consumer), listen_dsn=cast.as_(login)) as store,
                store.consumer("granted"),
            ):
                await trio.sleep_forever()
        assert refused.value.source == "listen_dsn"
        assert await query(cast.dsn, "select count(*) from tocsin.processes") == [(0,)]
    assert await query(cast.dsn, "select last_value from tocsin.processes_id_seq") == [(2,)]


async def test_a_listen_connection_of_an_administrator_serves_any_process(cast: Cast) -> None:
    async with (
        tocsin.connect(cast.as_(cast.consumer), listen_dsn=cast.as_(cast.admin)) as store,
        store.consumer("granted"),
    ):
        assert store.statistics().listening
