"""Compare Tocsin with other queues on the same backlog: ``peers`` and ``grid``.

All queues run on the same server in the same run.

``peers``: each queue drains with one process, with its fastest settings (``peers/``);
Tocsin runs as in ``drain``. ``floor`` is the rate of the peer. ``peers`` itself is the
comparison with the fastest peer. A slow peer drains only the front of the backlog, for
some seconds.

``grid``: Tocsin and pgqrs, with 1, 2 and 4 consumer processes and batches of 1, 10 and
50 messages. Tocsin uses ``handle_batches(size=...)``. For batches of 1 it uses
``handle`` with concurrency 1, so that its handler gets one message after the other.
Each cell begins with a backlog of 50,000 messages, of which both queues drain a part
for the same time. ``grid`` itself is the cell with the worst ratio.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median

import attrs

from . import backlog, drain
from .child import child_process
from .draining import Drained, handle
from .draining import drain as drain_by
from .frame import Bench, execute
from .peers import Peer, roles
from .results import Result

PEERS = ("pgqrs", "pgqueuer", "oban", "chancy", "gigq", "procrastinate")
FASTEST = PEERS[:2]
"""The peers of a quick run."""
TARGET = 0.5
"""Maximum rate of the fastest peer, as a fraction of Tocsin's."""
GRID_PEER, GRID_QUEUE = "pgqrs", "grid"
GRID_TARGETS = {1: 1 / 20, 10: 1.0, 50: 1.0}
"""Maximum rate of the peer, as a fraction of Tocsin's, by batch size."""


@attrs.frozen
class Installed:
    """A peer that is installed."""

    name: str
    """Name of the adapter and of the package."""
    peer: Peer
    """The adapter."""

    @property
    def settings(self) -> dict[str, object]:
        """Return the settings that the results show."""
        return {"peer": f"{self.name} {version(self.name)}", **self.peer.settings}


def find_peers(bench: Bench, names: Sequence[str]) -> list[Installed]:
    """Return the installed peers, and note the peers that are not installed."""
    found = []
    for name in names:
        try:
            found.append(Installed(name, roles.load(name)))
        except ImportError as error:
            bench.note(f"{name} is left out: {error}")
    return found


async def measure(bench: Bench) -> list[Result]:
    """Measure the messages per second of Tocsin and of each peer."""
    messages, seconds, rounds = (
        bench.pick(50_000, 30_000, 200),
        bench.pick(10.0, 1.0, 0.5),
        bench.pick(2, 1, 1),
    )
    rates: dict[str, list[float]] = defaultdict(list)
    peers = find_peers(bench, bench.pick(PEERS, FASTEST, PEERS))
    for _ in range(rounds if peers else 0):
        rates["tocsin"].append((await drain.drain_with_tocsin(bench, messages)).rate)
        for p in peers:
            rates[p.name].append(await peer_rate(bench, p, messages, seconds))
    if not peers:
        return []
    ours = median(rates["tocsin"])
    settings = {
        "messages": messages,
        "seconds_at_most": seconds,
        "rounds": rounds,
        "target_ratio": TARGET,
    }
    results = [
        Result(f"peers.{p.name}", ours, "/s", median(rates[p.name]), settings | p.settings)
        for p in peers
    ]
    fastest = max(results, key=lambda r: r.floor or 0)
    return [attrs.evolve(fastest, scenario="peers"), *results]


async def peer_rate(bench: Bench, peer: Installed, messages: int, seconds: float) -> float:
    """Return the messages per second of a peer with one process, on a new backlog."""
    async with _filled(bench, peer, messages) as place:
        return (await _work(place, peer, messages, seconds, 0)).rate


async def measure_grid(bench: Bench) -> list[Result]:
    """Measure the messages per second of Tocsin and pgqrs for each cell."""
    messages, seconds = bench.pick(50_000, 15_000, 300), bench.pick(5.0, 0.5, 0.3)
    counts, sizes = bench.pick((1, 2, 4), (1, 4), (2,)), bench.pick((1, 10, 50), (1, 50), (1, 10))
    results: list[Result] = []
    peers = find_peers(bench, [GRID_PEER])
    for peer in peers:
        async with (
            _filled(bench, peer, messages) as theirs,
            bench.store_database(GRID_QUEUE) as ours,
        ):
            settled = 0
            for size in sizes:
                for count in counts:
                    await backlog.fill(ours, GRID_QUEUE, messages - await _unfinished(ours))
                    if settled:
                        await _refill(theirs, peer, settled)
                    tocsin = await drain_by(
                        handle,
                        ours,
                        messages,
                        seconds,
                        GRID_QUEUE,
                        1,
                        0 if size == 1 else size,
                        processes=count,
                    )
                    by_peer = await _work(theirs, peer, messages, seconds, size, count)
                    settled = by_peer.settled
                    settings = {
                        "messages": messages,
                        "seconds_at_most": seconds,
                        "consumers": count,
                        "batch": size,
                        "target_ratio": GRID_TARGETS[size],
                    }
                    results.append(
                        Result(
                            f"grid.{count}x{size}",
                            tocsin.rate,
                            "/s",
                            by_peer.rate,
                            settings | {"peer": peer.settings["peer"]},
                        )
                    )
    if not results:
        return []
    worst = max(results, key=lambda r: (r.ratio or 0) / r.settings["target_ratio"])
    return [attrs.evolve(worst, scenario="grid"), *results]


async def _unfinished(dsn: str) -> int:
    ((count,),) = await execute(dsn, b"select count(*) from tocsin.messages")
    return int(count)


@asynccontextmanager
async def _filled(bench: Bench, peer: Installed, messages: int) -> AsyncIterator[str]:
    async with bench.bare_database() as dsn:
        with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as directory:
            place = str(Path(directory) / peer.name) if peer.peer.on_file else dsn
            await _refill(place, peer, messages)
            if not peer.peer.on_file:
                await execute(dsn, b"vacuum (analyze)")
            yield place


async def _refill(place: str, peer: Installed, messages: int) -> None:
    async with child_process(roles.fill, place, peer.name, messages):
        pass


async def _work(
    place: str, peer: Installed, messages: int, seconds: float, size: int, processes: int = 1
) -> Drained:
    return await drain_by(
        roles.work, place, messages, seconds, peer.name, size, processes=processes
    )
