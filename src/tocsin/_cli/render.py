"""Show the results of commands: tables for people, one JSON document for programs.

In JSON the names are those of the Python classes' fields, times are ISO 8601, durations
are numbers of seconds, and null stands for a value that does not exist or has no end. A
payload that Python cannot read is null, and ``payload_text`` has its text. The JSON
format is stable; the tables may change.

On a terminal a table has at most the width of the screen and folds long texts; ids and
names are never cut. A table that is too wide shows fewer columns, each of them in full.
In a pipe each row is one line of any length.
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
"""Suffix of the names of fields that have JSON as text."""
_LEAST_PROSE = 24
"""Minimum width of a prose column when all columns are shown."""
_ENDLESS = 100_000
"""Width of a line that is not written to a terminal."""


@attrs.frozen
class Column(Generic[T]):
    """A column of a table."""

    title: str
    """The heading."""
    value: Callable[[T], object]
    """The value that a row shows."""
    kind: str = "text"
    """``text`` may be folded. ``prose`` is long and may be folded. ``name`` is not
    folded while all columns are shown. ``word`` is not folded. ``number`` is not folded
    and is aligned to the right."""
    narrow: bool | Callable[[T], object] = False
    """Whether a narrow table has the column, or the value that the column shows
    there."""


class Screen:
    """Write the output of a command in one of the two formats."""

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
        """Show a list of values as a table.

        Args:
            empty: The text if there are no rows.
        """
        if self.json:
            self._document(rows)
        elif rows:
            self.show(fit_table(open_console(), rows, columns))
        else:
            click.echo(empty)

    def record(self, value: Any, **texts: str | None) -> None:
        """Show one value with all its fields; a table shows ``texts`` for some."""
        if self.json:
            self._document(value)
        else:
            self.show(_make_record(value, texts))

    def say(self, sentence: str, document: object) -> None:
        """Show the effect of a command, as a sentence or as a JSON document."""
        if self.json:
            self._document(document)
        else:
            click.echo(printable(sentence, lines=True))

    def remark(self, sentence: str) -> None:
        """Add a sentence to a table. The JSON document has the same fact already."""
        if not self.json:
            click.echo(printable(sentence))

    def _document(self, value: object) -> None:
        click.echo(_dump(to_json(value)))

    def show(self, what: RenderableType) -> None:
        """Print a renderable object of rich."""
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
    """Return a table with the columns that fit the terminal.

    A pipe has room for all columns.
    """
    if console.is_terminal:
        endless = console.options.update(width=_ENDLESS)
        least = make_table(rows, [_shorten(column) for column in columns])
        if console.measure(least, options=endless).maximum > console.width:
            columns = [_narrow(column) for column in columns if column.narrow] or columns
    return make_table(rows, columns)


def _narrow(column: Column[T]) -> Column[T]:
    """Return a column for a narrow table."""
    return attrs.evolve(
        column,
        value=column.narrow if callable(column.narrow) else column.value,
        kind="text" if column.kind == "name" else column.kind,
    )


def _shorten(column: Column[T]) -> Column[T]:
    """Return a column without the part that may be folded."""
    if column.kind != "prose":
        return column
    return attrs.evolve(column, value=lambda row: to_text(column.value(row))[:_LEAST_PROSE])


def make_table(rows: Iterable[T], columns: Sequence[Column[T]]) -> Table:
    """Return a table of these rows."""
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
    """Return the fields of one of Tocsin's values, by name."""
    return {f.name: getattr(value, f.name) for f in attrs.fields(type(value))}


def _decoded(value: Any) -> dict[str, Any]:
    """Return the fields of a value for the JSON document.

    JSON in a text field is decoded. If Python cannot represent the value, the field is
    null, and a separate field has the text.
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
                _dump([[[[decoded]]]])  # deeper than in any document
                fields[short] = decoded
            except (ValueError, RecursionError):
                fields[name] = field
    return fields


def _dump(value: object) -> str:
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(value, ensure_ascii=not utf8, indent=2, allow_nan=False)


def to_json(value: Any) -> Any:
    """Return a value in the JSON format that the module describes."""
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
    """Return a value as a text for people."""
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
    """Return a payload as JSON text."""
    return json.dumps(payload, ensure_ascii=False)


def write_duration(seconds: float | None) -> str | None:
    """Return a duration in the format of the options."""
    if seconds is None:
        return None
    if math.isinf(seconds):
        return "forever"
    unit, length = next(((u, n) for u, n in _UNITS if seconds >= n and seconds % n == 0), ("s", 1))
    return f"{seconds / length:.6g}{unit}"


def write_age(seconds: float | None) -> str | None:
    """Return an approximate age as a short text."""
    if seconds is None:
        return None
    unit, length = next(((u, n) for u, n in _UNITS if seconds >= 2 * n and u != "w"), ("s", 1))
    return f"{seconds:.1f}s" if unit == "s" and seconds < 10 else f"{seconds // length:.0f}{unit}"


def write_count(number: int) -> str:
    """Return a number as a short text; a number from 100,000 on is rounded."""
    if number < 100_000:
        return str(number)
    unit, size = next(
        ((u, n) for u, n in (("k", 10**3), ("M", 10**6)) if number < 1000 * n), ("G", 10**9)
    )
    return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"


def write_rate(rate: float) -> str:
    """Return a number per second as a short text."""
    return f"{rate:.1f}" if rate < 100 else write_count(round(rate))


def since(time: datetime | None) -> str | None:
    """Return an approximate age of this time, by this machine's clock."""
    return None if time is None else write_age(max(0.0, (datetime.now(UTC) - time).total_seconds()))


def until(time: datetime | None) -> str | None:
    """Return approximately how long it is until this time, by this machine's clock."""
    return None if time is None else write_age(max(0.0, (time - datetime.now(UTC)).total_seconds()))


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text without characters that control a terminal.

    Names and payloads come from other users.

    Args:
        lines: Whether to keep line breaks.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)
