"""Errors of queues."""

from __future__ import annotations

from ._base import TocsinError

__all__ = ["QueueAlreadyExists", "QueueBusy", "QueueNotEmpty", "QueueNotFound"]


class QueueNotFound(TocsinError):
    """A queue that does not exist."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue {queue!r} does not exist",
            f"create it first, for example with store.queues.ensure({queue!r})",
        )
        self.queue = queue
        """The name asked for."""


class QueueAlreadyExists(TocsinError):
    """A queue that exists already."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue {queue!r} exists already", f"use store.queues.ensure({queue!r}) if that is fine"
        )
        self.queue = queue
        """The name asked for."""


class QueueNotEmpty(TocsinError):
    """A queue that is not deleted, since it has workers or unfinished messages.

    Nothing was changed.
    """

    def __init__(
        self, problem: str, advice: str = "", *, queue: str, workers: int, messages: int
    ) -> None:
        super().__init__(problem, advice)
        self.queue = queue
        """Name of the queue."""
        self.workers = workers
        """How many workers it has that are not stopped."""
        self.messages = messages
        """How many unfinished messages it has: ready, delayed, held or leased."""


class QueueBusy(TocsinError):
    """A queue that is not deleted, since transactions used it for ten seconds.

    Nothing was changed; try again.
    """

    def __init__(self, problem: str, advice: str = "", *, queue: str) -> None:
        super().__init__(problem, advice)
        self.queue = queue
        """Name of the queue."""
