"""The clock by which leases end in this process: trio's, which stands still while the
machine sleeps, and the time that it slept."""

from __future__ import annotations

import sys
import time

import trio


def time_asleep() -> float:
    """Return for how many seconds the machine has slept since it was started, as far as
    its system says."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return 0.0


def lease_time() -> float:
    """Return the time for comparison with the ends of leases, in seconds."""
    return trio.current_time() + time_asleep()
