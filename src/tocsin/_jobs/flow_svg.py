"""Draw a flow as a picture in SVG.

The picture is readable on a light and on a dark background: a job has a background of
its own, and a grey of medium lightness draws the rest. States are also written, since
not every reader tells colours apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from .flow_layout import Layout, Point, lay_out

if TYPE_CHECKING:
    from .flow_info import FlowEdge, FlowInfo, FlowJob

HEIGHT: Final = 40.0
MARGIN: Final = 12.0
HEADING: Final = 28.0
ADVANCE: Final = 7.8
"""Width of a character: 0.6 of the size of the font, as in fonts of one width."""
MOST: Final = 32
"""The most characters of a name that are shown; the tooltip has all."""

COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "waiting": ("#eceff1", "#607d8b"),
    "running": ("#fff3cd", "#b58900"),
    "succeeded": ("#d9f2e0", "#2e7d32"),
    "failed": ("#fbdcdc", "#c62828"),
    "cancelled": ("#e8e2f0", "#6a4f8f"),
    "deleted": ("#f5f5f5", "#9e9e9e"),
}
"""Background and border of a job by its state."""
DASHES: Final = {"cancel": "none", "run": "7 4", "hold": "2 3"}
GREY: Final = "#7f7f7f"
TEXT: Final = "#1b1f23"
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that no XML has."""


def draw_svg(info: FlowInfo) -> str:
    """Return a flow as a picture in SVG."""
    return "\n".join(_draw(info))


def _draw(info: FlowInfo) -> Iterator[str]:
    rules = {(edge.parent, edge.child): edge for edge in info.edges}
    names = {job.id: job.name for job in info.jobs}
    layout = lay_out(
        {job.id: 20 + ADVANCE * max(_count(_cut(job.name)), len(job.state)) for job in info.jobs},
        sorted(rules),
        HEIGHT,
    )
    heading = f"{_cut(info.summary.name)} {info.summary.state}"
    width = max(layout.width, ADVANCE * _count(heading)) + 2 * MARGIN
    height = layout.height + HEADING + 2 * MARGIN
    arrow = f"tocsin-flow-{info.summary.id}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="monospace">'
    )
    yield f"<title>{_write(info.summary.name)} {info.summary.state}</title>"
    yield (
        f'<marker id="{arrow}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7"'
        f' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker>'
    )
    yield (
        f'<text x="{MARGIN:g}" y="{MARGIN + 13:g}" font-size="13" font-weight="bold"'
        f' fill="{GREY}">{_write(heading)}</text>'
    )
    yield f'<g transform="translate({MARGIN:g} {MARGIN + HEADING:g})">'
    yield f'<g fill="none" stroke="{GREY}" stroke-width="1.5">'
    for ends, points in layout.routes.items():
        yield _draw_edge(rules[ends], names, points, arrow)
    yield "</g>"
    for job in info.jobs:
        yield _draw_job(job, layout)
    yield "</g>"
    yield "</svg>"


def _draw_edge(
    edge: FlowEdge, names: Mapping[int, str], points: Sequence[Point], arrow: str
) -> str:
    told = f"{names[edge.parent]} → {names[edge.child]}, on failure: {edge.on_failure}"
    path: list[str] = []
    for (x, y), (end_x, end_y) in zip(points[::2], points[1::2], strict=True):
        middle = (x + end_x) / 2
        path.append(
            f"{'L' if path else 'M'}{x:g} {y:g}"
            f"C{middle:g} {y:g} {middle:g} {end_y:g} {end_x:g} {end_y:g}"
        )
    return (
        f'<path d="{"".join(path)}" stroke-dasharray="{DASHES[edge.on_failure]}"'
        f' marker-end="url(#{arrow})"><title>{_write(told)}</title></path>'
    )


def _draw_job(job: FlowJob, layout: Layout) -> str:
    fill, stroke = COLOURS[job.state]
    (x, y), width = layout.corners[job.id], layout.widths[job.id]
    told = [f"{job.name}: {job.state}", f"job {job.id} of task {job.task}", job.error or ""]
    return (
        f'<g fill="{TEXT}"><title>{_write(chr(10).join(filter(None, told)))}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT:g}" rx="6" fill="{fill}"'
        f' stroke="{stroke}" stroke-width="1.5"/>'
        f'<text x="{x + 10:g}" y="{y + 17:g}" font-size="13">{_write(_cut(job.name))}</text>'
        f'<text x="{x + 10:g}" y="{y + 32:g}" font-size="11">{job.state}</text></g>'
    )


def _write(text: str) -> str:
    return escape(_UNWRITABLE.sub("\ufffd", text))


def _cut(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MOST else f"{name[: MOST - 1]}…"


def _count(text: str) -> int:
    """Return how many narrow characters are as wide as a text."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
