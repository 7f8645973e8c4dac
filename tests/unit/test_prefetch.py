"""How many messages a run prefetches for its handlers."""

from __future__ import annotations

import math
from typing import Any

from tocsin._queue.consuming import prefetch
from tocsin._queue.consuming.prefetch import HORIZON, MOST, PrefetchBuffer


class ClaimedBatch(list[int]):
    """Numbers instead of messages."""

    def take(self, count: int) -> list[int]:
        taken = self[:count]
        del self[:count]
        return taken


def messages(count: int) -> Any:
    return ClaimedBatch(range(count))


def numbers(taken: list[Any]) -> list[int]:
    return taken


def test_nothing_is_claimed_ahead_before_anything_is_finished() -> None:
    assert PrefetchBuffer().capacity(0) == 0


def test_as_many_as_are_finished_during_two_statements_but_not_more_than_a_horizon_of_work() -> (
    None
):
    claims = PrefetchBuffer()
    claims.claim_begins(1)
    claims.calls_ended = 100
    assert claims.capacity(1 + HORIZON / 2) == 200
    assert claims.capacity(1 + 10 * HORIZON) == 20
    assert claims.capacity(1 + 1000 * HORIZON) == 0
    claims.add(messages(50), 1)
    assert claims.capacity(1) == 150
    claims.calls_ended = 10 * MOST
    assert claims.capacity(1) == MOST - 50
    claims.claim_begins(2)
    assert claims.capacity(2) == -50


def test_what_has_waited_for_too_long_is_found() -> None:
    claims = PrefetchBuffer()
    claims.add(messages(3), 0)
    assert not claims.waited_too_long(prefetch.PATIENCE / 2)
    assert numbers(claims.take(2)) == [0, 1]
    claims.add(messages(1), prefetch.PATIENCE / 2)
    assert claims.waited_too_long(prefetch.PATIENCE)
    assert numbers(claims.take_all()) == [2, 0]
    assert not claims.waited_too_long(9 * prefetch.PATIENCE)


def test_what_has_come_since_is_checked_later() -> None:
    claims = PrefetchBuffer()
    claims.add(messages(1), 0)
    claims.take(1)
    claims.add(messages(1), prefetch.PATIENCE / 2)
    assert not claims.waited_too_long(prefetch.PATIENCE)
    assert claims.check_at == 2 * prefetch.PATIENCE
    assert claims.waited_too_long(2 * prefetch.PATIENCE)


def test_what_is_not_there_any_more_need_not_be_checked() -> None:
    claims = PrefetchBuffer()
    claims.add(messages(1), 0)
    claims.take(1)
    assert not claims.waited_too_long(prefetch.PATIENCE)
    assert claims.check_at == math.inf


def test_what_could_not_be_requeued_is_tried_again() -> None:
    claims = PrefetchBuffer()
    claims.add(messages(3), 0)
    assert claims.waited_too_long(prefetch.PATIENCE)
    claims.return_messages(claims.take_all())
    assert claims.waited_too_long(prefetch.PATIENCE)
    assert numbers(claims.take_all()) == [0, 1, 2]
    claims.return_messages(messages(3))
    claims.take(2)
    claims.add(messages(1), prefetch.PATIENCE)
    assert numbers(claims.take_all()) == [2, 0]
    assert not claims.waited_too_long(9 * prefetch.PATIENCE)
