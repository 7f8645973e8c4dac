"""Claims of a consumer, and the beginning and end of its runs in the registry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import attrs
import trio

from tocsin._concurrency.lock import Lock
from tocsin._database.client import Database
from tocsin._queue.message import (
    DEQUEUED_AT,
    VT,
    Message,
    Source,
    result_argument,
    settle_arguments,
)
from tocsin._queue.workers.registration import Registration
from tocsin.driver import Rows
from tocsin.errors import ConnectionLost

from .claim_cursor import ClaimCursor
from .claimed_batch import ClaimedBatch, ClaimResult, LeaseTerms, parse_claim_rows
from .lease_clock import lease_time
from .lease_keeper import LeaseKeeper
from .leases import Leases
from .unknown_leases import UnknownLeases

_CLAIM = "select * from tocsin.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"


@attrs.frozen
class Claim:
    """The result of a claim."""

    batch: ClaimedBatch
    """The messages."""
    lost: set[int]
    """Ids of messages that were to be archived but whose lease was gone."""
    again_at: float
    """The time of the next claim without a ring (`trio.current_time`).

    Minus infinity: now. Infinity: no message is known to become due.
    """
    full: bool
    """Whether there were as many as asked for."""
    held_up: bool
    """Whether messages are ready that an ordered claim may not have yet."""


class Claimer:
    """The claims of one consumer, one at a time."""

    def __init__(
        self, database: Database, registration: Registration, leases: Leases, keeper: LeaseKeeper
    ) -> None:
        self._database = database
        self._registration = registration
        self._leases = leases
        self._keeper = keeper
        self._cursor = ClaimCursor()
        self._source: Source | None = None
        self._lock = Lock()
        self._unknown = UnknownLeases(database, registration, leases)

    def begin(self, source: Source) -> None:
        """Claim from the start of the queue: the worker has been registered."""
        self._source = source
        self._cursor = ClaimCursor()

    async def claim(
        self,
        limit: int,
        vt: float | None,
        archive: Sequence[Message] = (),
        *,
        full_scan: bool = False,
        auto_extend: bool = True,
        ordered: bool = False,
    ) -> Claim:
        """Claim messages, and archive those of ``archive``, in one statement.

        Args:
            limit: The most messages to claim.
            vt: Length of the leases in seconds; None: the queue's.
            archive: Messages to archive.
            full_scan: Scan the queue from its start (see ``claim_cursor.py``).
            auto_extend: A run extends the leases.
            ordered: Claim nothing before earlier messages are finished.

        Raises:
            StateTransitionError: The worker may not claim.
            WorkerStopped: The worker is stopped.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing stays claimed; what was to be archived is or is not.
        """
        async with self._lock:
            if self._unknown.possible:
                await self._unknown.release()
            claimed_at, leased_at = trio.current_time(), lease_time()
            resumed = not (full_scan or ordered)
            position = self._cursor.next_position(claimed_at) if resumed else None
            parameters = [
                *_claim_parameters(self._registration, limit, vt),
                *_scan_parameters(position, or_full=self._cursor.scans_are_cheap),
                *_archive_parameters(archive),
                _flag(ordered),
                result_argument(archive),
            ]
            rows = await self._run(parameters, archive)
            result = parse_claim_rows(rows, archived=bool(archive))
            full = result.stop - result.start >= limit
            again_at = self._move_cursor(result, claimed_at, position is None, full)
        assert self._source is not None
        # Use the length from the claim, because the queue's visibility timeout may have
        # changed since this worker was registered.
        last = result.last
        length = 0.0 if last is None else (last[VT] - last[DEQUEUED_AT]).total_seconds()
        terms = LeaseTerms(length, leased_at + length, auto_extend)
        batch = ClaimedBatch(rows, result, self._source, terms, self._keeper.add)
        if batch:
            self._keeper.add_batch(batch)
        return Claim(batch, result.lost, -math.inf if full else again_at, full, result.held_up)

    async def _run(self, parameters: list[str | None], archive: Sequence[Message]) -> Rows:
        with self._leases.settling(archive):
            try:
                return await self._database.run(_CLAIM, parameters)
            except ConnectionLost:
                self._unknown.possible = True
                raise
            except (trio.Cancelled, KeyboardInterrupt):
                self._unknown.possible = True
                with self._database.grace.scope():
                    await self._unknown.release()
                raise

    def _move_cursor(self, result: ClaimResult, began: float, full_scan: bool, full: bool) -> float:
        """Record the end of a claim, and return the time of the next one."""
        if result.last is not None:
            self._cursor.claimed(result.last)
        if full_scan or result.ended:
            now = trio.current_time()
            again_at = math.inf if result.next_due is None else now + result.next_due
            self._cursor.scanned(began, now, again_at)
            return again_at
        return -math.inf if full else self._cursor.resumed_in_vain()

    async def begin_poll(self) -> None:
        """Have the registry say that this worker polls.

        Raises:
            StateTransitionError: The worker may not poll.

        Cancellation:
            Atomic.
        """
        worker = self._registration
        await self._database.fetch(
            "select tocsin.begin_poll(%s, %s)", [worker.worker_id, worker.token]
        )

    async def complete_poll(self, *, interrupted: bool) -> int:
        """Have the registry say that the run has ended, and release its messages.

        Args:
            interrupted: Whether a signal has ended the run, so that the worker is
                suspended, although `tocsin.interrupt` may not have been called yet.

        Returns:
            The number of messages released.

        Cancellation:
            Atomic.
        """
        worker = self._registration
        try:
            async with self._lock:
                manual = settle_arguments(self._leases.manual_messages())
                (released,) = await self._database.fetch_one(
                    "select tocsin.complete_poll(%s, %s, %s, %s, %s)",
                    [worker.worker_id, worker.token, *manual, interrupted],
                )
        except BaseException:
            self._unknown.possible = True
            raise
        finally:
            self._leases.drop_auto_extended()
        return int(released)


def _claim_parameters(worker: Registration, limit: int, vt: float | None) -> tuple[str | None, ...]:
    length = None if vt is None else f"{vt:f} s"
    return str(worker.worker_id), str(worker.token), str(limit), length


def _scan_parameters(
    position: tuple[int, datetime, int] | None, *, or_full: bool
) -> tuple[str | None, ...]:
    if position is None:
        return None, None, None, _flag(or_full)
    priority, due, message_id = position
    return str(priority), due.isoformat(), str(message_id), _flag(or_full)


def _archive_parameters(messages: Sequence[Message]) -> tuple[str | None, ...]:
    ids, leases = settle_arguments(messages) if messages else (None, None)
    return ids, leases, _flag(bool(messages))  # a claim that archives is durable


def _flag(value: bool) -> str:
    return "t" if value else "f"
