"""How a server is told to stop."""

from __future__ import annotations

import signal
from typing import Final, Literal

__all__ = ["FAST", "IMMEDIATE", "POLL", "StopMode"]

StopMode = Literal["fast", "immediate"]
"""How `EmbeddedServer.stop` stops a server."""

# The signals that are sent to a postmaster in turn, and the seconds to wait after each
# one.
IMMEDIATE: Final = ((signal.SIGQUIT, 6.0), (signal.SIGKILL, 4.0))
FAST: Final = ((signal.SIGINT, 10.0), *IMMEDIATE)

POLL: Final = 0.005
"""Seconds between two attempts to see that a server has started or ended."""
