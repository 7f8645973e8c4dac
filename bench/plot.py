"""``python -m bench.plot results.json docs/figures/``: recorded results as pictures.

The pictures are SVG files for the documentation, written without a library. A picture
has horizontal bars on one scale, each with its number, and no axes. Pictures of
scenarios that the results do not have are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from xml.sax.saxutils import escape

import attrs

Records: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Saved results, by scenario."""

WIDTH, LABEL, BAR, GAP, TOP, BOTTOM, NUMBERS = 760, 190, 24, 8, 58, 16, 110
OURS, THEIRS, INK, PALE = "#2f6f8f", "#b9b4a7", "#222222", "#666666"


@attrs.frozen
class Bar:
    """One figure of a chart."""

    label: str
    """Label of the bar."""
    value: float
    """Length of the bar."""
    ours: bool = False
    """Whether the figure is Tocsin's."""


@attrs.frozen
class Chart:
    """A picture."""

    name: str
    """Name of the file, without the suffix."""
    title: str
    """Heading of the picture."""
    unit: str
    """Unit of the numbers, and whether more is better."""
    bars: Sequence[Bar]
    """The bars, from top to bottom."""


def draw(chart: Chart) -> str:
    """Return a chart as SVG."""
    height = TOP + len(chart.bars) * (BAR + GAP) + BOTTOM
    scale = (WIDTH - LABEL - NUMBERS) / max(bar.value for bar in chart.bars)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" role="img" font-family="system-ui, sans-serif"'
            ' font-size="14">'
        ),
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        (
            '<text x="16" y="26" font-size="16" font-weight="600"'
            f' fill="{INK}">{escape(chart.title)}</text>'
        ),
        f'<text x="16" y="45" font-size="12" fill="{PALE}">{escape(chart.unit)}</text>',
    ]
    for number, bar in enumerate(chart.bars):
        top = TOP + number * (BAR + GAP)
        length = max(1.0, bar.value * scale)
        middle = top + BAR / 2 + 5
        lines += [
            (
                f'<text x="{LABEL - 10}" y="{middle:g}" text-anchor="end"'
                f' fill="{INK}">{escape(bar.label)}</text>'
            ),
            (
                f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"'
                f' fill="{OURS if bar.ours else THEIRS}"/>'
            ),
            (
                f'<text x="{LABEL + length + 8:.1f}" y="{middle:g}"'
                f' fill="{INK}">{_spell(bar.value)}</text>'
            ),
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _spell(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# The charts


def charts(records: Records) -> list[Chart]:
    """Return the charts for which these results have the figures."""
    found = [
        _drain(records),
        _grid(records),
        _concurrent(records),
        _wakeup(records),
        _flat(records),
    ]
    return [chart for chart in found if len(chart.bars) > 1]


def _pairs(records: Records, *names: tuple[str, str, str]) -> list[Bar]:
    bars = []
    for scenario, ours, theirs in names:
        if scenario in records:
            record = records[scenario]
            bars += [Bar(ours, record["value"], ours=True), Bar(theirs, record["floor"])]
    return bars


def _drain(records: Records) -> Chart:
    bars = _pairs(records, ("drain", "Tocsin", "floor, one connection"))
    if "drain.four" in records:
        bars.append(Bar("floor, four threads", records["drain.four"]["floor"]))
    peers = [r for name, r in records.items() if name.startswith("peers.") and bars]
    bars += [
        Bar(r["settings"]["peer"], r["floor"])
        for r in sorted(peers, key=lambda r: -float(r["floor"]))
    ]
    messages = records["drain"]["settings"]["messages"] if bars else 0
    return Chart(
        "drain",
        f"Draining {messages:,} messages, one process, each archived",
        "messages per second; more is better",
        bars,
    )


def _grid(records: Records) -> Chart:
    cells = {
        name.removeprefix("grid."): r for name, r in records.items() if name.startswith("grid.")
    }
    bars = []
    for name, record in cells.items():
        consumers, batch = name.split("x")
        what = f"{consumers} by {batch}"
        bars += [
            Bar(f"Tocsin, {what}", record["value"], ours=True),
            Bar(f"pgqrs, {what}", record["floor"]),
        ]
    return Chart(
        "grid",
        "Consumers by size of batch, from a backlog of 50,000",
        "messages per second; more is better",
        bars,
    )


def _concurrent(records: Records) -> Chart:
    names = {
        "enqueue_concurrent": "on demand: consumer busy",
        "enqueue_concurrent.draining": "on demand: consumer draining",
        "enqueue_concurrent.always": "always",
    }
    bars = [
        Bar(label, records[name]["value"], ours=True)
        for name, label in names.items()
        if name in records
    ]
    if "enqueue_concurrent" in records:
        bars.insert(0, Bar("no trigger", records["enqueue_concurrent"]["floor"]))
    if "enqueue_concurrent.draining" in records:
        bars.insert(2, Bar("no trigger: draining", records["enqueue_concurrent.draining"]["floor"]))
    return Chart(
        "enqueue_concurrent",
        "32 connections, one message per transaction",
        "transactions per second; more is better",
        bars,
    )


def _wakeup(records: Records) -> Chart:
    bars = []
    for percentile, word in (("p50", "median"), ("p99", "99 %")):
        raw = records.get(f"wakeup.notify.{percentile}")
        if raw is not None:
            bars += [Bar(f"NOTIFY and back, {word}", raw["floor"])]
        if f"wakeup.produce.{percentile}" in records:
            record = records[f"wakeup.produce.{percentile}"]
            bars += [
                Bar(f"floor, {word}", record["floor"]),
                Bar(f"Tocsin, {word}", record["value"], ours=True),
            ]
    return Chart(
        "wakeup",
        "From enqueue to an idle handler in another process",
        "milliseconds; less is better",
        bars,
    )


def _flat(records: Records) -> Chart:
    bars = []
    if "flat" in records:
        record = records["flat"]
        bars = [
            Bar("almost empty", record["floor"], ours=True),
            Bar("full", record["value"], ours=True),
        ]
    settings = records.get("flat", {}).get("settings", {})
    full = ", ".join(
        f"{settings[name]:,} {name}"
        for name in ("ready", "delayed", "archived")
        if name in settings
    )
    return Chart(
        "flat",
        f"Take and archive a hundred: in an empty table, and with {full}",
        "milliseconds; less is better",
        bars,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plot", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, help="what `python -m bench --json` has written")
    parser.add_argument("directory", type=Path, help="where the pictures go")
    given = parser.parse_args()
    records = {record["scenario"]: record for record in json.loads(given.results.read_text())}
    given.directory.mkdir(parents=True, exist_ok=True)
    for chart in charts(records):
        path = given.directory / f"{chart.name}.svg"
        path.write_text(draw(chart), encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
