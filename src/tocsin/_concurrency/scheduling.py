"""Let other tasks run first."""

from __future__ import annotations

import trio


async def run_woken_tasks() -> None:
    """Return after the tasks that this task has woken have run to their next wait.

    trio runs the tasks that are ready in passes, in any order within one. The tasks
    that were woken before this call run in the pass in which it begins or in the next
    one, and this task in the one after that.
    """
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
