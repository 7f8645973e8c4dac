"""Jobs: functions as work, with their results.

``jobs`` is the rate at which one process runs a backlog of jobs of an async function
whose results are stored, with concurrency 100. Its floor is the rate of plain messages
(``drain``), in turns in the same run. ``jobs.gigq`` and its like have the same rate,
and the rate of another queue as the floor (``comparison.py``). All of these queues call
functions that they find by name.

``job_result`` is the time from the submission of a job to its result, where another
process runs the job, as the submitting process measures it. Each job finds the worker
idle. Its floor, a round trip between two processes on Tocsin's driver, is two
notifications without a queue (``wakeup.py``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AsyncExitStack
from statistics import median
from typing import NoReturn

import trio

import tocsin

from . import backlog, drain, wakeup
from .child import child_process, orders, report, until_idle
from .comparison import find_peers, peer_rate
from .draining import Drained, Tally
from .draining import drain as drain_by
from .frame import Bench
from .results import Result, percentile

QUEUE, TASK = "jobs", "bench.increment"
PLAIN_TARGET = 2.0
"""Maximum ratio of the rate of plain messages to the rate of jobs."""
PEER_TARGETS = {"gigq": 1 / 10, "procrastinate": 1 / 10, "oban": 1 / 5, "chancy": 1 / 5}
"""Maximum rate of another queue, as a fraction of Tocsin's."""
RESULT_TARGETS = {50: 2.5}
"""Maximum ratio to the round trip, by percentile."""


async def measure(bench: Bench) -> list[Result]:
    """Measure jobs per second, of Tocsin and of other queues."""
    messages, rounds = bench.pick(50_000, 20_000, 500), bench.pick(3, 1, 1)
    seconds = bench.pick(10.0, 1.0, 0.5)
    rates: dict[str, list[float]] = defaultdict(list)
    peers = find_peers(bench, list(bench.pick(PEER_TARGETS, {}, PEER_TARGETS)))
    for _ in range(rounds):
        rates["plain"].append((await drain.drain_with_tocsin(bench, messages)).rate)
        rates["jobs"].append((await _drain_jobs(bench, messages)).rate)
        for peer in peers:
            rates[peer.name].append(await peer_rate(bench, peer, messages, seconds))
    ours = median(rates["jobs"])
    settings = {"messages": messages, "rounds": rounds, "concurrency": drain.CONCURRENCY}
    return [
        Result(
            "jobs", ours, "/s", median(rates["plain"]), settings | {"target_ratio": PLAIN_TARGET}
        ),
        *(
            Result(
                f"jobs.{peer.name}",
                ours,
                "/s",
                median(rates[peer.name]),
                settings | peer.settings | {"target_ratio": PEER_TARGETS[peer.name]},
            )
            for peer in peers
        ),
    ]


async def _drain_jobs(bench: Bench, messages: int) -> Drained:
    async with bench.store_database(QUEUE) as dsn:
        await backlog.fill_jobs(dsn, QUEUE, TASK, messages)
        drained = await drain_by(run_jobs, dsn, messages, drain.FOREVER, drain.CONCURRENCY)
        stored = await backlog.results(dsn)
    if stored != messages:
        raise RuntimeError(f"{stored} results were stored instead of {messages}")
    return drained


async def run_jobs(dsn: str, share: str, seconds: str, concurrency: str) -> None:
    """Run a backlog of jobs."""
    full = trio.Event()
    tally = Tally(int(share), full.set)

    @tocsin.task(queue=QUEUE, name=TASK)
    async def increment(n: int) -> int:
        tally.add()
        return n + 1

    async with (
        orders() as incoming,
        tocsin.connect(dsn) as store,
        store.worker([increment], concurrency=int(concurrency)) as worker,
        trio.open_nursery() as nursery,
    ):
        report("ready")
        await incoming.next()

        async def end() -> None:
            with trio.move_on_after(float(seconds)):
                await full.wait()
            await worker.interrupt()

        nursery.start_soon(end)
        try:
            await worker.run()
        except tocsin.Suspended:
            tally.tell(tally.count)  # a run archives all finished jobs before it ends


async def measure_results(bench: Bench) -> list[Result]:
    """Measure the median and the 99th percentile of the time to a result, in ms."""
    samples = bench.pick(500, 50, 3)
    delays: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bare = await enter(bench.bare_database())
        await enter(child_process(wakeup.answer, bare))
        calling = await enter(child_process(wakeup.call, bare))
        dsn = await enter(bench.store_database(QUEUE))
        await enter(child_process(serve, dsn))
        submitting = await enter(child_process(submit, dsn))
        ways = {"trio_round_trip": calling, "job_result": submitting}
        for child in ways.values():
            await wakeup.exchange(child, child, bench.pick(20, 10, 1))
        while len(delays["job_result"]) < samples:
            for name, child in ways.items():
                turn = await wakeup.exchange(child, child, min(wakeup.IN_TURN, samples))
                delays[name] += [delay for (delay,) in turn]
    return [
        Result(
            f"job_result.p{percent}",
            percentile(delays["job_result"], percent),
            "ms",
            percentile(delays["trio_round_trip"], percent),
            {"samples": len(delays["job_result"]), "floor": "trio_round_trip"}
            | ({"target_ratio": RESULT_TARGETS[percent]} if percent in RESULT_TARGETS else {}),
        )
        for percent in (50, 99)
    ]


@tocsin.task(queue=QUEUE, name=TASK)
async def increment(n: int) -> int:
    """Return the next number."""
    return n + 1


async def serve(dsn: str) -> NoReturn:
    """Run jobs."""
    async with (
        tocsin.connect(dsn) as store,
        store.worker([increment]) as worker,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(worker.run)
        await until_idle(store)
        report("ready")
        await trio.sleep_forever()


async def submit(dsn: str) -> NoReturn:
    """Submit a job for each order, and report how long its result took, in ms."""
    async with tocsin.connect(dsn) as store, orders() as incoming:
        report("ready")
        while True:
            await incoming.next()
            began = time.monotonic_ns()
            job = await increment.submit(store, 1)
            assert await job.result() == 2
            report("handled", (time.monotonic_ns() - began) / 1e6)
