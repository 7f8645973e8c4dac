"""Figures: how they are kept, shown and compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.table import Table

TOLERANCE = 1.5
"""How many times the recorded ratio a ratio may be before it counts as worse."""
TAIL = 100
"""Samples below which a 99th percentile is no more than the worst of a few, and is not compared."""


@attrs.frozen
class Result:
    """One figure."""

    scenario: str
    """What was measured: the scenario's name, a dot, the figure's."""
    value: float
    """What it came to."""
    unit: str
    """The unit of `value` and `floor`. One that ends in ``/s`` is a rate, of which more is better; of all others less is."""
    floor: float | None
    """The same done by hand, measured in the same run; None where there is nothing to do by hand."""
    settings: dict[str, Any]
    """Under which conditions; and ``target_ratio`` or ``target_value``, what the ratio or the value should be at most."""

    @property
    def ratio(self) -> float | None:
        """How many times as bad as the floor this is: 1 is as good. None without a floor."""
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.unit.endswith("/s") else self.value / self.floor

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target."""
        if (limit := self.settings.get("target_ratio")) is not None:
            return self.ratio is not None and bool(self.ratio <= limit)
        if (limit := self.settings.get("target_value")) is not None:
            return bool(self.value <= limit)
        return None


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the smallest of the values that is not exceeded by this many percent of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def save(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON."""
    records = [
        {
            "scenario": r.scenario,
            "value": _round(r.value),
            "unit": r.unit,
            "floor": _round(r.floor),
            "ratio": _round(r.ratio),
            "settings": r.settings,
        }
        for r in results
    ]
    path.write_text(json.dumps(records, indent=2) + "\n")


def load_ratios(path: Path, size: str) -> dict[str, float]:
    """Read the ratios of saved results of a run of this size, by scenario; ValueError if it was of another one."""
    records = json.loads(path.read_text())
    if other := {record["settings"]["size"] for record in records} - {size}:
        raise ValueError(f"{path} is of a run of size {', '.join(other)}, this one will be of size {size}: compare it with one of its size")
    return {record["scenario"]: record["ratio"] for record in records if record["ratio"] is not None}


def worse(results: Iterable[Result], recorded: dict[str, float]) -> list[tuple[str, float, float]]:
    """Return scenario, recorded ratio and ratio for each result that is worse than it was by more than `TOLERANCE`."""
    return [
        (r.scenario, recorded[r.scenario], r.ratio)
        for r in results
        if r.ratio is not None and r.scenario in recorded and r.ratio > TOLERANCE * recorded[r.scenario] and not _is_short_tail(r)
    ]


def _is_short_tail(result: Result) -> bool:
    return result.scenario.endswith(".p99") and result.settings["samples"] < TAIL


def tabulate(results: Iterable[Result]) -> Table:
    """Return a table for people."""
    table = Table()
    table.add_column("scenario", no_wrap=True)
    for heading in ("value", "floor", "ratio", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        limit = r.settings.get("target_ratio")
        target = "" if r.met is None else f"{limit:.3g}x" if limit is not None else f"{r.settings['target_value']:g} {r.unit}"
        table.add_row(
            r.scenario,
            f"{_spell(r.value)} {r.unit}",
            "" if r.floor is None else f"{_spell(r.floor)} {r.unit}",
            "" if r.ratio is None else f"{r.ratio:.2f}",
            target if r.met is not False else f"[red]{target} missed[/red]",
        )
    return table


def _spell(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
