"""What a worker of jobs may be told about how it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypedDict

from .executor import Executor

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class JobWorkerOptions(TypedDict, total=False):
    """What `Store.worker` may be told about how the worker works."""

    concurrency: int
    """How many jobs run at a time, over all queues; 1 without."""
    threads: int | None
    """How many plain functions run in threads at a time. Without, as many as
    ``concurrency``, but at most 40."""
    processes: int | None
    """How many functions with ``runs="process"`` run at a time. Without, as many as the
    machine has processors."""
    executor: Executor | None
    """Runs these functions instead of trio-parallel. The program keeps it open until
    the block of the worker has ended."""
    lifespan: Lifespan | None
    """Returns a context manager, whose value functions reach as `CurrentJob.state`.
    Each run enters it first and leaves it last, and ends with its error."""
    queues: Mapping[str, int] | None
    """The queues that the worker serves, with their weights. While several of them have
    jobs that are due, the worker begins jobs of each in proportion to its weight.
    Without, it serves the queues of the tasks, with equal weights."""
    name: str | None
    """A name in the registry; one is made up without it."""
