"""What is to become of the messages that handlers were called for."""

from __future__ import annotations

from collections.abc import Container

import attrs

from tocsin._queue.message import Message

from .failure import Failure


@attrs.define
class Outcomes:
    """Messages of a run that are still to be settled, by what is to become of them."""

    to_archive: list[Message] = attrs.Factory(list)
    """Handled."""
    to_fail: list[tuple[Message, Failure]] = attrs.Factory(list)
    """Failed, rejected or snoozed."""
    to_requeue: list[Message] = attrs.Factory(list)
    """No handler has begun with them; their delivery does not count."""

    def __bool__(self) -> bool:
        return bool(self.to_archive or self.to_fail or self.to_requeue)

    def messages(self) -> list[Message]:
        """Return all of them."""
        return [*self.to_archive, *(m for m, _ in self.to_fail), *self.to_requeue]

    def take(self, ids: Container[int]) -> Outcomes:
        """Take those with these ids out."""
        taken = Outcomes(
            [m for m in self.to_archive if m.id in ids],
            [(m, f) for m, f in self.to_fail if m.id in ids],
            [m for m in self.to_requeue if m.id in ids],
        )
        self.to_archive = [m for m in self.to_archive if m.id not in ids]
        self.to_fail = [(m, f) for m, f in self.to_fail if m.id not in ids]
        self.to_requeue = [m for m in self.to_requeue if m.id not in ids]
        return taken

    def take_all(self) -> Outcomes:
        """Take all of them out."""
        return self.take({m.id for m in self.messages()})

    def add(self, more: Outcomes) -> None:
        """Add these."""
        self.to_archive += more.to_archive
        self.to_fail += more.to_fail
        self.to_requeue += more.to_requeue
