"""A worker whose function never ends, so that it can be killed while a job runs.

usage: stay_in_job.py DSN
"""

from __future__ import annotations

import sys

import trio

import tocsin

(DSN,) = sys.argv[1:]


@tocsin.task(name="stay")
async def stay() -> None:
    print("began", tocsin.current_job().attempt, flush=True)  # noqa: T201 - the test reads it
    await trio.sleep_forever()


async def main() -> None:
    async with tocsin.connect(DSN, heartbeat=0.1) as store, store.worker([stay]) as worker:
        await worker.run()


trio.run(main)
