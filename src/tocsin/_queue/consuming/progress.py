"""The progress of messages that is to be written with the next extension of a lease.

Each message's progress is written at most once in `EVERY` seconds, however often it is
reported: later reports replace one that waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs

from tocsin._queue.message import Message

from .lease_clock import lease_time
from .leases import Leases

EVERY: Final = 1.0
"""Seconds between two writes of a message's progress."""


@attrs.define(eq=False)
class _Note:
    """The progress of one message."""

    message: Message
    waiting: str | None = None
    """What is to be written, as JSON; None: nothing."""
    due: float = -math.inf
    """When it may be written, by `lease_time`."""


class ProgressNotes:
    """The progress that the handlers of one consumer have reported."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._notes: dict[int, _Note] = {}

    def add(self, message: Message, progress: str) -> float:
        """Note a report, and return when it is to be written, by `lease_time`.

        The report of a message whose lease is gone is ignored.
        """
        if message not in self._leases:
            return math.inf
        note = self._notes.get(message.id)
        if note is None or note.message.lease_token != message.lease_token:
            note = self._notes[message.id] = _Note(message)
        note.waiting = progress
        return max(note.due, lease_time())

    def due_at(self, message: Message) -> float:
        """Return when a report of this message is to be written, by `lease_time`."""
        note = self._notes.get(message.id)
        return math.inf if note is None or note.waiting is None else note.due

    def take(self, messages: Sequence[Message]) -> list[str | None]:
        """Return the reports of these messages that wait, and count them as tried."""
        self._notes = {i: note for i, note in self._notes.items() if note.message in self._leases}
        notes = [self._notes.get(message.id) for message in messages]
        for note in notes:
            if note is not None:
                note.due = lease_time() + EVERY
        return [None if note is None else note.waiting for note in notes]

    def written(
        self,
        messages: Sequence[Message],
        taken: Sequence[str | None],
        extended: Sequence[bool | None],
    ) -> None:
        """Record that the reports of leases that were extended were written.

        A report that has come since waits.
        """
        for message, progress, ours in zip(messages, taken, extended, strict=True):
            note = self._notes.get(message.id)
            if ours and note is not None and note.waiting is progress:
                note.waiting = None


def progress_argument(taken: Sequence[str | None]) -> str | None:
    """Return reports as a JSON array; None: there is none."""
    if not any(taken):
        return None
    return f"[{','.join([progress or 'null' for progress in taken])}]"
