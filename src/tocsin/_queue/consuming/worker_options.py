"""What a run has in common with the other runs of a worker of several queues."""

from __future__ import annotations

import attrs

from .joint_end import Member
from .slots import Share


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """The part of a run's options that a worker of several queues sets."""

    share: Share | None = None
    """Its share of the worker's slots; None: the run has slots of its own."""
    joint_end: Member | None = None
    """The end that it has in common with the other runs; None: it ends by itself."""
    limit: int | None = None
    """The most messages that it claims; None: any number."""
