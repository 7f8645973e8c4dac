"""When a producer with a rate limit may enqueue, and the order of the callers that
wait. Time is trio's."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

import tocsin
from tocsin._queue.producing.rate_limit import Bucket, Limiter, RateLimit


def test_a_bucket_holds_a_burst_and_fills_up_again() -> None:
    bucket = Bucket(RateLimit(per_second=2, burst=4))
    for _ in range(4):
        assert bucket.admits_at(1) <= 100
        bucket.take(1, 100)
    assert bucket.admits_at(1) == 100.5
    bucket.take(1, 100.5)
    assert bucket.admits_at(1) == 101
    assert bucket.admits_at(4) == 102.5
    assert bucket.admits_at(0) == -math.inf
    bucket.take(4, 1000)  # it does not gain more than it holds
    assert bucket.admits_at(1) == 1000.5


def test_a_batch_larger_than_the_burst_borrows() -> None:
    bucket = Bucket(RateLimit(per_second=10, burst=5))
    assert bucket.admits_at(105) <= 0
    bucket.take(105, 0)
    assert bucket.admits_at(1) == pytest.approx(10.1)
    assert bucket.admits_at(105) == bucket.admits_at(5) == pytest.approx(10.5)


def test_the_burst_is_what_comes_in_a_second_but_at_least_one() -> None:
    assert RateLimit(50).size == 50
    assert RateLimit(0.1).size == 1
    assert RateLimit(0.1, burst=3).size == 3


@pytest.mark.parametrize("per_second", [0, -1, math.inf, math.nan])
def test_a_rate_must_be_one(per_second: float) -> None:
    with pytest.raises(ValueError, match="per_second must be a positive number"):
        RateLimit(per_second)


@pytest.mark.parametrize("burst", [0.5, 0, math.inf, math.nan])
def test_a_burst_takes_at_least_one_message(burst: float) -> None:
    with pytest.raises(ValueError, match="burst must be"):
        RateLimit(1, burst)


async def test_retry_after_is_true(autojump_clock: trio.testing.MockClock) -> None:
    """At whatever moment and rate: a little before it the call is refused, and exactly
    then it is admitted."""
    # a clock's times are large, and what comes of adding to them is rounded
    await trio.sleep(12_345.6)
    for per_second in (0.3, 1, 7, 1000 / 3):
        limiter = Limiter(RateLimit(per_second, burst=10))
        for count in (7, 3, 9, 25, 1, 10) * 20:
            try:
                await limiter.admit(count)
            except tocsin.RateLimited as refused:
                assert refused.per_second == per_second
                if count == 9:
                    await trio.sleep(refused.retry_after * 0.999)
                    with pytest.raises(tocsin.RateLimited) as refused_again:
                        await limiter.admit(count)
                    await trio.sleep(refused_again.value.retry_after)
                else:
                    await trio.sleep(refused.retry_after)
                await limiter.admit(count)


async def test_waiting_calls_are_admitted_in_their_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limiter = Limiter(RateLimit(1, burst=2, wait=True))
    begun = trio.current_time()
    admitted: list[tuple[str, float]] = []

    async def call(name: str, count: int) -> None:
        await limiter.admit(count)
        admitted.append((name, round(trio.current_time() - begun, 6)))

    async with trio.open_nursery() as nursery:
        for name, count in (("a", 1), ("b", 6), ("c", 1), ("d", 1)):
            nursery.start_soon(call, name, count)
            await trio.testing.wait_all_tasks_blocked()
    # b is larger than the bucket: it goes when that is full, at 1, and borrows four; c
    # does not overtake it.
    assert admitted == [("a", 0), ("b", 1), ("c", 6), ("d", 7)]


async def test_a_call_that_is_cancelled_lets_the_other_calls_move_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limiter = Limiter(RateLimit(1, wait=True))
    begun = trio.current_time()
    await limiter.admit(1)

    async def give_up(after: float) -> None:
        with trio.move_on_after(after):
            await limiter.admit(1)
            raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up, 0.3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(give_up, 0.5)
        await trio.testing.wait_all_tasks_blocked()
        await limiter.admit(1)
    assert trio.current_time() - begun == pytest.approx(1)
