"""What a claim brought, opened as it is needed.

A run sends its next statement before it looks at the messages of the last one. So
making objects of them, which takes about as long as calling a handler, happens while
the server works.
"""

from __future__ import annotations

from collections import deque

import attrs

from tocsin._queue.message import Message, Row, Source
from tocsin.driver import Rows

from .leases import Leases

AT_A_TIME = 50
"""Messages that are decoded together."""


class ClaimedBatch:
    """The messages of a claim, in their order; each has a lease, which is noted among
    the consumer's when the message is decoded."""

    def __init__(
        self,
        rows: Rows,
        start: int,
        stop: int,
        source: Source,
        leases: Leases,
        vt: float,
        expires: float,
        *,
        kept: bool,
    ) -> None:
        self._rows = rows
        self._next = start
        self._stop = stop
        self._source = source
        self._leases = leases
        self._unpacked: deque[Message] = deque()
        self.vt = vt
        """Length of the leases in seconds."""
        self.expires = expires
        """When they end, by `lease_time`, not later than by the server's clock."""
        self.kept = kept
        """Whether a run keeps the leases alive."""
        if len(self):
            leases.expect(self)

    def __len__(self) -> int:
        return len(self._unpacked) + self._stop - self._next

    def take(self, count: int) -> list[Message]:
        """Take so many messages out, or fewer if there are not as many."""
        while len(self._unpacked) < count and self._next < self._stop:
            self._unpack(AT_A_TIME)
        return [self._unpacked.popleft() for _ in range(min(count, len(self._unpacked)))]

    def take_all(self) -> list[Message]:
        """Take all messages out."""
        return self.take(len(self))

    def decode(self) -> None:
        """Make the messages that are still to be taken out."""
        self._unpack(self._stop - self._next)

    def _unpack(self, count: int) -> None:
        stop = min(self._next + count, self._stop)
        source = self._source
        messages = [Message(row, source) for row in self._rows.load(self._next, stop)]
        self._next = stop
        self._unpacked += messages
        self._leases.note(messages, self, last=stop == self._stop)


@attrs.frozen
class ClaimResult:
    """What the rows of ``tocsin.claim`` are."""

    lost: set[int]
    """Ids of messages that were not archived: the first rows."""
    start: int
    """The first row with a message."""
    stop: int
    """The row after the last with a message."""
    last: Row | None
    """The last message."""
    looked: bool
    """Whether there was an end: a look has found fewer than asked for."""
    next_due: float | None
    """What the end says of when the next message is due, in seconds."""


def parse_claim_rows(rows: Rows, *, archived: bool) -> ClaimResult:
    """Find out what the rows are, without reading them all. ``archived``: something was
    to be archived."""
    lost: set[int] = set()
    start, stop = 0, len(rows)
    while (
        archived
        and start < stop
        and (row := rows.load(start, start + 1)[0])[1] is None
        and row[0] is not None
    ):
        lost.add(row[0])
        start += 1
    looked, next_due = False, None
    last = rows.load(stop - 1, stop)[0] if start < stop else None
    if last is not None and last[0] is None:
        looked, next_due = True, last[-1]
        stop -= 1
        last = rows.load(stop - 1, stop)[0] if start < stop else None
    return ClaimResult(lost, start, stop, last, looked, next_due)
