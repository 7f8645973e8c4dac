"""Make several sizes of a picture at the same time, and then one page of all of them.

    uv run examples/image_pipeline.py [DSN]

The jobs are a flow, which is submitted in one statement: the page waits for its
pictures, and takes their results as its argument. A picture that fails is tried again,
and the page waits for it.
"""

import sys

import attrs
import trio

import tocsin


@attrs.frozen
class Picture:
    name: str
    width: int


@tocsin.task(queue="images")
async def load(name: str) -> Picture:
    """Pretend to load a picture."""
    await trio.lowlevel.checkpoint()
    return Picture(name, 4000)


@tocsin.task(queue="images", max_attempts=3, retry=0)
def resize(picture: Picture, width: int) -> Picture:
    """Pretend to make a picture smaller, in a thread; one fails at first."""
    if width == 800 and tocsin.current_job().attempt == 1:
        raise OSError("the volume is full")
    return attrs.evolve(picture, width=min(width, picture.width))


@tocsin.task(queue="images")
async def publish(pictures: list[Picture]) -> str:
    """Make the page of all sizes."""
    await trio.lowlevel.checkpoint()
    return ", ".join(f"{picture.name} {picture.width}" for picture in pictures)


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("images")
        async with store.flow("gallery") as flow:
            original = flow.add(load.call("tower.jpeg"))
            sizes = [flow.add(resize.call(original, width)) for width in (200, 800, 1600)]
            page = flow.add(publish.call(sizes))
        async with (
            store.worker([load, resize, publish], concurrency=4) as worker,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(worker.run)
            print(await flow.job(page).result(timeout=60))
            nursery.cancel_scope.cancel()
        for job in (await store.flows.get(flow.id)).jobs:
            print(f"{job.name}: {job.state}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
