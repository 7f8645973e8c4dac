"""Everyday work with a store, on a database that has settings of its own."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import tocsin

TEXT = "é ü ﬁ \u2028 👋"


def alter(dsn: str, settings: dict[str, str]) -> None:
    """Give the database these settings, for the sessions to come; those that the server
    knows."""
    with psycopg.connect(dsn, autocommit=True, client_encoding="utf8") as connection:
        known = {
            name for (name,) in connection.execute("select lower(name) from pg_settings").fetchall()
        }
        for name, value in settings.items():
            if name in known:
                statement = sql.SQL("alter database {} set {} = {}")
                database = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
                connection.execute(
                    statement.format(database, sql.Identifier(name), sql.Literal(value))
                )


async def use_everything(dsn: str) -> None:
    """Do what a producer, a consumer and an administrator do, with text that is not
    ASCII, and with times and intervals."""
    async with tocsin.connect(dsn) as store:
        queue = await store.queues.ensure("q", vt=90, retry_base=0.5, required_keys=["é"])
        assert (queue.vt, queue.required_keys) == (90, ("é",))
        async with store.producer("q", name="prodücer") as producer:
            first = await producer.enqueue({"é": TEXT}, headers={"é": TEXT}, key="ké")
            assert await producer.enqueue({"é": 2}, key="ké") == first
            await producer.enqueue_many([{"é": TEXT}] * 2, headers=TEXT)
            await producer.enqueue({"é": TEXT}, delay=86400)
            with pytest.raises(tocsin.PayloadInvalid) as invalid:
                await producer.enqueue({TEXT: 1})
            assert "é" in invalid.value.reason
        listed = await store.messages.list("q")
        assert [m.payload for m in listed] == [{"é": TEXT}] * 4
        assert listed[3].due is not None
        assert (listed[3].due - listed[3].enqueued_at).total_seconds() == 86400
        metrics = await store.queues.metrics("q")
        assert (metrics.ready, metrics.delayed) == (3, 1)
        async with store.consumer("q", name="consümer") as consumer:
            messages = await consumer.dequeue(3)
            assert [(m.payload, m.headers) for m in messages] == [
                ({"é": TEXT}, {"é": TEXT}),
                ({"é": TEXT}, TEXT),
                ({"é": TEXT}, TEXT),
            ]
            await messages[0].release()
            await messages[1].archive()
            assert (await store.workers.get(consumer.worker_id)) is not None
            (worker,) = [w for w in await store.workers.list("q") if w.id == consumer.worker_id]
            assert (worker.name, worker.held) == ("consümer", 1)
            assert 0 <= worker.heartbeat_age < 60
        (archived,) = await store.messages.list("q", state="archived")
        assert archived.payload == {"é": TEXT}
        await store.maintain()
        assert (await store.stats()).archived == 1
