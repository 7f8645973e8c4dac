"""What a task is apart from its function, and a call of it."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

from .retrying import RetryPolicy
from .signature import Signature

R = TypeVar("R")


@attrs.frozen(kw_only=True)
class TaskOptions:
    """How the jobs of a task are run, unless a call says otherwise."""

    queue: str
    """The queue of its jobs."""
    max_attempts: int
    """After how many attempts a job that fails becomes a dead letter."""
    timeout: float | None
    """Seconds that an attempt may take; None: any number."""
    retry: RetryPolicy
    """When a job that has failed is tried again."""
    priority: int
    """Smaller numbers are run first."""
    description: str
    """What the task does, for people."""


@attrs.frozen
class Definition(Generic[R]):
    """A task without its function: what a job of it needs to be submitted and read."""

    name: str
    """Name of the task in the database."""
    options: TaskOptions
    """How its jobs are run."""
    signature: Signature = attrs.field(repr=False)
    """Its parameters and its result."""


@attrs.frozen
class Call(Generic[R]):
    """A call of a task that is to be submitted; made by `Task.call`."""

    definition: Definition[R]
    """The task."""
    arguments: str = attrs.field(repr=False)
    """The arguments by name, as JSON."""
