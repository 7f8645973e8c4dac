"""Errors of workers: their states, and the end of their runs."""

from __future__ import annotations

from ._base import TocsinError

__all__ = [
    "PendingMessages",
    "ProcessDeclaredDead",
    "StateTransitionError",
    "Suspended",
    "WorkerNotFound",
    "WorkerStopped",
]


class Suspended(TocsinError):
    """The end of a consumer's run.

    `Consumer.handle` and its siblings end with it; it does not mean a failure. After an
    interrupt the worker is suspended, and cannot begin another run before ``resume()``.
    After ``once=True`` it is ready, and after a stop from outside it is stopped.
    """

    def __init__(self, reason: str, *, handled: int, released: int, failed: int = 0) -> None:
        super().__init__(
            f"{reason}; {handled} handled, {f'{failed} failed, ' if failed else ''}{released}"
            " released"
        )
        self.reason = reason
        """The cause of the end of the run, in words."""
        self.handled = handled
        """How many messages this run has archived, deleted or released. A snoozed one
        counts nowhere."""
        self.failed = failed
        """How many deliveries of this run have failed: those messages came back, or
        became dead letters."""
        self.released = released
        """How many messages went back to the queue because the run ended before they
        were settled."""


class StateTransitionError(TocsinError):
    """A change of a worker's state that its present state does not allow."""

    def __init__(
        self,
        problem: str,
        advice: str = "",
        *,
        from_: str,
        to: str | None,
        code: str,
        reason: str,
        worker_id: int,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(problem, advice)
        self.retry_after = retry_after
        """Seconds after which the change may succeed, because the worker's process
        seems dead; None if unknown."""
        self.from_ = from_
        """The state it is in."""
        self.to = to
        """The state that was wanted; None for a deletion or a heartbeat."""
        self.code = code
        """Why not, as a code: ``wrong_state`` (the wanted state cannot be reached from
        this one), ``not_active`` (only a ready or polling worker may do that),
        ``name_in_use``, ``not_stopped`` (only a stopped worker can be deleted) or
        ``registration_ended``."""
        self.reason = reason
        """Why not, in words."""
        self.worker_id = worker_id
        """Id of the worker."""


class WorkerStopped(StateTransitionError):
    """A worker that is stopped: shut down, or declared dead.

    Register it again.
    """


class ProcessDeclaredDead(TocsinError):
    """The death of this process, as another process has declared it.

    This process registers again by itself. The error never reaches a user.
    """


class PendingMessages(TocsinError):
    """A worker that is not suspended or shut down, since it holds messages.

    Settle or release them, or ask for release or drain.
    """

    def __init__(self, problem: str, advice: str = "", *, count: int, worker_id: int) -> None:
        super().__init__(problem, advice)
        self.count = count
        """How many messages it holds."""
        self.worker_id = worker_id
        """Id of the worker."""


class WorkerNotFound(TocsinError):
    """A worker that does not exist."""

    def __init__(self, problem: str, advice: str = "", *, worker_id: int) -> None:
        super().__init__(problem, advice)
        self.worker_id = worker_id
        """The id asked for."""
