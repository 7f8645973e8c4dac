"""The clock by which leases end in this process.

It is trio's clock, which stands still while the machine sleeps, with the time that the
machine slept added.
"""

from __future__ import annotations

import sys
import time

import trio


def time_asleep() -> float:
    """Return the seconds for which the machine has slept since it was started.

    They are 0 where its system does not say.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return 0.0


def lease_time() -> float:
    """Return the time in seconds, for comparison with the ends of leases."""
    return trio.current_time() + time_asleep()
