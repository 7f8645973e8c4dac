"""The verdicts, which a handler raises to decide about its message."""

from __future__ import annotations

from typing import Literal

from tocsin._durations import Duration, to_seconds

__all__ = ["AttemptFailed", "Reject", "Retry", "Snooze", "Verdict"]


class Verdict(Exception):
    """The base of the exceptions that a handler raises to decide about its message.

    A verdict is not an error: the log has no traceback of it.
    """


class Retry(Verdict):
    """The verdict to deliver the message again ``after`` seconds.

    The queue's backoff does not matter. The delivery counts, and after its last
    delivery the message becomes a dead letter all the same. If a handler raises the
    verdict ``from`` an error, that error is kept with the message.
    """

    def __init__(self, after: Duration) -> None:
        super().__init__(after)
        self.after: float = to_seconds(after, "after", zero=True)
        """Seconds until the next delivery."""

    def __str__(self) -> str:
        return f"to be delivered again after {self.after:g} s"


class Snooze(Verdict):
    """The verdict to deliver the message again after ``seconds``, at no cost.

    The delivery does not count, and no error is kept.
    """

    def __init__(self, seconds: Duration) -> None:
        super().__init__(seconds)
        self.seconds: float = to_seconds(seconds, "seconds", zero=True)
        """Seconds until the next delivery."""

    def __str__(self) -> str:
        return f"not yet; to be delivered again after {self.seconds:g} s"


class Reject(Verdict):
    """The verdict to make the message a dead letter at once.

    The deliveries that it has left do not matter. The reason is kept as its error.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """The reason why no other delivery would help."""

    def __str__(self) -> str:
        return str(self.reason)


class FailedInProcess(Verdict):
    """Have the message of a job fail as the process has said that ran its function.

    Its cause has the traceback, which Python prints with it.
    """

    def __init__(
        self,
        outcome: Literal["handler_failed", "timed_out", "rejected", "snoozed"],
        delay: float | None,
        text: str | None,
        trace: str | None,
    ) -> None:
        super().__init__(text)
        self.outcome: Literal["handler_failed", "timed_out", "rejected", "snoozed"] = outcome
        """What has happened, as a code."""
        self.delay = delay
        """Seconds until the next delivery; None: by the queue's backoff."""
        self.text = text
        """The error in one text."""
        self.trace = trace
        """Its traceback."""
        if trace is not None:
            self.__cause__ = ProcessTraceback(trace)


class ProcessTraceback(Exception):
    """The traceback of an error in another process, as the cause of its report."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class AttemptFailed(Verdict):
    """Have the message of a job fail as the task's retry policy says.

    It is raised from the error of the attempt.
    """

    def __init__(self, outcome: Literal["handler_failed", "timed_out"], delay: float) -> None:
        super().__init__(outcome, delay)
        self.outcome: Literal["handler_failed", "timed_out"] = outcome
        """What has happened, as a code."""
        self.delay = delay
        """Seconds until the next attempt; infinity: none."""
