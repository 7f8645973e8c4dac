"""The delay before the next attempt of a job whose attempt has failed."""

from __future__ import annotations

import logging
import math
from typing import Any

from tocsin._durations import to_seconds
from tocsin._queue.consuming.failure import find_leaves

from .task import DEFAULT_RETRY, Task

logger = logging.getLogger("tocsin.job")


def find_retry_delay(task: Task[..., Any], attempt: int, error: BaseException) -> float:
    """Return seconds until the next attempt, by the task's policy; infinity: none."""
    leaves = find_leaves(error)
    cause = leaves[0] if len(leaves) == 1 else error
    try:
        delay = task.options.retry.delay(attempt, cause)
        return math.inf if delay is None else to_seconds(delay, "retry", zero=True)
    except Exception as broken:
        logger.warning("the retry policy of task %s has raised: %r", task.name, broken)
        return DEFAULT_RETRY.delay(attempt, cause) or 0.0
