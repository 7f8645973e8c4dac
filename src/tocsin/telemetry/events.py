"""Events: what the parts of a store report of their work, as frozen values.

The parts emit; each `Subscription` buffers what it asked for. An emitter never waits: a
subscription whose buffer is full drops the event and counts it. So a slow subscriber
loses events, and slows no consumer or producer. An emitter asks `Events.wants` before
it builds an event, so an event without a subscriber costs one look-up in a set.

The channel is for metrics, dashboards and tests. It is not an audit log: what an event
says of the caller's transaction may be rolled back, and a process that dies emits
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Literal, TypeVar, overload

import attrs
import trio

EventT = TypeVar("EventT", bound="Event")


@attrs.frozen(kw_only=True)
class Event:
    """Anything that happened in this process's part of a store."""

    at: float = attrs.field(factory=time.time, eq=False)
    """When it was reported, in seconds since the epoch, by this process's clock."""


@attrs.frozen(kw_only=True)
class Enqueued(Event):
    """This process has enqueued messages."""

    queue: str
    """Name of the queue."""
    ids: Sequence[int]
    """Ids of the messages. With a key, the id may be that of an earlier message."""
    worker_id: int | None
    """Id of the producer; None for `tocsin.Store.produce`."""
    in_transaction: bool
    """Whether they belong to the caller's transaction, which may roll back."""


@attrs.frozen(kw_only=True)
class Rung(Event):
    """A notification that messages of a queue can be claimed has come in."""

    queue: str
    """Name of the queue."""


@attrs.frozen(kw_only=True)
class Woken(Event):
    """A consumer that was idle begins to claim."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""


@attrs.frozen(kw_only=True)
class Claimed(Event):
    """A consumer has claimed messages."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages."""


@attrs.frozen(kw_only=True)
class HandlerBegan(Event):
    """A call of a handler has begun."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages of the call."""


@attrs.frozen(kw_only=True)
class HandlerEnded(Event):
    """A call of a handler has ended.

    Its messages are settled afterwards.
    """

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages of the call."""
    outcome: Literal["returned", "raised", "cancelled"]
    """How it ended."""
    error: str | None
    """Type of the exception that it raised; None for another outcome."""
    took: float
    """Seconds from its beginning to its end."""


@attrs.frozen(kw_only=True)
class Settled(Event):
    """A consumer has settled messages."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages."""
    outcome: Literal["archived", "deleted", "released", "failed"]
    """What has become of them. A failed message is delivered again, or is a dead
    letter."""
    in_transaction: bool
    """Whether that belongs to the caller's transaction, which may roll back."""


@attrs.frozen(kw_only=True)
class LeasesExtended(Event):
    """A consumer has extended leases of messages."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages."""


@attrs.frozen(kw_only=True)
class LeasesLost(Event):
    """A consumer has noticed that leases of messages are gone."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the consumer."""
    ids: Sequence[int]
    """Ids of the messages."""


@attrs.frozen(kw_only=True)
class WorkerStateChanged(Event):
    """A worker of this process has another state in the registry."""

    queue: str
    """Name of the queue."""
    worker_id: int
    """Id of the worker."""
    status: str
    """Its state, as `tocsin.WorkerStatus` has it; ``gone`` when the registration
    belongs to another process by now."""


@attrs.frozen(kw_only=True)
class DeclaredDead(Event):
    """Another process has declared this one dead.

    This process registers again.
    """

    process_id: int
    """Id of the process in the registry, which it gives up."""


@attrs.frozen(kw_only=True)
class ConnectionDown(Event):
    """A connection is lost or could not be opened.

    For the pool, a statement has failed for want of a connection. An outage is reported
    once for each ``connection``.
    """

    connection: Literal["listen", "pool"]
    """The LISTEN connection, or those of the pool."""
    reason: str
    """What the error says."""


