"""Create a backlog with SQL.

Only this module of the benchmarks writes Tocsin's tables directly. Statistics and
visibility are as after an autovacuum, so that no drain pays for the creation of its
backlog.
"""

from __future__ import annotations

from psycopg import sql

from .frame import execute

COLUMNS = "queue_id, due, vt, enqueued_at, payload"
"""The columns that a message must have. The other columns have their defaults."""
INSERT = (
    f"insert into tocsin.messages ({COLUMNS}) select id, now(), now(), now(), '{{\"n\": 1}}' from"
    " tocsin.queues where name = "
)
"""Insert one message without Tocsin's functions. The name of its queue follows as a
literal."""
COPY = f"copy tocsin.messages ({COLUMNS}) from stdin"
"""Insert many messages, one on each line, with tabs between the columns."""

_READY = f"""
insert into tocsin.messages ({COLUMNS})
select q.id, t, t, t, jsonb_build_object('n', n)
from tocsin.queues q, clock_timestamp() t, generate_series(1, %s::integer) n
where q.name = %s
"""
_JOBS = f"""
insert into tocsin.messages ({COLUMNS}, task)
select q.id, t, t, t, jsonb_build_object('n', n), %s
from tocsin.queues q, clock_timestamp() t, generate_series(1, %s::integer) n
where q.name = %s
"""
_BLOCKED = f"""
insert into tocsin.messages ({COLUMNS}, options, priority)
select q.id, t, t, t, '"limited"', '{{"limits": [{{"name": "one", "n": 1}}]}}', -1
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
    """Add messages to a queue: ready, due in a day, and archived.

    Cancellation:
        Some or all messages have been added.
    """
    for statement, count in ((_READY, ready), (_DELAYED, delayed), (_ARCHIVED, archived)):
        if count:
            await execute(dsn, statement.encode(), count, queue)
    await vacuum(dsn)


async def fill_jobs(dsn: str, queue: str, task: str, ready: int) -> None:
    """Add jobs to a queue; the argument ``n`` of each is a number.

    Cancellation:
        Some or all jobs have been added.
    """
    await execute(dsn, _JOBS.encode(), task, ready, queue)
    await vacuum(dsn)


async def block(dsn: str, queue: str, count: int) -> None:
    """Add messages with one limit to a queue, which has one slot.

    Cancellation:
        All messages have been added, or none.
    """
    if count:
        await execute(dsn, _BLOCKED.encode(), count, queue)
        await vacuum(dsn)


async def vacuum(dsn: str) -> None:
    """Vacuum and analyze the tables of messages."""
    for table in ("messages", "archive", "slots"):
        await execute(dsn, sql.SQL("vacuum (analyze) {}").format(sql.Identifier("tocsin", table)))


async def archived(dsn: str) -> int:
    """Return how many messages have been archived."""
    ((count,),) = await execute(dsn, b"select count(*) from tocsin.archive")
    return int(count)


async def results(dsn: str) -> int:
    """Return how many results of jobs are stored."""
    ((count,),) = await execute(dsn, b"select count(result) from tocsin.archive")
    return int(count)
