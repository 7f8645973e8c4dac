"""What a task is apart from its function, a call of it, and what a call may choose."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

import attrs

from tocsin._durations import Duration

from .limits import Limiting, describe_limits, write_limits
from .packing import Packing
from .planned import Link
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
    limits: tuple[Limiting, ...]
    """How many of its jobs run at a time, and how many become due in an interval."""
    description: str
    """What the task does, for people."""
    runs: Literal["task", "thread", "process"]
    """Where its function runs: an async one in a task of the worker, a plain one in a
    thread or in a process."""


@attrs.frozen
class Definition(Generic[R]):
    """A task without its function: what a job of it needs to be submitted and read."""

    name: str
    """Name of the task in the database."""
    options: TaskOptions
    """How its jobs are run."""
    signature: Signature = attrs.field(repr=False)
    """Its parameters and its result."""
    packing: Packing | None = None
    """How its arguments and results are stored; None: as JSON."""

    def read_result(self, form: object) -> R:
        """Return a result that was stored; a payload store may block.

        Raises:
            ValueUnreadable: The packing cannot return it.
            ResultInvalid: It is not what the return annotation says.
        """
        if self.packing is not None:
            form = self.packing.unpack(self.name, form)
        return cast(R, self.signature.read_result(form))


def describe_definition(definition: Definition[Any]) -> dict[str, object]:
    """Return a task as ``tocsin.register_tasks`` takes it."""
    options = definition.options
    return {
        "name": definition.name,
        "queue": options.queue,
        "max_deliveries": options.max_attempts,
        "priority": options.priority,
        "timeout": options.timeout,
        "limits": describe_limits(options.limits, definition.signature),
        "description": options.description,
    }


class SubmitOptions(TypedDict, total=False):
    """What a call of a task may choose; without a choice it is as the task says."""

    delay: Duration | None
    """Seconds until the job is due."""
    at: datetime | None
    """Time at which the job is due, with its zone."""
    priority: int | None
    """Smaller numbers are run first."""
    headers: object
    """Any JSON value."""
    key: str | None
    """At most one unfinished job of the queue has it; a second submission returns the
    first job."""
    expires_in: Duration | None
    """Seconds after which a job that has not begun becomes a dead letter."""
    max_attempts: int | None
    """After how many attempts a job that fails becomes a dead letter."""
    timeout: Duration | None
    """Seconds that an attempt may take."""
    queue: str | None
    """Name of the queue."""
    schema: str
    """Where Tocsin is installed, for a connection as target (``tocsin``); a store knows
    that."""


@attrs.frozen
class Call(Generic[R]):
    """A call of a task that is to be submitted; made by `Task.call`."""

    definition: Definition[R]
    """The task."""
    arguments: str = attrs.field(repr=False)
    """The arguments by name, as JSON."""
    limits: tuple[Mapping[str, object], ...] = attrs.field(default=(), repr=False)
    """The limits of the job, with their keys."""
    options: SubmitOptions = attrs.field(factory=SubmitOptions)
    """What the call has chosen; see `Task.using`."""
    links: tuple[Link, ...] = ()
    """Arguments that are results of planned jobs; only a flow takes a call with any."""


def check_call(call: object) -> None:
    """Check that this is a call of a task.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(call, Call):
        raise TypeError(f"a job is a call of a task, as Task.call returns it, not {call!r}")


def make_call(
    definition: Definition[R], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Call[R]:
    """Return a call of a task.

    Raises:
        ArgumentsInvalid: The function does not take these arguments.
    """
    arguments, links = definition.signature.write_arguments(args, kwargs)
    limits = tuple(write_limits(definition.options.limits, definition.signature, args, kwargs))
    return Call(definition, arguments, limits, links=links)
