"""A flow as it was when it was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal, TypeAlias

import attrs

from .flow_drawing import draw_mermaid, draw_tree
from .flow_graph import OnFailure
from .flow_svg import draw_svg
from .job_info import JobState

FlowForm: TypeAlias = Literal["tree", "mermaid", "svg"]
"""A form in which a flow is drawn."""
FlowState: TypeAlias = Literal["running", "succeeded", "failed", "cancelled"]
"""The state of a flow: running while a job of it is unfinished."""


@attrs.frozen
class FlowSummary:
    """The state of a flow, and how many of its jobs are in each state."""

    id: int
    """Id of the flow."""
    name: str
    """Its name."""
    created_at: datetime
    """When it was submitted, by the server's clock."""
    ended_at: datetime | None
    """When maintenance found it ended; None: it has not yet."""
    state: FlowState
    """Its state.

    A flow with an unfinished job is running. Else it has failed if a job has failed,
    and else it was cancelled if a job was.
    """
    waiting: int
    """Jobs that wait, for their parents too."""
    running: int
    """Jobs that a worker runs."""
    succeeded: int
    """Jobs that have succeeded."""
    failed: int
    """Jobs that have failed: dead letters."""
    cancelled: int
    """Jobs that were cancelled."""


@attrs.frozen
class FlowJob:
    """A job of a flow."""

    id: int
    """Id of the job."""
    name: str
    """Its name in the flow."""
    queue: str | None
    """Name of its queue; None: the queue was deleted."""
    task: str
    """Name of its task."""
    state: JobState | Literal["deleted"]
    """Its state; deleted: no row of the job exists any more."""
    attempts: int
    """How many attempts have begun."""
    error: str | None
    """The error of the last attempt that had one, or why it was cancelled."""


@attrs.frozen
class FlowEdge:
    """A job of a flow that waits for another one."""

    parent: int
    """Id of the job that comes first."""
    child: int
    """Id of the job that waits."""
    on_failure: OnFailure
    """What becomes of the child when the parent does not succeed."""
    argument: tuple[str, ...] = attrs.field(converter=tuple[str, ...])
    """Where in the child's arguments the parent's result goes; empty: nowhere."""


@attrs.frozen
class FlowInfo:
    """A flow as it was when it was read."""

    summary: FlowSummary
    """Its state."""
    jobs: tuple[FlowJob, ...]
    """Its jobs, parents before children."""
    edges: tuple[FlowEdge, ...]
    """Which job waits for which."""

    def draw(self, form: FlowForm = "tree") -> str:
        """Return a drawing of the flow as text.

        Args:
            form: ``tree``: each job below the last of its parents. ``mermaid``: a
                diagram in the language of Mermaid. ``svg``: a picture for browsers, on
                a light or a dark background.

        Raises:
            ValueError: There is no such form.
        """
        if form not in DRAWINGS:
            raise ValueError(f"form must be one of {', '.join(DRAWINGS)}, not {form!r}")
        return DRAWINGS[form](self)


DRAWINGS: Final[Mapping[FlowForm, Callable[[FlowInfo], str]]] = {
    "tree": draw_tree,
    "mermaid": draw_mermaid,
    "svg": draw_svg,
}
