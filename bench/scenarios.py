"""The scenarios, by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import (
    blocked,
    commands,
    comparison,
    concurrent,
    delayed,
    drain,
    enqueue,
    flat,
    herd,
    idle,
    jobs,
    kill,
    memory,
    metrics,
    returning,
    steady,
    wakeup,
)
from .frame import Scenario

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "drain": drain.measure,
        "returning": returning.measure,
        "enqueue": enqueue.measure,
        "enqueue_batch": enqueue.measure_batch,
        "enqueue_concurrent": concurrent.measure,
        "peers": comparison.measure,
        "grid": comparison.measure_grid,
        "wakeup": wakeup.measure,
        "steady": steady.measure,
        "memory": memory.measure,
        "flat": flat.measure,
        "herd": herd.measure,
        "idle": idle.measure,
        "kill": kill.measure,
        "commands": commands.measure,
        "delayed": delayed.measure,
        "metrics": metrics.measure,
        "jobs": jobs.measure,
        "job_result": jobs.measure_results,
        "blocked": blocked.measure,
    }
)
NOT_BY_DEFAULT = frozenset(("enqueue_concurrent", "herd", "idle"))
"""Scenarios that need more than a server's default settings: more than a hundred
connections, or pg_stat_statements."""
