"""``python -m bench``: run scenarios against a PostgreSQL of their own, show the figures, save them, compare them with saved ones."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from psycopg import sql
from rich.console import Console

from tocsin.embedded import serve

from .frame import Bench, Size, execute
from .results import TOLERANCE, Result, load_ratios, save, tabulate, worse
from .scenarios import SCENARIOS

SERVER_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "400",  # a hundred listeners, each with its pool
    "max_wal_size": "4GB",  # else a run of a million messages is one long checkpoint, for the floors too
    "autovacuum_naptime": "10s",  # by default a minute: too seldom for a table to have come to its size within one
}


@attrs.frozen
class Options:
    """What was asked for."""

    dsn: str | None
    """The server; None for an embedded one."""
    size: Size
    """How much to measure."""
    only: Sequence[str]
    """Names of the scenarios to run."""
    json: Path | None
    """Where to save the results."""
    recorded: dict[str, float] | None
    """Saved ratios to compare with."""


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; exits when it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Tocsin against what is done by hand.")
    parser.add_argument("--quick", action="store_const", dest="size", const=Size.QUICK, help="fewer samples: less than two minutes in all")
    parser.add_argument("--smoke", action="store_const", dest="size", const=Size.SMOKE, help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="run this scenario; may be given several times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results here")
    parser.add_argument("--dsn", help="use this server, where databases may be created; it must be on this host. Default: an embedded one")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help=f"exit with 1 if a ratio is more than {TOLERANCE} times the one saved here, by a run of this size",
    )
    given = parser.parse_args(arguments)
    size = given.size or Size.FULL
    try:
        recorded = given.compare and load_ratios(given.compare, size.name.lower())
    except (OSError, ValueError) as error:
        parser.error(f"--compare: {error}")
    return Options(given.dsn, size, given.only or list(SCENARIOS), given.json, recorded)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory that a server which runs as another user, since we are root, can pass through."""
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@asynccontextmanager
async def server(dsn: str | None) -> AsyncIterator[str]:
    """Give the DSN back, or that of a server which runs as long as the block."""
    if dsn is not None:
        yield dsn
        return
    with temporary_directory() as directory:
        async with serve(directory / "server", settings=SERVER_SETTINGS) as embedded:
            yield embedded.dsn


async def describe(dsn: str, size: Size) -> dict[str, Any]:
    """Return the conditions that all figures of this run have in common."""
    names = ("server_version", "fsync", "synchronous_commit", "autovacuum_naptime")
    (values,) = await execute(dsn, sql.SQL("select {}").format(sql.SQL(", ").join(map(_setting, names))))
    server = dict(zip(names, values, strict=True))
    return {
        "size": size.name.lower(),
        "postgresql": server.pop("server_version"),
        **server,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def _setting(name: str) -> sql.Composed:
    return sql.SQL("current_setting({})").format(name)


async def run(options: Options) -> int:
    """Do what was asked for, and return the exit status."""
    console = Console(highlight=False)
    results: list[Result] = []
    async with server(options.dsn) as dsn:
        conditions = await describe(dsn, options.size)
        console.print(", ".join(f"{name} {value}" for name, value in conditions.items()))
        for name in options.only:
            began = trio.current_time()
            measured = await SCENARIOS[name](Bench(dsn, options.size, lambda note: console.print(f"  {note}")))
            results += [attrs.evolve(r, settings=conditions | r.settings) for r in measured]
            console.print(f"{name} took {trio.current_time() - began:.0f} s")
    console.print(tabulate(results))
    if options.json is not None:
        save(results, options.json)
    if options.recorded is None:
        return 0
    got_worse = worse(results, options.recorded)
    for scenario, then, now in got_worse:
        console.print(f"[red]worse[/red]: {scenario}: ratio {now:.2f}, recorded {then:.2f}")
    if not got_worse:
        console.print(f"no ratio is more than {TOLERANCE} times the recorded one")
    return 1 if got_worse else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # cancels, so that the server does not stay behind
    sys.exit(trio.run(run, parse(sys.argv[1:])))
