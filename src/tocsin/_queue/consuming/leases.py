"""What a consumer holds: leases, and keeping them alive while handlers run.

A lease is kept by extending it when half of its time has gone, all that are due in one
statement; a handler that is done sooner costs no statement. When the database says that
a lease is gone, the handler that relied on it is cancelled: it could not settle anyway.
A statement that is not answered is sent on another connection before the leases end, so
that no connection is relied on alone.

A message that is settled in a transaction of the caller's is *promised*: it keeps its
lease, since the transaction may be rolled back. Its row is locked until the transaction
ends, so an extension passes over it, and so does every claim. After a commit the lease
is gone, and the message counts as settled; after a rollback the lease is still there.
(It may also have ended and been taken over before the rollback. Then the message is
counted all the same; the database has it right.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterable, Sequence
from datetime import timedelta
from typing import Protocol

import attrs
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._database.client import Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._queue.message import Message, settle_arguments
from tocsin._queue.workers.health import suspicious_after

from .lease_clock import lease_time, time_asleep

logger = logging.getLogger("tocsin.lease")

SOONEST = 0.05
LATEST = 1.0
"""Least and most seconds without an answer after which leases are extended on another
connection too: a quarter of what is left of them."""

LOCKED_PAUSE = 0.25
"""Seconds after which a lease is to be extended again whose message another transaction
has locked."""


@attrs.define(eq=False)
class HandlerCall:
    """What calls a handler, and the scope it does that in."""

    messages: list[Message] = attrs.Factory(list)
    """What the handler is working on."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    lost: int | None = None
    """Id of the message whose lease was lost last, for which the scope was cancelled.
    """


@attrs.define(eq=False)
class Lease:
    """One lease."""

    message: Message
    vt: float
    """Its length in seconds."""
    expires: float
    """When it ends, by `lease_time`, not later than by the server's clock."""
    kept: bool
    """Whether a run keeps it alive; else the caller of `dequeue` extends it."""
    since: float
    """When the message was claimed."""
    patience: float
    """For how many seconds its handler may run without a warning."""
    unit: HandlerCall | None = None
    """Who relies on it; None: nobody yet, or the caller of `dequeue`."""
    promised: bool = False
    """Whether a transaction of the caller's settles the message, as far as is known."""
    locked_until: float = -math.inf
    """Another transaction has locked the message: not to be extended before this."""

    @property
    def refresh_at(self) -> float:
        return max(self.expires - self.vt / 2, self.locked_until) if self.kept else math.inf

    @property
    def warn_at(self) -> float:
        return self.since + self.patience if self.kept else math.inf


class Claimed(Protocol):
    """Messages that were claimed together: see ``claimed_batch.py``."""

    @property
    def vt(self) -> float: ...
    @property
    def expires(self) -> float: ...
    @property
    def kept(self) -> bool: ...
    def decode(self) -> None: ...


