"""Whose turn it is of several queues with weights, one job at a time."""

from __future__ import annotations

from collections.abc import Sequence


class Turns:
    """The turns of some queues, which are given by their numbers."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = weights
        self._served = [0.0] * len(weights)

    def order(self) -> list[int]:
        """Return the queues, the one whose turn it is first."""
        return sorted(range(len(self._served)), key=self._served.__getitem__)

    def served(self, number: int) -> None:
        """Record that a job of this queue has run; the queues ahead of it had none."""
        before = self._served[number]
        self._served = [max(served, before) for served in self._served]
        self._served[number] = before + 1 / self._weights[number]
