"""A flow of 1,000 jobs with limits while workers and the server are killed.

A trigger keeps the history of each job that holds slots, in the transaction that makes
it so, and does not read the slots. It orders the history by positions in the WAL, which
is a clock that no crash turns back: a job leaves before the commit of its transaction,
and a grant comes after the commit that it waited for.
"""

from __future__ import annotations

import random

import pytest
import trio

import tocsin
from tests.support import query, until_query
from tests.support.child import Child, run_script
from tests.support.children.run_limited import EXPECTED, TASKS, N, add_thousand
from tocsin.embedded import EmbeddedServer

pytestmark = [pytest.mark.fault, pytest.mark.slow]

KILLS = 100
WORKERS = 3
SERVER_EVERY = 10
"""Each tenth kill is one of the server."""

HISTORY = """
create table public.history (
    name text, key text, job_id bigint, state text, change integer, at pg_lsn
);
create function public.note_history() returns trigger language plpgsql as $$
declare
    held integer := case when tg_op <> 'INSERT' then (old.state in ('ready', 'leased'))::int end;
    holds integer := case when tg_op <> 'DELETE' then (new.state in ('ready', 'leased'))::int end;
begin
    if coalesce(holds, 0) <> coalesce(held, 0) then
        insert into public.history
        select x ->> 'name', coalesce(x ->> 'key', ''), coalesce(new.id, old.id),
               case when tg_op = 'DELETE' then 'gone' else new.state::text end,
               coalesce(holds, 0) - coalesce(held, 0), pg_current_wal_insert_lsn()
        from jsonb_array_elements(coalesce(new.options, old.options) -> 'limits') x
        where x -> 'per' is null;
    end if;
    return null;
end
$$;
create trigger history after insert or update or delete on tocsin.messages
    for each row execute function public.note_history();
"""
HOLDERS = """
create view public.holders as
select h.*, sum(h.change) over (partition by h.name, h.key order by h.at, h.change)::int as holders
from public.history h
"""


class Kills:
    """Kills a worker in one of its jobs, or the server, until there were enough."""

    def __init__(self, server: EmbeddedServer, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.workers = 0
        self.servers = 0
        self.jobs_until_next = 5
        self.over = trio.Event()

    async def began(self, child: Child) -> None:
        """Count a job that this worker has begun."""
        self.jobs_until_next -= 1
        if self.workers + self.servers == KILLS or self.jobs_until_next > 0:
            return
        self.jobs_until_next = self.rng.randint(1, 9)
        if (self.workers + self.servers) % SERVER_EVERY == SERVER_EVERY - 1:
            self.servers += 1
            await self.server.restart("immediate")
        else:
            self.workers += 1
            child.process.kill()
        if self.workers + self.servers == KILLS:
            self.over.set()

    async def keep_worker(self) -> None:
        """Run a worker, and another one when it has been killed."""
        while True:
            async with run_script("run_limited.py", self.server.dsn) as child:
                try:
                    while True:
                        await child.words("began")
                        await self.began(child)
                except EOFError:
                    assert child.process.returncode == -9


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1])
async def test_limits_hold_and_a_flow_ends_whatever_is_killed(
    own_server: EmbeddedServer, seed: int
) -> None:
    async with tocsin.connect(own_server.dsn, heartbeat=0.2) as store:
        await store.install()
        for queue in "qr":
            await store.queues.create(queue, vt=5, retry_base=0)
        async with store.worker(TASKS):
            pass  # registers the tasks
        await query(own_server.dsn, HISTORY)
        async with store.flow("thousand") as flow:
            add_thousand(flow)
        kills = Kills(own_server, seed)
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(kills.keep_worker)
            await kills.over.wait()
            await until_query(
                own_server.dsn,
                "select 1 where not exists (select from tocsin.messages)",
                patience=300,
            )
            nursery.cancel_scope.cancel()
        assert (kills.workers, kills.servers) == (90, 10)
        status = await store.flows.get(flow.id)
        assert (status.summary.state, len(status.jobs)) == ("succeeded", 1000)
        assert await query(
            own_server.dsn,
            "select count(*)::int, max(result::int) from tocsin.archive"
            " where outcome = 'succeeded'",
        ) == [(1000, EXPECTED)]
        await query(own_server.dsn, HOLDERS)
        for name, n in N.items():
            found = "from public.holders where name = %s and holders"
            assert await query(own_server.dsn, f"select * {found} > %s", name, n) == []
            assert await query(own_server.dsn, f"select 1 {found} = %s limit 1", name, n) == [(1,)]
        assert await query(own_server.dsn, "select * from tocsin.slots") == []
        assert await query(own_server.dsn, "select sum(change)::int from public.history") == [(0,)]
