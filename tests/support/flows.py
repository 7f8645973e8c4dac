"""Flows whose jobs end when a test says so, without a worker."""

from __future__ import annotations

from typing import Any

import tocsin
from tests.support import query

_LEASE = (
    "update tocsin.messages set state = 'leased', vt = now() + interval '1 h', lease = 1"
    " where id = any (%s)"
)
_ENDS = {
    True: b"select tocsin.archive(array[%s::bigint], array[1::bigint], '[1]')",
    False: b"select tocsin.fail(array[%s::bigint], '{1}', '{no}', '{none}', '{Infinity}')",
}


async def lease(dsn: str, *job_ids: int) -> None:
    """Lease these jobs, so that `end` can end them."""
    await query(dsn, _LEASE, list(job_ids))


async def end(connection: Any, job_id: int, *, succeeds: bool) -> None:
    """End a job that is leased, with the result 1 or as a dead letter."""
    await connection.execute(_ENDS[succeeds], [job_id])


async def states(store: tocsin.Store, flow: tocsin.Flow) -> dict[str, str]:
    """Return the states of a flow's jobs by name."""
    return {job.name: job.state for job in (await store.flows.get(flow.id)).jobs}
