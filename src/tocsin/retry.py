"""How long to wait before trying again to reach the database."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST = 0.05
"""Longest first wait, in seconds."""
LONGEST = 2.0
"""Longest wait of all, in seconds: shorter than the ten that a server is up before anyone is declared dead (``processes.sql``)."""


def delays() -> Iterator[float]:
    """Yield waits in seconds, growing, each drawn at random so that the processes of a whole fleet do not come back in step."""
    longest = FIRST
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(LONGEST, longest * 2)
