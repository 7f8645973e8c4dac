"""Messages as an asynchronous iterator."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import psycopg

from tocsin._concurrency.backoff import OutageRetry
from tocsin._database.error_mapping import TRANSIENT, is_lock_timeout
from tocsin._queue.message import Message
from tocsin.errors import ConnectionLost, LeaseLost, StateTransitionError

from .calls import CallScope
from .consumer_state import ConsumerState
from .failure import Failure, describe_failure, split
from .failure_log import UNANSWERED, log_outcomes
from .lease_clock import lease_time
from .lease_keeper import check_in_transaction
from .parts import ConsumerParts
from .run import Run
from .running import open_run, settling_at_the_end

logger = logging.getLogger("tocsin.consumer")


class Stream:
    """An iterator over messages, with one claim for each.

    It is not a generator, so nothing is left to the garbage collector.
    """

    def __init__(self, parts: ConsumerParts, run: Run, call: CallScope, vt: float | None) -> None:
        self._parts = parts
        self._run = run
        self._call = call
        self._vt = vt
        self._expired: list[Message] = []

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        """Return the next message, waiting for it.

        Cancellation:
            No message is taken.
        """
        run = self._run
        retries = OutageRetry("the stream", logger)
        while run.ended_by is None:
            try:
                if self._expired:
                    await self._release_expired()
                if not (run.waiter.wake_pending and run.may_claim):
                    await run.waiter.wait(ignore_rings=not run.may_claim)
                    continue
                await check_in_transaction(self._parts.leases, self._parts.keeper)
                claim = await run.claim(1, self._vt)
            except StateTransitionError:
                run.pause()
            except TRANSIENT as lost:
                await retries.pause_after(lost)
            else:
                retries.succeeded()
                if messages := claim.batch.take_all():
                    self._call.messages += messages
                    self._expired += self._parts.leases.start(self._call, lease_time())
                    if any(m is messages[0] for m in self._call.messages):
                        return messages[0]
        raise StopAsyncIteration

    async def _release_expired(self) -> None:
        """Release messages whose lease ended before the block could have them.

        Messages that another transaction has locked are left to the end of the run.
        """
        try:
            await self._parts.settler.release_uncounted(self._expired)
        except (ConnectionLost, psycopg.Error) as error:
            if not is_lock_timeout(error):
                raise
        self._expired = []


@asynccontextmanager
async def open_stream(
    state: ConsumerState, vt: float | None
) -> AsyncIterator[AsyncIterator[Message]]:
    """Open a stream of messages: see `Consumer.messages`.

    The whole block is one call: its scope is cancelled when an interruption's grace is
    over.
    """
    parts = state.parts
    async with open_run(state) as run:
        call = CallScope(run.calls)
        with run.calling(call), call.scope:
            try:
                yield Stream(parts, run, call, vt)
            except GeneratorExit:
                # The delivery has not failed: the block is in a generator that is
                # closed.
                raise
            except BaseException as raised:
                if not split(raised)[1]:
                    with settling_at_the_end(parts):
                        await _fail(parts, call, _describe(raised))
                raise
        if call.lost is not None and call.scope.cancelled_caught and not run.stopped:
            raise LeaseLost(call.lost, "keep")


def _describe(raised: BaseException) -> Failure:
    """Return the failure of a block that raised this error.

    The delivery counts, but leaving the block makes the message ready at once.
    """
    failure = describe_failure(raised)
    return (
        failure
        if failure.verdict != "handler_failed" or failure.delay is not None
        else attrs.evolve(failure, delay=0.0)
    )


async def _fail(parts: ConsumerParts, call: CallScope, failure: Failure) -> None:
    """Settle the messages that the block has left, as failed with its error."""
    failed = [(m, failure) for m in call.messages if m in parts.leases]
    if failed:
        outcomes: Sequence[float | str | None] = [UNANSWERED] * len(failed)
        try:
            outcomes = await parts.settler.fail([m for m, _ in failed], [failure] * len(failed))
        finally:
            log_outcomes("the block of messages()", failed, outcomes)
