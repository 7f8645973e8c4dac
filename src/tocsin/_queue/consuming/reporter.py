"""Reports of what a consumer does, to the event channel of its store.

Each method asks first whether a subscription wants the event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from time import perf_counter
from typing import Literal, TypeAlias

from tocsin._queue.message import Message
from tocsin._queue.workers.registration import Registration
from tocsin.telemetry.events import (
    Claimed,
    Events,
    HandlerBegan,
    HandlerEnded,
    LeasesExtended,
    LeasesLost,
    Settled,
    Woken,
)

from .calls import CallScope
from .claimed_batch import ClaimedBatch
from .handlers import HandlerOptions
from .invocation import Raised, invoke

Invoke: TypeAlias = Callable[[HandlerOptions, CallScope], Awaitable[Raised | None]]
Outcome: TypeAlias = Literal["archived", "deleted", "released", "failed"]


class Reporter:
    """The reports of one consumer."""

    def __init__(self, events: Events, registration: Registration) -> None:
        self._events = events
        self._registration = registration

    def woken(self) -> None:
        """Report that the consumer was idle and begins to claim."""
        if self._events.wants(Woken):
            self._events.emit(Woken(queue=self._queue, worker_id=self._worker_id))

    def claimed(self, batch: ClaimedBatch) -> None:
        """Report the messages of a claim, if there are any."""
        if batch and self._events.wants(Claimed):
            self._events.emit(
                Claimed(queue=self._queue, worker_id=self._worker_id, ids=tuple(batch.ids()))
            )

    @property
    def invoke(self) -> Invoke:
        """The caller of a handler; it is `invoke` while no subscription wants calls."""
        events = self._events
        wanted = events.wants(HandlerBegan) or events.wants(HandlerEnded)
        return self._invoke if wanted else invoke

    async def _invoke(self, options: HandlerOptions, call: CallScope) -> Raised | None:
        """Call the handler, and report when the call begins and ends."""
        events = self._events
        queue, worker_id, ids = self._queue, self._worker_id, _ids(call.messages)
        events.emit(HandlerBegan(queue=queue, worker_id=worker_id, ids=ids))
        began = perf_counter()
        outcome: Literal["returned", "raised", "cancelled"] = "cancelled"
        error: str | None = None
        try:
            raised = await invoke(options, call)
            if raised is None:
                outcome = "returned"
            else:
                outcome, error = "raised", type(raised.error).__name__
            return raised
        finally:
            events.emit(
                HandlerEnded(
                    queue=queue,
                    worker_id=worker_id,
                    ids=ids,
                    outcome=outcome,
                    error=error,
                    took=perf_counter() - began,
                )
            )

    def settled(
        self,
        messages: Sequence[Message],
        outcome: Outcome,
        lost: Collection[int] = (),
        *,
        in_transaction: bool = False,
    ) -> None:
        """Report messages that a statement has settled, without those that are lost."""
        if self._events.wants(Settled):
            ids = tuple(m.id for m in messages if m.id not in lost)
            if ids:
                self._events.emit(
                    Settled(
                        queue=self._queue,
                        worker_id=self._worker_id,
                        ids=ids,
                        outcome=outcome,
                        in_transaction=in_transaction,
                    )
                )

    def extended(self, messages: Sequence[Message]) -> None:
        """Report leases that were extended."""
        if messages and self._events.wants(LeasesExtended):
            self._events.emit(
                LeasesExtended(queue=self._queue, worker_id=self._worker_id, ids=_ids(messages))
            )

    def lost(self, messages: Sequence[Message]) -> None:
        """Report leases that are gone."""
        if messages and self._events.wants(LeasesLost):
            self._events.emit(
                LeasesLost(queue=self._queue, worker_id=self._worker_id, ids=_ids(messages))
            )

    @property
    def _queue(self) -> str:
        return self._registration.queue

    @property
    def _worker_id(self) -> int:
        return self._registration.worker_id


def _ids(messages: Sequence[Message]) -> tuple[int, ...]:
    return tuple(m.id for m in messages)
