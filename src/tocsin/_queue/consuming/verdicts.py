"""What a handler raises to say what is to become of its message."""

from __future__ import annotations

from tocsin._durations import Duration, to_seconds

__all__ = ["Reject", "Retry", "Snooze", "Verdict"]


class Verdict(Exception):
    """Base of what a handler raises to decide about its message. Not an error: the log
    has no traceback of it."""


class Retry(Verdict):
    """Have the message delivered again ``after`` seconds, whatever the queue's backoff
    is. The delivery counts.

    After its last delivery the message becomes a dead letter all the same. Raised
    ``from`` an error, that error is kept with the message.
    """

    def __init__(self, after: Duration) -> None:
        super().__init__(after)
        self.after: float = to_seconds(after, "after", zero=True)
        """Seconds until the next delivery."""

    def __str__(self) -> str:
        return f"to be delivered again after {self.after:g} s"


class Snooze(Verdict):
    """Have the message delivered again after ``seconds``, at no cost: the delivery does
    not count, and no error is kept."""

    def __init__(self, seconds: Duration) -> None:
        super().__init__(seconds)
        self.seconds: float = to_seconds(seconds, "seconds", zero=True)
        """Seconds until the next delivery."""

    def __str__(self) -> str:
        return f"not yet; to be delivered again after {self.seconds:g} s"


class Reject(Verdict):
    """Make the message a dead letter at once, whatever deliveries it has left. The
    reason is kept as its error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Why no other delivery would help."""

    def __str__(self) -> str:
        return str(self.reason)
