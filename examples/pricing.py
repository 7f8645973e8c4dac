"""Run the jobs that web_replies.py submits.

    uv run examples/pricing.py [DSN]

The program creates the queue, and runs until Ctrl-C.
"""

import sys

import trio

import tocsin


@tocsin.task(queue="pricing", timeout=10)
async def price(items: list[float]) -> float:
    """Return the price of some items, with tax."""
    if not items:
        raise ValueError("there are no items")
    await trio.lowlevel.checkpoint()  # here, ask the systems that know
    return round(sum(items) * 1.2, 2)


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("pricing")
        async with store.worker([price], concurrency=10) as worker, tocsin.drain_on_signals():
            print("working; stop with Ctrl-C", flush=True)
            try:
                await worker.run()
            except tocsin.Suspended as end:
                print(f"stopped: {end.handled} priced")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
