"""Errors of tasks and of their jobs."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ._base import TocsinError

__all__ = [
    "ArgumentsInvalid",
    "Fault",
    "FlowInvalid",
    "FlowNotFound",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobTimedOut",
    "LimitNotFound",
    "ResultInvalid",
    "ScheduleInvalid",
    "ScheduleNotFound",
    "TaskUnknown",
    "ValueUnreadable",
]


@attrs.frozen
class Fault:
    """One thing that is wrong with a value."""

    path: str
    """Where in the value, as in ``$.order.items[3].price``; ``$`` is the whole."""
    reason: str
    """What is wrong there."""

    def __str__(self) -> str:
        return f"at {self.path}: {self.reason}"


class ArgumentsInvalid(TocsinError, ValueError):
    """Arguments that the task's function does not take. No job was submitted."""

    def __init__(self, task: str, faults: Sequence[Fault]) -> None:
        super().__init__(
            f"task {task} does not take these arguments: {'; '.join(map(str, faults))}"
        )
        self.task = task
        """Name of the task."""
        self.faults: tuple[Fault, ...] = tuple(faults)
        """All that is wrong; there is at least one."""
        self.path: str = self.faults[0].path
        """Where the first fault is, as in ``$.order.items[3].price``."""
        self.reason: str = self.faults[0].reason
        """What is wrong there."""


class ResultInvalid(TocsinError, ValueError):
    """A result that the return annotation does not allow, or that JSON cannot hold."""

    def __init__(self, task: str, faults: Sequence[Fault]) -> None:
        super().__init__(
            f"the result of task {task} cannot be kept: {'; '.join(map(str, faults))}",
            "return JSON values or attrs classes, and annotate what is returned",
        )
        self.task = task
        """Name of the task."""
        self.faults: tuple[Fault, ...] = tuple(faults)
        """All that is wrong; there is at least one."""
        self.path: str = self.faults[0].path
        """Where the first fault is."""
        self.reason: str = self.faults[0].reason
        """What is wrong there."""


class JobError(TocsinError):
    """The base of the errors that say that a job has no result."""

    def __init__(self, job_id: int, problem: str) -> None:
        super().__init__(problem)
        self.job_id = job_id
        """Id of the job."""


class JobFailed(JobError):
    """The job has failed, and is a dead letter."""

    def __init__(
        self, job_id: int, *, task: str, reason: str, attempts: int, error: str, traceback: str
    ) -> None:
        super().__init__(
            job_id, f"job {job_id} of task {task} has failed after {attempts} attempts: {error}"
        )
        self.task = task
        """Name of its task."""
        self.reason = reason
        """Why it has failed, as a code: see `DeadLetter.reason`."""
        self.attempts = attempts
        """How many attempts there were."""
        self.error = error
        """The error of the last attempt that had one, as text."""
        self.traceback = traceback
        """The traceback of that error on its worker; empty without one."""


class JobTimedOut(JobFailed):
    """The job has failed, and its last attempt has taken too long."""


class JobCancelled(JobError):
    """The job was cancelled."""

    def __init__(self, job_id: int, *, task: str, reason: str) -> None:
        super().__init__(job_id, f"job {job_id} of task {task} was cancelled: {reason}")
        self.task = task
        """Name of its task."""
        self.reason = reason
        """Why it was cancelled."""


class JobNotFound(JobError, LookupError):
    """No job has this id, or it was deleted."""

    def __init__(self, job_id: int) -> None:
        super().__init__(
            job_id,
            f"there is no job {job_id}; its queue may keep what is finished for a shorter time",
        )


class FlowInvalid(TocsinError, ValueError):
    """A flow that cannot be submitted. No job of it was submitted."""

    def __init__(
        self, problem: str, *, cycle: Sequence[str] = (), unknown: Sequence[str] = ()
    ) -> None:
        super().__init__(problem)
        self.cycle: tuple[str, ...] = tuple(cycle)
        """Names of jobs that wait for each other, the first one also as the last; empty
        when no jobs do."""
        self.unknown: tuple[str, ...] = tuple(unknown)
        """Names of jobs that are not in the flow; empty when all are."""


class FlowNotFound(TocsinError, LookupError):
    """No flow has this id, or it was deleted."""

    def __init__(self, flow_id: int) -> None:
        super().__init__(f"there is no flow {flow_id}")
        self.flow_id = flow_id
        """Id of the flow."""


class TaskUnknown(TocsinError, LookupError):
    """A task that no worker has registered."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"no worker has registered a task {task!r}",
            "start a worker that runs the task, once, or correct the name",
        )
        self.task = task
        """Name of the task."""


class ValueUnreadable(TocsinError):
    """Arguments or a result that the task's packing cannot return.

    They are in a payload store that does not have them or does not answer, or the codec
    cannot decode them. A worker that meets such arguments fails the attempt, so the
    retry policy decides; a wait for such a result can be repeated.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(
            f"a stored value of task {task} cannot be read: {reason}",
            "check the codec and the payload store of the task in this program",
        )
        self.task = task
        """Name of the task."""
        self.reason = reason
        """What the codec or the payload store has raised."""


class ScheduleInvalid(TocsinError, ValueError):
    """A schedule that could not tick. Nothing was changed."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        """What is wrong: ``zone``, ``every``, ``cron``, or one field of the expression,
        as in ``cron.hour``."""
        self.reason = reason
        """What is wrong with it."""


class ScheduleNotFound(TocsinError, LookupError):
    """There is no such schedule."""

    def __init__(self, schedule: str) -> None:
        super().__init__(f"there is no schedule {schedule!r}")
        self.schedule = schedule
        """Name of the schedule."""


class LimitNotFound(TocsinError, LookupError):
    """There is no such limit."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"there is no limit {limit!r}")
        self.limit = limit
        """Name of the limit."""
