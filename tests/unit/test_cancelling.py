"""`cancel`: a scope's cancellation says why, where trio can tell."""

from __future__ import annotations

import inspect

import pytest
import trio

from tocsin._concurrency.cancelling import cancel


async def test_a_cancelled_scope_says_why() -> None:
    with trio.CancelScope() as scope:
        cancel(scope, "the pool is closed")
        with pytest.raises(trio.Cancelled) as cancelled:
            await trio.lowlevel.checkpoint()
    assert scope.cancel_called
    takes_reason = "reason" in inspect.signature(trio.CancelScope.cancel).parameters
    assert ("the pool is closed" in str(cancelled.value)) == takes_reason
