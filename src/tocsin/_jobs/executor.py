"""The processes in which a worker runs functions that compute.

trio-parallel is the default. A program can give another `Executor`, which has one
method.
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import trio

T = TypeVar("T")

ENDS_WITHIN: Final = 5.0
"""Seconds that idle processes have to end when the worker does."""


@runtime_checkable
class Executor(Protocol):
    """Runs functions in other processes; see ``executor`` of `Store.worker`."""

    async def run_sync(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in another process, and return what it returns.

        Args:
            function: A function of a module.
            args: Texts, numbers, times, and tuples of these.

        Raises:
            Exception: The process has ended. The attempt has failed.

        Cancellation:
            The process is killed.
        """


class _TrioParallel:
    """Processes of trio-parallel."""

    def __init__(self, context: Any) -> None:
        self._context = context
        # The worker limits how many functions run at a time.
        self._limiter = trio.CapacityLimiter(math.inf)

    async def run_sync(self, function: Callable[..., T], *args: Any) -> T:
        result: T = await self._context.run_sync(
            function, *args, kill_on_cancel=True, limiter=self._limiter
        )
        return result


@asynccontextmanager
async def open_executor() -> AsyncIterator[Executor]:
    """Open the processes of a worker: they start when functions need them.

    Raises:
        ModuleNotFoundError: The extra ``tocsin[processes]`` is not installed.

    Cancellation:
        The processes end.
    """
    try:
        import trio_parallel
    except ModuleNotFoundError as error:
        message = "no processes can be started: pip install 'tocsin[processes]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    async with trio_parallel.open_worker_context(
        init=_ignore_signals, grace_period=ENDS_WITHIN
    ) as context:
        yield _TrioParallel(context)


def _ignore_signals() -> None:
    """Let the worker alone act on signals, which its processes get from a terminal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
