"""How many messages a run may claim: by its handlers, its slots and its limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from .handlers import HandlerOptions
from .prefetch import PrefetchBuffer
from .run import Run


class Capacity:
    """The room for further messages of one run."""

    def __init__(self, run: Run, prefetch: PrefetchBuffer, options: HandlerOptions) -> None:
        self.prefetch = prefetch
        """The messages that wait for a handler."""
        limit = options.worker.limit
        self._left = math.inf if limit is None else limit
        self._run = run
        self._options = options

    @property
    def used_up(self) -> bool:
        """Whether the run has claimed as many messages as it may."""
        return self._left <= 0

    def count(self, now: float) -> int:
        """Return the number of messages that the run may claim."""
        options, prefetch = self._options, self.prefetch
        share = options.worker.share
        if share is not None:
            share.check()
            free = share.count_available()
        else:
            free = options.concurrency - len(self._run.calls)
        capacity = free * options.size
        if options.ordered:
            capacity -= len(prefetch)
        elif share is None or share.alone:
            capacity += prefetch.capacity(now)
        return int(min(capacity, self._left))

    def wants_slot(self) -> bool:
        """Return whether the run has, or may have, a message without a slot."""
        share, run = self._options.worker.share, self._run
        assert share is not None
        more = run.waiter.wake_pending or len(self.prefetch) > share.reserved
        return more and run.may_claim and not self.used_up

    @contextmanager
    def reserving(self, count: int) -> Iterator[None]:
        """Reserve slots while messages are claimed; the claimed ones keep theirs."""
        share, before = self._options.worker.share, len(self.prefetch)
        if share is not None:
            share.reserve(min(count, share.count_available()))
        try:
            yield
        finally:
            self._left -= len(self.prefetch) - before
            self.release_unused()

    def release_unused(self) -> None:
        """Release the slots that are reserved for more messages than wait."""
        if self._options.worker.share is not None:
            self._options.worker.share.keep_reserved(len(self.prefetch))
