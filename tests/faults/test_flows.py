"""Flows under kills of workers, and under changes of jobs and of whole flows.

What has happened is read from the rows: each run began after the ends of the job's
parents, arguments are the parents' results, and each held job waits for a parent. When
the changes end, a requeue of each flow has every job succeed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

import tocsin
from tests.support import query, until_query
from tests.support.child import run_script

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(900)]

PREPARE = """
create table runs (job_id bigint not null, early bigint[] not null);
create table ended (job_id bigint not null);
create index on ended (job_id);
create table phase (calm boolean not null);
insert into phase values (false);
create function note_end() returns trigger language plpgsql as $$
begin
    insert into public.ended values (old.id);
    return null;
end
$$;
create trigger note_end after delete on tocsin.messages for each row execute function note_end();
"""
WAITING_FOR_NOTHING = """
select m.id, m.waits_for, m.state::text from tocsin.messages m
where m.waits_for is not null and (
    m.waits_for <> (select count(*) from tocsin.edges e where e.child = m.id and not e.done)
    or not exists (
        select from tocsin.edges e
        where e.child = m.id and not e.done
            and (e.on_failure = 'hold'
                 or exists (select from tocsin.messages p where p.id = e.parent))))
"""
"""Held jobs without an unfinished parent, but for those that wait for its requeue."""
WRONG_ARGUMENTS = """
select e.parent, e.child, c.payload, p.result, p.outcome
from tocsin.edges e
join tocsin.archive c on c.id = e.child and c.outcome = 'succeeded'
left join tocsin.archive p on p.id = e.parent
where e.argument <> '{}' and c.payload #> e.argument is distinct from p.result
    and not (e.on_failure = 'run' and c.payload #> e.argument = 'null')
"""
UNFINISHED = "select count(*) from tocsin.messages where waits_for is null"
RUNS = "select count(*) from runs"


@tocsin.task(name="add_up", queue="flows", max_attempts=2)
async def add_up(number: int, values: list[int | None]) -> int:
    raise NotImplementedError


@tocsin.task(name="settle", queue="flows", max_attempts=2)
async def settle(number: int, value: int | None) -> int:
    raise NotImplementedError


@tocsin.task(name="elsewhere", queue="other", max_attempts=2)
async def elsewhere(number: int) -> int:
    raise NotImplementedError


def add_chain(flow: tocsin.Flow, dice: random.Random) -> None:
    last = None
    for n in range(5):
        last = flow.add(settle.call(n, last), on_failure=choose_rule(dice))


def add_diamond(flow: tocsin.Flow, dice: random.Random) -> None:
    top = flow.add(elsewhere.call(1))
    left = flow.add(settle.call(2, top), on_failure=choose_rule(dice))
    right = flow.add(add_up.call(3, [top, 7]), on_failure=choose_rule(dice))
    flow.add(add_up.call(4, [left, right]), on_failure=choose_rule(dice))
    flow.add(elsewhere.call(5), after=[left, right], on_failure=choose_rule(dice))


def add_fan(flow: tocsin.Flow, dice: random.Random) -> None:
    top = flow.add(elsewhere.call(0))
    rule = choose_rule(dice)
    parts = [flow.add(settle.call(n, top), on_failure=rule) for n in range(100)]
    flow.add(add_up.call(0, list[int | None](parts)), on_failure=choose_rule(dice))


def choose_rule(dice: random.Random) -> Any:
    return dice.choice(["cancel", "run", "hold"])


class Chaos:
    """Changes jobs and flows at random."""

    def __init__(self, store: tocsin.Store, dice: random.Random, flows: list[tocsin.Flow]) -> None:
        self.store = store
        self.dice = dice
        self.flows = flows

    async def change(self) -> None:
        """Change something."""
        flow = self.dice.choice(self.flows)
        jobs = (await self.store.flows.get(flow.id)).jobs
        job = self.dice.choice(jobs)
        match self.dice.randrange(8):
            case 0:
                await self.store.flows.cancel(flow.id)
            case 1 | 2:
                await self.store.flows.requeue(flow.id)
            case 3 | 4:
                await self.store.jobs.cancel(job.id)
            case 5 if job.state in ("failed", "cancelled"):
                await self.store.jobs.requeue(job.id)
            case 6:
                await self.store.dead_letters.replay("flows", limit=5)
            case _:
                await self.store.maintain()

    async def run(self, dsn: str, changes: int) -> None:
        """Change something again and again, with runs of jobs in between."""
        for _ in range(changes):
            ((runs,),) = await query(dsn, RUNS)
            with suppress(tocsin.MessageNotWaiting, tocsin.JobNotFound, ValueError):
                await self.change()
            await until_query(
                dsn,
                f"select 1 where ({RUNS}) > %s or ({UNFINISHED}) = 0",
                runs + self.dice.randrange(20),
            )


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_job_of_a_flow_is_stranded_early_or_wrong(
    store: tocsin.Store, store_dsn: str, seed: int
) -> None:
    dice = random.Random(seed)
    await query(store_dsn, PREPARE)
    for queue in "flows", "other":
        await store.queues.ensure(queue)
    flows: list[tocsin.Flow] = []
    shapes: list[Callable[[tocsin.Flow, random.Random], None]] = [add_chain, add_diamond, add_fan]
    for n in range(30):
        async with store.flow(f"{n}") as flow:
            shapes[n % 3](flow, dice)
        flows.append(flow)
    killed = 0

    async def kill_again_and_again(kills: int) -> None:
        nonlocal killed
        while True:
            async with run_script("run_flows.py", store_dsn, str(dice.random())) as child:
                for _ in range(dice.randint(1, 30) if killed < kills else 10**9):
                    await child.line()
            killed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(kill_again_and_again, 40)
        await Chaos(store, dice, flows).run(store_dsn, 200)
        assert await query(store_dsn, WAITING_FOR_NOTHING) == []
        await query(store_dsn, "update phase set calm = true")
        await until_query(store_dsn, UNFINISHED, gives=[(0,)], patience=300)
        assert await query(store_dsn, WAITING_FOR_NOTHING) == []
        for flow in flows:
            await store.flows.requeue(flow.id)
            await until_succeeded(store, flow)
        nursery.cancel_scope.cancel()
    assert await query(store_dsn, "select * from runs where early <> '{}'") == []
    assert await query(store_dsn, WRONG_ARGUMENTS) == []
    assert killed >= 10


async def until_succeeded(store: tocsin.Store, flow: tocsin.Flow) -> None:
    """Return when each job of the flow has succeeded; run what a kill ends again."""
    with trio.fail_after(300):
        while (info := await store.flows.get(flow.id)).summary.state != "succeeded":
            if info.summary.state != "running":
                await store.flows.requeue(flow.id)
