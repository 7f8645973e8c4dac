"""How many handlers run at a time, over several runs that share the number."""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """The slots for calls of handlers that the runs of one worker share.

    A run with a message and without a slot is told when one is free.
    """

    def __init__(self, total: int) -> None:
        self.free: int = total
        """How many slots are not taken."""
        self._on_free: list[Callable[[], None]] = []

    def share(self, on_free: Callable[[], None]) -> None:
        """Have a run told when a slot is free."""
        self._on_free.append(on_free)

    def leave(self, on_free: Callable[[], None]) -> None:
        """End what `share` began."""
        self._on_free.remove(on_free)

    def take(self) -> None:
        """Take a slot."""
        self.free -= 1

    def release(self) -> None:
        """Give a slot back, and tell the runs, the one that was told first last."""
        self.free += 1
        self._on_free[:] = self._on_free[1:] + self._on_free[:1]
        for on_free in self._on_free[:]:
            on_free()
