"""Which of several hosts have not answered lately.

A connection string may name several hosts, and libpq tries them in its order each time.
While the first one is gone without a word, each new connection waits for it before it
tries the next. So a program that connects often remembers the hosts that ran into the
timeout, and tries them last for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio
from psycopg.abc import ConnDict

__all__ = ["AVOID_FOR", "Hosts"]

AVOID_FOR: Final = 30.0
"""Seconds for which a host that has not answered is tried last."""


class Hosts:
    """A memory of hosts that have not answered, for the connections of one program."""

    def __init__(self) -> None:
        self._silent_until: dict[tuple[str, ...], float] = {}

    def arrange(self, attempts: Iterable[ConnDict]) -> list[ConnDict]:
        """Return these attempts; hosts that have not answered lately come last."""
        now = trio.current_time()
        return sorted(
            attempts, key=lambda attempt: self._silent_until.get(_address(attempt), now) > now
        )

    def note_silence(self, attempt: ConnDict) -> None:
        """Record that the host of this attempt has not answered in time."""
        self._silent_until[_address(attempt)] = trio.current_time() + AVOID_FOR


def _address(attempt: ConnDict) -> tuple[str, ...]:
    return tuple(str(attempt.get(name, "")) for name in ("host", "hostaddr", "port"))
