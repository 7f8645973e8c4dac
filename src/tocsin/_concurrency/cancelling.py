"""Cancelling a scope with a reason, where trio takes one."""

from __future__ import annotations

import inspect

import trio

_TAKES_REASON = "reason" in inspect.signature(trio.CancelScope.cancel).parameters


def cancel(scope: trio.CancelScope, reason: str) -> None:
    """Cancel a scope, and have trio's `Cancelled` say why, from trio 0.31 on."""
    if _TAKES_REASON:
        scope.cancel(reason)
    else:
        scope.cancel()
