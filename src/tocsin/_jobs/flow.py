"""Submit a flow, on a store or on a connection."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

from tocsin._database.caller_connection import AnyConnection

from .connections import BlockingTarget
from .flow_graph import FlowGraph, OnFailure
from .job import Job
from .session_job import BlockingJob
from .targets import (
    Target,
    find_home,
    find_job,
    find_job_blocking,
    submit_flow,
    submit_flow_blocking,
)

R = TypeVar("R")


class Flow(FlowGraph):
    """A graph of jobs that are submitted together, at the end of its block.

    A block that raises submits nothing. `Store.flow` makes a flow of a store.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        *,
        on_failure: OnFailure = "cancel",
        connection: AnyConnection | None = None,
        schema: str = "tocsin",
    ) -> None:
        """Begin a flow.

        Args:
            target: A store, or an async connection in whose transaction the flow is
                submitted, as for `Task.submit`.
            name: Name of the flow, for people; several flows may have it.
            on_failure: What becomes of a job when a job before it does not succeed.
            connection: With a store as target, submit in the transaction of this
                connection; see `Producer.enqueue`.
            schema: Where Tocsin is installed, for a connection as target.

        Raises:
            ValueError: The rule does not exist.
        """
        super().__init__(name, on_failure)
        self._target = target
        self._connection = connection
        self._schema = schema

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            home = find_home(self._target)
            ids = await submit_flow(
                self._target, self._calls(), self._write, self._connection, self._schema
            )
            self._note_submitted(ids)
            self._target = home

    def job(self, planned: R) -> Job[R]:
        """Return the job of what `add` returned, once the flow is submitted.

        Raises:
            RuntimeError: The flow is not submitted yet.
            FlowInvalid: The job is of another flow.
        """
        job_id, definition = self._find(planned)
        return find_job(self._target, definition, job_id, self._schema)


class BlockingFlow(FlowGraph):
    """A `Flow` on a blocking connection, without trio; its block is a plain one."""

    def __init__(
        self,
        target: BlockingTarget,
        name: str,
        *,
        on_failure: OnFailure = "cancel",
        schema: str = "tocsin",
    ) -> None:
        """Begin a flow.

        Args:
            target: A `psycopg.Connection`, or an object with one, in whose transaction
                the flow is submitted, as for `Task.submit_blocking`.
            name: Name of the flow, for people; several flows may have it.
            on_failure: What becomes of a job when a job before it does not succeed.
            schema: Where Tocsin is installed.

        Raises:
            ValueError: The rule does not exist.
        """
        super().__init__(name, on_failure)
        self._target = target
        self._schema = schema

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            ids = submit_flow_blocking(self._target, self._calls(), self._write, self._schema)
            self._note_submitted(ids)

    def job(self, planned: R) -> BlockingJob[R]:
        """Return the job of what `add` returned, once the flow is submitted.

        Raises:
            RuntimeError: The flow is not submitted yet.
            FlowInvalid: The job is of another flow.
        """
        job_id, definition = self._find(planned)
        return find_job_blocking(self._target, definition, job_id, self._schema)
