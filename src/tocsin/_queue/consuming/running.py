"""The beginning and the end of a consumer's run."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import trio

from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.cleanup import warning_of_failure
from tocsin.errors import StateTransitionError, Suspended, TocsinError

from .consumer_state import ConsumerState
from .draining import wait_for_others
from .lease_keeper import check_in_transaction
from .parts import ConsumerParts
from .run import Run

logger = logging.getLogger("tocsin.consumer")


@contextmanager
def settling_at_the_end(parts: ConsumerParts) -> Iterator[None]:
    """Settle in the block the messages that a run leaves.

    The block has the grace of a cleanup, and an error becomes a warning in the log.
    """
    with parts.database.grace.scope():
        try:
            yield
        except (TocsinError, psycopg.Error) as error:
            logger.warning(
                "messages handled by worker %r will be delivered again: %s",
                parts.registration.name,
                error,
            )


async def _begin(state: ConsumerState) -> bool:
    """Have the registry say that the consumer polls; return whether it may."""
    await trio.lowlevel.checkpoint()
    try:
        if not state.closed:
            await state.parts.claimer.begin_poll()
    except StateTransitionError as refused:
        if refused.from_ != "interrupted" and not state.closed:
            raise
        return False
    return not state.closed  # a signal may have closed the consumer


async def _complete(parts: ConsumerParts, *, interrupted: bool) -> int:
    """Have the registry say that the run has ended, and release its messages.

    Returns:
        The number of messages released.
    """
    with warning_of_failure(
        parts.database.grace,
        logger,
        "messages of worker %r will be delivered again when their leases end: %s",
        parts.registration.name,
        errors=(TocsinError, psycopg.Error),
    ):
        return await parts.claimer.complete_poll(interrupted=interrupted)
    return 0


@asynccontextmanager
async def open_run(
    state: ConsumerState, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> AsyncIterator[Run]:
    """Make the consumer poll for as long as the block lasts.

    Raises:
        Suspended: At the end of the block, if the run was ended from outside.
    """
    parts = state.parts
    name = parts.registration.name
    if state.running:
        raise RuntimeError(
            f"consumer {name!r} is running already; open another consumer for a second run"
        )
    state.running = True
    run: Run | None = None
    ended_by: str | None = None
    handled = failed = released = 0
    try:
        if not await _begin(state):
            ended_by = "interrupted before it began"
        else:
            with parts.open_waiter() as waiter:
                async with open_nursery_bare() as nursery:
                    run = state.run = Run(parts, waiter, nursery)
                    nursery.start_soon(parts.keeper.extend_forever, name=f"tocsin leases of {name}")
                    waiter.ring()
                    task_status.started()
                    try:
                        yield run
                    finally:
                        # before the nursery closes: what the registry says may start a
                        # task in it
                        state.run = None
                        cancel(nursery.cancel_scope, "the run has ended")
    finally:
        if run is not None:
            with settling_at_the_end(parts):
                await check_in_transaction(parts.leases, parts.keeper)
        released = await _complete(parts, interrupted=state.closed)
        state.running = False
        parts.leases.wake_waiters()
    if run is not None:
        ended_by, counts = run.ended_by, run.counts
        handled, failed, released = counts.handled, counts.failed, released + counts.released
    if ended_by is not None:
        await wait_for_others(state)
        raise Suspended(ended_by, handled=handled, failed=failed, released=released)
