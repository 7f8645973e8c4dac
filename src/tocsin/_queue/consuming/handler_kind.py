"""The two kinds of handlers: async functions, and functions that run in a thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def is_async_handler(handler: Callable[[Any], object]) -> bool:
    """Return whether a handler is an async function, or its `__call__` is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        type(handler).__call__
    )
