"""The demo's own tables, and the check that takes the database alone as witness.

The tables are in the schema ``tocsin_demo``. Tocsin is installed for the demo in a
schema of its own, ``tocsin_demo_queue``, so that the demo can drop all that its last
run left, and touches nothing else in a database that it was given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from tocsin.driver import TrioConnection
from tocsin.errors import TocsinError

QUEUE_SCHEMA = "tocsin_demo_queue"
"""Where Tocsin is installed for the demo."""

_CREATE = """
set client_min_messages = warning;
drop schema if exists tocsin_demo, tocsin_demo_queue cascade;
create schema tocsin_demo;
create table tocsin_demo.files (
    message_id bigint primary key,
    path       text   not null
);
-- No primary key here: a message that is handled twice must show.
create table tocsin_demo.digests (
    message_id bigint not null,
    path       text   not null,
    sha256     text   not null,
    bytes      bigint not null,
    consumer   text   not null
);
"""

ADD_FILES = (
    "insert into tocsin_demo.files (message_id, path) select * from unnest(%s::bigint[],"
    " %s::text[])"
)
ADD_DIGEST = (
    "insert into tocsin_demo.digests (message_id, path, sha256, bytes, consumer) values (%s, %s,"
    " %s, %s, %s)"
)

_CHECK = """
with done as (
    select message_id, path, count(*) as times, max(bytes) as bytes
    from tocsin_demo.digests
    group by message_id, path
), ends as (
    select done.times, done.bytes, archive.id is not null as archived,
           dead_letters.id is not null as dead
    from tocsin_demo.files
    left join done using (message_id, path)
    left join tocsin_demo_queue.archive on archive.id = files.message_id
    left join tocsin_demo_queue.dead_letters on dead_letters.id = files.message_id
)
select count(*),
       coalesce(sum(bytes), 0)::bigint,
       count(*) filter (where dead),
       count(*) filter (where not dead and not (archived and times is not null)),
       coalesce(sum(times - 1), 0)::bigint
           + (select count(*) from done
              where not exists (select from tocsin_demo.files
                                where files.message_id = done.message_id)),
       (select min(error) from tocsin_demo_queue.dead_letters)
from ends
"""

_HANDLED = """
select workers.name, count(*)
from (select consumer_worker_id from tocsin_demo_queue.archive union all
      select consumer_worker_id from tocsin_demo_queue.dead_letters) settled
join tocsin_demo_queue.workers on workers.id = settled.consumer_worker_id
join tocsin_demo_queue.queues on queues.id = workers.queue_id
where queues.name = %s
group by workers.name
"""


@attrs.frozen
class Outcome:
    """What the database says has become of the files."""

    files: int
    """Files that were enqueued."""
    size: int
    """Bytes of those that were hashed."""
    dead: int
    """Files that could not be read, so that their messages are dead letters."""
    lost: int
    """Files whose message is neither archived, with a digest stored, nor a dead letter.
    There must be none."""
    duplicates: int
    """Digests beyond the one that each file should have. There must be none."""
    error: str | None
    """What one of the dead letters says."""


class Tables:
    """The demo's tables; made by `open_tables`."""

    def __init__(self, connection: TrioConnection[Any]) -> None:
        self._connection = connection

    async def check(self) -> Outcome:
        """Compare what was enqueued with what was done.

        Cancellation:
            Changes nothing.
        """
        cursor = await self._connection.execute(_CHECK)
        (row,) = await cursor.fetchall()
        return Outcome(*row)

    async def handled(self, queue: str) -> dict[str, int]:
        """Return how many messages of a queue each consumer, by name, had in the end.

        Cancellation:
            Changes nothing.
        """
        cursor = await self._connection.execute(_HANDLED, [queue])
        return dict(await cursor.fetchall())


@asynccontextmanager
async def open_tables(dsn: str) -> AsyncIterator[Tables]:
    """Drop the tables of the last demo and create new ones, which stay until the next.

    Raises:
        TocsinError: Another demo uses this database.

    Cancellation:
        The connection is closed.
    """
    connection: TrioConnection[Any] = await TrioConnection.connect(dsn, autocommit=True)
    try:
        cursor = await connection.execute(
            "select pg_try_advisory_lock(hashtextextended('tocsin demo', 0))"
        )
        if await cursor.fetchone() != (True,):
            raise TocsinError("another demo is running in this database")
        await connection.execute(_CREATE)
        yield Tables(connection)
    finally:
        with trio.move_on_after(2, shield=True):
            await connection.close()
