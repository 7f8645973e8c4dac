"""What this process's side of a store has and did."""

from __future__ import annotations

import attrs

from tocsin.driver import PoolStatistics


@attrs.frozen
class ProcessStatistics:
    """What this process's side of a store has and did, at one moment."""

    pool: PoolStatistics
    """The pool of connections."""
    listening: bool
    """Whether the LISTEN connection is up."""
    listen_works: bool
    """Whether LISTEN works, as far as is known. Where it does not, messages wait for the
    heartbeat."""
    notifications: int
    """Notifications of messages that came in."""
    heartbeats: int
    """Heartbeats sent."""
    unanswered_for: float | None
    """Seconds for which the statement that has waited longest has had no answer; None
    when no statement is under way."""
    failing_for: float | None
    """Seconds since the first failure after which no statement has succeeded; None while
    they succeed. Statements on connections that are lent do not count."""
    silenced: int
    """Connections closed since the start because they had fallen silent."""
