"""The messages of a run that are still to be settled."""

from __future__ import annotations

from collections.abc import Container

import attrs

from tocsin._queue.message import Message

from .failure import Failure


@attrs.define
class Unsettled:
    """Messages of a run that are still to be settled, by the way of settlement."""

    to_archive: list[Message] = attrs.Factory(list)
    """Handled messages."""
    to_fail: list[tuple[Message, Failure]] = attrs.Factory(list)
    """Messages that have failed, been rejected or been snoozed."""
    to_release: list[Message] = attrs.Factory(list)
    """Messages that no handler has begun with; their delivery does not count."""

    def __bool__(self) -> bool:
        return bool(self.to_archive or self.to_fail or self.to_release)

    def messages(self) -> list[Message]:
        """Return all messages."""
        return [*self.to_archive, *(m for m, _ in self.to_fail), *self.to_release]

    def take(self, ids: Container[int]) -> Unsettled:
        """Take the messages with these ids out."""
        taken = Unsettled(
            [m for m in self.to_archive if m.id in ids],
            [(m, f) for m, f in self.to_fail if m.id in ids],
            [m for m in self.to_release if m.id in ids],
        )
        self.to_archive = [m for m in self.to_archive if m.id not in ids]
        self.to_fail = [(m, f) for m, f in self.to_fail if m.id not in ids]
        self.to_release = [m for m in self.to_release if m.id not in ids]
        return taken

    def take_all(self) -> Unsettled:
        """Take all messages out."""
        return self.take({m.id for m in self.messages()})

    def add(self, more: Unsettled) -> None:
        """Add these messages."""
        self.to_archive += more.to_archive
        self.to_fail += more.to_fail
        self.to_release += more.to_release
