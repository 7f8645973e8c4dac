"""A consumer's dealings with the database: claiming, settling, polling. `Consumer` is what users see of it; runs work on it directly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import attrs
import trio

from .bell import Bell
from .database import Database
from .driver.lock import Lock
from .durations import Duration, to_seconds, to_timedelta
from .errors import TRANSIENT, ConnectionLost, LeaseLost
from .leases import Leases
from .message import Message, read_messages
from .process import CLEANUP_WITHIN, Process


class Run(Protocol):
    """What wants to know how the worker stands: see ``run.py``."""

    def noticed(self, status: str, grace: float | None) -> None: ...


@attrs.frozen
class Claim:
    """What a claim brought."""

    messages: list[Message]
    """The messages, in order."""
    vt: float
    """Length of their leases in seconds."""
    claimed_at: float
    """When the statement was sent (`trio.current_time`); the leases do not end before this plus `vt`."""
    lost: set[int]
    """Ids of messages that were to be archived but whose lease was gone."""
    exhausted: bool
    """Whether there were fewer than asked for."""
    next_due_at: float
    """If exhausted: when to look again (`trio.current_time`), infinity when nothing is known to come."""


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
        self.worker_id = 0
        self.registration = 0
        self.name = ""
        self.queue = ""
        self.queue_id = 0
        self.default_vt = 0.0
        self.handled = 0
        """How many messages of runs have been settled."""
        self._database = database
        self._claiming = Lock()
        self._answer_lost = False

    # Claiming

    async def claim(self, limit: int, vt: float | None, archive: Sequence[Message] = ()) -> Claim:
        """Claim messages and archive others in one statement.

        Raises `StateTransitionError`, `WorkerStopped`, `ConnectionLost`. Cancelled, nothing stays claimed; what was to be archived is or
        is not.
        """
        lease = None if vt is None else timedelta(seconds=vt)
        async with self._claiming:
            if self._answer_lost:
                await self._release_unknown()
            claimed_at = trio.current_time()
            try:
                if archive:
                    ids, tokens = [m.id for m in archive], [m.lease for m in archive]
                    rows = await self._database.fetch(
                        "select * from tocsin.archive_and_claim(%s, %s, %s, %s, %s, %s)",
                        [self.worker_id, self.registration, ids, tokens, limit, lease],
                    )
                else:
                    rows = await self._database.fetch(
                        "select * from tocsin.claim(%s, %s, %s, %s, durable => false)", [self.worker_id, self.registration, limit, lease]
                    )
            except ConnectionLost:
                self._answer_lost = True
                raise
            except (trio.Cancelled, KeyboardInterrupt):
                # The claim may have won the race with its cancellation: then messages are leased to us that nobody here knows of.
                self._answer_lost = True
                with trio.move_on_after(CLEANUP_WITHIN, shield=True):
                    await self._release_unknown()
                raise
        return self._read(rows, self.default_vt if vt is None else vt, claimed_at)

    def _read(self, rows: Sequence[tuple[Any, ...]], vt: float, claimed_at: float) -> Claim:
        lost: set[int] = set()
        claimed: list[tuple[Any, ...]] = []
        exhausted, next_due_at = False, math.inf
        for row in rows:
            message_id, lease, next_due = row[0], row[1], row[-1]
            if message_id is None:
                exhausted = True
                if next_due is not None:
                    next_due_at = trio.current_time() + next_due
            elif lease is None:
                lost.add(message_id)
            else:
                claimed.append(row)
        messages = read_messages(claimed, self.queue, self.queue_id, self.worker_id, self)
        return Claim(messages, vt, claimed_at, lost, exhausted, next_due_at)

    async def _release_unknown(self) -> None:
        try:
            await self._database.fetch("select tocsin.release_others(%s, %s, %s)", [self.worker_id, self.registration, self.leases.ids()])
        except TRANSIENT:
            return
        self._answer_lost = False

    # Settling, many at a time: all or none when cancelled

    async def archive_many(self, messages: Sequence[Message]) -> list[bool]:
        return await self._settle("select tocsin.archive(%s, %s)", messages)

    async def delete_many(self, messages: Sequence[Message]) -> list[bool]:
        return await self._settle("select tocsin.delete(%s, %s)", messages)

    async def release_many(self, messages: Sequence[Message], *, delay: Duration = 0) -> list[bool]:
        return await self._settle("select tocsin.release(%s, %s, %s)", messages, to_timedelta(delay, "delay", zero=True))

    async def fail_many(self, messages: Sequence[Message], errors: list[str], tracebacks: list[str]) -> list[bool]:
        return await self._settle("select tocsin.fail(%s, %s, %s, %s)", messages, errors, tracebacks)

    async def _settle(self, statement: str, messages: Sequence[Message], *more: object) -> list[bool]:
        parameters = [[m.id for m in messages], [m.lease for m in messages], *more]
        (settled,) = await self._database.fetch_one(statement, parameters)
        self.note_settled(messages, [m.id for m, was in zip(messages, settled, strict=True) if not was])
        return list(settled)

    def note_settled(self, messages: Sequence[Message], lost: Sequence[int] | set[int] = ()) -> None:
        """Forget the leases of messages that a statement settled, beside those it found lost."""
        for message in messages:
            if self.leases.drop(message) and message.id not in lost:
                self.handled += 1

    # Settling one message, for `Message` itself

    async def archive(self, message: Message) -> None:
        _check_settled(message, "archive", await self.archive_many([message]))

    async def delete(self, message: Message) -> None:
        _check_settled(message, "delete", await self.delete_many([message]))

    async def release(self, message: Message, *, delay: Duration = 0) -> None:
        _check_settled(message, "release", await self.release_many([message], delay=delay))

    async def extend(self, message: Message, seconds: Duration) -> None:
        kept = await self.leases.extend([message], to_seconds(seconds, "seconds"))
        if not kept[0]:
            self.leases.drop(message)
        _check_settled(message, "extend", kept)

    # Polling

    async def begin_poll(self) -> None:
        """Have the registry say that this worker polls. Raises `StateTransitionError`. Cancelled, it says so or not."""
        await self._database.fetch("select tocsin.begin_poll(%s, %s)", [self.worker_id, self.registration])

    async def complete_poll(self) -> int:
        """Have the registry say that the run has ended, and give back what it holds; return how many messages that were.

        Cancelled, it has happened or it has not.
        """
        async with self._claiming:
            try:
                (released,) = await self._database.fetch_one(
                    "select tocsin.complete_poll(%s, %s, %s)", [self.worker_id, self.registration, self.leases.unkept_ids()]
                )
            except BaseException:
                self._answer_lost = True
                raise
            finally:
                self.leases.drop_kept()
        return int(released)

    def noticed(self, status: str, grace: float | None) -> None:
        """Pass on to the run what the registry says of this worker."""
        if self.run is not None:
            self.run.noticed(status, grace)


def _check_settled(message: Message, operation: str, settled: list[bool]) -> None:
    if not settled[0]:
        raise LeaseLost(message.id, operation)
