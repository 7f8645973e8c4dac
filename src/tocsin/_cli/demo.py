"""``tocsin demo``: run the demo on an embedded or a given server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from tocsin._database.dsn import describe_address
from tocsin.embedded import default_directory, serve

from .program import Command, Common, ExitCode, dsn_option, pass_common

if TYPE_CHECKING:
    from tocsin._demo.view import View


@click.command(cls=Command, examples=["tocsin demo", "tocsin demo . --dsn postgresql:///app"])
@click.argument(
    "path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help=(
        "Use an embedded PostgreSQL with its data in this directory, even if a DSN is set. The"
        " default is $TOCSIN_DATA, or a directory of the user."
    ),
)
@dsn_option
@pass_common
async def demo(common: Common, path: Path | None, data: Path | None) -> ExitCode:
    """Hash every file below PATH with messages of a queue, and check the result.

    Without PATH, the demo hashes the standard library of this Python. It runs on an
    embedded PostgreSQL, which it starts and stops, or in the database that --dsn names.
    In that database it uses the schemas tocsin_demo and tocsin_demo_queue, and begins
    by dropping the objects that the last demo left in them.
    """
    from rich.console import Console

    from tocsin._demo import act, files
    from tocsin._demo.view import View

    root = path or files.standard_library()
    skipped = files.NOT_OURS if path is None else frozenset[str]()
    paths = await trio.to_thread.run_sync(files.find, root, skipped)
    if not paths:
        raise click.UsageError(f"no files below {root}")
    view = View(Console(highlight=False))
    view.title(root, len(paths))
    async with _server(common, data, view) as dsn:
        report = await act.perform(dsn, root, paths, view)
    view.report(report)
    return ExitCode.DONE if report.good else ExitCode.REFUSED


@asynccontextmanager
async def _server(common: Common, data: Path | None, view: View) -> AsyncIterator[str]:
    if data is None and (dsn := common.settings().dsn) is not None:
        view.say("server", f"the PostgreSQL at {describe_address(dsn)}")
        yield dsn
        return
    directory = data or default_directory()
    began = trio.current_time()
    first = not directory.exists()
    async with serve(directory) as server:
        done = "created and started" if first else "started"
        how = f"{done} in {trio.current_time() - began:.2f} s"
        view.say(
            "server", f"PostgreSQL {server.version}, embedded, {how}; its data is in {directory}"
        )
        yield server.dsn
