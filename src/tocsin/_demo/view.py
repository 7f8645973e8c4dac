"""What the demo shows: lines that stay, bars during the work, and a table in the end.

Bars are shown on a terminal only. rich would redraw them from a thread; here a task
does it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from tocsin._concurrency.nursery import open_nursery_bare

from .tables import Outcome
from .wakeup import Wakeup

_FRAME = 1 / 15
_LABEL = 10


@attrs.frozen
class Report:
    """What came of a demo."""

    outcome: Outcome
    """What the database says of the files."""
    handled: dict[str, int]
    """How many messages each consumer handled, by its name; from the database too."""
    wakeup: Wakeup
    """How fast an idle consumer was woken."""
    seconds: float
    """How long the work took, from the first claim until the last message was settled.
    """

    @property
    def good(self) -> bool:
        """Whether nothing is lost and nothing was done twice."""
        return self.outcome.lost == 0 and self.outcome.duplicates == 0


class View:
    """The demo on a console; see the module."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, root: Path, count: int) -> None:
        """Say what is going to happen."""
        self._console.print()
        self._print("  ", ("tocsin demo", "bold"))
        self._print(
            f"  Each of the {count:,} files below {root} becomes a message; two consumers hash"
            " them."
        )
        self._console.print()

    def say(self, label: str, text: str) -> None:
        """Print a line that stays."""
        self._print("  ", (f"{label:<{_LABEL}}", "cyan"), text)

    @asynccontextmanager
    async def bars(
        self, total: int, counts: Mapping[str, Callable[[], int]]
    ) -> AsyncIterator[None]:
        """Show how far each count is on its way to the total, for the block.

        Without a terminal nothing is shown.
        """
        if not self._console.is_terminal:
            yield
            return
        bars = Progress(
            TextColumn(f"  {{task.description:<{_LABEL - 1}}}"),
            BarColumn(40),
            TextColumn("{task.completed:>7,.0f} of {task.total:,.0f}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        tasks = {bars.add_task(name, total=total): count for name, count in counts.items()}

        async def redraw() -> None:
            while True:
                for task, count in tasks.items():
                    bars.update(task, completed=count())
                bars.refresh()
                await trio.sleep(_FRAME)

        with bars:
            async with open_nursery_bare() as nursery:
                nursery.start_soon(redraw)
                yield
                nursery.cancel_scope.cancel()

    def report(self, report: Report) -> None:
        """Show the outcome as a table."""
        outcome, wakeup = report.outcome, report.wakeup
        table = Table(box=SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(justify="right", style="bold", no_wrap=True)
        table.add_column(style="dim")
        table.add_row("files", f"{outcome.files:,}", "one message each")
        table.add_row("size", f"{outcome.size / 1e6:,.1f} MB", "read and hashed with SHA-256")
        table.add_row(
            "time", f"{report.seconds:.2f} s", "from the first claim to the last archived message"
        )
        table.add_row(
            "rate",
            f"{outcome.files / report.seconds:,.0f} /s",
            "each: hashed, row committed, message archived",
        )
        table.add_row(
            "wake-up p50", f"{wakeup.p50:.2f} ms", "from enqueue statement to handler's first line,"
        )
        table.add_row(
            "wake-up p99",
            f"{wakeup.p99:.2f} ms",
            f"two processes, idle queue, {wakeup.messages} times",
        )
        table.add_row(
            "enqueue p50",
            f"{wakeup.enqueue_p50:.2f} ms",
            "that statement alone, with its commit to disk",
        )
        for name, handled in sorted(report.handled.items()):
            table.add_row(name, f"{handled:,}", "messages that this consumer handled")
        if outcome.dead:
            table.add_row(
                "dead letters",
                f"{outcome.dead:,}",
                f"files that could not be read, such as: {outcome.error}",
            )
        for name, count, meaning in (
            ("lost", outcome.lost, "enqueued, but not archived with a digest"),
            ("duplicates", outcome.duplicates, "digests beyond one for each file"),
        ):
            table.add_row(name, Text(f"{count:,}", "green" if count == 0 else "red"), meaning)
        self._console.print(Padding(table, (0, 1)))
        verdict = (
            ("every file once", "bold green")
            if report.good
            else ("not every file once", "bold red")
        )
        self._print("  ", verdict, ": files enqueued, archive and digests compared in the database")
        self._print(
            "  The schemas tocsin_demo and tocsin_demo_queue are kept until the next demo drops"
            " them."
        )

    def _print(self, *parts: str | tuple[str, str]) -> None:
        self._console.print(Text.assemble(*parts), soft_wrap=True)
