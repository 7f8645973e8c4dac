"""Values that each trio run has for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class RunLocal(Generic[T]):
    """A value of the current trio run, which is made when it is first asked for."""

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._var: trio.lowlevel.RunVar[T] = trio.lowlevel.RunVar(name)
        self._make = make

    def get(self) -> T:
        """Return the value of this trio run."""
        try:
            return self._var.get()
        except LookupError:
            self._var.set(value := self._make())
            return value
