"""Whole flows: look at them, cancel them, run them again."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from tocsin._arguments import check_count, check_id
from tocsin._database.client import Database
from tocsin.errors import FlowNotFound

from .flow_graph import OnFailure
from .job_info import JobState

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


class Flows:
    """The flows of a store: `Store.flows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, flow_id: int) -> FlowInfo:
        """Return a flow with its jobs and edges.

        Raises:
            FlowNotFound: No flow has this id, or it was deleted.
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        check_id(flow_id, "flow_id")
        rows = await self._database.fetch("select * from tocsin.list_flows(1, null, %s)", [flow_id])
        if not rows:
            raise FlowNotFound(flow_id)
        jobs = await self._database.fetch("select * from tocsin.list_flow_jobs(%s)", [flow_id])
        edges = await self._database.fetch("select * from tocsin.list_edges(%s)", [flow_id])
        return FlowInfo(
            FlowSummary(*rows[0]),
            tuple(FlowJob(*row) for row in jobs),
            tuple(FlowEdge(*row) for row in edges),
        )

    async def cancel(self, flow_id: int) -> list[int]:
        """Cancel the unfinished jobs of a flow; return their ids.

        The functions of jobs that are running are cancelled as by `Jobs.cancel`.

        Raises:
            FlowNotFound: No flow has this id, or it was deleted.
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        return await self._change("cancel_flow", flow_id)

    async def requeue(self, flow_id: int) -> list[int]:
        """Run the jobs that have failed or were cancelled again; return their ids.

        Each waits for those of its parents that have not succeeded. Jobs that have
        succeeded do not run again, nor do jobs behind one that was deleted.

        Raises:
            FlowNotFound: No flow has this id, or it was deleted.
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        return await self._change("requeue_flow", flow_id)

    async def _change(self, function: str, flow_id: int) -> list[int]:
        (ids,) = await self._database.fetch_one(
            f"select tocsin.{function}(%s)", [check_id(flow_id, "flow_id")]
        )
        return list(ids)

    async def list(self, *, limit: int = 100, before: int | None = None) -> list[FlowSummary]:
        """Return the newest flows, the newest first.

        Args:
            limit: The most flows to return.
            before: The last id of the page before.

        Raises:
            PermissionDenied: The role is no administrator.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(
            "select * from tocsin.list_flows(%s, %s)",
            [check_count(limit, "limit"), None if before is None else check_id(before, "before")],
        )
        return [FlowSummary(*row) for row in rows]
