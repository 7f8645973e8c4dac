"""A store's instruments round each call of a handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tocsin.telemetry.instruments import Instruments

from .handler_kind import is_async_handler


def instrument(
    handler: Callable[[Any], object],
    instruments: Instruments,
    messages_of: Callable[[Any], list[Any]],
) -> Callable[[Any], object]:
    """Return a handler that runs the instruments round each call of this one.

    They are entered and left where the handler runs: in its task, or in its thread.
    Without instruments it is the handler itself.

    Args:
        handler: A function of one argument.
        instruments: What surrounds the calls.
        messages_of: Returns the messages of an argument.
    """
    if not instruments:
        return handler

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
