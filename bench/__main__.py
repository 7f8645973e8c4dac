"""``python -m bench``: run scenarios, and show, save and compare their figures.

The scenarios run against a separate PostgreSQL server. The figures can be compared with
saved figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from psycopg import sql
from rich.console import Console

from tocsin.embedded import serve

from .frame import Bench, Size, execute
from .results import TOLERANCE, Result, combine, load_ratios, save, tabulate, worse
from .scenarios import NOT_BY_DEFAULT, SCENARIOS

SERVER_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "400",  # for a hundred listeners, each with a pool
    # With the default, a run of a million messages is one long checkpoint, for the
    # floors, too.
    "max_wal_size": "4GB",
    # The default is a minute, in which a table does not reach its final size.
    "autovacuum_naptime": "10s",
}
"""Settings of the embedded server. A server of an installation has its own settings.
"""
EMBEDDED = "embedded"


@attrs.frozen
class Options:
    """The options of the command line."""

    servers: Sequence[str]
    """The servers to measure on: connection strings, directories of installations, or
    `EMBEDDED`."""
    size: Size
    """How much to measure."""
    only: Sequence[str]
    """Names of the scenarios to run."""
    runs: int
    """How many times to measure each scenario."""
    json: Path | None
    """Where to save the results."""
    recorded: dict[tuple[str, str], float] | None
    """Saved ratios to compare with, by scenario and server."""


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Exits if an argument is not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Tocsin, and the same work done by hand."
    )
    parser.add_argument(
        "--quick",
        action="store_const",
        dest="size",
        const=Size.QUICK,
        help="fewer samples: about three minutes in all",
    )
    parser.add_argument(
        "--smoke", action="store_const", dest="size", const=Size.SMOKE, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        help="run this scenario; may be given several times",
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=1,
        metavar="N",
        help="measure each scenario N times; show medians and ranges",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results here")
    parser.add_argument(
        "--on",
        action="append",
        metavar="SERVER",
        help=(
            "a server on this host: 'embedded' (the default), the directory of an installation such"
            " as /usr/lib/postgresql/15, of which a server is started with the settings that it"
            " comes with, or a connection string, where databases may be created. Given several"
            " times, each scenario runs on each of them in turn"
        ),
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help=(
            f"exit with 1 if a ratio is more than {TOLERANCE} times the one saved here, by a run of"
            " this size"
        ),
    )
    given = parser.parse_args(arguments)
    size = given.size or Size.FULL
    try:
        recorded = given.compare and load_ratios(given.compare, size.name.lower())
    except (OSError, ValueError) as error:
        parser.error(f"--compare: {error}")
    if given.runs < 1:
        parser.error("--runs: must be at least 1")
    return Options(
        given.on or [EMBEDDED],
        size,
        given.only or list(SCENARIOS),
        given.runs,
        given.json,
        recorded,
    )


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory that another user can pass through.

    If this process is root, a server runs as another user.
    """
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def installation(which: str) -> Path | None:
    """Return the directory of the installation that the argument names.

    Returns None for another kind of server.
    """
    directory = Path(which)
    return directory if which != EMBEDDED and directory.is_dir() else None


@asynccontextmanager
async def server(which: str) -> AsyncIterator[str]:
    """Yield the connection string of a server for the block.

    It is the given connection string, or that of a server that runs during the block.
    """
    installed = installation(which)
    if installed is None and which != EMBEDDED:
        yield which
        return
    with temporary_directory() as directory:
        settings = SERVER_SETTINGS if installed is None else {}
        async with serve(
            directory / "server", settings=settings, installation=installed
        ) as embedded:
            yield embedded.dsn


async def describe(dsn: str, size: Size) -> dict[str, Any]:
    """Return the conditions that all figures of this run have in common."""
    names = ("server_version", "fsync", "synchronous_commit", "autovacuum_naptime")
    (values,) = await execute(
        dsn, sql.SQL("select {}").format(sql.SQL(", ").join(map(_setting, names)))
    )
    server = dict(zip(names, values, strict=True))
    return {
        "size": size.name.lower(),
        "postgresql": server.pop("server_version").split()[
            0
        ],  # without the suffix of a distribution
        **server,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def _setting(name: str) -> sql.Composed:
    return sql.SQL("current_setting({})").format(name)


async def run(options: Options) -> int:
    """Run the scenarios, save and compare the results, and return the exit status."""
    console = Console(highlight=False)
    measured: list[Result] = []
    async with AsyncExitStack() as stack:
        servers = []
        for which in options.servers:
            dsn = await stack.enter_async_context(server(which))
            servers.append(
                (
                    dsn,
                    await describe(dsn, options.size),
                    NOT_BY_DEFAULT if installation(which) else frozenset[str](),
                )
            )
            console.print(", ".join(f"{name} {value}" for name, value in servers[-1][1].items()))
        for number in range(options.runs):
            for name in options.only:
                for dsn, conditions, left_out in servers:
                    if name in left_out:
                        continue
                    began = trio.current_time()
                    results = await SCENARIOS[name](
                        Bench(dsn, options.size, lambda note: console.print(f"  {note}"))
                    )
                    measured += [attrs.evolve(r, settings=conditions | r.settings) for r in results]
                    run = f", run {number + 1} of {options.runs}" if options.runs > 1 else ""
                    on = f" on PostgreSQL {conditions['postgresql']}" if len(servers) > 1 else ""
                    console.print(f"{name} took {trio.current_time() - began:.0f} s{on}{run}")
    figures = combine(measured)
    for _, conditions, _ in servers:
        console.print(f"PostgreSQL {conditions['postgresql']}")
        console.print(
            tabulate([f for f in figures if f.settings["postgresql"] == conditions["postgresql"]])
        )
    if options.json is not None:
        save(figures, options.json)
    if options.recorded is None:
        return 0
    got_worse = worse(figures, options.recorded)
    for figure, then in got_worse:
        console.print(
            f"[red]worse[/red]: {figure.scenario}: ratio {figure.ratio:.2f}, recorded {then:.2f}"
        )
    if not got_worse:
        console.print(f"no ratio is more than {TOLERANCE} times the recorded one")
    return 1 if got_worse else 0


if __name__ == "__main__":
    # SIGINT cancels the run, so that the server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(trio.run(run, parse(sys.argv[1:])))
