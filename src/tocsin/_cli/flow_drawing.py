"""Draw a flow as text."""

from __future__ import annotations

from collections.abc import Iterator

from tocsin import FlowInfo, FlowJob


def draw_tree(info: FlowInfo) -> str:
    """Return the jobs of a flow as a tree.

    A job with several parents is below the last of them, and names the rest.
    """
    names = {job.id: job.name for job in info.jobs}
    parents = {
        job.id: sorted({e.parent for e in info.edges if e.child == job.id}) for job in info.jobs
    }
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
        name = job.name.replace('"', "#quot;")
        yield f'    j{job.id}["{name}<br>{job.state}"]'
    for parent, child in sorted({(e.parent, e.child) for e in info.edges}):
        yield f"    j{parent} --> j{child}"
