"""What a pool has and has done."""

from __future__ import annotations

import attrs

__all__ = ["Counters", "PoolStatistics"]


@attrs.define
class Counters:
    """What a pool has done since its start."""

    opened: int = 0
    broken: int = 0
    expired: int = 0
    retired: int = 0
    timeouts: int = 0
    errors: int = 0


@attrs.frozen
class PoolStatistics:
    """What a pool has and has done, at one moment."""

    size: int
    """Connections: checked out, idle or being opened."""
    idle: int
    """Connections ready to be checked out."""
    in_use: int
    """Slots that are taken: connections checked out, being opened for a task, or on
    their way to one."""
    withheld: int
    """Slots that are not given out for a moment, because no connection could be opened
    for them."""
    waiting: int
    """Tasks that wait for a slot."""
    min_size: int
    """Connections that are never closed for being unused."""
    max_size: int
    """The most connections there can be."""
    opened: int
    """Connections opened since the start."""
    broken: int
    """Connections dropped since the start because they were closed or could not be made
    ready."""
    expired: int
    """Connections closed since the start because they were not used."""
    retired: int
    """Connections closed since the start because they had reached their greatest age.
    """
    waits: int
    """How many times a task has waited for a slot since the start."""
    waited: float
    """Seconds that those waits have taken together."""
    timeouts: int
    """Checkouts that have failed since the start because no connection was free in
    time."""
    errors: int
    """Attempts to open a connection that have failed since the start."""
