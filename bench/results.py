"""Save, show and compare figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.table import Table

TOLERANCE = 1.5
"""How many times the recorded ratio a ratio may be without counting as worse."""
TAIL = 100
"""Minimum number of samples for a comparison of the 99th percentile, which is otherwise
only the worst of a few samples."""


@attrs.frozen
class Result:
    """One figure."""

    scenario: str
    """Name of the figure: the scenario's name, a dot, and the rest."""
    value: float
    """The measured value."""
    unit: str
    """The unit of `value` and `floor`. A unit that ends in ``/s`` is a rate, for which
    more is better. For every other unit, less is better."""
    floor: float | None
    """The value of the same work by hand, measured in the same run; None: there is no
    such work."""
    settings: dict[str, Any]
    """The conditions of the measurement. ``target_ratio`` or ``target_value`` is the
    target, the maximum of the ratio or of the value."""
    runs: Sequence[Result] = ()
    """The single results of a figure that was measured several times. `value`, `floor`
    and `ratio` are then their medians."""

    @property
    def ratio(self) -> float | None:
        """How many times worse than the floor the value is; 1 is equal.

        The ratio is None without a floor.
        """
        if self.runs:
            ratios = [run.ratio for run in self.runs if run.ratio is not None]
            return median(ratios) if ratios else None
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.unit.endswith("/s") else self.value / self.floor

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of the runs, or value without a floor.

        The range is None if the result was measured once.
        """
        figures = [run.value if self.ratio is None else run.ratio or 0 for run in self.runs]
        return (min(figures), max(figures)) if figures else None

    @property
    def server(self) -> str:
        """The major version of the server on which the result was measured.

        The text is empty if the version was not recorded.
        """
        return str(self.settings.get("postgresql", "")).partition(".")[0]

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target."""
        if (limit := self.settings.get("target_ratio")) is not None:
            return self.ratio is not None and bool(self.ratio <= limit)
        if (limit := self.settings.get("target_value")) is not None:
            return bool(self.value <= limit)
        return None


def combine(runs: Iterable[Result]) -> list[Result]:
    """Return each figure once, with its runs, in the order of its first result."""
    by_figure: dict[tuple[str, str], list[Result]] = {}
    for result in runs:
        by_figure.setdefault((result.scenario, result.server), []).append(result)
    return [same[0] if len(same) == 1 else _combined(same) for same in by_figure.values()]


def _combined(runs: Sequence[Result]) -> Result:
    floors = [run.floor for run in runs if run.floor is not None]
    return attrs.evolve(
        runs[0],
        value=median(run.value for run in runs),
        floor=median(floors) if floors else None,
        runs=tuple(runs),
    )


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed."""
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
            "range": None if r.range is None else [_round(end) for end in r.range],
            "runs": len(r.runs) or 1,
            "settings": r.settings,
        }
        for r in results
    ]
    path.write_text(json.dumps(records, indent=2) + "\n")


def load_ratios(path: Path, size: str) -> dict[tuple[str, str], float]:
    """Return the ratios of saved results, by scenario and server.

    Args:
        path: The file that `save` has written.
        size: The size of this run.

    Raises:
        ValueError: The saved run had another size.
    """
    records = json.loads(path.read_text())
    if other := {record["settings"]["size"] for record in records} - {size}:
        raise ValueError(
            f"{path} is of a run of size {', '.join(other)}, this one will be of size {size}:"
            " compare it with one of its size"
        )
    return {
        (record["scenario"], record["settings"]["postgresql"].partition(".")[0]): record["ratio"]
        for record in records
        if record["ratio"] is not None
    }


def worse(
    results: Iterable[Result], recorded: dict[tuple[str, str], float]
) -> list[tuple[Result, float]]:
    """Return each result that is worse than recorded, with the recorded ratio.

    The ratio is more than `TOLERANCE` times the ratio recorded for the same server.
    """
    known = [
        (r, recorded[r.scenario, r.server]) for r in results if (r.scenario, r.server) in recorded
    ]
    return [
        (r, then)
        for r, then in known
        if r.ratio is not None and r.ratio > TOLERANCE * then and not _is_short_tail(r)
    ]


def _is_short_tail(result: Result) -> bool:
    return result.scenario.endswith(".p99") and result.settings["samples"] < TAIL


def tabulate(results: Sequence[Result]) -> Table:
    """Return a table, for people, of the figures of one server."""
    table = Table()
    table.add_column("scenario", no_wrap=True)
    repeated = any(r.runs for r in results)
    for heading in ("value", "floor", "ratio", *(["range"] if repeated else []), "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        limit = r.settings.get("target_ratio")
        target = (
            ""
            if r.met is None
            else (
                f"{limit:.3g}x" if limit is not None else f"{r.settings['target_value']:g} {r.unit}"
            )
        )
        table.add_row(
            r.scenario,
            f"{_spell(r.value)} {r.unit}",
            "" if r.floor is None else f"{_spell(r.floor)} {r.unit}",
            "" if r.ratio is None else f"{r.ratio:.2f}",
            *(
                ["" if r.range is None else f"{_spell(r.range[0])} to {_spell(r.range[1])}"]
                if repeated
                else []
            ),
            target if r.met is not False else f"[red]{target} missed[/red]",
        )
    return table


def _spell(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
