"""Upgrades to a later version of the SQL contract: each function may change, and what
is not Tocsin's stays."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import PATIENCE, open_connection, query, until_blocked
from tests.support.newer import LATER, Folder
from tests.support.runs import running
from tests.support.servers import PASSWORD
from tocsin._database.schema import migrations

SIGNATURES = (
    "select oid::regprocedure::text from pg_proc where pronamespace = 'tocsin'::regnamespace "
    "order by 1"
)
UPGRADES = 10
DEFINED = re.compile(
    r"create or replace function tocsin\.(\w+)\((.*?)\)(?=\s+(?:returns|language))", re.DOTALL
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The next version's ``sql/``, to change."""
    folder = Folder(tmp_path / "sql")
    folder.raise_version(serves=1)
    return folder


async def upgrade(dsn: str, folder: Folder) -> None:
    """Install what the folder has."""
    with folder.in_use():
        async with tocsin.connect(dsn) as store:
            await store.install()


async def compare(dsn: str, folder: Folder, fresh: str) -> tuple[tocsin.SchemaDifference, ...]:
    """Return the differences from a fresh installation, for which this is an empty
    database."""
    await folder.write_catalog(fresh)
    with folder.in_use():
        async with tocsin.connect(dsn) as store:
            return await store.verify()


async def test_parameters_results_and_defaults_may_change_and_types_with_them(
    store_dsn: str, folder: Folder, database_factory: Callable[[], str]
) -> None:
    await query(store_dsn, "select tocsin.create_queue('q')")
    folder.replace(
        "queues.sql",
        "tocsin.pause_queue(queue text)",
        "tocsin.pause_queue(name_of_queue text default 'q')",
    )
    folder.replace(
        "queues.sql",
        "paused tocsin.queues := tocsin.find_queue(queue)",
        "paused tocsin.queues := tocsin.find_queue(name_of_queue)",
    )
    folder.replace("queue_purge.sql", "returns table (", "returns table (remark text, ")
    folder.add(LATER, "alter type tocsin.message_info add attribute tags text[];")
    folder.raise_version(serves=1)
    await upgrade(store_dsn, folder)
    assert await query(store_dsn, "select paused_at is null from tocsin.pause_queue()") == [
        (False,)
    ]
    ((result,),) = await query(
        store_dsn, "select pg_get_function_result('tocsin.purge_queue'::regproc)"
    )
    assert str(result).startswith("TABLE(remark text, ")
    assert await query(store_dsn, "select version from tocsin.contract") == [(2,)]
    ((last,),) = await query(store_dsn, "select max(number) from tocsin.migrations")
    assert last == migrations()[-1].number + 1
    assert await compare(store_dsn, folder, database_factory()) == ()


async def test_each_function_may_change_its_parameters(
    store_dsn: str, folder: Folder, database_factory: Callable[[], str]
) -> None:
    changed = 0
    for path in (folder.path / "functions").rglob("*.sql"):
        text = path.read_text(encoding="utf-8")

        def change(found: re.Match[str]) -> str:
            parameters = ", ".join(filter(None, ["added integer", found[2]]))
            return f"create or replace function tocsin.{found[1]}({parameters})"

        parts = re.split(r"(?=^create or replace function )", text, flags=re.MULTILINE)
        new = [
            part if "returns trigger" in part else DEFINED.sub(change, part, count=1)
            for part in parts
        ]
        changed += sum(old != now for old, now in zip(parts, new, strict=True))
        path.write_text("".join(new), encoding="utf-8")
    before = await query(store_dsn, SIGNATURES)
    await upgrade(store_dsn, folder)
    after = await query(store_dsn, SIGNATURES)
    assert len(after) == len(before)
    ((triggers,),) = await query(
        store_dsn,
        "select count(*)::int from pg_proc where pronamespace = 'tocsin'::regnamespace"
        " and prorettype = 'trigger'::regtype",
    )
    assert len({*after} - {*before}) == changed > len(before) - triggers - 9
    assert await compare(store_dsn, folder, database_factory()) == ()


