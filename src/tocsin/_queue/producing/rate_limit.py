"""The rate limit of a producer: a token bucket.

The bucket holds up to ``burst`` tokens and gains ``per_second`` of them each second; a
message takes one. The bucket is kept as the time when it will be full again, so nothing
has to be counted up as time passes, and a time that was named once stays right.

- A batch takes its tokens together. A batch that is larger than the bucket goes when
  the bucket is full, and *borrows* the rest: the next call waits until that is paid
  back. So a batch of any size is possible, and the rate is kept.
- The tokens are taken when the message has passed its checks, before it is sent. A
  message that is refused before that costs no token; one that fails after that has cost
  the database its work, and keeps its token.
- Calls that wait do so in their order, also behind a large batch. A call that gives up
  lets the next one move up.

`Bucket` decides, `Limiter` waits. Times are of `trio.current_time`.
"""

from __future__ import annotations

import math

import attrs
import trio

from tocsin.errors import RateLimited


def _positive(limit: RateLimit, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive number, not {value}")


def _at_least_one(limit: RateLimit, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and value < 1:
        raise ValueError(
            f"{attribute.name} must be at least 1, not {value}: one message could never be enqueued"
        )


@attrs.frozen
class RateLimit:
    """The rate at which a producer may enqueue; for `Store.producer`.

    Each producer object has a bucket of its own.
    """

    per_second: float = attrs.field(validator=_positive)
    """Messages per second in the long run."""
    burst: float | None = attrs.field(default=None, validator=[_positive, _at_least_one])
    """Messages that may be enqueued at once after a pause.

    None: those of one second, at least one.
    """
    wait: bool = False
    """Whether a call that comes too early waits for its turn.

    Otherwise it raises `RateLimited`.
    """

    @property
    def size(self) -> float:
        """How many tokens the bucket holds when it is full."""
        return max(1.0, self.per_second) if self.burst is None else self.burst


class Bucket:
    """The tokens of one producer."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._full_at = -math.inf

    def admits_at(self, count: int) -> float:
        """Return the time from which this many messages may be sent.

        It holds if no call takes tokens until then.
        """
        if count == 0:
            return -math.inf
        return (
            self._full_at
            - (self._limit.size - min(count, self._limit.size)) / self._limit.per_second
        )

    def take(self, count: int, now: float) -> None:
        """Take this many tokens; those that are not there are borrowed."""
        self._full_at = max(self._full_at, now) + count / self._limit.per_second


class Limiter:
    """The admission of the calls of one producer."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._bucket = Bucket(limit)
        self._queue = trio.StrictFIFOLock()

    async def admit(self, count: int) -> None:
        """Take the tokens for this many messages, at once or after waiting for them.

        This is a checkpoint only where the limit says to wait.

        Raises:
            RateLimited: The call comes too early, and the limit does not say to wait.

        Cancellation:
            No token was taken.
        """
        if not self._limit.wait:
            early = self._bucket.admits_at(count) - trio.current_time()
            if early > 0:
                raise RateLimited(self._limit.per_second, early)
            self._bucket.take(count, trio.current_time())
            return
        async with self._queue:
            await trio.sleep_until(self._bucket.admits_at(count))
            self._bucket.take(count, trio.current_time())

    def borrow(self, count: int) -> None:
        """Take tokens for messages that were sent already."""
        self._bucket.take(count, trio.current_time())
