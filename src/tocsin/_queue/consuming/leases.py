"""The leases that a consumer holds.

A message that is settled in the caller's transaction keeps its lease until the end of
the transaction, which may be rolled back. Its row is locked until the transaction ends,
so an extension passes over it, and so does every claim. After a commit the lease is
gone, and the message counts as settled; after a rollback the lease is still there. (The
lease may also have expired and another consumer have claimed the message before the
rollback. The message is counted all the same; the database has it right.)
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from tocsin._queue.message import Message
from tocsin._queue.workers.health import suspicious_after
from tocsin.errors import LeaseLost

from .calls import CallScope
from .claimed_batch import ClaimedBatch, LeaseTerms
from .lease_clock import lease_time


@attrs.define(eq=False)
class Lease:
    """One lease."""

    message: Message
    terms: LeaseTerms
    """Its terms when the message was claimed."""
    expires: float
    """Its end by `lease_time`, not later than by the server's clock."""
    patience: float
    """The seconds for which its handler may run without a warning."""
    task: trio.lowlevel.Task | None = None
    """The task that dequeued the message; None for a message of a run."""
    call: CallScope | None = None
    """The call that relies on it; None before its handler begins."""
    in_transaction: bool = False
    """Whether an open transaction of the caller may settle it, as far as is known."""
    locked_until: float = -math.inf
    """The time before which it is not extended: another transaction locks the row."""

    @property
    def extend_at(self) -> float:
        """The time of its next extension, by `lease_time`."""
        terms = self.terms
        if not terms.auto_extend:
            return math.inf
        return max(self.expires - terms.vt / 2, self.locked_until)

    @property
    def warn_at(self) -> float:
        """The time of the next warning of its handler, by `lease_time`."""
        return self.terms.since + self.patience if self.terms.auto_extend else math.inf


class HeldLeases:
    """The leases of one consumer, from the claim to the settlement."""

    def __init__(self) -> None:
        self.settled_elsewhere = 0
        """The number of messages of runs that callers' transactions have settled."""
        self._held: dict[int, Lease] = {}
        self._undecoded: list[ClaimedBatch] = []
        self._in_transaction: dict[int, Lease] = {}
        self._cancelled: set[int] = set()
        self._drops = trio.lowlevel.ParkingLot()

    def __contains__(self, message: Message) -> bool:
        held = self._held.get(message.id)
        return held is not None and (
            held.message is message or held.message.lease_token == message.lease_token
        )

    # Claimed messages

    def add_batch(self, batch: ClaimedBatch) -> None:
        """Record that the messages of this batch are held, though not decoded yet."""
        self._undecoded.append(batch)

    def add(self, messages: Sequence[Message], batch: ClaimedBatch) -> list[Lease]:
        """Record messages of a batch that were decoded.

        Returns:
            The leases that are lost: the event loop was blocked for so long that this
            consumer has claimed their messages again.
        """
        if batch.is_decoded:
            self._undecoded.remove(batch)
        terms, expires = batch.terms, batch.terms.expires
        patience = suspicious_after(terms.vt)
        task = None if terms.auto_extend else trio.lowlevel.current_task()
        replaced: list[Lease] = []
        for message in messages:
            if former := self._held.get(message.id):
                if not former.in_transaction:
                    replaced.append(former)
                self.drop_gone([former.message])
            self._held[message.id] = Lease(message, terms, expires, patience, task)
        return replaced

    def start(self, call: CallScope, now: float) -> list[Message]:
        """Record that a handler relies on the leases of a call's messages from now on.

        Messages whose lease is gone are taken out of the call. So are messages that are
        new to the call and were cancelled, or whose lease is over by this process's
        clock: the process was stopped for a while, and another consumer may have
        claimed them.

        Args:
            call: The call.
            now: By `lease_time`.

        Returns:
            The messages that were cancelled, or whose lease is over.
        """
        over: list[Message] = []
        for message in list(call.messages):
            held = self._held.get(message.id)
            if held is None or held.message is not message:
                call.messages.remove(message)
            elif held.call is not call and (message.id in self._cancelled or held.expires <= now):
                call.messages.remove(message)
                over.append(message)
            else:
                held.call = call
        return over

    def all(self) -> list[Lease]:
        """Return all leases, in the order of the claims.

        Of two leases of one message the later one counts.
        """
        while self._undecoded:
            self._undecoded[0].decode()
        return list(self._held.values())

    def get(self, message_id: int) -> Lease | None:
        """Return the lease of the message of this id."""
        return self._held.get(message_id)

    def messages(self) -> list[Message]:
        """Return all messages held."""
        return [held.message for held in self.all()]

    # Settled messages and lost leases

    def drop(self, message: Message) -> None:
        """Forget a lease that is settled or gone."""
        self.drop_settled([message])

    def drop_settled(self, messages: Sequence[Message], lost: Container[int] = ()) -> int:
        """Forget leases that a statement has settled, or found ``lost``.

        A lease that is lost because the caller's transaction has settled its message
        counts as `settled_elsewhere`.

        Returns:
            The number of leases of a run that are not lost.
        """
        settled = 0
        for message in messages:
            message_id = message.id
            held = self._held.get(message_id)
            if held is not None and (
                held.message is message or held.message.lease_token == message.lease_token
            ):
                del self._held[message_id]
                self._cancelled.discard(message_id)
                if held.in_transaction:
                    del self._in_transaction[message_id]
                if message_id not in lost:
                    settled += held.terms.auto_extend
                elif held.in_transaction:
                    self.settled_elsewhere += held.terms.auto_extend
        if self._drops:
            self._drops.unpark_all()
        return settled

    def drop_gone(self, messages: Sequence[Message]) -> None:
        """Forget leases that a statement has found gone.

        A lease counts as settled if the caller's transaction was to settle its message.
        """
        self.drop_settled(messages, [m.id for m in messages])

    def drop_auto_extended(self) -> None:
        """Forget all leases but those of messages dequeued by hand."""
        for held in [h for h in self.all() if h.terms.auto_extend]:
            self.drop(held.message)

    async def wait_for_drop(self) -> None:
        """Wait until a lease is forgotten, or `wake_waiters` is called.

        Cancellation:
            Changes nothing.
        """
        await self._drops.park()

    def wake_waiters(self) -> None:
        """Have `wait_for_drop` return."""
        self._drops.unpark_all()


