"""Errors of messages."""

from __future__ import annotations

from ._base import TocsinError

__all__ = [
    "KeyConflict",
    "KeyTaken",
    "LeaseLost",
    "MessageNotFound",
    "MessageNotWaiting",
    "RateLimited",
]


class LeaseLost(TocsinError):
    """A message whose lease this consumer does not hold.

    The lease expired or was given to another consumer, or the message is settled
    already. Nothing was changed.
    """

    def __init__(self, message_id: int, operation: str) -> None:
        super().__init__(
            f"cannot {operation} message {message_id}: it is already settled, or its lease is lost",
            "extend leases in time or give the queue a longer visibility timeout (vt)",
        )
        self.message_id = message_id
        """Id of the message."""
        self.operation = operation
        """What was refused: archive, delete, release or extend."""


class MessageNotFound(TocsinError):
    """A message that does not exist.

    No message has this id, or none in the state that was asked for, or no unfinished
    message has this key.
    """

    def __init__(
        self,
        problem: str,
        advice: str = "",
        *,
        message_id: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(
            problem, advice or "it may have been deleted, purged or replayed since it was listed"
        )
        self.message_id = message_id
        """The id asked for; None where a key was."""
        self.key = key
        """The key asked for; None where an id was."""


class MessageNotWaiting(TocsinError):
    """A message that cannot be changed, since a worker holds it or it is finished.

    Nothing was changed.
    """

    def __init__(self, problem: str, advice: str = "", *, message_id: int, state: str) -> None:
        super().__init__(problem, advice)
        self.message_id = message_id
        """The message's id."""
        self.state = state
        """Its state: ``"leased"``, ``"dead"`` or ``"archived"``; ``"ready"``,
        ``"delayed"`` or ``"held"`` when it changed at the same moment."""


class KeyTaken(TocsinError):
    """Dead letters that cannot be replayed, since unfinished messages have their keys.

    None was replayed.
    """

    def __init__(self, problem: str, advice: str = "", *, ids: tuple[int, ...]) -> None:
        super().__init__(problem, advice)
        self.ids = ids
        """Ids of the dead letters whose keys are taken."""


class KeyConflict(TocsinError):
    """An unfinished job of another task, or a plain message, has the key of a new job.

    Or a job has the key of a new plain message. Nothing was enqueued.
    """

    def __init__(
        self, problem: str, advice: str = "", *, key: str, message_id: int, task: str | None
    ) -> None:
        super().__init__(problem, advice)
        self.key = key
        """The key."""
        self.message_id = message_id
        """Id of the message that has it."""
        self.task = task
        """Name of that message's task; None for a plain message."""


class RateLimited(TocsinError):
    """A call beyond the rate limit of its producer.

    Nothing was enqueued.
    """

    def __init__(self, per_second: float, retry_after: float) -> None:
        super().__init__(
            f"this producer is limited to {per_second:g} messages per second",
            f"try again in {retry_after:.3f} s, or let the producer wait, with RateLimit(...,"
            " wait=True)",
        )
        self.per_second = per_second
        """Its limit."""
        self.retry_after = retry_after
        """Seconds after which the same call is admitted, unless another call of this
        producer comes first."""
