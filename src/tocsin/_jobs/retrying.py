"""Retry policies: after how many seconds a job that has failed is tried again.

A policy is asked on the worker, after each failed attempt but the last. The database
keeps the answer as the job's due time, so no worker waits for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias, runtime_checkable

import attrs

from tocsin._durations import Duration, to_seconds

__all__ = ["RetryPolicy", "exponential", "fixed", "linear", "make_policy"]

DEFAULT_JITTER: Final = 0.2
"""By which share of itself a delay is longer or shorter, at most."""

Errors: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


@runtime_checkable
class RetryPolicy(Protocol):
    """Decides whether and when a job is tried again."""

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Return seconds until the next attempt; None: no further attempt.

        Args:
            attempt: Which attempt has failed; the first one is 1.
            error: What it has raised.
        """


@attrs.frozen
class _Delays:
    """A delay for each attempt, for some errors alone."""

    seconds: Callable[[int], float]
    jitter: float
    on: tuple[type[BaseException], ...]
    never: tuple[type[BaseException], ...]

    def delay(self, attempt: int, error: BaseException) -> float | None:
        if not isinstance(error, self.on) or isinstance(error, self.never):
            return None
        seconds = self.seconds(attempt)
        return seconds * (1 + self.jitter * random.uniform(-1, 1))


@attrs.frozen
class _Function:
    """A policy that is a function."""

    function: Callable[[int, BaseException], Duration | None]

    def delay(self, attempt: int, error: BaseException) -> float | None:
        chosen = self.function(attempt, error)
        return None if chosen is None else to_seconds(chosen, "retry", zero=True)


def fixed(
    seconds: Duration, *, jitter: float = 0.0, on: Errors = BaseException, never: Errors = ()
) -> RetryPolicy:
    """Return a policy with the same delay before each attempt.

    Args:
        seconds: The delay in seconds.
        jitter: By which share of itself a delay is longer or shorter, at most.
        on: Classes of errors after which the job is tried again; any other error is
            final.
        never: Classes of errors that are final, even where ``on`` has them.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument has a wrong type.
    """
    length = to_seconds(seconds, "seconds", zero=True)
    return _make(lambda _: length, jitter, on, never)


def linear(
    step: Duration,
    *,
    cap: Duration | None = None,
    jitter: float = DEFAULT_JITTER,
    on: Errors = BaseException,
    never: Errors = (),
) -> RetryPolicy:
    """Return a policy whose delay grows by ``step`` with each attempt.

    Args:
        step: The first delay in seconds, and by how much each further one is longer.
        cap: The longest delay in seconds.
        jitter: By which share of itself a delay is longer or shorter, at most.
        on: Classes of errors after which the job is tried again; any other error is
            final.
        never: Classes of errors that are final, even where ``on`` has them.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument has a wrong type.
    """
    length, longest = to_seconds(step, "step", zero=True), _to_cap(cap)
    return _make(lambda attempt: min(length * attempt, longest), jitter, on, never)


def exponential(
    base: Duration,
    *,
    factor: float = 2.0,
    cap: Duration | None = 3600.0,
    jitter: float = DEFAULT_JITTER,
    on: Errors = BaseException,
    never: Errors = (),
) -> RetryPolicy:
    """Return a policy whose delay is multiplied by ``factor`` with each attempt.

    Args:
        base: The first delay in seconds.
        factor: By how much each further delay is longer.
        cap: The longest delay in seconds.
        jitter: By which share of itself a delay is longer or shorter, at most.
        on: Classes of errors after which the job is tried again; any other error is
            final.
        never: Classes of errors that are final, even where ``on`` has them.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument has a wrong type.
    """
    length, longest = to_seconds(base, "base", zero=True), _to_cap(cap)
    if factor < 1:
        raise ValueError(f"factor must be at least 1, not {factor}")

    def seconds(attempt: int) -> float:
        try:
            return min(length * factor ** (attempt - 1), longest)
        except OverflowError:
            return longest

    return _make(seconds, jitter, on, never)


Retrying: TypeAlias = (
    RetryPolicy | Duration | Sequence[Duration] | Callable[[int, BaseException], Duration | None]
)
"""What ``retry=`` takes: a policy, a delay, a list of delays (the last one counts for
all further attempts), or a function of the attempt and its error."""


def make_policy(retry: Retrying) -> RetryPolicy:
    """Return the policy that ``retry=`` means.

    Raises:
        ValueError: A delay is out of its range.
        TypeError: This is no policy.
    """
    if isinstance(retry, RetryPolicy):
        return retry
    if isinstance(retry, Sequence) and not isinstance(retry, str):
        if not retry:
            raise ValueError("retry must have at least one delay")
        delays = [to_seconds(d, f"retry[{n}]", zero=True) for n, d in enumerate(retry)]
        return _make(lambda attempt: delays[min(attempt, len(delays)) - 1], 0.0, Exception, ())
    if callable(retry):
        return _Function(retry)
    return fixed(to_seconds(retry, "retry", zero=True))


def _make(seconds: Callable[[int], float], jitter: float, on: Errors, never: Errors) -> RetryPolicy:
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be between 0 and 1, not {jitter}")
    return _Delays(seconds, jitter, _to_classes(on, "on"), _to_classes(never, "never"))


def _to_classes(errors: Errors, name: str) -> tuple[type[BaseException], ...]:
    classes = errors if isinstance(errors, tuple) else (errors,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{name} must be classes of errors, not {each!r}")
    return classes


def _to_cap(cap: Duration | None) -> float:
    return to_seconds(365_000 * 86_400 if cap is None else cap, "cap")
