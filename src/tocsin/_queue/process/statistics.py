"""Statistics of this process's side of a store."""

from __future__ import annotations

import attrs

from tocsin.driver import PoolStatistics


@attrs.frozen
class ProcessStatistics:
    """The statistics of this process alone, at one moment: see `Store.statistics`."""

    pool: PoolStatistics
    """The pool of connections."""
    listening: bool
    """Whether the LISTEN connection is up."""
    listen_works: bool
    """Whether LISTEN works, as far as is known.

    Where it does not, messages wait for the heartbeat.
    """
    notifications: int
    """Notifications of messages that came in."""
    heartbeats: int
    """Heartbeats sent."""
    unanswered_for: float | None
    """Seconds for which the oldest statement under way has had no answer.

    None when no statement is under way.
    """
    failing_for: float | None
    """Seconds since a statement first failed for want of a connection of the pool.

    None if the most recent statement succeeded.
    """
    closed_unanswered: int
    """Connections closed since the start because they had fallen silent."""
