"""What the processes of peers run.

One process fills a queue, and one or more processes drain it (``draining.py``).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time
from contextlib import suppress
from typing import Any

from bench.child import report
from bench.draining import Tally

from . import Peer

logger = logging.getLogger("bench")

LOOK_EVERY = 0.005
"""Seconds between two checks whether all messages are settled."""
CONFIRM_WITHIN = 5.0
"""Maximum number of seconds for settling after the last call of a handler."""


def load(name: str) -> Peer:
    """Return the peer of the adapter with this name.

    Raises:
        ImportError: The peer is not installed.
    """
    peer = importlib.import_module(f"{__package__}.{name}").PEER
    assert isinstance(peer, Peer)
    return peer


def fill(dsn: str, name: str, messages: str) -> None:
    """Fill the queue, and report that it is ready."""
    _run(load(name).fill(dsn, int(messages)))
    report("ready")
    sys.stdin.read()


def work(dsn: str, share: str, seconds: str, name: str, size: str) -> None:
    """Drain the queue."""
    peer = load(name)

    async def run() -> None:
        full = asyncio.Event()
        tally = Tally(int(share), full.set)
        before = await peer.settled(dsn)
        report("ready")
        sys.stdin.readline()
        worker = asyncio.create_task(_endure(peer, dsn, int(size), tally))
        with suppress(TimeoutError):
            async with asyncio.timeout(float(seconds)):
                await full.wait()
        handled = tally.count
        settled = await peer.settled(dsn) - before
        deadline = time.monotonic() + CONFIRM_WITHIN
        while settled < handled and full.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_EVERY)
            settled = await peer.settled(dsn) - before
        tally.tell(min(settled, handled))  # other processes settle messages, too
        worker.cancel()
        sys.stdin.read()  # until the process is killed, because the end of a peer is not measured

    _run(run())


async def _endure(peer: Peer, dsn: str, size: int, tally: Tally) -> None:
    try:
        await peer.work(dsn, size, tally.add)
    except Exception:
        logger.exception("the peer's worker ended")


def _run(main: Any) -> None:
    logging.disable(logging.WARNING)  # some peers log each message
    with suppress(ImportError):
        import uvloop

        uvloop.run(main)
        return
    asyncio.run(main)
