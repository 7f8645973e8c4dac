"""Crawl pages with at most two requests to a host at a time, over all processes.

    uv run examples/crawler.py [DSN]

Each page is a job that returns the links of the page. Start the program several times:
the limit holds for all of them together.
"""

import sys
from collections import Counter
from urllib.parse import urlsplit

import trio

import tocsin

LINKS = {
    "https://a.example/": [*(f"https://a.example/{n}" for n in range(6)), "https://b.example/"],
    "https://b.example/": [*(f"https://b.example/{n}" for n in range(6)), "https://a.example/"],
}
"""What the pages of two hosts link to; a real crawler asks the hosts."""

requests, most = Counter[str](), Counter[str]()


def host_of(url: str) -> str:
    """Return the host of an address, which is the key of the limit."""
    return urlsplit(url).netloc


@tocsin.task(queue="pages", limits=[tocsin.Limit("host", 2, key=host_of)])
async def fetch(url: str) -> list[str]:
    """Return the links of a page."""
    host = host_of(url)
    requests[host] += 1
    most[host] = max(most[host], requests[host])
    await trio.sleep(0.02)
    requests[host] -= 1
    return LINKS.get(url, [])


async def crawl(store: tocsin.Store, start: str) -> set[str]:
    """Fetch all pages that can be reached, each of them once."""
    seen, found = set[str](), {start}
    while found:
        seen |= found
        jobs = await fetch.submit_many(store, [fetch.call(url) for url in sorted(found)])
        found = {link for job in jobs for link in await job.result(timeout=60)} - seen
    return seen


async def main(dsn: str) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure("pages")
        async with store.worker([fetch], concurrency=20) as worker, trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            pages = await crawl(store, "https://a.example/")
            nursery.cancel_scope.cancel()
    print(f"{len(pages)} pages")
    for host, number in sorted(most.items()):
        print(f"{host}: at most {number} requests at a time")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")
