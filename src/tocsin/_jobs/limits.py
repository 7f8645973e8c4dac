"""Limits and rates of tasks: how many of their jobs run at a time, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from tocsin._arguments import check_count, check_text
from tocsin._durations import Duration, to_seconds

from .signature import Signature

Key: TypeAlias = str | Callable[..., str] | None
"""Name of a parameter, or a function of the job's arguments that returns the key."""
MOST: Final = 1_000_000


def _check_name(_: object, __: object, name: str) -> None:
    if not 1 <= len(check_text(name, "name").encode()) <= 255:
        raise ValueError("the name of a limit must have between 1 and 255 bytes")


def _to_interval(per: Duration) -> float:
    return to_seconds(per, "per")


def _check_key(_: object, __: object, key: Key) -> None:
    if not (key is None or isinstance(key, str) or callable(key)):
        raise TypeError(
            "key must be the name of a parameter, or a function of the arguments, not"
            f" {type(key).__name__}"
        )


def check_n(n: int, name: str) -> None:
    """Refuse what cannot be the number of a limit.

    Raises:
        TypeError: It is no integer.
        ValueError: It is too small or too large.
    """
    if check_count(n, name) > MOST:
        raise ValueError(f"{name} must be at most {MOST}, not {n}")


def _check_n(_: object, attribute: attrs.Attribute[int], n: int) -> None:
    check_n(n, attribute.name)


@attrs.frozen
class Limit:
    """At most ``n`` jobs run at a time.

    The limit holds over all processes, tasks and queues that use it.
    """

    name: str = attrs.field(validator=_check_name)
    """Name of the limit; tasks that give the same name share it."""
    n: int = attrs.field(default=1, validator=_check_n)
    """How many jobs run at a time, for each key."""
    key: Key = attrs.field(default=None, kw_only=True, validator=_check_key)
    """Name of a parameter whose value is the key, or a function of the arguments that
    returns it; None: all jobs share the slots. A parameter whose value is None leaves
    the job without this limit."""
    ordered: bool = attrs.field(default=False, kw_only=True)
    """Whether the jobs of a key run in the order of submission. A job that fails keeps
    its place until it succeeds or is a dead letter."""

    def __attrs_post_init__(self) -> None:
        if self.ordered and self.n != 1:
            raise ValueError("an ordered limit runs one job at a time: n must be 1")

    def describe(self) -> dict[str, object]:
        """Return the limit as the functions of the schema take it, without its key."""
        return {"name": self.name, "n": self.n} | ({"ordered": True} if self.ordered else {})


@attrs.frozen
class Rate:
    """``n`` jobs become due in ``per`` seconds, over all tasks that use the rate.

    A job over the rate is delayed until its turn. Each attempt counts. Jobs that become
    due while no worker is free begin as soon as one is, also many at a time.
    """

    name: str = attrs.field(validator=_check_name)
    """Name of the rate; tasks that give the same name share it."""
    n: int = attrs.field(validator=_check_n)
    """How many jobs become due in an interval, for each key."""
    per: float = attrs.field(converter=_to_interval)
    """Seconds of the interval."""
    burst: int = attrs.field(default=1, kw_only=True, validator=_check_n)
    """How many jobs become due at once after a pause; 1: they are spaced evenly."""
    key: Key = attrs.field(default=None, kw_only=True, validator=_check_key)
    """As that of `Limit`."""

    def describe(self) -> dict[str, object]:
        """Return the rate as the functions of the schema take it, without its key."""
        return {"name": self.name, "n": self.n, "per": self.per, "burst": self.burst}


Limiting: TypeAlias = Limit | Rate


def read_limits(limits: Iterable[Limiting]) -> tuple[Limiting, ...]:
    """Return the limits of a task.

    Raises:
        TypeError: One is no limit.
        ValueError: Two have the same name.
    """
    if isinstance(limits, (Limit, Rate)):
        raise TypeError("limits must be a list of limits, also when there is one")
    found = tuple(limits)
    for number, limit in enumerate(found):
        if not isinstance(limit, (Limit, Rate)):
            raise TypeError(f"a limit must be a Limit or a Rate, not {type(limit).__name__}")
        if any(limit.name == other.name for other in found[:number]):
            raise ValueError(f"two limits have the name {limit.name!r}")
    return found


def check_keys(limits: Sequence[Limiting], signature: Signature) -> None:
    """Refuse limits whose key is no parameter of the task.

    Raises:
        TypeError: A key is no parameter.
    """
    for limit in limits:
        if isinstance(limit.key, str) and limit.key not in signature.names:
            raise TypeError(
                f"the key of limit {limit.name!r} is {limit.key!r}, which is no parameter of the"
                f" task; it has {', '.join(signature.names) or 'none'}"
            )


def describe_limits(limits: Sequence[Limiting], signature: Signature) -> list[dict[str, object]]:
    """Return limits as ``tocsin.register_tasks`` takes them."""
    return [
        limit.describe()
        | (
            {}
            if limit.key is None
            else signature.describe_parameter(limit.key)
            if isinstance(limit.key, str)
            else {"computed": True}
        )
        for limit in limits
    ]


def write_limits(
    limits: Sequence[Limiting],
    signature: Signature,
    args: tuple[object, ...],
    kwargs: Mapping[str, Any],
) -> list[dict[str, object]]:
    """Return the limits of a call, with their keys.

    Raises:
        TypeError: A function has returned a key that is not text.
        ValueError: A key is too long.
    """
    found: list[dict[str, object]] = []
    for limit in limits:
        if limit.key is None:
            found.append(limit.describe())
            continue
        if isinstance(limit.key, str):
            key = signature.write_key(limit.key, args, kwargs)
            if key is None:
                continue
        else:
            key = check_text(limit.key(*args, **kwargs), f"the key of limit {limit.name!r}")
        if len(key.encode()) > 1024:
            raise ValueError(f"the key of limit {limit.name!r} must be at most 1,024 bytes")
        found.append(limit.describe() | {"key": key})
    return found