class Leases(HeldLeases):
    """The leases of one consumer, by how their messages are settled."""

    def __init__(self) -> None:
        super().__init__()
        self._settling: list[Sequence[Message]] = []

    def find(self, message: Message | int, operation: str) -> Message:
        """Return the message to settle, which is given as such or by its id.

        Raises:
            LeaseLost: No message of the id is held; the error names the operation.
        """
        if isinstance(message, Message):
            return message
        held = self._held.get(message)
        if held is None:
            raise LeaseLost(message, operation)
        return held.message

    # Messages that were cancelled

    def is_cancelled(self, message: Message) -> bool:
        """Return whether this message, which is held, was cancelled."""
        return message.id in self._cancelled

    def take_cancelled(self, call: CallScope) -> list[Message]:
        """Take the messages of a call that were cancelled while it was going on."""
        cancelled = [m for m in call.messages if m in self and self.is_cancelled(m)]
        call.messages = [m for m in call.messages if m not in cancelled]
        return cancelled

    def mark_cancelled(self, message: Message) -> None:
        """Record that this message, which is held, was cancelled."""
        self._cancelled.add(message.id)

    # Messages that the caller has dequeued

    def manual_messages(self) -> list[Message]:
        """Return the messages held that were dequeued by hand."""
        return [held.message for held in self.all() if not held.terms.auto_extend]

    def manual_until(self, but: trio.lowlevel.Task | None = None) -> float:
        """Return when the last lease of a message dequeued by hand ends.

        The time is by `lease_time`, and minus infinity without such a lease. Messages
        that the task ``but`` dequeued do not count.
        """
        return max(
            (
                h.expires
                for h in self.all()
                if not h.terms.auto_extend and (but is None or h.task is not but)
            ),
            default=-math.inf,
        )

    def drop_expired_manual(self) -> None:
        """Forget leases of messages dequeued by hand that have ended."""
        now = lease_time()
        for expired in [h for h in self.all() if not h.terms.auto_extend and h.expires < now]:
            self.drop(expired.message)

    @contextmanager
    def settling(self, messages: Sequence[Message]) -> Iterator[None]:
        """Record that the statement of the block settles these messages.

        The statement itself says whether a lease was gone.
        """
        self._settling.append(messages)
        try:
            yield
        finally:
            self._settling.remove(messages)

    def is_settling(self, message: Message) -> bool:
        """Return whether a statement that settles this message is under way."""
        return any(m is message for messages in self._settling for m in messages)

    # Messages that a transaction of the caller settles

    @property
    def in_transaction(self) -> list[Lease]:
        """The leases that an open transaction may settle, as far as is known."""
        return list(self._in_transaction.values())

    def mark_in_transaction(self, messages: Iterable[Message]) -> list[Message]:
        """Record that the caller's transaction is to settle these messages.

        Returns:
            The messages that were not marked before.
        """
        new: list[Message] = []
        for message in messages:
            if message in self and not (held := self._held[message.id]).in_transaction:
                held.in_transaction = True
                self._in_transaction[message.id] = held
                new.append(message)
        return new

    def unmark_in_transaction(self, messages: Iterable[Message]) -> None:
        """Record that no transaction is to settle these messages.

        The transaction has found their leases gone, or was rolled back.
        """
        for message in messages:
            if held := self._in_transaction.pop(message.id, None):
                held.in_transaction = False

    def is_in_transaction(self, message: Message) -> bool:
        """Return whether a transaction may settle the message, as far as is known."""
        return message.id in self._in_transaction and message in self