async def test_what_was_granted_by_hand_is_granted_again(
    store_dsn: str, new_role: Callable[..., str], folder: Folder
) -> None:
    service, other = new_role("service"), new_role("other")
    for grant in (
        f"usage on schema tocsin to {service}",
        f"execute on function tocsin.enqueue to {service} with grant option",
        f"execute on function tocsin.queue_metrics to {service}",
        f"execute on function tocsin.pause_queue to {service}",
        f"select on tocsin.messages to {other}",
    ):
        await query(store_dsn, f"grant {grant}")
    folder.replace(
        "queues.sql",
        "tocsin.pause_queue(queue text)",
        "tocsin.pause_queue(queue text, remark text default '')",
    )
    async with open_connection(
        make_conninfo(store_dsn, user=service, password=PASSWORD)
    ) as session:
        await session.execute(f"grant execute on function tocsin.enqueue to {other}")
    await upgrade(store_dsn, folder)
    granted = (
        "select p.proname::text, e.grantee::regrole::text, e.is_grantable "
        "from pg_proc p cross join aclexplode(p.proacl) e "
        "where p.pronamespace = 'tocsin'::regnamespace and e.grantee <> p.proowner"
    )
    assert sorted(await query(store_dsn, granted)) == sorted(
        [("enqueue", service, True), ("enqueue", other, False), ("queue_metrics", service, False)]
    )
    assert await query(
        store_dsn, "select has_table_privilege(%s, 'tocsin.messages', 'select')", other
    ) == [(True,)]
    await query(store_dsn, f"drop owned by {service}, {other} cascade")


@pytest.mark.parametrize("grantee", ["public", "role"])
async def test_default_privileges_give_nothing_by_an_installation_or_an_upgrade(
    dsn: str,
    new_role: Callable[..., str],
    folder: Folder,
    database_factory: Callable[[], str],
    grantee: str,
) -> None:
    grantee = new_role("reader") if grantee == "role" else grantee
    for kind, privilege in (
        ("tables", "select"),
        ("sequences", "usage"),
        ("functions", "execute"),
        ("schemas", "usage"),
    ):
        await query(dsn, f"alter default privileges grant {privilege} on {kind} to {grantee}")
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("q")
        await store.maintain()
        assert await store.verify() == ()
    folder.add(LATER, "create table tocsin.later (id integer);")
    folder.raise_version(serves=1)
    await upgrade(dsn, folder)
    assert await compare(dsn, folder, database_factory()) == ()
    if grantee != "public":
        await query(dsn, f"drop owned by {grantee}")


VIEW = "create view public.backlog as select * from tocsin.queue_metrics()"


async def test_a_view_on_a_function_that_stays_the_same_stays_and_goes_on(
    store_dsn: str, folder: Folder, database_factory: Callable[[], str]
) -> None:
    await query(store_dsn, "select tocsin.create_queue('q')")
    await query(store_dsn, VIEW)
    await query(store_dsn, "create table public.mine (at timestamptz default tocsin._clock())")
    folder.replace(
        "queues.sql",
        "tocsin.pause_queue(queue text)",
        "tocsin.pause_queue(queue text, remark text default '')",
    )
    await upgrade(store_dsn, folder)
    assert await compare(store_dsn, folder, database_factory()) == ()
    assert await query(store_dsn, "select count(*) from public.backlog") == [(1,)]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (
            "metrics.sql",
            "tocsin.queue_metrics(queue text default null",
            "tocsin.queue_metrics(name_of_queue text default null",
        ),
        (
            "metrics.sql",
            "tocsin.queue_metrics(queue text default null",
            "tocsin.queue_metrics(queue integer default null",
        ),
        (
            LATER,
            "",
            "drop function if exists tocsin.queue_metrics(text, integer, integer);",
        ),
    ],
)
async def test_a_view_on_a_function_that_changes_is_named_and_nothing_has_changed(
    store_dsn: str, folder: Folder, file: str, old: str, new: str
) -> None:
    await query(store_dsn, VIEW)
    before = await query(store_dsn, SIGNATURES)
    if old:
        folder.replace(file, old, new)
    else:
        ((signature,),) = await query(
            store_dsn, "select 'tocsin.queue_metrics'::regproc::regprocedure::text"
        )
        folder.add(file, f"drop function {signature};")
    folder.raise_version(serves=1)
    with pytest.raises(tocsin.DependentObjects, match=r"public\.backlog") as refused:
        await upgrade(store_dsn, folder)
    assert refused.value.objects == (("view public.backlog",) if old else ())
    assert await query(store_dsn, SIGNATURES) == before
    assert await query(store_dsn, "select version from tocsin.contract") == [(1,)]
    async with tocsin.connect(store_dsn) as store:
        assert await store.verify() == ()


