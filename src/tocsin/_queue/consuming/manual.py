"""Dequeueing by hand."""

from __future__ import annotations

import trio

from tocsin._arguments import check_count
from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Message
from tocsin.errors import ConnectionLost, StateTransitionError, Suspended

from .consumer_state import ConsumerState
from .draining import wait_for_others
from .settling_consumer import SettlingConsumer


class ManualConsumer(SettlingConsumer):
    """A consumer from which messages are dequeued by hand."""

    async def dequeue(
        self, limit: int = 1, *, vt: Duration | None = None, wait: Duration = 0
    ) -> list[Message]:
        """Take up to ``limit`` messages.

        The leases are not extended by themselves: settle each message in time, or
        extend its lease.

        Args:
            limit: The most messages to take.
            vt: Length of the leases in seconds; default: the queue's.
            wait: Seconds to wait for a first message, before none is returned.

        Raises:
            StateTransitionError: The worker is suspended or interrupted, or becomes so
                while this waits.
            WorkerStopped: The worker is stopped.
            ConnectionLost: The database did not answer.
            Suspended: A signal has arrived, within `drain_on_signals`.
            ValueError: An argument is out of range.

        Cancellation:
            No message is taken.
        """
        check_count(limit, "limit")
        length = None if vt is None else to_seconds(vt, "vt")
        seconds = to_seconds(wait, "wait", zero=True)
        return await _dequeue(self._state, limit, length, trio.current_time() + seconds)


async def _dequeue(
    state: ConsumerState, limit: int, vt: float | None, deadline: float
) -> list[Message]:
    state.parts.leases.drop_expired_manual()
    with state.manual_waiter() as waiter:
        while True:
            if state.closed:
                await trio.lowlevel.checkpoint()
                raise await _suspended(state)
            waiter.begin_claim()
            try:
                claim = await state.parts.claimer.claim(
                    limit, vt, full_scan=True, auto_extend=False
                )
            except BaseException as error:
                waiter.claim_failed()
                if state.closed and isinstance(error, (StateTransitionError, ConnectionLost)):
                    raise await _suspended(state) from error
                raise
            rung = waiter.wake_pending
            waiter.end_claim(claim.again_at, full=claim.full)
            messages = claim.batch.take_all()
            if messages or trio.current_time() >= deadline:
                waiter.wake_pending = rung
                return messages
            while not waiter.wake_pending and trio.current_time() < deadline:
                await waiter.wait(until=deadline)


async def _suspended(state: ConsumerState) -> Suspended:
    await wait_for_others(state)
    return Suspended("interrupted", handled=0, released=0)
