"""The end of several runs of one worker, when nothing is left to do in any queue.

A handler may enqueue messages into the queue of another run. So a run that finds
nothing goes on until all of them have, and what a run has found before another one was
busy does not count.
"""

from __future__ import annotations

from typing import Final, Protocol

NOTHING_LEFT: Final = "nothing is left to do"
"""The reason of the end of a run with ``once=True``."""


class EndsJointly(Protocol):
    """A run that may end with other runs."""

    def end(self, reason: str) -> None:
        """Take no more messages, and end when the handlers have."""

    def claim_again(self) -> None:
        """Find out whether there is anything to do."""


class JointEnd:
    """The end of runs that end together."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        """The runs that have not ended, or are still to begin."""

    def add(self) -> Member:
        """Have a run end with the other runs; it may begin later."""
        member = Member(self)
        self.members.append(member)
        return member

    def end_if_idle(self) -> None:
        """End the runs if none of them has anything left to do."""
        if all(member.idle for member in self.members):
            for member in self.members:
                member.end()


class Member:
    """One run of a `JointEnd`."""

    def __init__(self, joint_end: JointEnd) -> None:
        self.idle = False
        """Whether it has found nothing since the other runs were busy."""
        self._joint_end = joint_end
        self._run: EndsJointly | None = None
        self._worked = False

    def begin(self, run: EndsJointly) -> None:
        """Record that the run has begun."""
        self._run = run

    def leave(self) -> None:
        """Record that the run has ended."""
        self._joint_end.members.remove(self)
        self._joint_end.end_if_idle()

    def end(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.end(NOTHING_LEFT)

    def found_work(self) -> None:
        """Record that the run has claimed messages."""
        self.idle, self._worked = False, True

    def found_nothing(self) -> None:
        """Record that the run has nothing left to do; end all if none of them has."""
        others = [member for member in self._joint_end.members if member is not self]
        if self._worked:
            for other in others:
                other.idle = False
            self._worked = False
        self.idle = True
        self._joint_end.end_if_idle()
        for other in others:
            if not other.idle and other._run is not None:
                other._run.claim_again()
