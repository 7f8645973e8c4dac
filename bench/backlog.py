"""A backlog, made by SQL.

It is the one place where the benchmarks write Tocsin's tables themselves. Statistics
and visibility are as autovacuum would have left them, so that no drain pays for how its
backlog came to be.
"""

from __future__ import annotations

from psycopg import sql

from .frame import execute

COLUMNS = "queue_id, due, vt, enqueued_at, payload"
"""What a message must have; all else has its default."""
INSERT = (
    f"insert into tocsin.messages ({COLUMNS}) select id, now(), now(), now(), '{{\"n\": 1}}' from"
    " tocsin.queues where name = "
)
"""One message, without Tocsin's functions, in the queue whose name, as a literal,
follows."""
COPY = f"copy tocsin.messages ({COLUMNS}) from stdin"
"""Many of them, a line each, tabs between the columns."""

_READY = f"""
insert into tocsin.messages ({COLUMNS})
select q.id, t, t, t, jsonb_build_object('n', n)
from tocsin.queues q, clock_timestamp() t, generate_series(1, %s::integer) n
where q.name = %s
"""
_DELAYED = f"""
insert into tocsin.messages ({COLUMNS}, state)
select q.id, due, due, t, jsonb_build_object('n', n), 'delayed'
from tocsin.queues q, clock_timestamp() t, generate_series(1, %s::integer) n,
     lateral (select t + make_interval(days => 1, secs => n)) d (due)
where q.name = %s
"""
_ARCHIVED = """
insert into tocsin.archive (id, queue_id, priority, read_ct, span, enqueued_at, dequeued_at,
    archived_at, keep_until, payload)
select -n, q.id, 0, 1, a.span, t, t, t, t + a.retention, jsonb_build_object('n', n)
from tocsin.queues q join tocsin.archive_policies a on a.queue_id = q.id, clock_timestamp() t,
    generate_series(1, %s::integer) n
where q.name = %s
"""


async def fill(dsn: str, queue: str, ready: int, *, delayed: int = 0, archived: int = 0) -> None:
    """Add messages to a queue: ready ones, ones due in a day, archived ones.

    Cancellation:
        Some have been added, or all.
    """
    for statement, count in ((_READY, ready), (_DELAYED, delayed), (_ARCHIVED, archived)):
        if count:
            await execute(dsn, statement.encode(), count, queue)
    await vacuum(dsn)


async def vacuum(dsn: str) -> None:
    """Vacuum and analyze the tables that messages are in."""
    for table in ("messages", "archive"):
        await execute(dsn, sql.SQL("vacuum (analyze) {}").format(sql.Identifier("tocsin", table)))


async def archived(dsn: str) -> int:
    """Return how many messages have been archived."""
    ((count,),) = await execute(dsn, b"select count(*) from tocsin.archive")
    return int(count)
