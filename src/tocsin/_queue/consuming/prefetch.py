"""The *prefetched* messages, which a run has claimed before its handlers need them.

So handlers do not wait for the next claim. The buffer holds as many messages as the
handlers will finish during two statements, by the number that they have finished since
the last claim began; but never more than they finish in `HORIZON`. So a run with slow
handlers prefetches nothing, and other consumers can claim the next message at once.
Messages that still wait after `PATIENCE`, because handlers have become slow, are
released.
"""

from __future__ import annotations

import math
from collections import deque

from tocsin._queue.message import Message

from .claimed_batch import ClaimedBatch

HORIZON = 0.02
"""Seconds of work that may be prefetched."""
PATIENCE = 0.25
"""Seconds between two checks; a check finds messages that waited at the last one."""
MOST = 1000
"""The most messages that may be prefetched."""


class PrefetchBuffer:
    """The prefetched messages of one run.

    Times are of `trio.current_time`.
    """

    def __init__(self) -> None:
        self.calls_ended = 0
        """The number of messages whose calls have ended since the last claim began."""
        self.check_at = math.inf
        """The time of the next check whether messages have waited for too long."""
        self._batches: deque[ClaimedBatch] = deque()
        self._returned: list[Message] = []
        self._waiting = 0
        self._claim_began = -math.inf
        self._taken = 0
        self._marked = 0

    def __len__(self) -> int:
        return self._waiting

    def capacity(self, now: float) -> int:
        """Return the number of messages that may still be added."""
        elapsed = now - self._claim_began
        allowed = 2 * self.calls_ended
        if elapsed > HORIZON:
            allowed = int(allowed * HORIZON / elapsed)
        return min(allowed, MOST) - self._waiting

    def claim_begins(self, now: float) -> None:
        """Record that the next claim is sent."""
        self._claim_began = now
        self.calls_ended = 0

    def add(self, batch: ClaimedBatch, now: float) -> None:
        """Add the messages of a claim."""
        self._batches.append(batch)
        self._waiting += len(batch)
        if self.check_at == math.inf:
            self._mark(now)

    def take(self, count: int) -> list[Message]:
        """Take up to this many messages for a handler."""
        taken = self._returned[:count]
        del self._returned[:count]
        while len(taken) < count and self._batches:
            taken += self._batches[0].take(count - len(taken))
            if not self._batches[0]:
                self._batches.popleft()
        self._taken += len(taken)
        self._waiting -= len(taken)
        return taken

    def take_all(self) -> list[Message]:
        """Take all messages, to release them."""
        self.check_at = math.inf
        return self.take(self._waiting)

    def return_messages(self, messages: list[Message]) -> None:
        """Take back messages that were taken and could not be released."""
        self._returned = messages + self._returned
        self._waiting += len(messages)
        self._taken -= len(messages)
        self.check_at = -math.inf

    def waited_too_long(self, now: float) -> bool:
        """Return whether there are messages that were there `PATIENCE` ago."""
        if now < self.check_at:
            return False
        if self._waiting and self._taken < self._marked:
            return True
        self._mark(now)
        return False

    def _mark(self, now: float) -> None:
        self._marked = self._taken + self._waiting
        self.check_at = now + PATIENCE if self._waiting else math.inf
