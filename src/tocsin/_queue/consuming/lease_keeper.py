"""The extension of leases while handlers run.

A lease is extended when half of its time has gone. One statement extends all leases
that are due, and a handler that ends sooner costs no statement. When the database says
that a lease is gone, the handler that relied on it is cancelled: it could not settle
anyway. The same statement says which messages were cancelled. Their handlers are
cancelled, too; the leases stay, and the run settles these messages when the handlers
have ended. The statement also writes the progress that jobs have reported, for which a
lease is extended sooner. A statement that is not answered is sent on another connection
before the leases end, so the leases do not depend on a single connection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import timedelta

import psycopg
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._concurrency.cancelling import cancel
from tocsin._database.client import Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._queue.message import Message, settle_arguments
from tocsin._queue.workers.health import suspicious_after
from tocsin.errors import CharacterUnsupported

from .claimed_batch import ClaimedBatch
from .lease_clock import lease_time, time_asleep
from .leases import Lease, Leases
from .progress import ProgressNotes, progress_argument
from .reporter import Reporter

logger = logging.getLogger("tocsin.lease")

SOONEST = 0.05
LATEST = 1.0
"""The least and most seconds to wait for an answer.

Then leases are extended on another connection too. The wait is a quarter of the time
that is left of them.
"""

LOCKED_PAUSE = 0.25
"""Seconds between two extensions of a lease whose message another transaction locks."""


_EXTEND = (
    "select tocsin.extend(%s::bigint[], %s::bigint[], %s, %s::jsonb),"
    " tocsin.cancel_reasons(%s::bigint[], %s::bigint[])"
)


class LeaseKeeper:
    """The keeper of one consumer's leases: extends them, and finds lost ones."""

    def __init__(self, database: Database, leases: Leases, reporter: Reporter) -> None:
        self._database = database
        self._leases = leases
        self._reporter = reporter
        self._progress = ProgressNotes(leases)
        self._idle_scope = trio.CancelScope()

    def add_batch(self, batch: ClaimedBatch) -> None:
        """Keep the leases of a batch."""
        self._leases.add_batch(batch)
        self._reporter.claimed(batch)
        terms = batch.terms
        if terms.auto_extend:
            self._wake_by(terms.expires - terms.vt / 2)
            self._wake_by(terms.since + suspicious_after(terms.vt))

    def add(self, batch: ClaimedBatch, messages: Sequence[Message]) -> None:
        """Record messages of a batch that were decoded."""
        for lost in self._leases.add(messages, batch):
            self._reporter.lost([lost.message])
            _on_lost(self._leases, lost)

    def report_progress(self, message: Message, progress: str) -> None:
        """Have the progress of a message, as JSON, written soon."""
        self._wake_by(self._progress.add(message, progress))

    @trio.lowlevel.enable_ki_protection
    async def extend_forever(self) -> None:
        """Extend leases in time, without end, and warn of handlers that may hang.

        Cancellation:
            The leases stay as they are.
        """
        while True:
            deadline = (
                min((min(self._due_at(h), h.warn_at) for h in self._leases.all()), default=math.inf)
                - time_asleep()
            )
            with trio.CancelScope(deadline=deadline) as self._idle_scope:
                await trio.sleep_forever()
            _warn_of_long_calls(self._leases)
            await self.refresh(lease_time())

    @trio.lowlevel.enable_ki_protection
    async def refresh(self, until: float = math.inf, *, on_purpose: bool = False) -> int:
        """Extend the leases that are due by a time, and cancel handlers of lost ones.

        It goes on until the database has answered.

        Args:
            until: The time, by `lease_time`.
            on_purpose: A command has taken the leases, so no warning is logged.

        Returns:
            The number of leases that are lost.

        Cancellation:
            The leases are extended or not.
        """
        due = [h for h in self._leases.all() if h.terms.auto_extend and self._due_at(h) <= until]
        return sum(
            [
                await self._refresh([h for h in due if h.terms.vt == vt], vt, on_purpose)
                for vt in {h.terms.vt for h in due}
            ]
        )

    async def _refresh(self, due: list[Lease], vt: float, on_purpose: bool) -> int:
        gone = 0
        leases = self._leases
        retries = OutageRetry("extending leases", logger)
        while True:
            due = [h for h in due if h.message in leases]
            if not due:
                return gone
            try:
                extended = await self.extend([h.message for h in due], vt)
            except TRANSIENT as lost:
                await retries.pause_after(lost)
                continue
            retries.succeeded()
            for held, still_ours in zip(due, extended, strict=True):
                # the message was settled while the statement was running
                if still_ours is not False or held.message not in leases:
                    continue
                if held.in_transaction:
                    leases.drop_gone([held.message])
                elif leases.is_settling(
                    held.message
                ):  # the answer of that statement is outstanding
                    held.expires = lease_time() + vt
                else:
                    gone += 1
                    self._reporter.lost([held.message])
                    _on_lost(leases, held, logging.DEBUG if on_purpose else logging.WARNING)
            return gone

    async def extend(self, messages: Sequence[Message], seconds: float) -> list[bool | None]:
        """Make these leases end in this many seconds; return which are still ours.

        None stands for a lease that is still ours but has not been extended, because
        another transaction has locked the message.

        Cancellation:
            The leases are extended or not.
        """
        now = lease_time()
        taken = self._progress.take(messages)
        held = [h for m in messages if m in self._leases and (h := self._leases.get(m.id))]
        left = min((h.expires for h in held), default=math.inf) - now
        after = min(max(left / 4, SOONEST), LATEST)
        extended, reasons = await _extend(self._database, messages, seconds, taken, after)
        self._progress.written(messages, taken, extended)
        for message, still_ours, reason in zip(messages, extended, reasons, strict=True):
            lease = self._leases.get(message.id) if message in self._leases else None
            if lease is not None and reason is not None and not self._leases.is_cancelled(message):
                _on_cancelled(self._leases, lease, reason)
            if lease is not None and still_ours is not False:
                if still_ours:
                    lease.expires = now + seconds
                    lease.locked_until = -math.inf
                else:
                    lease.locked_until = lease_time() + LOCKED_PAUSE
                self._wake_by(
                    lease.extend_at
                )  # a handler may have shortened its lease, and may still run
        self._reporter.extended([m for m, o in zip(messages, extended, strict=True) if o])
        return list(extended)

    def _due_at(self, held: Lease) -> float:
        """Return when a lease is to be extended, or has progress to write."""
        if not held.terms.auto_extend:
            return math.inf
        return min(held.extend_at, max(self._progress.due_at(held.message), held.locked_until))

    def _wake_by(self, at: float) -> None:
        at -= time_asleep()
        # The deadline moves without waking the task: most leases end before it.
        if at < self._idle_scope.deadline:
            self._idle_scope.deadline = at


