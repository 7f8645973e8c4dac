"""Draw a flow as text: a tree, or a diagram in the language of Mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .flow_info import FlowInfo, FlowJob

_ENTITIES: Final = str.maketrans(
    {"#": "#35;", "&": "#amp;", "<": "#lt;", ">": "#gt;", '"': "#quot;", "\n": " "}
)
"""What Mermaid would read as other than text."""


def draw_tree(info: FlowInfo) -> str:
    """Return the jobs of a flow as a tree.

    A job with several parents is below the last of them, and names the rest.
    """
    names = {job.id: job.name for job in info.jobs}
    parents = {job.id: list[int]() for job in info.jobs}
    for parent, child in sorted({(e.parent, e.child) for e in info.edges}):
        parents[child].append(parent)
    children: dict[int | None, list[FlowJob]] = {}
    for job in info.jobs:
        children.setdefault(max(parents[job.id], default=None), []).append(job)

    lines = [f"{info.summary.name} {info.summary.state}"]
    stack = [(job, 1) for job in reversed(children.get(None, []))]
    while stack:
        job, depth = stack.pop()
        also = ", ".join(names[parent] for parent in parents[job.id][:-1])
        lines.append(
            f"{'  ' * depth}{job.name} {job.state}{f' (also after {also})' if also else ''}"
        )
        stack += [(child, depth + 1) for child in reversed(children.get(job.id, []))]
    return "\n".join(lines)


def draw_mermaid(info: FlowInfo) -> str:
    """Return a flow as a diagram in the language of Mermaid."""
    return "\n".join(_write_mermaid(info))


def _write_mermaid(info: FlowInfo) -> Iterator[str]:
    yield "flowchart TD"
    for job in info.jobs:
        yield f'    j{job.id}["{job.name.translate(_ENTITIES)}<br>{job.state}"]'
    for parent, child in sorted({(e.parent, e.child) for e in info.edges}):
        yield f"    j{parent} --> j{child}"
