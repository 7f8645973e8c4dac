"""Each released version of the schema, with data in every state, upgrades to this one
and to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import trio

import tocsin
from tests.support import PATIENCE, query
from tests.support.newer import Folder
from tocsin._database import schema as schemas
from tools.snapshot import SNAPSHOTS, describe, digest_migrations

FAR = "2500-01-01 UTC"


@pytest.fixture(params=sorted(SNAPSHOTS.glob("*.sql")), ids=lambda path: path.stem)
def snapshot(dsn: str, request: pytest.FixtureRequest) -> str:
    """Connection string of a database that holds what a released version has left."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(request.param.read_bytes())
    return dsn


def test_the_snapshot_of_this_version_has_its_migrations() -> None:
    """That of a released version stays as it is."""
    path = SNAPSHOTS / f"{tocsin.__version__}.sql"
    assert describe(path) == digest_migrations(), "run: uv run nox -s new-snapshot"


async def go_on(store: tocsin.Store, dsn: str) -> None:
    """Consume what the snapshot has, and what comes after it."""
    ids = "select array_agg(id order by id) from tocsin.messages where due < %s"
    ((waiting,),) = await query(dsn, ids, FAR)
    archived = {m.id for m in await store.messages.list("work", state="archived")}
    dead = {letter.id for letter in await store.dead_letters.list("work")}
    states = await query(dsn, "select distinct state::text from tocsin.messages order by state")
    assert [state for (state,) in states] == ["delayed", "leased", "ready"]
    assert archived
    assert dead
    await store.queues.resume("paused")
    assert set(await store.dead_letters.replay(queue="work")) == dead
    new = await store.produce("work", "after the upgrade")
    consumed, late = set[int](), set[int]()
    async with store.consumer("work") as work, store.consumer("paused") as paused:
        with trio.fail_after(PATIENCE):  # of a dump just made, leases have not ended yet
            while not consumed | late >= {*waiting, *dead, new}:
                for consumer in (work, paused):
                    messages = await consumer.dequeue(100)
                    assert all(await consumer.archive_many(messages))
                    consumed |= {message.id for message in messages}
                late = {letter.id for letter in await store.dead_letters.list("work")}
    assert consumed | late == {*waiting, *dead, new}
    kept = {row[0] for row in await query(dsn, "select id from tocsin.archive")}
    assert kept >= archived | consumed
    await store.maintain()


async def test_a_snapshot_upgrades_to_this_version_and_goes_on(snapshot: str) -> None:
    async with tocsin.connect(snapshot) as store:
        await store.install()
        assert await store.verify() == ()
        await go_on(store, snapshot)
        assert await store.verify() == ()


async def test_a_snapshot_upgrades_to_the_next_version_and_goes_on(
    snapshot: str, tmp_path: Path, database_factory: Callable[[], str]
) -> None:
    version = schemas.ours().version
    folder = Folder.of_next_version(tmp_path / "sql")
    await folder.write_catalog(database_factory())
    with folder.in_use():
        async with tocsin.connect(snapshot) as store:
            await store.install()
            assert await store.verify() == ()
            await go_on(store, snapshot)
            assert (await store.stats()).version == version + 1
    async with tocsin.connect(snapshot) as restarted:  # of the version before, which it serves
        await restarted.install()
        await restarted.produce("work", "of the version before")
    with folder.in_use():
        async with tocsin.connect(snapshot) as store:
            assert await store.verify() == ()
