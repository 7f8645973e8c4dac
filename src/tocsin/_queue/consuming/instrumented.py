"""A store's instruments round each call of a handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tocsin.telemetry.instruments import Instruments

from .handler_kind import is_async_handler


def instrument(
    handler: Callable[[Any], object], instruments: Instruments, *, batches: bool
) -> Callable[[Any], object]:
    """Return a handler that runs the instruments round each call of this one.

    They are entered and left where the handler runs: in its task, or in its thread.
    Without instruments it is the handler itself.
    """
    if not instruments:
        return handler

    def messages_of(work: Any) -> list[Any]:
        return list(work) if batches else [work]

    if is_async_handler(handler):

        async def call_async(work: Any) -> object:
            with instruments.handling(messages_of(work)):
                returned: Any = handler(work)
                return await returned

        return call_async

    def call(work: Any) -> object:
        with instruments.handling(messages_of(work)):
            return handler(work)

    return call
