"""SIGINT and SIGTERM: the first one drains, a second one cancels."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .consumer import Consumer
from .durations import Duration
from .errors import TRANSIENT, ConnectionLost, StateTransitionError, Suspended
from .nursery import open_nursery_bare
from .retry import Retries

logger = logging.getLogger("tocsin")


@asynccontextmanager
async def drain_on_signals(*consumers: Consumer, grace: Duration | None = None) -> AsyncIterator[None]:
    """Within the block, interrupt these consumers on SIGINT or SIGTERM, so that their runs end with `Suspended` when their handlers have.

    ``grace``: seconds after which handlers still running are cancelled and their messages released. A second signal cancels the block at
    once and is raised as `KeyboardInterrupt` at its end. To be used in the main thread. Cancellation puts the signals' former meaning back.

    After a signal no other run begins, `Consumer.dequeue` raises `Suspended`, and so does the block where it would end with
    `ConnectionLost` or `StateTransitionError`: a loop around it that begins anew in such a case must not forget that it is to end.
    """
    signalled_twice = False

    async def listen(scope: trio.CancelScope) -> None:
        nonlocal signalled_twice
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            started.set()
            async for number in signals:
                if draining.is_set():
                    signalled_twice = True
                    scope.cancel()
                    return
                draining.set()
                logger.info("%s: draining; once more to cancel", signal.Signals(number).name)
                for consumer in consumers:
                    consumer._intake.close(grace)  # whatever the registry says to it: the worker may be suspended, or the database away
                    nursery.start_soon(_interrupt, consumer, grace)

    started, draining = trio.Event(), trio.Event()
    try:
        async with open_nursery_bare() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope)
            await started.wait()
            yield
            nursery.cancel_scope.cancel()
    except (Suspended, ConnectionLost, StateTransitionError) as error:
        if signalled_twice:
            raise KeyboardInterrupt from error
        if draining.is_set() and not isinstance(error, Suspended):
            raise Suspended("interrupted", handled=0, released=0) from error
        raise
    finally:
        for consumer in consumers:
            consumer._intake.reopen()
    if signalled_twice:
        raise KeyboardInterrupt


async def _interrupt(consumer: Consumer, grace: Duration | None) -> None:
    retries = Retries("interrupting")
    while True:
        try:
            await consumer.interrupt(grace=grace)
        except StateTransitionError as refused:
            logger.info("interrupted without a change in the registry: %s", refused)
        except TRANSIENT as lost:
            await trio.sleep(retries.failed(lost))
            continue
        return
