"""What ``repr`` shows: which object it is, and no secret."""

from __future__ import annotations

import re

from psycopg.conninfo import make_conninfo

import tocsin


async def test_a_store_shows_where_it_is_and_a_worker_which_it_is(store_dsn: str) -> None:
    dsn = make_conninfo(store_dsn, application_name="payroll")
    async with tocsin.connect(dsn) as store:
        await store.queues.ensure("q")
        async with store.producer("q", name="p") as p, store.consumer("q", name="c") as c:
            handle = await store.workers.get(c.worker_id)
            shown = [repr(thing) for thing in (p, c, handle)]
    assert re.fullmatch(r"<tocsin.Store on [^ ,]+:\d+, schema 'tocsin'>", repr(store))
    assert shown == [
        f"<tocsin.Producer of queue 'q', worker {p.worker_id} ('p')>",
        f"<tocsin.Consumer of queue 'q', worker {c.worker_id} ('c')>",
        f"<tocsin.WorkerHandle of worker {c.worker_id}>",
    ]
