"""A single call of a handler, and its result."""

from __future__ import annotations

import logging

import attrs
import trio

from .calls import CallScope
from .failure import Escaped, describe, split
from .handlers import HandlerOptions, check_that_it_ran

logger = logging.getLogger("tocsin.handler")


@attrs.frozen(eq=False)
class Raised:
    """A call of a handler that did not return."""

    error: BaseException
    """The error that it raised."""
    exits: SystemExit | None = None
    """The `SystemExit` of an async handler, which ends the run.

    A signal handler may have raised it.
    """


async def invoke(options: HandlerOptions, call: CallScope) -> Raised | None:
    """Call the handler with the messages of the call; return None when it returned.

    Cancellation:
        The handler is cancelled. An error of its own is logged then.
    """
    try:
        if options.timeout is None:
            returned = await options.call(call)
        else:
            with trio.fail_after(options.timeout):
                returned = await options.call(call)
        if returned is not None:
            check_that_it_ran(returned, options.name_for(call.messages))
    except Escaped as escaped:
        return Raised(escaped.error)
    except Exception as raised:
        return Raised(raised)
    except BaseException as raised:
        own, outer = split(raised)
        if not outer:
            return Raised(raised, next((e for e in own if isinstance(e, SystemExit)), None))
        if not own:
            raise
        logger.warning(
            "%s raised while it was cancelled: %s",
            options.name_for(call.messages),
            describe(BaseExceptionGroup("its own", own)),
        )
        if len(outer) == 1:
            raise outer[0] from None
        raise BaseExceptionGroup("several errors of a handler", outer) from None
    return None