@attrs.frozen(kw_only=True)
class ConnectionUp(Event):
    """The LISTEN connection is open and proven, or the pool works again.

    The pool works again when a statement has succeeded after an outage.
    """

    connection: Literal["listen", "pool"]
    """The LISTEN connection, or those of the pool."""


@attrs.frozen(kw_only=True)
class MaintenanceEnded(Event):
    """This process has maintained the database."""

    result: Any
    """The `tocsin.MaintenanceResult`; None when maintenance failed."""


class Subscription(Generic[EventT]):
    """The events that one subscriber asked for, made by `Events.subscribe`.

    It is an asynchronous iterator, which ends when the store is closed.
    """

    dropped: int
    """Events that were dropped because the buffer was full."""

    def __init__(self, kinds: tuple[type[EventT], ...], buffer: int) -> None:
        self.dropped = 0
        self._kinds = kinds
        self._send, self._receive = trio.open_memory_channel[EventT](buffer)

    def __aiter__(self) -> Subscription[EventT]:
        """Iterate over the events in the order in which they happened."""
        return self

    async def __anext__(self) -> EventT:
        """Return the next event, and wait for it when there is none.

        Raises:
            StopAsyncIteration: The store is closed, and every event was returned.

        Cancellation:
            No event is lost.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def _offer(self, event: Event) -> None:
        if isinstance(event, self._kinds):
            try:
                self._send.send_nowait(event)
            except trio.WouldBlock:
                self.dropped += 1

    def _end(self) -> None:
        self._send.close()

    def _close(self) -> None:
        self._send.close()
        self._receive.close()


class Events:
    """The event channel of a store: `tocsin.Store.events`."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription[Any]] = []
        self._wanted: frozenset[type[Event]] = frozenset()
        self._closed = False

    @overload
    def subscribe(self, *, buffer: int = ...) -> AbstractContextManager[Subscription[Event]]: ...
    @overload
    def subscribe(
        self, *kinds: type[EventT], buffer: int = ...
    ) -> AbstractContextManager[Subscription[EventT]]: ...
    def subscribe(
        self, *kinds: type[Any], buffer: int = 10_000
    ) -> AbstractContextManager[Subscription[Any]]:
        """Subscribe to events for as long as the block lasts.

        Args:
            *kinds: Classes of events; without any, all events.
            buffer: How many events wait for the subscriber at most. Further ones are
                dropped, and counted in `Subscription.dropped`.
        """
        if not isinstance(buffer, int) or buffer < 1:
            raise ValueError(f"buffer must be a positive integer, not {buffer!r}")
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise TypeError(f"events are classes of tocsin.telemetry, not {kind!r}")
        return self._subscribe(kinds or (Event,), buffer)

    @contextmanager
    def _subscribe(self, kinds: tuple[type[Any], ...], buffer: int) -> Iterator[Subscription[Any]]:
        subscription = Subscription[Any](kinds, buffer)
        if self._closed:
            subscription._end()
        self._subscriptions.append(subscription)
        self._note_wanted()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._note_wanted()
            subscription._close()

    def wants(self, kind: type[Event]) -> bool:
        """Return whether a subscription asks for events of this class."""
        return kind in self._wanted

    def emit(self, event: Event) -> None:
        """Give an event to the subscriptions that ask for it. Never waits.

        A call that was going on when the store was closed may still end, and reports
        that to no subscription.
        """
        if self._closed:
            return
        for subscription in self._subscriptions:
            subscription._offer(event)

    def close(self) -> None:
        """End all subscriptions: the store is closed."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription._end()
        self._wanted = frozenset()

    def _note_wanted(self) -> None:
        asked = tuple(kind for s in self._subscriptions for kind in s._kinds)
        self._wanted = frozenset(
            k for k in _all_kinds() if not self._closed and issubclass(k, asked)
        )


def _all_kinds() -> Iterator[type[Event]]:
    pending: list[type[Event]] = [Event]
    while pending:
        kind = pending.pop()
        yield kind
        pending += kind.__subclasses__()
