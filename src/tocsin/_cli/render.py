"""Show the results of commands: tables for people, one JSON document for programs.

In JSON the names are those of the Python classes' fields, times are ISO 8601, durations
are numbers of seconds, and null stands for a value that does not exist or has no end. A
payload that Python cannot read is null, and ``payload_text`` has its text. These are
promises; the tables are not, and may change.

On a terminal a table keeps to the width of the screen and folds long texts; ids and
names are never cut. A table that is too wide shows fewer columns, each of them whole.
Into a pipe each row is one line, however long.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import click

from tocsin._queue.payload import decode

if TYPE_CHECKING:  # slow to import: loaded only to show a table
    from rich.console import Console, RenderableType
    from rich.table import Table

T = TypeVar("T")

_UNITS = (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_TEXT = "_text"
"""The end of the names of fields that have JSON as text."""
_LEAST_PROSE = 24
"""The least width of prose where all columns are shown."""
_ENDLESS = 100_000
"""Width of a line that is not shown on a screen."""


@attrs.frozen
class Column(Generic[T]):
    """A column of a table."""

    title: str
    """The heading."""
    value: Callable[[T], object]
    """The value that a row shows."""
    kind: str = "text"
    """``text`` may be folded; ``prose`` may be folded and is long; ``name`` is kept
    whole while all columns are shown; ``word`` is kept whole; ``number`` is kept whole,
    to the right."""
    narrow: bool | Callable[[T], object] = False
    """Whether the column stays where there is no room for all, or the value that it
    shows then."""


class Screen:
    """The output of a command, in one of the two formats."""

    def __init__(self, format: str) -> None:
        self.json = format == "json"
        """Whether the output is JSON."""

    def table(
        self,
        rows: Sequence[T],
        columns: Sequence[Column[T]],
        *,
        empty: str,
    ) -> None:
        """Show things of one kind.

        Args:
            empty: The text where there are none.
        """
        if self.json:
            self._document(rows)
        elif rows:
            self.show(fit_table(open_console(), rows, columns))
        else:
            click.echo(empty)

    def record(self, value: Any, **texts: str | None) -> None:
        """Show one value with all its fields; in a table, some as these texts."""
        if self.json:
            self._document(value)
        else:
            self.show(_make_record(value, texts))

    def say(self, sentence: str, document: object) -> None:
        """Show the effect of a command: a sentence, or the same as a document."""
        if self.json:
            self._document(document)
        else:
            click.echo(printable(sentence, lines=True))

    def remark(self, sentence: str) -> None:
        """Add a sentence to a table; the document has the same fact."""
        if not self.json:
            click.echo(printable(sentence))

    def _document(self, value: object) -> None:
        click.echo(_dump(to_json(value)))

    def show(self, what: RenderableType) -> None:
        """Print a renderable of rich."""
        console = open_console()
        if not console.is_terminal:
            console.width = _ENDLESS
        with console.capture() as capture:
            console.print(what)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def open_console() -> Console:
    """Return rich's console on standard output, without its highlighting."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def fit_table(console: Console, rows: Sequence[T], columns: Sequence[Column[T]]) -> Table:
    """Return the table with the columns that fit the terminal.

    A pipe has room for all.
    """
    if console.is_terminal:
        endless = console.options.update(width=_ENDLESS)
        least = make_table(rows, [_shorten(column) for column in columns])
        if console.measure(least, options=endless).maximum > console.width:
            columns = [_narrow(column) for column in columns if column.narrow] or columns
    return make_table(rows, columns)


def _narrow(column: Column[T]) -> Column[T]:
    """Return a column as it is where there is no room for all."""
    return attrs.evolve(
        column,
        value=column.narrow if callable(column.narrow) else column.value,
        kind="text" if column.kind == "name" else column.kind,
    )


def _shorten(column: Column[T]) -> Column[T]:
    """Return a column without what may be folded."""
    if column.kind != "prose":
        return column
    return attrs.evolve(column, value=lambda row: to_text(column.value(row))[:_LEAST_PROSE])


