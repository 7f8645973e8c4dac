"""What cannot be settled yet, since another transaction has locked its message's row:
it waits here, and stops nothing else."""

from __future__ import annotations

import math
from collections.abc import Container

import attrs

from tocsin._queue.message import Message

from .failure import Failure

LOOK_AFTER = 1.0
"""Seconds between two looks whether rows are still locked."""


@attrs.define
class Unsettled:
    """Messages of a run that are to be settled, by what is to become of them."""

    done: list[Message] = attrs.Factory(list)
    """Handled; to be archived."""
    failed: list[tuple[Message, Failure]] = attrs.Factory(list)
    """Failed; to be given back or buried."""
    over: list[Message] = attrs.Factory(list)
    """Not handled; to be given back, uncounted."""

    def __bool__(self) -> bool:
        return bool(self.done or self.failed or self.over)

    def messages(self) -> list[Message]:
        """Return all of them."""
        return [*self.done, *(m for m, _ in self.failed), *self.over]

    def take(self, ids: Container[int]) -> Unsettled:
        """Take those with these ids out."""
        taken = Unsettled(
            [m for m in self.done if m.id in ids],
            [(m, f) for m, f in self.failed if m.id in ids],
            [m for m in self.over if m.id in ids],
        )
        self.done = [m for m in self.done if m.id not in ids]
        self.failed = [(m, f) for m, f in self.failed if m.id not in ids]
        self.over = [m for m in self.over if m.id not in ids]
        return taken

    def add(self, more: Unsettled) -> None:
        """Add others."""
        self.done += more.done
        self.failed += more.failed
        self.over += more.over


@attrs.define
class SetAside(Unsettled):
    """See the module."""

    look_at: float = math.inf
    """When to look whether their rows are still locked (`trio.current_time`)."""
