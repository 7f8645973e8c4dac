"""Run a background service: several worker processes, which are watched and restarted.

    uv run examples/background_jobs.py [DSN] [--workers N] [--check-interval SECONDS]

The service submits some jobs at its start, and logs at an interval which workers run
and what they do. Kill one of the processes: the service starts another one, and the
jobs that the first one has not finished are run again. After Ctrl-C or SIGTERM the
processes finish the functions that run, and end.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import trio

import tocsin

logger = logging.getLogger("background_jobs")

QUEUE = "background"


@tocsin.task(queue=QUEUE, max_attempts=3, timeout=60, retry=tocsin.exponential(1, cap=60))
async def resize(picture: int) -> str:
    """Pretend to make a picture smaller."""
    await trio.sleep(0.1)
    tocsin.current_job().log.info("resized picture %d", picture)
    return f"picture-{picture}.small.jpeg"


@tocsin.task(queue=QUEUE, timeout=60)
def count_words(text: str) -> int:
    """Count the words of a text, in a thread."""
    return len(text.split())


async def work(dsn: str) -> None:
    """Run jobs until a signal: the program of each worker process."""
    async with (
        tocsin.connect(dsn) as store,
        store.worker([resize, count_words], concurrency=4) as worker,
        tocsin.drain_on_signals(grace=20),
    ):
        try:
            await worker.run()
        except tocsin.Suspended as end:
            logger.info("worker %s: %d handled", end.reason, end.handled)


async def drain(process: trio.Process) -> None:
    """Let a process finish its functions; it is killed when it takes too long."""
    process.terminate()
    await trio.sleep(30)
    process.kill()


async def keep_worker(dsn: str) -> None:
    """Run a worker process, and start another one whenever it ends."""
    while True:
        ended = await trio.run_process(
            [sys.executable, __file__, dsn, "--work"],
            check=False,
            start_new_session=True,  # Ctrl-C reaches the service alone
            deliver_cancel=drain,
        )
        logger.warning("worker process ended with %d; starting another one", ended.returncode)
        await trio.sleep(1)


async def monitor(store: tocsin.Store, seconds: float) -> None:
    """Log the workers and the state of the queue at an interval."""
    while True:
        for worker in await store.workers.list(QUEUE):
            if worker.status == tocsin.WorkerStatus.POLLING:
                logger.info("process %d holds %d jobs", worker.pid, worker.held)
        metrics = await store.queues.metrics(QUEUE)
        logger.info("%d waiting, %d running", metrics.ready + metrics.delayed, metrics.leased)
        await trio.sleep(seconds)


async def report(jobs: Sequence[tocsin.Job[str]], words: tocsin.Job[int]) -> None:
    """Log the results as they arrive, from whichever process has them."""
    for job in jobs:
        logger.info("result: %s", await job.result())
    logger.info("result: %d", await words.result())


async def serve(dsn: str, workers: int, check_interval: float) -> None:
    """Run the processes and the monitor until a signal."""
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure(QUEUE)
        jobs = await resize.submit_many(store, [resize.call(n) for n in range(1, 11)])
        words = await count_words.submit(store, "how many words are these")
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                for _ in range(workers):
                    nursery.start_soon(keep_worker, dsn)
                nursery.start_soon(monitor, store, check_interval)
                nursery.start_soon(report, jobs, words)
                async for number in signals:
                    logger.info("%s: shutting down", signal.Signals(number).name)
                    break
                nursery.cancel_scope.cancel()
    logger.info("stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dsn", nargs="?", default="postgresql:///")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check-interval", type=float, default=5.0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stdout,
        format="%(asctime)s %(process)d %(name)s: %(message)s",
    )
    if options.work:
        trio.run(work, options.dsn)
    else:
        trio.run(serve, options.dsn, options.workers, options.check_interval)


if __name__ == "__main__":
    main()
