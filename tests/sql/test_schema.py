"""Installing, verifying, removing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import PATIENCE, open_connection, query, until_query
from tests.support.servers import PASSWORD
from tests.support.sweeps import sweep
from tocsin._database import install
from tocsin._database import schema as schemas
from tocsin._database.verify import verify
from tocsin.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]


async def test_install_is_idempotent_and_verified(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        before = await query(
            dsn,
            "select oid, xmin::text from pg_proc where pronamespace = 'tocsin'::regnamespace order"
            " by oid",
        )
        await store.install()
        assert (
            await query(
                dsn,
                "select oid, xmin::text from pg_proc where pronamespace = 'tocsin'::regnamespace"
                " order by oid",
            )
            == before
        )
        assert await store.verify() == ()
        assert await query(
            dsn, "select nspname::text from pg_namespace where nspname like 'tocsin%%'"
        ) == [("tocsin",)]


async def test_ten_install_at_once(dsn: str) -> None:
    async def install() -> None:
        async with tocsin.connect(dsn) as store:
            await store.install()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(install)
    async with tocsin.connect(dsn) as store:
        assert await store.verify() == ()
    assert await query(dsn, "select number from tocsin.migrations") == [
        (m.number,) for m in schemas.migrations()
    ]


# Names of tables, columns, functions and aliases of Tocsin's own among them.
@sweep(
    "name",
    [
        "queue2",
        "MixedCase",
        "_x",
        "select",
        "s" * 63,
        "queues",
        "messages",
        "archive",
        "enqueue",
        "bell",
        "new",
        "q",
        "m",
        "t",
        "tocsin_",
        "contract",
        "leased",
    ],
    quick=["MixedCase", "select", "messages"],
)
async def test_schema_isolation_under_any_valid_name(dsn: str, name: str) -> None:
    async with tocsin.connect(dsn, schema=name) as store:
        await store.install()
        assert await store.verify() == ()
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with store.consumer("q") as consumer:
            (message,) = await consumer.dequeue()
            await consumer.archive(message)
        await store.uninstall()
    assert await query(dsn, "select count(*) from pg_namespace where nspname = %s", name) == [(0,)]


async def test_schema_isolation_two_in_one_database_do_not_meet(dsn: str) -> None:
    async with tocsin.connect(dsn, schema="one") as one, tocsin.connect(dsn, schema="two") as two:
        for store in (one, two):
            await store.install()
            await store.queues.ensure("q")
        async with one.consumer("q", name="w") as a, two.consumer("q", name="w") as b:
            await one.produce("q", "for one")
            assert await b.dequeue() == []
            assert [m.payload for m in await a.dequeue()] == ["for one"]
            await a.release(a._parts.leases.messages()[0])


@sweep(
    "name", ["", "1a", "a b", 'a"; drop table x; --', "é", "pg_mine", "public", "x" * 64], quick=2
)
async def test_bad_schema_name_is_refused(dsn: str, name: str) -> None:
    with pytest.raises(tocsin.ConfigError) as refused:
        async with tocsin.connect(dsn, schema=name):
            pass
    assert refused.value.source == "argument schema"


@sweep(
    ("damage", "kind", "name"),
    [
        ("drop index tocsin.messages_timed", "index", "messages_timed"),
        ("drop trigger ring on tocsin.messages", "trigger", "messages.ring"),
        ("alter table tocsin.messages disable trigger ring", "trigger", "messages.ring"),
        (
            "alter table tocsin.messages drop column producer_worker_id",
            "column",
            "messages.producer_worker_id",
        ),
        (
            "alter table tocsin.queues alter column max_deliveries set default 7",
            "column",
            "queues.max_deliveries",
        ),
        ("alter table tocsin.archive add column mine text", "column", "archive.mine"),
        ("alter type tocsin.message_info add attribute mine text", "column", "message_info.mine"),
        (
            "drop function tocsin._next_due",
            "function",
            "_next_due(queue_id integer, with_ready boolean)",
        ),
        (
            (
                "create or replace function tocsin._clock() returns timestamptz language sql as $$"
                " select now() $$"
            ),
            "function",
            "_clock()",
        ),
        ("create table tocsin.mine ()", "table", "mine"),
        ("alter table tocsin.messages reset (autovacuum_vacuum_threshold)", "table", "messages"),
        (
            "alter table tocsin.archive_count_deltas replica identity default",
            "table",
            "archive_count_deltas",
        ),
        ("alter table tocsin.messages enable row level security", "table", "messages"),
        ("alter table tocsin.messages force row level security", "table", "messages"),
        ("drop sequence tocsin.lifelines", "sequence", "lifelines"),
        (
            "alter table tocsin.workers drop constraint workers_status_check",
            "constraint",
            "workers.workers_status_check",
        ),
    ],
    quick=4,
)
async def test_verify_names_each_difference(
    store: tocsin.Store, store_dsn: str, damage: str, kind: str, name: str
) -> None:
    await query(store_dsn, damage)
    assert (kind, name) in [(d.kind, d.name) for d in await store.verify()]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("grant select on tocsin.{partition} to public", "privileges"),
        ("alter table tocsin.{partition} replica identity nothing", "partition"),
        ("alter table tocsin.{partition} enable row level security", "partition"),
    ],
)
async def test_verify_checks_partitions_that_maintenance_made(
    store: tocsin.Store, store_dsn: str, damage: str, kind: str
) -> None:
    await store.queues.create("q")
    await store.maintain()
    assert await store.verify() == ()
    ((partition,),) = await query(store_dsn, "select min(name) from tocsin._archive_partitions()")
    await query(store_dsn, damage.format(partition=partition))
    assert [(d.kind, d.name) for d in await store.verify()] == [(kind, partition)]


async def test_the_catalog_file_is_that_of_a_fresh_installation(store: tocsin.Store) -> None:
    assert await store.verify() == (), "run: uv run nox -s catalog"


@pytest.mark.parametrize(
    "settings",
    [
        {"default_transaction_read_only": "on"},
        {
            "TimeZone": "''Asia/Kathmandu''",
            "DateStyle": "SQL, DMY",
            "IntervalStyle": "sql_standard",
            "quote_all_identifiers": "on",
        },
        {"search_path": "tocsin, public"},
    ],
    ids=lambda settings: next(iter(settings)),
)
async def test_verify_works_in_any_session(dsn: str, settings: dict[str, str]) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("q")
        await store.maintain()
    for name, value in settings.items():
        await query(
            dsn,
            f"do $$ begin execute format('alter database %I set {name} = {value}',"
            " current_database()); end $$",
        )
    async with tocsin.connect(dsn) as store:
        assert await store.verify() == ()


async def test_verify_works_on_a_standby(own_server: EmbeddedServer) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install(roles=True)
        await store.queues.create("q")
        await store.maintain()
    await own_server.stop()
    (own_server.directory / "data" / "standby.signal").touch()
    await own_server.start()
    assert await query(own_server.dsn, "select pg_is_in_recovery()") == [(True,)]
    async with tocsin.connect(own_server.dsn) as store:
        assert await store.verify() == ()


async def test_verify_is_not_misled_by_tables_of_the_session(store_dsn: str) -> None:
    async with open_connection(store_dsn) as session:
        await session.execute(
            "create temporary table messages (); create temporary table pg_class (oid oid)"
        )
        assert await verify(session, schemas.Schema("tocsin")) == ()


async def test_a_publication_of_all_tables_refuses_no_change(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    await store.maintain()
    await query(store_dsn, "create publication everything for all tables")
    without = (
        "select c.oid::regclass::text from pg_class c where c.relnamespace = 'tocsin'::regnamespace"
        " and c.relkind in ('r', 'p') and c.relreplident <> 'f' and not exists (select from"
        " pg_index i where i.indrelid = c.oid and i.indisprimary)"
    )
    assert await query(store_dsn, without) == []
    for table, kind in await query(
        store_dsn,
        "select relname::text, relkind::text from pg_class where relnamespace ="
        " 'tocsin'::regnamespace and relkind in ('r', 'p')",
    ):
        assert kind in "rp"
        await query(store_dsn, f"delete from tocsin.{table} where false")


async def test_an_upgrade_makes_no_session_wait_for_a_transaction_that_does_not_end(
    dsn: str,
) -> None:
    async with tocsin.connect(dsn) as store, open_connection(dsn) as application:
        await store.install()
        await store.queues.create("q")
        await query(dsn, "update tocsin.contract set digest = 'of an older version'")
        async with trio.open_nursery() as nursery, application.transaction():
            await application.execute("select tocsin.enqueue('q', '1')")
            nursery.start_soon(store.install)
            with trio.fail_after(PATIENCE):
                await until_query(
                    dsn,
                    "select 1 from pg_locks where relation = 'tocsin.messages'::regclass and not"
                    " granted",
                )
                # while the upgrade waits, or between two attempts
                await query(dsn, "select tocsin.enqueue('q', '2')")
            assert await query(dsn, "select digest from tocsin.contract") == [
                ("of an older version",)
            ]
        assert await store.verify() == ()


@pytest.mark.parametrize("change", ["install", "uninstall"])
async def test_a_change_that_meets_a_transaction_without_an_end_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(install, "_ATTEMPTS", 2)
    async with tocsin.connect(dsn) as store, open_connection(dsn) as application:
        await store.install()
        await store.queues.create("q")
        await query(dsn, "update tocsin.contract set digest = 'of an older version'")
        async with application.transaction():
            await application.execute("select tocsin.enqueue('q', '1')")
            with pytest.raises(tocsin.SchemaBusy, match="pg_stat_activity") as refused:
                await getattr(store, change)()
            assert refused.value.schema == "tocsin"
        await store.install()
        assert await store.verify() == ()


async def test_a_verification_that_meets_a_lock_without_an_end_is_refused(
    store: tocsin.Store, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._database.verify._LOCK_WITHIN_MS", 50)
    async with open_connection(store_dsn) as other:
        async with other.transaction():
            await other.execute("lock table tocsin.messages in access exclusive mode")
            with trio.fail_after(PATIENCE), pytest.raises(tocsin.SchemaBusy):
                await store.verify()
        assert await store.verify() == ()


async def test_missing_and_outdated_say_what_to_run(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        for attempt in (
            store.queues.list(),
            store.verify(),
            store.uninstall(),
            store.produce("q", 1),
            store.workers.list(),
        ):
            with pytest.raises(tocsin.SchemaMissing, match="tocsin admin install"):
                await attempt
        with pytest.raises(tocsin.SchemaMissing):
            async with store.consumer("q"):
                pass
        await store.install()
        await query(dsn, "update tocsin.contract set digest = 'of an older version'")
        await query(dsn, "drop function tocsin.list_queues")
        with pytest.raises(tocsin.SchemaOutdated, match="tocsin admin install"):
            await store.queues.list()
        await store.install()
        assert await store.queues.list() == []


NEWER = (
    "update tocsin.contract set version = version + 2, serves = version + {serves}, digest = 'of a"
    " newer version'"
)
ABOUT = "select version, serves, digest from tocsin.contract"


async def test_a_newer_schema_that_serves_this_package_is_left_alone_and_used(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await query(dsn, NEWER.format(serves=0))
        await query(
            dsn, "create function tocsin.of_a_newer_version() returns void language sql as ''"
        )
        before = await query(dsn, ABOUT)
    # a service of the older version, as each of its starts is
    async with tocsin.connect(dsn) as restarted:
        await restarted.install()
        await restarted.queues.ensure("q")
        async with restarted.consumer("q") as consumer:
            await restarted.produce("q", 1)
            (message,) = await consumer.dequeue()
            await message.archive()
        assert await query(dsn, ABOUT) == before
        assert await query(dsn, "select 1 from pg_proc where proname = 'of_a_newer_version'") == [
            (1,)
        ]
        # what the roles may do is for the newer version to say
        with pytest.raises(tocsin.SchemaNewer):
            await restarted.install(roles=True)
        assert await query(dsn, ABOUT) == before


async def test_an_older_version_is_brought_up_to_date_though_its_functions_are_the_same(
    dsn: str,
) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        before = await query(dsn, ABOUT)
        await query(dsn, "update tocsin.contract set version = version - 1, serves = version - 1")
        with pytest.raises(
            tocsin.SchemaOutdated, match="has version 0 of the SQL contract, this package needs 1"
        ):
            await store.verify()
        await store.install()
        assert await query(dsn, ABOUT) == before


async def registered(store: tocsin.Store) -> None:
    async with store.consumer("q"):
        pass


async def produced(store: tocsin.Store) -> None:
    await store.produce("q", 1)


async def produced_in_a_transaction(store: tocsin.Store) -> None:
    async with store.transaction() as connection:
        await store.produce_many("q", [1], connection=connection)


async def test_a_newer_schema_that_does_not_serve_this_package_refuses_it(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("q")
        await query(dsn, NEWER.format(serves=1))
        before = await query(dsn, ABOUT)
    async with tocsin.connect(dsn) as restarted:
        version, serves, _ = before[0]
        attempts: list[Callable[[], Awaitable[object]]] = [
            restarted.install,
            restarted.verify,
            partial(registered, restarted),
            partial(produced, restarted),
            partial(produced_in_a_transaction, restarted),
        ]
        for attempt in attempts:
            with pytest.raises(
                tocsin.SchemaNewer, match=r"this package is older .* upgrade the package tocsin"
            ) as refused:
                await attempt()
            assert (refused.value.found, refused.value.serves, refused.value.known) == (
                version,
                serves,
                version - 2,
            )
        assert await query(dsn, ABOUT) == before
        await restarted.uninstall()


@pytest.mark.parametrize("use", [registered, produced, produced_in_a_transaction])
async def test_an_older_schema_refuses_this_package(
    store_dsn: str, use: Callable[[tocsin.Store], Awaitable[None]]
) -> None:
    await query(store_dsn, "select tocsin.create_queue('q')")
    await query(store_dsn, "update tocsin.contract set version = 0, serves = 0")
    async with tocsin.connect(store_dsn) as store:
        with pytest.raises(tocsin.SchemaOutdated, match="has version 0") as refused:
            await use(store)
        assert (refused.value.found, refused.value.needed) == (0, schemas.ours().version)
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


SERVES_LATER = "update tocsin.contract set version = version + 9, serves = version + 9"


async def test_calls_that_share_a_statement_are_refused_by_a_later_schema(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn) as store:
        await store.queues.ensure("q")
    await query(store_dsn, SERVES_LATER)
    refused: list[tocsin.SchemaNewer] = []

    async def produce(number: int) -> None:
        with pytest.raises(tocsin.SchemaNewer) as caught:
            await store.produce("q", number)
        refused.append(caught.value)

    async with tocsin.connect(store_dsn) as store, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(produce, number)
    assert len(refused) == 3
    assert await query(store_dsn, "select id from tocsin.messages") == []


@pytest.mark.parametrize("on_a_connection", [True, False])
async def test_a_batch_says_too_that_the_schema_is_of_a_later_version(
    store: tocsin.Store, store_dsn: str, on_a_connection: bool
) -> None:
    await store.queues.ensure("q")
    await store.produce_many("q", [1])
    await query(store_dsn, "drop function tocsin.enqueue_many")
    await query(store_dsn, SERVES_LATER)
    async with open_connection(store_dsn) as connection:
        with pytest.raises(tocsin.SchemaNewer):
            await store.produce_many("q", [1], connection=connection if on_a_connection else None)


@pytest.mark.parametrize(
    ("version", "error"), [(0, tocsin.SchemaOutdated), (9, tocsin.SchemaNewer)]
)
async def test_a_function_that_is_missing_is_explained_by_the_versions(
    store: tocsin.Store, store_dsn: str, version: int, error: type[tocsin.TocsinError]
) -> None:
    await store.queues.create("q")
    await store.produce("q", 1)
    await query(store_dsn, "alter function tocsin.enqueue rename to enqueue_of_another_version")
    await query(store_dsn, "update tocsin.contract set version = %s, serves = %s", version, version)
    with pytest.raises(error):
        await store.produce("q", 1)
    async with store.transaction() as connection:
        with pytest.raises(error):
            await store.produce("q", 1, connection=connection)
        await connection.execute("rollback")


async def test_the_version_that_stats_show_is_the_contracts(store: tocsin.Store) -> None:
    assert (await store.stats()).version == schemas.ours().version


async def test_a_role_that_may_not_read_the_contract_registers_and_produces(
    store_dsn: str, new_role: Callable[..., str]
) -> None:
    service = new_role("service")
    await query(store_dsn, "select tocsin.create_queue('q')")
    await query(store_dsn, f"grant usage on schema tocsin to {service}")
    for function in ("enqueue", "enqueue_each", "register_process", "unregister_process"):
        await query(store_dsn, f"grant execute on function tocsin.{function} to {service}")
    services_dsn = make_conninfo(store_dsn, user=service, password=PASSWORD)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await query(services_dsn, "select * from tocsin.contract")
    register = "select tocsin.register_process('h', 1, 'v', '1 s', %s)"
    assert await query(services_dsn, register, schemas.ours().version) == [(1,)]
    with pytest.raises(psycopg.Error, match="does not serve") as refused:
        await query(services_dsn, register, schemas.ours().version + 1)
    assert refused.value.sqlstate == "TC017"
    async with tocsin.connect(services_dsn) as store:
        with pytest.raises(tocsin.PermissionDenied, match='enqueue to queue "q"'):
            await store.produce("q", 1)  # it has come as far as the function
    await query(store_dsn, f"drop owned by {service}")


def test_the_version_of_the_contract_was_raised_with_its_last_change() -> None:
    told = tomllib.loads((ROOT / "sql" / "contract.toml").read_text(encoding="utf-8"))
    digest = schemas.ours().digest
    assert told["digest"] == digest, (
        "in sql/contract.toml, raise version unless this one is unreleased, and set digest to"
        f" {digest}"
    )
    assert told["serves"] <= max(1, told["version"] - 1)


async def test_a_schema_that_holds_something_else_is_left_alone(dsn: str) -> None:
    await query(dsn, "create schema mine")
    await query(dsn, "create table mine.important ()")
    async with tocsin.connect(dsn, schema="mine") as store:
        with pytest.raises(tocsin.TocsinError, match="not Tocsin's"):
            await store.install()
        with pytest.raises(tocsin.SchemaMissing):
            await store.uninstall()
    assert await query(dsn, "select relname::text from pg_class where relname = 'important'") == [
        ("important",)
    ]


async def test_an_empty_schema_is_used(dsn: str) -> None:
    await query(dsn, "create schema tocsin")
    async with tocsin.connect(dsn) as store:
        await store.install()
        assert await store.verify() == ()


def test_the_schema_is_named_by_one_spelling_that_can_be_told_from_everything_else() -> None:
    names = ("functions", "security", "migrations", "upgrade")
    text = "".join(schemas.load(name) for name in names)
    statements = "\n".join(
        line.split("--")[0] for line in schemas.Schema("other").render(text).splitlines()
    )
    assert "tocsin" not in statements.replace("'tocsin_'", "")
    assert not re.findall(r'"\s*\.', text)  # so that what is rendered can be turned back
    assert schemas.Schema("q").render(text).replace('"q".', "tocsin.") == text


async def test_the_sql_files_run_without_python(dsn: str) -> None:
    """What a reader sees in sql/ is what psql would run: the files as they are make the
    schema called tocsin."""
    async with open_connection(dsn) as connection:
        await connection.execute("create schema tocsin")
        for migration in schemas.migrations():
            await connection.execute(migration.text.encode())
        await connection.execute("set check_function_bodies = off")
        await connection.execute(schemas.functions().encode())
        cursor = await connection.execute(
            "select tocsin.enqueue((tocsin.create_queue('q')).name, '1')"
        )
        assert await cursor.fetchall() == [(1,)]


async def test_a_function_that_turns_planner_nodes_off_turns_jit_off(store_dsn: str) -> None:
    """Before PostgreSQL 18 such a node makes a plan so dear that the server compiles
    it."""
    functions = await query(
        store_dsn,
        "select proname, proconfig from pg_proc where pronamespace = 'tocsin'::regnamespace and"
        " proconfig::text like '%enable\\_%'",
    )
    assert {"claim", "_archive", "_requeue", "_next_due"} <= {name for name, _ in functions}
    assert [name for name, config in functions if "jit=off" not in config] == []
