"""Dead letters: listing, replaying, archiving and purging them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack

import attrs

from tocsin._arguments import check_count, check_id, check_queue, check_text
from tocsin._database.client import Database
from tocsin._durations import Duration, to_timedelta
from tocsin.errors import MessageNotFound

from .message_values import Record

REASONS = (
    "handler_failed",
    "timed_out",
    "rejected",
    "lease_expired",
    "worker_died",
    "released",
    "expired",
)
"""The reasons for a message to become a dead letter, as in ``sql/functions``."""


@attrs.frozen(slots=False)
class DeadLetter(Record):
    """A message that is not delivered any more."""

    state: Literal["dead"] = attrs.field(default="dead", init=False)
    """Its state, as in `MessageInfo`."""
    died_at: datetime
    """When it became a dead letter, by the server's clock."""
    reason: str
    """The reason, as a code.

    ``handler_failed``, ``lease_expired``, ``worker_died`` or ``released``: so its last
    delivery ended. ``rejected``: its handler raised `Reject`. ``expired``: it was not
    delivered in time.
    """
    error: str | None
    """The error of the last delivery that has one."""
    traceback: str | None
    """The traceback of its handler's last failure."""


class DeadLetterFilter(TypedDict, total=False):
    """The dead letters that are meant, among those of the ids that are given.

    Without ids, the queue must be named.
    """

    queue: str | None
    """Those of this queue."""
    reason: str | None
    """Those with this reason, as `DeadLetter` lists them."""
    error: str | None
    """Those whose error contains this text, taken literally."""
    older_than: Duration | None
    """Those that died longer ago than this many seconds."""
    limit: int | None
    """At most this many, the oldest ids first."""


class DeadLetters:
    """The dead letters of a store: `Store.dead_letters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, message_id: int) -> DeadLetter:
        """Return a dead letter.

        Raises:
            MessageNotFound: There is no dead letter of this id.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(
            "select * from tocsin.get_dead_letter(%s)", [check_id(message_id, "message_id")]
        )
        if not rows:
            raise MessageNotFound(f"dead letter {message_id} does not exist", message_id=message_id)
        return DeadLetter(*rows[0])

    async def replay(
        self, *letters: str | int, delay: Duration | None = None, **which: Unpack[DeadLetterFilter]
    ) -> list[int]:
        """Make dead letters messages again, and return their ids, which they keep.

        ``replay("emails")`` takes those of a queue, ``replay(4711, 4712)`` those of
        these ids, ``replay("emails", 4711)`` those of the ids that are in this queue;
        the other arguments, as in `list`, narrow them down. `archive` and `purge` take
        the same.

        Deliveries are counted from zero again; key, headers, priority and history are
        kept, an expiry is not. Of two concurrent replays of one letter, one returns its
        id. Ids that are not dead letters are left out. A letter whose key another
        unfinished message has cannot be replayed: without its id, it is skipped.

        Args:
            delay: How many seconds until the messages are due; now without it.

        Raises:
            KeyTaken: The key of a letter that is named by its id is taken; no letter
                was replayed.
            QueueNotFound: The queue does not exist.
            ValueError: Neither a queue nor ids are named, or an argument is out of its
                range.

        Cancellation:
            Atomic.
        """
        parameters = [*_parameters(letters, which), to_timedelta(delay, "delay", zero=True)]
        (replayed,) = await self._database.fetch_one(
            "select tocsin.replay(%s::bigint[], %s, %s, %s, %s, %s, %s)", parameters
        )
        return list(replayed)

    async def archive(self, *letters: str | int, **which: Unpack[DeadLetterFilter]) -> int:
        """Move dead letters into the archive; return how many.

        Where the queue's ``retention`` is 0, nothing is kept of them.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: Neither a queue nor ids are named, or an argument is out of its
                range.

        Cancellation:
            Atomic.
        """
        return await self._count(
            "tocsin.archive_dead_letters(%s::bigint[], %s, %s, %s, %s, %s)",
            _parameters(letters, which),
        )

    async def purge(
        self, *letters: str | int, dry_run: bool = False, **which: Unpack[DeadLetterFilter]
    ) -> int:
        """Delete dead letters; return how many.

        Args:
            dry_run: Delete nothing, and return how many would be deleted.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: Neither a queue nor ids are named, or an argument is out of its
                range.

        Cancellation:
            Atomic.
        """
        parameters = [*_parameters(letters, which), dry_run]
        return await self._count(
            "tocsin.purge_dead_letters(%s::bigint[], %s, %s, %s, %s, %s, %s)", parameters
        )

    async def _count(self, call: str, parameters: list[object]) -> int:
        (count,) = await self._database.fetch_one(f"select {call}", parameters)
        return int(count)

    async def list(
        self,
        queue: str,
        *,
        reason: str | None = None,
        error: str | None = None,
        older_than: Duration | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[DeadLetter]:
        """Return dead letters of a queue, by id.

        The filters are those of `DeadLetterFilter` (``older_than`` in seconds).

        Args:
            limit: The most letters to return.
            after: The last id of the page before.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: An argument is out of its range.

        Cancellation:
            Changes nothing.
        """
        meant = _parameters(
            (queue,), {"reason": reason, "error": error, "older_than": older_than, "limit": limit}
        )
        rows = await self._database.fetch(
            "select * from tocsin.list_dead_letters(%s, %s, %s, %s, %s, %s)",
            [*meant[1:], None if after is None else check_id(after, "after")],
        )
        return [DeadLetter(*row) for row in rows]


def _parameters(letters: tuple[str | int, ...], which: DeadLetterFilter) -> list[object]:
    """Return the first parameters of the functions in ``dead_letters.sql``.

    Args:
        letters: A queue's name, ids, or both.
    """
    if unknown := which.keys() - DeadLetterFilter.__annotations__.keys():
        raise TypeError(
            f"{', '.join(sorted(unknown))}: not a filter; the filters are"
            f" {', '.join(DeadLetterFilter.__annotations__)}"
        )
    queue, reason, error = which.get("queue"), which.get("reason"), which.get("error")
    ids: tuple[Any, ...] = letters
    if letters and isinstance(letters[0], str):
        if queue is not None:
            raise TypeError("give the queue once")
        queue, ids = letters[0], letters[1:]
    if not ids and queue is None:
        raise ValueError("name a queue, or dead letters by their ids")
    limit = which.get("limit")
    return [
        [check_id(i, "id") for i in ids] or None,
        None if queue is None else check_queue(queue),
        None if reason is None else check_text(reason, "reason"),
        None if error is None else check_text(error, "error"),
        to_timedelta(which.get("older_than"), "older_than", zero=True),
        None if limit is None else check_count(limit, "limit"),
    ]
