"""Submit to a target: a store, or a connection, in its transaction.

A connection that `Store.transaction` has given leads to its store, so that the job can
be waited for after the transaction. Any other connection serves a program without a
store, and the job waits on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from tocsin._database.caller_connection import AnyConnection, Blocking
from tocsin._database.client import Connection
from tocsin._database.schema import Schema
from tocsin._queue.producing import transactional
from tocsin.driver import TrioConnection

from .connections import AsyncTarget, BlockingTarget, unwrap_async, unwrap_blocking
from .definition import Call, Definition
from .job import Job
from .jobs import Jobs, WriteFlow, submit_flow_to
from .session_job import AsyncRows, BlockingJob, SessionJob
from .submitting import Submission, SubmissionBatch, build_submission, pack, pack_all

R = TypeVar("R")


class SubmitsJobs(Protocol):
    """A `Store`."""

    @property
    def jobs(self) -> Jobs:
        """Its jobs."""


Target: TypeAlias = SubmitsJobs | AsyncTarget
"""What `Task.submit` takes."""


async def submit(target: Target, call: Call[R]) -> Job[R]:
    """Submit a call; see `Task.submit`."""
    if (found := _find_jobs(target)) is not None:
        jobs, connection = found
        return await jobs.submit(call, connection=connection)
    (call,) = await pack_all([call])
    psycopg_connection = await unwrap_async(target)
    schema, submission = _schema_of([call]), build_submission(call)
    job_id = await transactional.send_async(
        psycopg_connection, schema, submission.queue, submission.request
    )
    return SessionJob(_rows(target, schema), job_id, call.definition)


async def submit_many(target: Target, calls: Sequence[Call[R]]) -> list[Job[R]]:
    """Submit calls, all or none; see `Task.submit_many`."""
    if (found := _find_jobs(target)) is not None:
        jobs, connection = found
        return await jobs.submit_many(calls, connection=connection)
    calls = await pack_all(calls)
    psycopg_connection = await unwrap_async(target)
    schema = _schema_of(calls)
    ids = await transactional.send_batch_async(psycopg_connection, schema, _batch(calls))
    return [
        SessionJob(_rows(target, schema), job_id, call.definition)
        for call, job_id in zip(calls, ids, strict=True)
    ]


def submit_blocking(target: BlockingTarget, call: Call[R]) -> BlockingJob[R]:
    """Submit a call; see `Task.submit_blocking`."""
    connection: Blocking = unwrap_blocking(target)
    schema, submission = _schema_of([call]), build_submission(pack(call))
    job_id = transactional.send(connection, schema, submission.queue, submission.request)
    return BlockingJob(target, schema, job_id, call.definition)


def submit_many_blocking(target: BlockingTarget, calls: Sequence[Call[R]]) -> list[BlockingJob[R]]:
    """Submit calls, all or none; see `Task.submit_many_blocking`."""
    schema = _schema_of(calls)
    ids = transactional.send_batch(
        unwrap_blocking(target), schema, _batch([pack(c) for c in calls])
    )
    return [
        BlockingJob(target, schema, job_id, call.definition)
        for call, job_id in zip(calls, ids, strict=True)
    ]


async def submit_flow(
    target: Target,
    calls: Sequence[Call[Any]],
    write: WriteFlow,
    connection: AnyConnection | None,
    schema: str,
) -> list[int]:
    """Submit a flow; return its id, and then those of its jobs. See `Flow`."""
    if (found := _find_jobs(target)) is not None:
        jobs, lent = found
        return await submit_flow_to(jobs, calls, write, connection or lent)
    if connection is not None:
        raise TypeError("give a connection as target, or a store and connection=")
    calls = await pack_all(calls)
    return await transactional.send_batch_async(
        await unwrap_async(target), Schema(schema), write(_submissions(calls, in_flow=True))
    )


def submit_flow_blocking(
    target: BlockingTarget, calls: Sequence[Call[Any]], write: WriteFlow, schema: str
) -> list[int]:
    """Submit a flow; return its id, and then those of its jobs. See `BlockingFlow`."""
    submissions = _submissions([pack(call) for call in calls], in_flow=True)
    return transactional.send_batch(unwrap_blocking(target), Schema(schema), write(submissions))


def find_job(target: Target, definition: Definition[R], job_id: int, schema: str) -> Job[R]:
    """Return a job by its id; see `Task.job`."""
    if (found := _find_jobs(target)) is not None:
        return found[0].job_of(definition, job_id)
    return SessionJob(_rows(target, Schema(schema)), job_id, definition)


def find_job_blocking(
    target: BlockingTarget, definition: Definition[R], job_id: int, schema: str
) -> BlockingJob[R]:
    """Return a job by its id; see `Task.job_blocking`."""
    return BlockingJob(target, Schema(schema), job_id, definition)


def find_home(target: Target) -> Target:
    """Return the store that a connection leads to, as long as it is lent."""
    store: Target | None = getattr(target, "checked_out_by", None)
    return target if _find_jobs(target) is None or store is None else store


def _find_jobs(target: Target) -> tuple[Jobs, Connection | None] | None:
    """Return the jobs of the store that a target leads to, and the connection."""
    jobs = getattr(target, "jobs", None)
    if isinstance(jobs, Jobs):
        return jobs, None
    if isinstance(target, TrioConnection):
        jobs = getattr(target.checked_out_by, "jobs", None)
        if isinstance(jobs, Jobs):
            return jobs, target
    return None


def _rows(target: Any, schema: Schema) -> AsyncRows:
    return AsyncRows(target, schema)


def _batch(calls: Sequence[Call[Any]]) -> SubmissionBatch:
    return SubmissionBatch(_submissions(calls))


def _submissions(calls: Sequence[Call[Any]], *, in_flow: bool = False) -> list[Submission]:
    return [build_submission(call, in_flow=in_flow) for call in calls]


def _schema_of(calls: Sequence[Call[Any]]) -> Schema:
    names = {call.options.get("schema", "tocsin") for call in calls}
    if len(names) > 1:
        raise ValueError(f"the calls name several schemas: {', '.join(sorted(names))}")
    return Schema(names.pop() if names else "tocsin")
