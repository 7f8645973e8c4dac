"""Print the registry of workers and mark the stale ones, once or at an interval.

    uv run examples/health_monitor.py [DSN [SECONDS]]

The process of a worker sends a heartbeat every two seconds. Other processes notice a
dead process within seconds, and requeue its messages. So a stale worker stays in this
table only when no other process is alive, or when its own process cannot reach the
database. Without SECONDS the program exits with 1 if a worker is stale.
"""

import sys

import trio

import tocsin

MAX_AGE = 10.0
"""Seconds without a heartbeat after which a worker counts as stale."""


def show(workers: list[tocsin.WorkerInfo]) -> int:
    """Print the workers, and return the number of stale workers."""
    stale = [w for w in workers if w.heartbeat_age > MAX_AGE]
    print(
        f"{'worker':<24} {'kind':<9} {'queue':<16} {'status':<12} {'holds':>5} {'silent for':>11}"
    )
    for worker in workers:
        print(
            f"{worker.name:<24} {worker.kind:<9} {worker.queue:<16} {worker.status:<12}"
            f" {worker.held:>5} {worker.heartbeat_age:>9.1f} s"
            + ("  STALE" if worker in stale else "")
        )
    print(f"{len(workers)} at work, {len(stale)} stale", flush=True)
    return len(stale)


async def main(dsn: str, seconds: float | None) -> int:
    async with tocsin.connect(dsn) as store:
        await store.install()
        while True:
            stale = show(
                [w for w in await store.workers.list() if w.status != tocsin.WorkerStatus.STOPPED]
            )
            if seconds is None:
                return min(stale, 1)
            await trio.sleep(seconds)


dsn = sys.argv[1] if len(sys.argv) > 1 else "postgresql:///"
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else None
sys.exit(trio.run(main, dsn, seconds))