async def test_sessions_go_on_across_an_upgrade_with_the_plans_that_they_have(
    store_dsn: str, folder: Folder
) -> None:
    await query(store_dsn, "select tocsin.create_queue('q')")
    folder.replace(
        "enqueue.sql",
        "create or replace function tocsin._is_active(worker_id bigint)",
        "create or replace function tocsin._is_active(worker_id bigint, added integer default 0)",
    )
    async with open_connection(store_dsn) as session:
        for _ in range(10):  # more often than psycopg and plpgsql need to keep a plan
            await session.execute("select tocsin.enqueue('q', '1', worker_id => null)")
            await session.execute("select tocsin.enqueue_many('q', '[1, 2]')")
        await upgrade(store_dsn, folder)
        for _ in range(10):
            await session.execute("select tocsin.enqueue('q', '1', worker_id => null)")
            await session.execute("select tocsin.enqueue_many('q', '[1, 2]')")
        cursor = await session.execute("select count(*) from tocsin.messages")
        assert await cursor.fetchall() == [(60,)]


REPLACE = """
alter function tocsin._is_valid rename to _is_well_formed;
do $$ begin
    execute replace(pg_get_functiondef('tocsin.enqueue'::regproc), '_is_valid', '_is_well_formed');
end $$
"""


async def test_a_call_that_has_waited_for_an_upgrade_is_sent_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The old function continues after the upgrade has released its lock, and calls a
    function that no longer exists."""
    await store.queues.create("q")
    await store.produce("q", 0)
    ids: list[int] = []

    async def produce() -> None:
        ids.append(await store.produce("q", 1))

    async with open_connection(store_dsn) as upgrade, trio.open_nursery() as nursery:
        await upgrade.execute("begin")
        await upgrade.execute("lock table tocsin.messages in access exclusive mode")
        nursery.start_soon(produce)
        await until_blocked(store_dsn)
        await upgrade.execute(REPLACE)
        await upgrade.execute("commit")
    assert await query(store_dsn, "select id, payload from tocsin.messages order by id") == [
        (1, 0),
        (ids[0], 1),
    ]


async def test_producers_and_consumers_meet_no_error_while_functions_are_loaded_again(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    sent: list[int] = []
    handled: list[int] = []

    async def produce(prefix: str | None) -> None:
        for number in itertools.count():
            key = None if prefix is None else f"{prefix}{number}"
            sent.append(await store.produce("q", number, key=key))

    async def handle(message: tocsin.Message) -> None:
        handled.append(message.id)

    async with (
        store.consumer("q") as consumer,
        running(consumer, handle, concurrency=4),
        trio.open_nursery() as nursery,
    ):
        for prefix in (None, None, "a", "b"):
            nursery.start_soon(produce, prefix)
        for _ in range(UPGRADES):
            await query(store_dsn, "update tocsin.contract set digest = 'of an older version'")
            async with tocsin.connect(store_dsn) as upgrading:
                await upgrading.install()
            before = len(sent), len(handled)
            with trio.fail_after(PATIENCE):
                while before[0] + 20 > len(sent) or before[1] + 20 > len(handled):
                    await store.workers.stats()
        nursery.cancel_scope.cancel()
    assert await store.verify() == ()
    assert len(handled) == len(set(handled))
