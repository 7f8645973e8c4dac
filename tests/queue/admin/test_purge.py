"""Purging a queue."""

from __future__ import annotations

from typing import Any

import attrs
import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, move_clock, query
from tests.support.queues import contents, everything, fill, open_transaction


@pytest.mark.parametrize(
    ("scope", "count"), [("ready", 2), ("delayed", 3), ("archived", 4), ("dead", 1)]
)
async def test_purge(store: tocsin.Store, store_dsn: str, scope: str, count: int) -> None:
    """Each scope by itself; nothing of another queue; leased messages and workers stay;
    a dry run tells and changes nothing."""
    await fill(store)
    await fill(store, "other")
    scopes: dict[str, Any] = {scope: True}
    async with store.consumer("q") as consumer, store.producer("q") as producer:
        await producer.enqueue("leased", priority=-1)
        (leased,) = await consumer.dequeue(vt=7200)
        before, counts = await everything(store_dsn), await contents(store_dsn)
        expected = attrs.evolve(tocsin.PurgeResult(0, 0, 0, 0, 0), **{scope: count})
        assert await store.queues.purge("q", **scopes, dry_run=True) == expected
        assert await everything(store_dsn) == before
        purged = await store.queues.purge("q", **scopes)
        assert purged == expected
        assert purged.total == count
        table = {"archived": "archive", "dead": "dead_letters"}.get(scope, "messages")
        assert await contents(store_dsn) == {**counts, table: counts[table] - count}
        assert (await store.queues.purge("q", **scopes)).total == 0
        await leased.archive()
        await producer.enqueue("next", priority=-1)
        assert [m.payload for m in await consumer.dequeue()] == ["next"]


async def test_purge_of_several_scopes(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    assert await store.queues.purge(
        "q", ready=True, delayed=True, archived=True, dead=True
    ) == tocsin.PurgeResult(2, 3, 0, 4, 1)
    assert (await contents(store_dsn))["messages"] == 0


async def test_purge_by_age(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    await move_clock(store_dsn, 1000)
    await fill(store)
    scopes: Any = {"ready": True, "delayed": True, "archived": True, "dead": True}
    assert (await store.queues.purge("q", **scopes, older_than=1500)).total == 0
    for dry_run in (True, False):
        assert await store.queues.purge(
            "q", **scopes, older_than=500, dry_run=dry_run
        ) == tocsin.PurgeResult(2, 3, 0, 4, 1)
    assert await store.queues.purge(
        "q", **scopes, older_than=0, dry_run=True
    ) == tocsin.PurgeResult(2, 3, 0, 4, 1)


async def test_purge_takes_what_is_due_for_ready(store: tocsin.Store, store_dsn: str) -> None:
    """Although no claim has read the row since, and its state is still delayed."""
    await fill(store)
    await move_clock(store_dsn, 3700)
    for dry_run in (True, False):
        assert await store.queues.purge("q", delayed=True, dry_run=dry_run) == tocsin.PurgeResult(
            0, 0, 0, 0, 0
        )
        assert await store.queues.purge("q", ready=True, dry_run=dry_run) == tocsin.PurgeResult(
            5, 0, 0, 0, 0
        )


async def test_purge_passes_over_what_a_claim_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, open_transaction(store_dsn) as claiming:
        await store.produce("q", "claimed")
        await store.produce("q", "waiting")
        await claiming.execute(
            "select tocsin.claim(w.id, w.registration, 1) from tocsin.workers w where w.id = %s",
            [consumer.worker_id],
        )
        with trio.fail_after(PATIENCE):
            assert (await store.queues.purge("q", ready=True)).ready == 1
        await claiming.execute("commit")
        assert await query(store_dsn, "select payload, state::text from tocsin.messages") == [
            ("claimed", "leased")
        ]


async def test_purge_frees_keys(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    first = await store.produce("q", 1, key="k")
    await store.queues.purge("q", ready=True)
    assert await store.produce("q", 1, key="k") != first


async def test_purge_refuses_what_makes_no_sense(store: tocsin.Store, store_dsn: str) -> None:
    await fill(store)
    before = await everything(store_dsn)
    with pytest.raises(ValueError, match="purge: ready, delayed, held, archived or dead"):
        await store.queues.purge("q")
    with pytest.raises(ValueError, match="older_than"):
        await store.queues.purge("q", ready=True, older_than=-1)
    with pytest.raises(psycopg.Error, match="older_than"):
        await query(
            store_dsn, "select tocsin.purge_queue('q', ready => true, older_than => '-1 s')"
        )
    with pytest.raises(tocsin.QueueNotFound):
        await store.queues.purge("r", ready=True)
    assert await everything(store_dsn) == before


async def test_purge_of_the_dead_passes_over_rows_that_other_sessions_have_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    """So the purge never waits while it has dead letters locked for which another
    session waits in the order of ids."""
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        ids = await producer.enqueue_many([1, 2, 3], max_deliveries=1)
        # the table has them in the order of their deaths
        for message in reversed(await consumer.dequeue(3)):
            await message.release()
    async with open_transaction(store_dsn) as other:
        await other.execute("select from tocsin.dead_letters where id = %s for update", [ids[1]])
        with trio.fail_after(PATIENCE):
            purged = await store.queues.purge("q", dead=True)
        await other.execute("rollback")
    assert purged.dead == 2
    assert [letter.id for letter in await store.dead_letters.list("q")] == [ids[1]]
    assert (await store.queues.purge("q", dead=True, dry_run=True)).dead == 1