class Leases:
    """The leases of one consumer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[int, Lease] = {}
        self._packed: list[Claimed] = []
        self.settling: list[Sequence[Message]] = []
        """What statements under way settle: they say themselves whether the lease was
        gone."""
        self.settled_elsewhere = 0
        """How many messages of runs have been settled in transactions of the caller's.
        """
        self._promised = dict[int, Lease]()
        self._idle_scope = trio.CancelScope()
        self._drops = trio.lowlevel.ParkingLot()

    def __contains__(self, message: Message) -> bool:
        held = self._held.get(message.id)
        return held is not None and (
            held.message is message or held.message.lease_token == message.lease_token
        )

    def expect(self, batch: Claimed) -> None:
        """Note that the messages of this batch are held too, though it is not decoded
        yet."""
        self._packed.append(batch)
        if batch.kept:
            self._look_by(batch.expires - batch.vt / 2)
            self._look_by(batch.expires - batch.vt + suspicious_after(batch.vt))

    def note(self, messages: Sequence[Message], batch: Claimed, *, last: bool) -> None:
        """Note messages of a batch that were decoded; ``last``: all of it is."""
        if last:
            self._packed.remove(batch)
        vt, expires, kept = batch.vt, batch.expires, batch.kept
        since, patience = expires - vt, suspicious_after(vt)
        for message in messages:
            # this loop was blocked for so long that its own message came back
            if former := self._held.get(message.id):
                if former.promised:  # released, and claimed again
                    self.drop_gone([former.message])
                else:
                    self._lose(former)
            self._held[message.id] = Lease(message, vt, expires, kept, since, patience)

    def _all(self) -> list[Lease]:
        # in the order of the claims: of two leases of one message the later one counts
        while self._packed:
            self._packed[0].decode()
        return list(self._held.values())

    def forget_lapsed(self) -> None:
        """Forget leases of messages dequeued by hand that have ended."""
        now = lease_time()
        for lapsed in [h for h in self._all() if not h.kept and h.expires < now]:
            self.drop(lapsed.message)

    def start(self, unit: HandlerCall, now: float) -> list[Message]:
        """A handler relies on the leases of these messages from now (`lease_time`) on;
        those that are gone are taken out of the unit.

        Returns those whose lease is over by this process's clock, which are taken out
        too: the process was stopped for a while, and another consumer may have the
        message by now.
        """
        over: list[Message] = []
        for message in list(unit.messages):
            held = self._held.get(message.id)
            if held is None or held.message is not message:
                unit.messages.remove(message)
            elif held.expires <= now:
                unit.messages.remove(message)
                over.append(message)
            else:
                held.unit = unit
        return over

    def drop(self, message: Message) -> None:
        """Forget a lease that is settled or gone."""
        self.drop_settled([message])

    def drop_settled(self, messages: Sequence[Message], lost: Container[int] = ()) -> int:
        """Forget leases that a statement has settled, or found ``lost``; return how
        many of the others a run kept.

        One that was lost since a transaction of the caller's has settled it counts as
        `settled_elsewhere`.
        """
        kept = 0
        for message in messages:
            message_id = message.id
            held = self._held.get(message_id)
            if held is not None and (
                held.message is message or held.message.lease_token == message.lease_token
            ):
                del self._held[message_id]
                if held.promised:
                    del self._promised[message_id]
                if message_id not in lost:
                    kept += held.kept
                elif held.promised:
                    self.settled_elsewhere += held.kept
        if self._drops:
            self._drops.unpark_all()
        return kept

    # Settling in a transaction of the caller's

    def promise(self, messages: Iterable[Message]) -> list[Message]:
        """Note that a transaction of the caller's is to settle these messages; return
        those of which that is new."""
        new: list[Message] = []
        for message in messages:
            if message in self and not (held := self._held[message.id]).promised:
                held.promised = True
                self._promised[message.id] = held
                new.append(message)
        return new

    def break_promise(self, messages: Iterable[Message]) -> None:
        """Note that no transaction is to settle these messages: it has found their
        leases gone, or was rolled back."""
        for message in messages:
            if held := self._promised.pop(message.id, None):
                held.promised = False

    def is_promised(self, message: Message) -> bool:
        """Whether a transaction of the caller's settles the message, as far as is
        known."""
        return message.id in self._promised and message in self

    async def look_at_promised(self, messages: Sequence[Message] | None = None) -> list[Message]:
        """Find out what has become of promised messages (None: of all); return those
        whose lease is there, extended: it was rolled back.

        Those that are settled are forgotten. Raises `ConnectionLost`. Cancelled, leases
        are extended or not.
        """
        rolled_back: list[Message] = []
        wanted = self._promised.keys() if messages is None else {m.id for m in messages}
        looked_at = [h for message_id, h in self._promised.items() if message_id in wanted]
        for vt in {h.vt for h in looked_at}:
            asked = [h.message for h in looked_at if h.vt == vt]
            kept = await self.extend(asked, vt)
            rolled_back += [m for m, still_ours in zip(asked, kept, strict=True) if still_ours]
            self.drop_gone(
                [m for m, still_ours in zip(asked, kept, strict=True) if still_ours is False]
            )
        return rolled_back

    def drop_gone(self, messages: Sequence[Message]) -> None:
        """Forget leases that a statement has found gone; one that was promised counts
        as settled."""
        self.drop_settled(messages, [m.id for m in messages])

    def find(self, message_id: int) -> Message | None:
        """Return the message of this id if it is held."""
        held = self._held.get(message_id)
        return None if held is None else held.message

    def messages(self) -> list[Message]:
        """Return all messages held."""
        return [held.message for held in self._all()]

    def messages_by_hand(self) -> list[Message]:
        """Return the messages held that were dequeued by hand."""
        return [held.message for held in self._all() if not held.kept]

    def drop_kept(self) -> None:
        """Forget all leases but those of messages dequeued by hand."""
        for held in [h for h in self._all() if h.kept]:
            self.drop(held.message)

    async def wait_empty(self) -> None:
        """Return when nothing is held, beside leases taken by hand that have ended.
        Cancellation changes nothing."""
        while alive := [h for h in self._all() if h.kept or h.expires > lease_time()]:
            wake_at = min(math.inf if h.kept else h.expires for h in alive) - time_asleep()
            if self._promised:
                await self.look_at_promised()
                wake_at = min(wake_at, trio.current_time() + LOCKED_PAUSE)
                if not self._promised:
                    continue
            with trio.move_on_at(wake_at):
                await self._drops.park()
        await trio.lowlevel.checkpoint()

    def by_hand_until(self) -> float:
        """Return when (`lease_time`) the last lease of a message dequeued by hand ends;
        minus infinity where there is none."""
        return max((h.expires for h in self._all() if not h.kept), default=-math.inf)

    async def wait_for_drop(self) -> None:
        """Return when a lease is forgotten, or `wake_waiters` is called. Cancellation
        changes nothing."""
        await self._drops.park()

    def wake_waiters(self) -> None:
        """Have `wait_for_drop` return."""
        self._drops.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def keep(self) -> None:
        """Extend leases in time, for ever, and warn of handlers that may hang.
        Cancellation leaves the leases as they are."""
        while True:
            deadline = (
                min((min(h.refresh_at, h.warn_at) for h in self._all()), default=math.inf)
                - time_asleep()
            )
            with trio.CancelScope(deadline=deadline) as self._idle_scope:
                await trio.sleep_forever()
            self._warn_of_long_ones()
            await self.refresh(lease_time())

    def _warn_of_long_ones(self) -> None:
        """Log which handlers have been running for suspiciously long; again when that
        time has doubled."""
        now = lease_time()
        for held in [h for h in self._all() if h.warn_at <= now]:
            message, running = held.message, now - held.since
            held.patience = 2 * running
            if (
                held.unit is not None
                and message in self
                and any(m is message for m in held.unit.messages)
            ):
                fields = {
                    "queue": message.queue,
                    "message_id": message.id,
                    "delivery": message.read_ct,
                }
                logger.warning(
                    "the handler of message %d has been running for %.0f s; it may hang",
                    message.id,
                    running,
                    extra=fields,
                )

    def _look_by(self, at: float) -> None:
        at -= time_asleep()
        # moved, and not woken: a lease begins just before its handler, and as a rule
        # ends before this
        if at < self._idle_scope.deadline:
            self._idle_scope.deadline = at

    @trio.lowlevel.enable_ki_protection
    async def refresh(self, until: float = math.inf, *, on_purpose: bool = False) -> int:
        """Extend the leases that are to be extended until this time, and cancel the
        handlers of those that are gone; return how many are.

        ``on_purpose``: they were taken by somebody who may, which is not to be warned
        of. Goes on until the database has answered. Cancelled, they are extended or
        not.
        """
        due = [h for h in self._all() if h.kept and h.refresh_at <= until]
        return sum(
            [
                await self._refresh([h for h in due if h.vt == vt], vt, on_purpose)
                for vt in {h.vt for h in due}
            ]
        )

    async def _refresh(self, due: list[Lease], vt: float, on_purpose: bool) -> int:
        gone = 0
        retries = OutageRetry("extending leases", logger)
        while True:
            due = [h for h in due if h.message in self]
            if not due:
                return gone
            try:
                kept = await self.extend([h.message for h in due], vt)
            except TRANSIENT as lost:
                await trio.sleep(retries.failed(lost))
                continue
            retries.succeeded()
            for held, still_ours in zip(due, kept, strict=True):
                # settled while the statement was under way
                if still_ours is not False or held.message not in self:
                    continue
                if held.promised:
                    self.drop_gone([held.message])
                elif any(
                    m is held.message for messages in self.settling for m in messages
                ):  # or the answer to that is still to come
                    held.expires = lease_time() + vt
                else:
                    gone += 1
                    self._lose(held, logging.DEBUG if on_purpose else logging.WARNING)
            return gone

    async def extend(self, messages: Sequence[Message], seconds: float) -> list[bool | None]:
        """Make these leases end in this many seconds; return which are still ours.
        Cancelled, they are extended or not.

        None: still ours, but another transaction has locked the message, so that its
        lease ends when it did.
        """
        now = lease_time()
        parameters = [*settle_arguments(messages), timedelta(seconds=seconds)]
        left = (
            min((self._held[m.id].expires for m in messages if m in self), default=math.inf) - now
        )
        ((kept,),) = await self._database.fetch_from_any(
            "select tocsin.extend(%s::bigint[], %s::bigint[], %s)",
            parameters,
            after=min(max(left / 4, SOONEST), LATEST),
        )
        for message, still_ours in zip(messages, kept, strict=True):
            if message in self and still_ours is not False:
                held = self._held[message.id]
                if still_ours:
                    held.expires = now + seconds
                    held.locked_until = -math.inf
                else:
                    held.locked_until = lease_time() + LOCKED_PAUSE
                self._look_by(held.refresh_at)  # a handler may have made it shorter, and go on
        return list(kept)

    def _lose(self, held: Lease, level: int = logging.WARNING) -> None:
        self.drop(held.message)
        unit = held.unit
        if (
            unit is None
            or held.message not in unit.messages
            or any(m in self for m in unit.messages)
        ):
            logger.log(
                level,
                "the lease of message %d is gone; it will be delivered again",
                held.message.id,
            )
        else:
            logger.log(
                level, "the lease of message %d is gone; its handler is cancelled", held.message.id
            )
            unit.lost = held.message.id
            unit.scope.cancel()
