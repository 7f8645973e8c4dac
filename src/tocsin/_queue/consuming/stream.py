"""Messages as an asynchronous iterator."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._database.error_mapping import TRANSIENT
from tocsin._queue.message import Message
from tocsin.errors import LeaseLost, StateTransitionError

from .failure import Failure, describe_failure, split
from .failure_log import UNANSWERED, log_outcomes
from .intake import Intake
from .lease_clock import lease_time
from .leases import HandlerCall
from .run import Run, open_run

logger = logging.getLogger("tocsin.consumer")


class Stream:
    """Iterates over messages, one claim each. An iterator and not a generator: nothing
    is left to the garbage collector."""

    def __init__(self, run: Run, unit: HandlerCall, vt: float | None) -> None:
        self._run = run
        self._unit = unit
        self._vt = vt

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        """Return the next message, waiting for it. Cancelled, none is taken."""
        run, intake = self._run, self._run.intake
        retries = OutageRetry("the stream", logger)
        while run.ended_by is None:
            try:
                if not (run.waiter.wake_pending and run.may_claim):
                    await run.waiter.wait(ignore_rings=not run.may_claim)
                    continue
                await intake.leases.look_at_promised()
                claim = await run.claim(1, self._vt)
            except StateTransitionError:
                run.pause()
            except TRANSIENT as lost:
                await trio.sleep(retries.failed(lost))
            else:
                retries.succeeded()
                if messages := claim.batch.take_all():
                    self._unit.messages += messages
                    if over := intake.leases.start(self._unit, lease_time()):
                        await intake.requeue_many(over)
                    else:
                        return messages[0]
        raise StopAsyncIteration


@asynccontextmanager
async def open_stream(intake: Intake, vt: float | None) -> AsyncIterator[AsyncIterator[Message]]:
    """See `Consumer.messages`. The whole block is one unit of work: its scope is
    cancelled when an interruption's grace is over."""
    async with open_run(intake) as run:
        unit = HandlerCall()
        run.units.add(unit)
        with unit.scope:
            try:
                yield Stream(run, unit, vt)
            except GeneratorExit:  # nothing has failed: the block is in a generator that is closed
                raise
            except BaseException as raised:
                if not split(raised)[1]:
                    run.flush = partial(_fail, intake, unit, _describe(raised))
                raise
        if unit.lost is not None and unit.scope.cancelled_caught and not run.stopped:
            raise LeaseLost(unit.lost, "keep")


def _describe(raised: BaseException) -> Failure:
    """Return what an error of the block means: the delivery counts, but leaving the
    block makes the message ready at once."""
    failure = describe_failure(raised)
    return (
        failure
        if failure.verdict != "handler_failed" or failure.delay is not None
        else attrs.evolve(failure, delay=0.0)
    )


async def _fail(intake: Intake, unit: HandlerCall, failure: Failure) -> None:
    """Have the messages that the block has left unsettled fail with its error."""
    failed = [(m, failure) for m in unit.messages if m in intake.leases]
    if failed:
        outcomes: Sequence[float | str | None] = [UNANSWERED] * len(failed)
        try:
            outcomes = await intake.fail_many([m for m, _ in failed], [failure] * len(failed))
        finally:
            log_outcomes("the block of messages()", failed, outcomes)
