"""Where the jobs and the edges of a drawn flow go.

Each job is in the layer behind the last of its parents, and layers go from left to
right. An edge over several layers has a place in each layer between, so it crosses no
job. Sweeps over the layers order each by the places of its neighbours, and then move it
towards them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final, TypeAlias

import attrs

Edge: TypeAlias = tuple[int, int]
"""A parent and a child."""
Point: TypeAlias = tuple[float, float]
Place: TypeAlias = int | tuple[int, int, int]
"""A job, or an edge (parent and child) in the layer of this number."""

SWEEPS: Final = 4
GAP: Final = 14.0
"""Space between two places of a layer."""
LANE: Final = 2.0
"""Height of an edge in a layer between."""
BETWEEN: Final = 60.0
"""Space between two layers."""


@attrs.frozen
class Layout:
    """Places in a drawing, whose origin is the left upper corner."""

    width: float
    """Width of the drawing."""
    height: float
    """Height of the drawing."""
    corners: Mapping[int, Point]
    """Left upper corner of each job."""
    widths: Mapping[int, float]
    """Width of each job, which is that of its layer."""
    routes: Mapping[Edge, Sequence[Point]]
    """The points of each edge in pairs: it bends from the first of a pair to the
    second, and goes straight on to the next pair."""


def lay_out(widths: Mapping[int, float], edges: Sequence[Edge], height: float) -> Layout:
    """Lay out a graph.

    Args:
        widths: The least width of each job, parents before children.
        edges: The edges, each once.
        height: Height of a job.
    """
    layer_of = _find_layers(widths, edges)
    paths: dict[Edge, list[Place]] = {
        (parent, child): [
            parent,
            *((parent, child, n) for n in range(layer_of[parent] + 1, layer_of[child])),
            child,
        ]
        for parent, child in edges
    }
    layers: list[list[Place]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for job, layer in layer_of.items():
        layers[layer].append(job)
    before: dict[Place, list[Place]] = {}
    behind: dict[Place, list[Place]] = {}
    for path in paths.values():
        for place in path[1:-1]:
            layers[place[2] if isinstance(place, tuple) else layer_of[place]].append(place)
        for one, other in pairwise(path):
            behind.setdefault(one, []).append(other)
            before.setdefault(other, []).append(one)
    _order(layers, before, behind)
    middles = _move(layers, before, behind, height)
    return _measure(widths, layer_of, layers, paths, middles, height)


def _find_layers(jobs: Mapping[int, float], edges: Sequence[Edge]) -> dict[int, int]:
    parents: dict[int, list[int]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)
    layer_of: dict[int, int] = {}
    for job in jobs:
        layer_of[job] = max((layer_of[parent] + 1 for parent in parents.get(job, [])), default=0)
    return layer_of


def _order(
    layers: list[list[Place]],
    before: Mapping[Place, list[Place]],
    behind: Mapping[Place, list[Place]],
) -> None:
    """Order each layer by the mean place of its neighbours, so that few edges cross."""
    rank = {place: float(n) for layer in layers for n, place in enumerate(layer)}
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else behind
        for layer in layers if forward else reversed(layers):
            wanted = {
                place: fmean(rank[other] for other in neighbours[place])
                if place in neighbours
                else rank[place]
                for place in layer
            }
            layer.sort(key=wanted.__getitem__)
            rank.update((place, float(n)) for n, place in enumerate(layer))


def _move(
    layers: list[list[Place]],
    before: Mapping[Place, list[Place]],
    behind: Mapping[Place, list[Place]],
    height: float,
) -> dict[Place, float]:
    """Return the middle of each place, near to those of its neighbours."""
    middles: dict[Place, float] = {place: 0.0 for layer in layers for place in layer}
    for sweep in range(SWEEPS + 1):
        forward = sweep % 2 == 0
        neighbours = before if forward else behind
        for layer in layers if forward else reversed(layers):
            wanted = [
                fmean(middles[other] for other in neighbours[place])
                if place in neighbours
                else middles[place]
                for place in layer
            ]
            _spread(layer, wanted, middles, height)
    top = min((middle - _half(place, height) for place, middle in middles.items()), default=0.0)
    return {place: middle - top for place, middle in middles.items()}


def _spread(
    layer: list[Place], wanted: list[float], middles: dict[Place, float], height: float
) -> None:
    """Place a layer as wanted, but with the space between its places."""
    found: list[float] = []
    for n, place in enumerate(layer):
        least = (
            found[-1] + _half(layer[n - 1], height) + GAP + _half(place, height)
            if found
            else wanted[n]
        )
        found.append(max(wanted[n], least))
    shift = fmean(wanted) - fmean(found)
    middles.update((place, middle + shift) for place, middle in zip(layer, found, strict=True))


def _half(place: Place, height: float) -> float:
    return (LANE if isinstance(place, tuple) else height) / 2


def _measure(
    widths: Mapping[int, float],
    layer_of: Mapping[int, int],
    layers: list[list[Place]],
    paths: Mapping[Edge, list[Place]],
    middles: Mapping[Place, float],
    height: float,
) -> Layout:
    columns = [max(widths[place] for place in layer if isinstance(place, int)) for layer in layers]
    lefts = [sum(columns[:n]) + n * BETWEEN for n in range(len(columns))]
    routes: dict[Edge, list[Point]] = {}
    for edge, path in paths.items():
        first = layer_of[edge[0]]
        routes[edge] = [
            point
            for n, (one, other) in enumerate(pairwise(path), start=first)
            for point in (
                (lefts[n] + columns[n], middles[one]),
                (lefts[n + 1], middles[other]),
            )
        ]
    return Layout(
        width=lefts[-1] + columns[-1] if columns else 0.0,
        height=max((y + _half(place, height) for place, y in middles.items()), default=0.0),
        corners={job: (lefts[layer], middles[job] - height / 2) for job, layer in layer_of.items()},
        widths={job: columns[layer] for job, layer in layer_of.items()},
        routes=routes,
    )