def make_table(rows: Iterable[T], columns: Sequence[Column[T]]) -> Table:
    """Return the table of these rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        whole = column.kind in ("name", "word", "number")
        table.add_column(
            column.title,
            no_wrap=whole,
            overflow="ignore" if whole else "fold",
            justify="right" if column.kind == "number" else "left",
            min_width=len(column.title),
        )
    for row in rows:
        table.add_row(*(Text(printable(to_text(column.value(row)))) for column in columns))
    return table


def _make_record(value: Any, texts: Mapping[str, str | None]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, field in _fields(value).items():
        as_it_is = name.endswith(_TEXT)
        name = name.removesuffix(_TEXT)
        text = str(field) if as_it_is and field is not None else to_text(texts.get(name, field))
        table.add_row(name, Text(printable(text, lines=True)))
    return table


def _fields(value: Any) -> dict[str, object]:
    """Return what a value of Tocsin's says, by name."""
    return {f.name: getattr(value, f.name) for f in attrs.fields(type(value))}


def _decoded(value: Any) -> dict[str, Any]:
    """Return the same for programs.

    JSON that is kept as text becomes its value, or null and the text where Python
    cannot hold the value.
    """
    fields: dict[str, Any] = {}
    for name, field in _fields(value).items():
        if not name.endswith(_TEXT):
            fields[name] = to_json(field)
            continue
        short = name.removesuffix(_TEXT)
        fields[short] = None
        if field is not None:
            try:
                decoded = decode(str(field))
                _dump([[[[decoded]]]])  # deeper than any document puts it
                fields[short] = decoded
            except (ValueError, RecursionError):
                fields[name] = field
    return fields


def _dump(value: object) -> str:
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(value, ensure_ascii=not utf8, indent=2, allow_nan=False)


def to_json(value: Any) -> Any:
    """Return a value as JSON knows it; see the module."""
    if attrs.has(type(value)):
        return _decoded(value)
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, float) and math.isinf(value):
        return None
    return value.value if isinstance(value, Enum) else value


def to_text(value: object) -> str:
    """Return a value as people read it."""
    match value:
        case None:
            return "-"
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone().isoformat(" ", "seconds")
        case float() if math.isinf(value):
            return "forever"
        case float():
            return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"
        case list() | tuple() if all(isinstance(v, (str, int)) for v in value):
            return ", ".join(map(str, value)) or "-"
        case list() | tuple() if all(attrs.has(type(v)) for v in value):
            lines = (
                " ".join(f"{n}={to_text(f)}" for n, f in _fields(v).items() if f is not None)
                for v in value
            )
            return "\n".join(lines)
        case dict() if all(isinstance(v, int) for v in value.values()):
            return ", ".join(f"{n} {to_text(k)}" for k, n in value.items() if n) or "-"
        case dict() | list() | tuple():
            return write_payload(to_json(value))
    return str(value)


def write_payload(payload: object) -> str:
    """Return a payload as the JSON it is."""
    return json.dumps(payload, ensure_ascii=False)


def write_duration(seconds: float | None) -> str | None:
    """Return a duration as it could be typed."""
    if seconds is None:
        return None
    if math.isinf(seconds):
        return "forever"
    unit, length = next(((u, n) for u, n in _UNITS if seconds >= n and seconds % n == 0), ("s", 1))
    return f"{seconds / length:.6g}{unit}"


def write_age(seconds: float | None) -> str | None:
    """Return about how long something has lasted."""
    if seconds is None:
        return None
    unit, length = next(((u, n) for u, n in _UNITS if seconds >= 2 * n and u != "w"), ("s", 1))
    return f"{seconds:.1f}s" if unit == "s" and seconds < 10 else f"{seconds // length:.0f}{unit}"


def write_count(number: int) -> str:
    """Return a number, from 100,000 on about that, in few characters."""
    if number < 100_000:
        return str(number)
    unit, size = next(
        ((u, n) for u, n in (("k", 10**3), ("M", 10**6)) if number < 1000 * n), ("G", 10**9)
    )
    return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"


def write_rate(rate: float) -> str:
    """Return how many a second, in few characters."""
    return f"{rate:.1f}" if rate < 100 else write_count(round(rate))


def since(time: datetime | None) -> str | None:
    """Return about how long ago that was, by this machine's clock."""
    return None if time is None else write_age(max(0.0, (datetime.now(UTC) - time).total_seconds()))


def printable(text: str, *, lines: bool = False) -> str:
    """Return text without what a terminal would act on.

    Names and payloads come from anywhere.

    Args:
        lines: Whether line breaks stay.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)
