"""A consumer's dealings with the database: claiming, settling, polling. `Consumer` is
what users see of it; runs work on it directly."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

import attrs
import trio

from tocsin._concurrency.lock import Lock
from tocsin._database.caller_connection import AnyConnection, check_connection, fetch_value
from tocsin._database.client import Database
from tocsin._database.error_mapping import TRANSIENT
from tocsin._durations import Duration, to_seconds, to_timedelta
from tocsin._queue.message import Message, Source, settle_arguments
from tocsin._queue.process.bell import Bell, Waiter
from tocsin._queue.process.process import Process
from tocsin.errors import CharacterUnsupported, ConnectionLost, LeaseLost

from . import draining
from .claim_cursor import ClaimCursor
from .claimed_batch import ClaimedBatch, parse_claim_rows
from .failure import Failure
from .failure_log import SETTLED_ELSEWHERE
from .lease_clock import lease_time, time_asleep
from .leases import Leases

_CLAIM = "select * from tocsin.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"


class Run(Protocol):
    """What wants to know how the worker stands: see ``run.py``."""

    nursery: trio.Nursery

    def on_worker_status(self, status: str, grace: float | None) -> None: ...
    def on_leases_revoked(self) -> None: ...


@attrs.frozen
class Claim:
    """What a claim brought."""

    batch: ClaimedBatch
    """The messages."""
    lost: set[int]
    """Ids of messages that were to be archived but whose lease was gone."""
    again_at: float
    """When to claim again without being rung (`trio.current_time`): minus infinity for
    now, infinity when nothing is known to come."""
    full: bool
    """Whether there were as many as asked for."""


class Intake:
    """See the module. The registration fills in who it is for."""

    def __init__(self, database: Database, process: Process, bell: Bell) -> None:
        self.process = process
        self.bell = bell
        self.leases = Leases(database)
        self.run: Run | None = None
        """The run that is going on."""
        self.running = False
        """Whether a run is going on, beginning or ending."""
        self.manual_waiters: set[Waiter] = set()
        """Where callers of `Consumer.dequeue` wait."""
        self.worker_id = 0
        self.registration = 0
        self.name = ""
        self.queue_id = 0
        self._handled = 0
        self.failed = 0
        """How many messages of runs have failed or been rejected."""
        self.grace = database.grace
        self._database = database
        self._source: Source | None = None
        self._cursor = ClaimCursor()
        self._claiming = Lock()
        self._outcome_unknown = False
        self._closed_by: set[object] = set()
        self._leaving = 0

    @property
    def handled(self) -> int:
        """How many messages of runs have been archived, deleted or released."""
        return self._handled + self.leases.settled_elsewhere

    def begin(
        self, queue: str, queue_id: int, worker_id: int, registration: int, name: str
    ) -> None:
        """Work for this registration from now on."""
        self.queue_id, self.worker_id, self.registration, self.name = (
            queue_id,
            worker_id,
            registration,
            name,
        )
        self._source = Source(queue, queue_id, worker_id, self)
        self._cursor = ClaimCursor()
        draining.note(self)

    def end(self) -> None:
        """The registration has ended, and all leases with it."""
        self.leases.drop_settled(self.leases.messages())
        draining.forget(self)

    # Claiming

    async def claim(
        self,
        limit: int,
        vt: float | None,
        archive: Sequence[Message] = (),
        *,
        look: bool = False,
        kept: bool = True,
        ordered: bool = False,
    ) -> Claim:
        """Claim messages and archive others in one statement.

        ``look`` at all of the queue, whatever that costs (see ``claim_cursor.py``).
        ``kept``: a run keeps the leases alive. ``ordered``: claim nothing before what
        came earlier is finished. Raises `StateTransitionError`, `WorkerStopped`,
        `ConnectionLost`. Cancelled, nothing stays claimed; what was to be archived is
        or is not.
        """
        async with self._claiming:
            if self._outcome_unknown:
                await self._release_unknown()
            claimed_at, leased_at = trio.current_time(), lease_time()
            position = None if look or ordered else self._cursor.next_position(claimed_at)
            if archive:
                self.leases.settling.append(archive)
            try:
                rows = await self._database.run(
                    _CLAIM, self._claim_parameters(limit, vt, position, archive, ordered)
                )
            except ConnectionLost:
                self._outcome_unknown = True
                raise
            except (trio.Cancelled, KeyboardInterrupt):
                # The claim may have won the race with its cancellation: then messages
                # are leased to us that nobody here knows of.
                self._outcome_unknown = True
                with self._database.grace.scope():
                    await self._release_unknown()
                raise
            finally:
                if archive:
                    self.leases.settling.remove(archive)
            answer = parse_claim_rows(rows, archived=bool(archive))
            if answer.last is not None:
                self._cursor.claimed(answer.last)
            full = answer.stop - answer.start >= limit
            again_at = -math.inf
            if position is None or answer.looked:
                again_at = (
                    math.inf if answer.next_due is None else trio.current_time() + answer.next_due
                )
                self._cursor.looked(claimed_at, trio.current_time(), again_at)
            elif not full:
                again_at = self._cursor.glanced_in_vain()
        assert self._source is not None
        # As the claim has it: the queue's visibility timeout may have been changed
        # since this worker was registered.
        length = 0.0 if answer.last is None else (answer.last[6] - answer.last[7]).total_seconds()
        batch = ClaimedBatch(
            rows,
            answer.start,
            answer.stop,
            self._source,
            self.leases,
            length,
            leased_at + length,
            kept=kept,
        )
        return Claim(batch, answer.lost, -math.inf if full else again_at, full)

    def _claim_parameters(
        self,
        limit: int,
        vt: float | None,
        position: tuple[int, datetime, int] | None,
        archive: Sequence[Message],
        ordered: bool,
    ) -> list[str | None]:
        start = (
            (None, None, None)
            if position is None
            else (str(position[0]), position[1].isoformat(), str(position[2]))
        )
        ids, leases = settle_arguments(archive) if archive else (None, None)
        return [
            *(
                str(self.worker_id),
                str(self.registration),
                str(limit),
                None if vt is None else f"{vt:f} s",
            ),
            *(*start, "t" if self._cursor.looks_are_cheap else "f"),
            *(ids, leases, "t" if archive else "f", "t" if ordered else "f"),
        ]

    async def _release_unknown(self) -> None:
        try:
            # else a claim that is still on its way may be executed after this
            await self._database.terminate_abandoned()
            await self._database.fetch(
                "select tocsin.release_others(%s, %s, %s, %s)",
                [self.worker_id, self.registration, *settle_arguments(self.leases.messages())],
            )
        except TRANSIENT:
            return
        self._outcome_unknown = False

    # Settling, many at a time: all or none when cancelled

    async def archive_many(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        return await self._settle(
            "select tocsin.archive(%s::bigint[], %s::bigint[])", messages, connection=connection
        )

    async def archive_soon(self, messages: Sequence[Message]) -> list[bool]:
        """Like `archive_many`, for a run: raises `ConnectionLost` when another
        transaction has locked one of them (`is_lock_timeout`)."""
        return await self._settle(
            "select tocsin.archive(%s::bigint[], %s::bigint[]) from tocsin.limit_lock_wait()",
            messages,
        )

    async def find_locked(self, messages: Sequence[Message]) -> set[int]:
        """Return the ids of those messages whose rows other transactions have locked.
        Cancellation leaves nothing behind."""
        (locked,) = await self._database.fetch_one(
            "select tocsin.locked_messages(%s::bigint[])", [[m.id for m in messages]]
        )
        return set(locked)

    async def delete_many(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        return await self._settle(
            "select tocsin.delete(%s::bigint[], %s::bigint[])", messages, connection=connection
        )

    async def release_many(
        self,
        messages: Sequence[Message],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        statement = "select tocsin.release(%s::bigint[], %s::bigint[], %s)"
        return await self._settle(
            statement, messages, to_timedelta(delay, "delay", zero=True), connection=connection
        )

    async def requeue_many(self, messages: Sequence[Message]) -> int:
        """Release messages that no handler has seen, without counting the delivery;
        return how many were still ours."""
        (released,) = await self._database.fetch_one(
            "select tocsin.release(%s::bigint[], %s::bigint[], counted => false) from"
            " tocsin.limit_lock_wait()",
            [*settle_arguments(messages)],
        )
        for message in messages:
            self.leases.drop(message)
        return sum(released)

    async def extend_many(self, messages: Sequence[Message], seconds: Duration) -> list[bool]:
        kept = await self.leases.extend(messages, to_seconds(seconds, "seconds"))
        self.leases.drop_gone(
            [m for m, still_ours in zip(messages, kept, strict=True) if still_ours is False]
        )
        return [still_ours is not False for still_ours in kept]

    async def fail_many(
        self, messages: Sequence[Message], failures: Sequence[Failure], *, keep_place: bool = False
    ) -> list[float | str | None]:
        """Have the database do what each failure asks for, and return what it did: see
        ``tocsin.fail``."""
        texts, traces = [f.text for f in failures], [f.trace for f in failures]
        verdicts = [f.delay for f in failures], [f.verdict for f in failures], keep_place
        statement = (
            "select tocsin.fail(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::float8[],"
            " %s::text[], %s) from tocsin.limit_lock_wait()"
        )
        self.leases.settling.append(messages)
        try:
            try:
                (outcomes,) = await self._database.fetch_one(
                    statement, [*settle_arguments(messages), texts, traces, *verdicts]
                )
            except CharacterUnsupported:
                (outcomes,) = await self._database.fetch_one(
                    statement,
                    [*settle_arguments(messages), _in_ascii(texts), _in_ascii(traces), *verdicts],
                )
        finally:
            self.leases.settling.remove(messages)
        lost = {m.id for m, outcome in zip(messages, outcomes, strict=True) if outcome is None}
        settled = {m.id for m in messages if m.id in lost and self.leases.is_promised(m)}
        snoozed = [m for m, f in zip(messages, failures, strict=True) if f.verdict == "snoozed"]
        self.leases.drop_settled(snoozed)
        self.failed += self.leases.drop_settled(messages, lost)
        return [
            SETTLED_ELSEWHERE if m.id in settled else outcome
            for m, outcome in zip(messages, outcomes, strict=True)
        ]

    async def _settle(
        self,
        statement: str,
        messages: Sequence[Message],
        *more: object,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        if connection is not None:
            return await self._settle_on(connection, statement, messages, *more)
        self.leases.settling.append(messages)
        try:
            (settled,) = await self._database.fetch_one(
                statement, [*settle_arguments(messages), *more]
            )
        finally:
            self.leases.settling.remove(messages)
        self.note_settled(
            messages, [m.id for m, was in zip(messages, settled, strict=True) if not was]
        )
        return list(settled)

    async def _settle_on(
        self, connection: AnyConnection, statement: str, messages: Sequence[Message], *more: object
    ) -> list[bool]:
        """Settle messages in the caller's transaction. Only its end shows whether they
        are settled: see ``leases.py``."""
        check_connection(connection)
        new = self.leases.promise(messages)
        settled = await fetch_value(
            connection, self._database.schema, statement, [*settle_arguments(messages), *more]
        )
        gone = [m for m, was in zip(messages, settled, strict=True) if not was]
        self.leases.break_promise([m for m in gone if m in new])
        self.leases.drop_gone(gone)
        return list(settled)

    def note_settled(self, messages: Sequence[Message], lost: Container[int] = ()) -> None:
        """Forget the leases of messages that a statement settled, or found lost."""
        self._handled += self.leases.drop_settled(messages, lost)

    # Settling one message, for `Message` itself

    async def archive(self, message: Message, *, connection: AnyConnection | None = None) -> None:
        _check_settled(
            message, "archive", await self.archive_many([message], connection=connection)
        )

    async def delete(self, message: Message, *, connection: AnyConnection | None = None) -> None:
        _check_settled(message, "delete", await self.delete_many([message], connection=connection))

    async def release(
        self, message: Message, *, delay: Duration = 0, connection: AnyConnection | None = None
    ) -> None:
        _check_settled(
            message,
            "release",
            await self.release_many([message], delay=delay, connection=connection),
        )

    async def extend(self, message: Message, seconds: Duration) -> None:
        _check_settled(message, "extend", await self.extend_many([message], seconds))

    # Polling

    async def begin_poll(self) -> None:
        """Have the registry say that this worker polls. Raises `StateTransitionError`.
        Cancelled, it says so or not."""
        await self._database.fetch(
            "select tocsin.begin_poll(%s, %s)", [self.worker_id, self.registration]
        )

    async def complete_poll(self) -> int:
        """Have the registry say that the run has ended, and give back what it holds;
        return how many messages that were.

        Cancelled, it has happened or it has not.
        """
        try:
            async with self._claiming:
                (released,) = await self._database.fetch_one(
                    "select tocsin.complete_poll(%s, %s, %s, %s)",
                    [
                        self.worker_id,
                        self.registration,
                        *settle_arguments(self.leases.messages_by_hand()),
                    ],
                )
        except BaseException:
            self._outcome_unknown = True
            raise
        finally:
            self.leases.drop_kept()
        return int(released)

    def on_worker_status(self, status: str, grace: float | None) -> None:
        """Pass on to the run what the registry says of this worker; and have those who
        wait by hand ask, and be refused."""
        if self.run is not None:
            self.run.on_worker_status(status, grace)
        if status in ("interrupted", "suspended", "stopped", "gone"):
            for waiter in self.manual_waiters:
                waiter.ring()

    def on_leases_revoked(self) -> None:
        """Have the run ask which of its leases are gone. Who works by hand is told when
        settling."""
        if self.run is not None:
            self.run.on_leases_revoked()

    # Ending what goes on, whatever the registry says of this worker, and without
    # telling it

    def end_run(self, grace: Duration | None = None) -> None:
        """End the run; see `Consumer.interrupt`."""
        self.on_worker_status(
            "interrupted", None if grace is None else to_seconds(grace, "grace", zero=True)
        )

    async def interrupt(self, grace: float | None) -> None:
        """Have the registry say that the worker is interrupted; see
        `WorkerHandle.interrupt`. Cancelled, it says so or not."""
        await self._database.fetch(
            "select tocsin.interrupt(%s, %s, %s)",
            [self.worker_id, to_timedelta(grace, "grace", zero=True), self.registration],
        )

    # What a signal ends, in ``draining.py``

    @property
    def closed(self) -> bool:
        """Whether this process is to take no more messages: no run begins."""
        return bool(self._closed_by)

    def close(self, by: object, grace: float | None = None) -> None:
        """Like `end_run`; and no run begins after it until `reopen` by the same."""
        self._closed_by.add(by)
        self.end_run(grace)

    def reopen(self, by: object) -> None:
        """End what `close` began."""
        self._closed_by.discard(by)

    @property
    def idle(self) -> bool:
        """Whether nothing goes on here that a cancellation would cut short: no run, and
        no message that was dequeued by hand."""
        return self._leaving > 0 or not (self.running or self.leases.by_hand_until() > lease_time())

    async def wait_idle(self) -> None:
        """Return when `idle`, at once if it is so already. Cancellation changes
        nothing."""
        while not self.idle:
            with trio.move_on_at(
                math.inf if self.running else self.leases.by_hand_until() - time_asleep()
            ):
                await self.leases.wait_for_drop()

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Within the block this consumer counts as idle: it is at its end."""
        self._leaving += 1
        self.leases.wake_waiters()
        try:
            yield
        finally:
            self._leaving -= 1


def _in_ascii(texts: list[str | None]) -> list[str | None]:
    return [text and text.encode("ascii", "backslashreplace").decode() for text in texts]


def _check_settled(message: Message, operation: str, settled: list[bool]) -> None:
    if not settled[0]:
        raise LeaseLost(message.id, operation)
