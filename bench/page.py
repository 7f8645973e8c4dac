"""``python -m bench.page results.json``: recorded results as a table in Markdown.

The table is part of ``docs/performance.md``. Each row is a figure. For each server it
has the value, the value of the floor, and the ratio of the two, with its range over
the runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
"""A saved figure."""


def tabulate(records: Sequence[Record]) -> str:
    """Return the table."""
    servers = list(dict.fromkeys(_server(record) for record in records))
    scenarios = list(dict.fromkeys(record["scenario"] for record in records))
    by_place = {(record["scenario"], _server(record)): record for record in records}
    lines = [
        (
            "| figure |"
            f" {' | '.join(f'PostgreSQL {server} | floor | ratio' for server in servers)} |"
            " target |"
        ),
        f"| --- | {' | '.join('---: | ---: | ---:' for _ in servers)} | ---: |",
    ]
    for scenario in scenarios:
        figures = [by_place.get((scenario, server)) for server in servers]
        target = next(_target(figure) for figure in figures if figure is not None)
        lines.append(f"| `{scenario}` | {' | '.join(map(_cells, figures))} | {target} |")
    return "\n".join(lines) + "\n"


def _server(record: Record) -> str:
    return str(record["settings"]["postgresql"])


def _cells(record: Record | None) -> str:
    if record is None:
        return " | | "
    unit = record["unit"] if record["unit"].startswith("/") else f" {record['unit']}"
    value, floor = f"{_spell(record['value'])}{unit}", record["floor"]
    ratio = record["ratio"]
    missed = ratio is not None and ratio > record["settings"].get("target_ratio", ratio)
    missed = missed or record["value"] > record["settings"].get("target_value", record["value"])
    spread = (
        ""
        if record["range"] is None
        else f" ({_spell(record['range'][0])} to {_spell(record['range'][1])})"
    )
    if ratio is None:
        return f"{value}{spread}{' (missed)' if missed else ''} | | "
    return (
        f"{value} | {_spell(floor)}{unit} | {_spell(ratio)}{spread}{' (missed)' if missed else ''}"
    )


def _target(record: Record) -> str:
    settings = record["settings"]
    if "target_ratio" in settings:
        return f"{settings['target_ratio']:.3g}x"
    return f"{settings['target_value']:g} {record['unit']}" if "target_value" in settings else ""


def _spell(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.stdout.write(tabulate(json.loads(Path(sys.argv[1]).read_text())))
