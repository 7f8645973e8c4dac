"""How many handlers run at a time, over several runs that share the number.

The runs of one worker have a *share* of its slots each. A run reserves the slots of the
messages that it claims, so no message waits for a slot while its lease runs.

A free slot goes to the run with work whose *served* number is the smallest: the slots
that it had so far, divided by its weight. So runs that have work all the time get slots
in proportion to their weights, and a run alone gets all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Slots:
    """The slots for calls of handlers that the runs of one worker share."""

    def __init__(self, total: int) -> None:
        self.total = total
        """How many slots there are."""
        self.free: int = total
        """How many slots are neither taken nor reserved."""
        self.shares: list[Share] = []
        """The shares of runs that are going on."""
        self.served = 0.0
        """The served number of the run that had the last slot, before it had it."""

    def tell(self) -> None:
        """Have the runs take the free slots, the one whose turn it is first."""
        for share in sorted(self.shares, key=lambda share: share.served):
            share.on_free()


class Share:
    """One run's share of the slots."""

    def __init__(self, slots: Slots, weight: int) -> None:
        self.on_free: Callable[[], None] = _do_nothing
        self._slots = slots
        self._weight = weight
        self._served = 0.0
        self._reserved = 0
        self._wants: Callable[[], bool] = _never
        self._wanted = False

    @contextmanager
    def joined(self, wants: Callable[[], bool], on_free: Callable[[], None]) -> Iterator[None]:
        """Let a run take slots in the block.

        Args:
            wants: Returns whether the run has work for a further slot.
            on_free: Called when slots are free.
        """
        slots = self._slots
        self._wants, self.on_free = wants, on_free
        slots.shares.append(self)
        try:
            yield
        finally:
            slots.shares.remove(self)
            self._wants, self.on_free = _never, _do_nothing
            self.keep_reserved(0)
            slots.tell()

    @property
    def served(self) -> float:
        """The slots that the run had, by its weight.

        A run that was without work gets all slots once, and no more, before the other
        runs get theirs again.
        """
        slots = self._slots
        return max(self._served, slots.served - slots.total / self._weight)

    @property
    def alone(self) -> bool:
        """Whether this is the only run that has work for a slot, or claims messages."""
        rest = (share for share in self._slots.shares if share is not self)
        return not any(other._reserved or other._wants() for other in rest)

    @property
    def reserved(self) -> int:
        """The number of slots that are reserved for claimed messages."""
        return self._reserved

    def count_available(self) -> int:
        """Return the number of free slots whose turn is this run's."""
        slots = self._slots
        if not slots.free:
            return 0
        served = {s: s.served for s in slots.shares if s is self or s._wants()}
        if len(served) == 1:
            return slots.free
        available = 0
        for _ in range(slots.free):
            following = min(served, key=served.__getitem__)
            served[following] += 1 / following._weight
            available += following is self
        return available

    def check(self) -> None:
        """Tell the other runs when this one no longer has work for its turn."""
        wanted, self._wanted = self._wanted, self._wants()
        if wanted and not self._wanted and self._slots.free:
            self._slots.tell()

    def reserve(self, count: int) -> None:
        """Reserve slots for messages that are about to be claimed."""
        self._serve(count)
        self._reserved += count

    def keep_reserved(self, count: int) -> None:
        """Keep the reserved slots of this number of messages, and release the rest."""
        surplus = self._reserved - count
        if surplus > 0:
            self._reserved = count
            self._served -= surplus / self._weight
            self._slots.free += surplus
            self._slots.tell()

    def take(self) -> bool:
        """Take a slot for a call, a reserved one first; return whether there was."""
        if self._reserved:
            self._reserved -= 1
        elif self.count_available():
            self._serve(1)
        else:
            return False
        return True

    def release(self) -> None:
        """Release a slot."""
        self._slots.free += 1
        self._slots.tell()

    def _serve(self, count: int) -> None:
        if count:
            self._slots.served = self.served
            self._served = self.served + count / self._weight
            self._slots.free -= count


def _do_nothing() -> None:
    """Stand for a run that has not begun."""


def _never() -> bool:
    return False
