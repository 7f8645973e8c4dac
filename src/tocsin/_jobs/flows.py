"""Whole flows: look at them, cancel them, run them again."""

from __future__ import annotations

from tocsin._arguments import check_count, check_id
from tocsin._database.client import Database
from tocsin.errors import FlowNotFound

from .flow_info import FlowEdge, FlowInfo, FlowJob, FlowSummary


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
