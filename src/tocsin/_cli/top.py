"""``tocsin top``: show queues, tasks and workers on the whole screen, and update them.

A frame is drawn when a queue's bell rings, but at most ten frames a second. A frame is
also drawn once a second, because not every change rings the bell. Producers ring only
while a consumer is idle (``sql/functions/queue/ring.sql``), and handled messages and
changes of workers do not ring. This is the only part of Tocsin that polls.
"""

from __future__ import annotations

import os
import re
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import click
import psycopg
import trio

from tocsin import (
    ConnectionLost,
    QueueMetrics,
    Store,
    TaskMetrics,
    WorkerInfo,
    WorkerStatus,
)
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.dsn import describe_address
from tocsin.driver import TrioConnection

from .options import DURATION
from .program import Command, Common, on_store, pass_common
from .render import Screen, fit_table, open_console
from .tables import METRICS, TASKS, WORKERS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_REST = 0.1
"""Minimum number of seconds between two frames."""
_LEAVE = b"qQ\x03"
"""Keys that end the program: q, Ctrl-C."""
_OTHER_KEYS = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)")
"""The sequences that a terminal sends for arrows and function keys, which may contain
a q."""


@attrs.frozen
class Frame:
    """The content of one frame."""

    queues: list[QueueMetrics]
    """All queues."""
    tasks: Sequence[TaskMetrics]
    """All tasks that have jobs."""
    workers: list[WorkerInfo]
    """Workers that are not stopped."""


@click.command(
    cls=Command, examples=["tocsin top", "tocsin top --once", "tocsin top --once --format json"]
)
@click.option("--once", is_flag=True, help="Show one frame and exit, as when the output is a pipe.")
@click.option(
    "--interval",
    type=DURATION,
    default="1s",
    show_default=True,
    help="Longest time between two updates.",
)
@pass_common
@on_store
async def top(
    store: Store, screen: Screen, common: Common, *, once: bool, interval: timedelta
) -> None:
    """Show queues, tasks and workers on the whole screen, and update them.

    Leave with q. Tasks are shown while there are jobs.
    """
    if interval <= timedelta(0):
        raise ValueError("--interval must be greater than 0")
    if once or screen.json or not sys.stdout.isatty():
        frame = await look(store)
        if screen.json:
            screen.record(frame)
        else:
            screen.show(_draw(frame, open_console()))
        return
    where = f"{describe_address(common.settings().dsn or '')}, schema {common.settings().schema}"
    from rich.live import Live

    console = open_console()
    with (
        _keys(),
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        async with open_nursery_bare() as nursery:
            nursery.start_soon(_show, live, store, common, where, interval.total_seconds())
            if sys.stdin.isatty():
                await _wait_for_key()
                nursery.cancel_scope.cancel()


async def look(store: Store) -> Frame:
    """Return what a frame shows."""
    workers = [w for w in await store.workers.list() if w.status != WorkerStatus.STOPPED]
    return Frame(await store.queues.metrics(), await store.jobs.metrics(), workers)


def _draw(frame: Frame, console: Console) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    queues = fit_table(console, frame.queues, METRICS) if frame.queues else Text("no queues")
    workers = fit_table(console, frame.workers, WORKERS) if frame.workers else Text("no workers")
    tasks = (fit_table(console, frame.tasks, TASKS), Text()) if frame.tasks else ()
    return Group(queues, Text(), *tasks, workers)


async def _show(live: Live, store: Store, common: Common, where: str, interval: float) -> NoReturn:
    """Draw one frame after the other.

    During an outage the last frame stays, with a line that says so.
    """
    from rich.console import Group
    from rich.text import Text

    frame: RenderableType = Text()
    while True:
        try:
            async with _open_listen_connection(common) as line:
                heard: set[str] = set()
                while True:
                    for channel in {q.channel for q in await store.queues.list()} - heard:
                        await line.execute(
                            psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(channel))
                        )
                        heard.add(channel)
                    frame = _draw(await look(store), live.console)
                    live.update(
                        Group(Text(f"tocsin top  {where}  (q to leave)\n", "dim"), frame),
                        refresh=True,
                    )
                    with trio.move_on_after(interval):
                        await line.wait_for_notifications()
                    await trio.sleep(_REST)
        except (ConnectionLost, psycopg.OperationalError):
            live.update(
                Group(
                    Text(
                        f"tocsin top  {where}  no connection, trying again (q to leave)\n",
                        "bold red",
                    ),
                    frame,
                ),
                refresh=True,
            )
            await trio.sleep(interval)


@asynccontextmanager
async def _open_listen_connection(common: Common) -> Any:
    """Open a connection that listens."""
    settings = common.settings()
    line: TrioConnection[Any] = await TrioConnection.connect(
        settings.listen_dsn or settings.dsn or "", autocommit=True
    )
    try:
        line.add_notify_handler(lambda _: None)
        yield line
    finally:
        await line.close()


@contextmanager
def _keys() -> Iterator[None]:
    """Read each key when it is pressed, also Ctrl-C, without echo."""
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    flags = termios.tcgetattr(terminal)
    flags[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)
    termios.tcsetattr(terminal, termios.TCSADRAIN, flags)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def _wait_for_key() -> None:
    """Return when the user presses a key that ends the program.

    Also returns when the terminal is closed.
    """
    while True:
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        pressed = os.read(sys.stdin.fileno(), 64)
        if not pressed or any(key in _LEAVE for key in _OTHER_KEYS.sub(b"", pressed)):
            return
