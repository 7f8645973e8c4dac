"""Retry policies: how long a job that has failed waits, and after which errors it does
not."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from tocsin._jobs.retrying import RetryPolicy, exponential, fixed, linear, make_policy


def delays(policy: RetryPolicy, attempts: int = 5) -> list[float | None]:
    return [policy.delay(attempt, OSError()) for attempt in range(1, attempts + 1)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (fixed(3), [3, 3, 3, 3, 3]),
        (linear(2, jitter=0), [2, 4, 6, 8, 10]),
        (linear(2, cap=5, jitter=0), [2, 4, 5, 5, 5]),
        (exponential(1, jitter=0), [1, 2, 4, 8, 16]),
        (exponential(1, factor=10, cap=60, jitter=0), [1, 10, 60, 60, 60]),
        (make_policy(4), [4, 4, 4, 4, 4]),
        (make_policy(0), [0, 0, 0, 0, 0]),
        (make_policy(timedelta(minutes=1)), [60, 60, 60, 60, 60]),
        (make_policy([1, 5, timedelta(seconds=30)]), [1, 5, 30, 30, 30]),
        (make_policy(lambda attempt, error: attempt * 10), [10, 20, 30, 40, 50]),
    ],
    ids=[
        "fixed",
        "linear",
        "linear with cap",
        "exponential",
        "exponential with cap",
        "a number",
        "zero",
        "a timedelta",
        "a list",
        "a function",
    ],
)
def test_delays(policy: RetryPolicy, expected: list[float]) -> None:
    assert delays(policy) == expected


def test_jitter_moves_a_delay_by_its_share_at_most() -> None:
    policy = exponential(10, jitter=0.5)
    drawn = {policy.delay(1, OSError()) for _ in range(200)}
    assert len(drawn) > 1
    assert all(delay is not None and 5 <= delay <= 15 for delay in drawn)


def test_an_exponential_delay_does_not_overflow() -> None:
    policy = exponential(1, cap=None, jitter=0)
    (last,) = delays(policy, 5000)[-1:]
    assert last == timedelta(days=365_000).total_seconds()
    assert all(a <= b for a, b in pairwise(d or 0 for d in delays(policy, 5000)))


@pytest.mark.parametrize("make", [fixed, linear, exponential])
def test_errors_decide_whether_there_is_another_attempt(make: Any) -> None:
    policy = make(1, on=(OSError, ValueError), never=ConnectionError)
    assert policy.delay(1, OSError()) is not None
    assert policy.delay(1, ValueError()) is not None
    assert policy.delay(1, ConnectionResetError()) is None
    assert policy.delay(1, KeyError()) is None


def test_without_a_choice_the_job_is_tried_again_after_any_error() -> None:
    assert fixed(1).delay(1, RuntimeError()) == 1
    assert fixed(1).delay(1, SystemExit()) == 1
    assert fixed(1, on=Exception).delay(1, SystemExit()) is None


def test_a_function_may_end_the_attempts() -> None:
    policy = make_policy(lambda attempt, error: None if isinstance(error, KeyError) else 1)
    assert policy.delay(1, KeyError()) is None
    assert policy.delay(1, OSError()) == 1


@pytest.mark.parametrize(
    ("make", "args", "options", "error", "said"),
    [
        (fixed, (-1,), {}, ValueError, "seconds must be at least 0"),
        (linear, ("1",), {}, TypeError, "step must be a number of seconds"),
        (exponential, (1,), {"factor": 0.5}, ValueError, "factor must be at least 1"),
        (exponential, (1,), {"cap": 0}, ValueError, "cap must be greater than 0"),
        (fixed, (1,), {"jitter": 2}, ValueError, "jitter must be between 0 and 1"),
        (fixed, (1,), {"on": 5}, TypeError, "on must be classes of errors"),
        (fixed, (1,), {"never": (OSError, "x")}, TypeError, "never must be classes of errors"),
        (make_policy, ("1s",), {}, TypeError, "retry must be a number of seconds"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(
    make: Any, args: Any, options: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make(*args, **options)