async def _extend(
    database: Database,
    messages: Sequence[Message],
    seconds: float,
    progress: Sequence[str | None],
    after: float,
) -> tuple[list[bool | None], list[str | None]]:
    """Extend leases, and write progress; return what the two functions do."""
    ids, tokens = settle_arguments(messages)
    lease, written = timedelta(seconds=seconds), progress_argument(progress)
    try:
        ((extended, reasons),) = await database.fetch_from_any(
            _EXTEND, [ids, tokens, lease, written, ids, tokens], after=after
        )
    except (CharacterUnsupported, psycopg.DataError):
        if written is None:
            raise
        # The database cannot hold a text that a job has reported.
        return await _extend(database, messages, seconds, [], after)
    return extended, reasons


async def check_in_transaction(
    leases: Leases, keeper: LeaseKeeper, messages: Sequence[Message] | None = None
) -> list[Message]:
    """Find out which messages callers' transactions have settled, and forget those.

    Args:
        leases: The leases of the consumer.
        keeper: Extends them.
        messages: The messages; None: all that a transaction may settle.

    Returns:
        The messages whose transaction was rolled back. Their leases are extended.

    Raises:
        ConnectionLost: The database did not answer.

    Cancellation:
        The leases are extended or not.
    """
    rolled_back: list[Message] = []
    wanted = None if messages is None else {m.id for m in messages}
    asked = [h for h in leases.in_transaction if wanted is None or h.message.id in wanted]
    for vt in {h.terms.vt for h in asked}:
        group = [h.message for h in asked if h.terms.vt == vt]
        extended = await keeper.extend(group, vt)
        rolled_back += [m for m, ours in zip(group, extended, strict=True) if ours]
        leases.drop_gone([m for m, ours in zip(group, extended, strict=True) if ours is False])
    return rolled_back


async def wait_empty(leases: Leases, keeper: LeaseKeeper) -> None:
    """Wait until nothing is held but expired leases of messages dequeued by hand.

    Cancellation:
        Changes nothing.
    """
    while alive := [h for h in leases.all() if h.terms.auto_extend or h.expires > lease_time()]:
        wake_at = min(math.inf if h.terms.auto_extend else h.expires for h in alive)
        wake_at -= time_asleep()
        if leases.in_transaction:
            await check_in_transaction(leases, keeper)
            wake_at = min(wake_at, trio.current_time() + LOCKED_PAUSE)
            if not leases.in_transaction:
                continue
        with trio.move_on_at(wake_at):
            await leases.wait_for_drop()
    await trio.lowlevel.checkpoint()


def _warn_of_long_calls(leases: Leases) -> None:
    """Log which handlers have been running for suspiciously long.

    A handler is logged again when its time has doubled.
    """
    now = lease_time()
    for held in [h for h in leases.all() if h.warn_at <= now]:
        message, running = held.message, now - held.terms.since
        held.patience = 2 * running
        if (
            held.call is not None
            and message in leases
            and any(m is message for m in held.call.messages)
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


def _on_lost(leases: Leases, held: Lease, level: int = logging.WARNING) -> None:
    leases.drop(held.message)
    call, message_id = held.call, held.message.id
    if call is None or held.message not in call.messages or any(m in leases for m in call.messages):
        logger.log(level, "the lease of message %d is gone; it will be delivered again", message_id)
    else:
        logger.log(level, "the lease of message %d is gone; its handler is cancelled", message_id)
        call.lost = message_id
        cancel(call.scope, f"the lease of message {message_id} is gone")


def _on_cancelled(leases: Leases, held: Lease, reason: str) -> None:
    call, message = held.call, held.message
    leases.mark_cancelled(message)
    if call is None or message not in call.messages:
        return  # its handler has not begun, or has ended
    if all(m not in leases or leases.is_cancelled(m) for m in call.messages):
        logger.info("message %d is cancelled: %s", message.id, reason)
        cancel(call.scope, f"message {message.id} is cancelled: {reason}")
