"""The result of a claim, decoded as it is needed.

A run sends its next statement before it decodes the messages of the last one. So they
are decoded, which takes about as long as calling a handler, while the server works.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from tocsin._queue.message import ID, KIND, Message, Row, Source
from tocsin.driver import Rows

AT_A_TIME = 50
"""The number of messages that are decoded together."""


@attrs.frozen
class LeaseTerms:
    """The terms that the leases of one claim have in common."""

    vt: float
    """Their length in seconds."""
    expires: float
    """Their end by `lease_time`, not later than by the server's clock."""
    auto_extend: bool
    """Whether a run extends them; else the caller of `Consumer.dequeue` does."""

    @property
    def since(self) -> float:
        """The time of the claim, by `lease_time`."""
        return self.expires - self.vt


class ClaimedBatch:
    """The messages of a claim, in their order."""

    def __init__(
        self,
        rows: Rows,
        result: ClaimResult,
        source: Source,
        terms: LeaseTerms,
        on_decoded: Callable[[ClaimedBatch, list[Message]], None],
    ) -> None:
        self.terms = terms
        self._rows = rows
        self._next = result.start
        self._stop = result.stop
        self._source = source
        self._on_decoded = on_decoded
        self._decoded: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._decoded) + self._stop - self._next

    def ids(self) -> list[int]:
        """Return the ids of the messages that are still to be taken out."""
        rows = self._rows.load(self._next, self._stop)
        return [*(m.id for m in self._decoded), *(row[ID] for row in rows)]

    @property
    def is_decoded(self) -> bool:
        """Whether all of its messages are decoded."""
        return self._next == self._stop

    def take(self, count: int) -> list[Message]:
        """Take up to this many messages out."""
        while len(self._decoded) < count and self._next < self._stop:
            self._decode(AT_A_TIME)
        return [self._decoded.popleft() for _ in range(min(count, len(self._decoded)))]

    def take_all(self) -> list[Message]:
        """Take all messages out."""
        return self.take(len(self))

    def decode(self) -> None:
        """Decode the messages that are still to be taken out."""
        self._decode(self._stop - self._next)

    def _decode(self, count: int) -> None:
        stop = min(self._next + count, self._stop)
        source = self._source
        messages = [Message(row, source) for row in self._rows.load(self._next, stop)]
        self._next = stop
        self._decoded += messages
        self._on_decoded(self, messages)


@attrs.frozen
class ClaimResult:
    """The parts of the rows of ``tocsin.claim``."""

    lost: set[int]
    """Ids of messages that were not archived: the first rows."""
    start: int
    """The first row with a message."""
    stop: int
    """The row after the last with a message."""
    last: Row | None
    """The last message."""
    ended: bool
    """Whether the last row says that a full scan found fewer than asked for."""
    held_up: bool
    """Whether messages are ready that an ordered claim may not have yet."""
    next_due: float | None
    """Seconds until the next message is due, if the last row says so."""


def parse_claim_rows(rows: Rows, *, archived: bool) -> ClaimResult:
    """Find the parts of the rows, without reading them all.

    Args:
        rows: The rows of ``tocsin.claim``.
        archived: Whether something was to be archived.
    """
    lost: set[int] = set()
    start, stop = 0, len(rows)
    while archived and start < stop and (row := rows.load(start, start + 1)[0])[KIND] == "lost":
        lost.add(row[ID])
        start += 1
    end: Row | None = None
    last = rows.load(stop - 1, stop)[0] if start < stop else None
    if last is not None and last[KIND] != "message":
        end = last
        stop -= 1
        last = rows.load(stop - 1, stop)[0] if start < stop else None
    return ClaimResult(
        lost,
        start,
        stop,
        last,
        ended=end is not None,
        held_up=end is not None and end[KIND] == "held_up",
        next_due=None if end is None else end[-1],
    )
