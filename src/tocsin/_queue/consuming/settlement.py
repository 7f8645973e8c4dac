"""The statements that settle messages, each for many messages.

A user's call decides which statement is sent, or the completer of a run does
(``completer.py``). All statements take messages with the leases they were claimed with,
and change nothing for a message whose lease is gone. A statement is atomic: cancelled,
it has settled all of its messages or none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tocsin._database.caller_connection import AnyConnection, check_connection, fetch_value
from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds, to_timedelta
from tocsin._queue.message import Message, result_argument, settle_arguments
from tocsin.errors import CharacterUnsupported

from .failure import Failure
from .failure_log import SETTLED_ELSEWHERE
from .lease_keeper import LeaseKeeper
from .leases import Leases
from .reporter import Outcome, Reporter

_ARCHIVE = "select tocsin.archive(%s::bigint[], %s::bigint[], %s::jsonb)"
# A cancelled job counts as one whose lease is lost, so its effects are rolled back.
_ARCHIVE_IN_TRANSACTION = "select tocsin.archive(%s::bigint[], %s::bigint[], %s::jsonb, true)"
_DELETE = "select tocsin.delete(%s::bigint[], %s::bigint[])"
_RELEASE = "select tocsin.release(%s::bigint[], %s::bigint[], %s)"
_RELEASE_UNCOUNTED = (
    "select tocsin.release(%s::bigint[], %s::bigint[], counted => false)"
    " from tocsin.limit_lock_wait()"
)
_FAIL = (
    "select tocsin.fail(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::float8[],"
    " %s::text[], %s) from tocsin.limit_lock_wait()"
)


class Settler:
    """The settlement of one consumer's messages."""

    def __init__(
        self, database: Database, leases: Leases, keeper: LeaseKeeper, reporter: Reporter
    ) -> None:
        self.failed = 0
        """The number of messages of runs that have failed or been rejected."""
        self._handled = 0
        self._database = database
        self._leases = leases
        self._keeper = keeper
        self._reporter = reporter

    @property
    def handled(self) -> int:
        """The number of messages of runs that were archived, deleted or released."""
        return self._handled + self._leases.settled_elsewhere

    # Calls of users

    async def archive(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Archive messages."""
        results = result_argument(messages)
        statement = _ARCHIVE if connection is None else _ARCHIVE_IN_TRANSACTION
        return await self._settle(statement, "archived", messages, results, connection=connection)

    async def delete(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Delete messages."""
        return await self._settle(_DELETE, "deleted", messages, connection=connection)

    async def release(
        self,
        messages: Sequence[Message],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        """Return messages to their queue after a delay."""
        interval = to_timedelta(delay, "delay", zero=True)
        return await self._settle(_RELEASE, "released", messages, interval, connection=connection)

    async def extend(self, messages: Sequence[Message], seconds: Duration) -> list[bool]:
        """Make leases end ``seconds`` from now."""
        extended = await self._keeper.extend(messages, to_seconds(seconds, "seconds"))
        gone = [m for m, ours in zip(messages, extended, strict=True) if ours is False]
        self._leases.drop_gone(gone)
        self._reporter.lost(gone)
        return [ours is not False for ours in extended]

    def report_progress(self, message: Message, progress: str) -> None:
        """Have the progress of a message written with an extension of its lease."""
        self._keeper.report_progress(message, progress)

    async def finish_by(
        self, message: Message, statement: str, arguments: Sequence[object]
    ) -> bool:
        """Finish a message by a statement that deletes it and does more."""
        (settled,) = await self._settle(statement, "deleted", [message], *arguments)
        return settled

    # Calls of a run

    async def archive_handled(self, messages: Sequence[Message]) -> list[bool]:
        """Archive messages of a run.

        Raises:
            ConnectionLost: Also when another transaction has locked a message
                (`is_lock_timeout`).
        """
        statement = _ARCHIVE + " from tocsin.limit_lock_wait()"
        return await self._settle(statement, "archived", messages, result_argument(messages))

    async def release_uncounted(self, messages: Sequence[Message]) -> int:
        """Release messages without counting the delivery; return how many."""
        (released,) = await self._database.fetch_one(
            _RELEASE_UNCOUNTED, [*settle_arguments(messages)]
        )
        self._leases.drop_settled(messages)
        self._reporter.settled(messages, "released", _lost(messages, released))
        return sum(released)

    async def fail(
        self, messages: Sequence[Message], failures: Sequence[Failure], *, keep_place: bool = False
    ) -> list[float | str | None]:
        """Apply each failure's verdict; return the outcomes, as of ``tocsin.fail``."""
        texts, traces = [f.text for f in failures], [f.trace for f in failures]
        verdicts = [f.delay for f in failures], [f.verdict for f in failures], keep_place
        arguments = settle_arguments(messages)
        with self._leases.settling(messages):
            try:
                (outcomes,) = await self._database.fetch_one(
                    _FAIL, [*arguments, texts, traces, *verdicts]
                )
            except CharacterUnsupported:
                (outcomes,) = await self._database.fetch_one(
                    _FAIL, [*arguments, _in_ascii(texts), _in_ascii(traces), *verdicts]
                )
        leases = self._leases
        lost = set(_lost(messages, [outcome is not None for outcome in outcomes]))
        settled = {m.id for m in messages if m.id in lost and leases.is_in_transaction(m)}
        snoozed = {m.id for m, f in zip(messages, failures, strict=True) if f.verdict == "snoozed"}
        leases.drop_settled([m for m in messages if m.id in snoozed - lost])
        self.failed += leases.drop_settled(messages, lost)
        self._reporter.settled(messages, "failed", lost)
        return [
            SETTLED_ELSEWHERE if m.id in settled else outcome
            for m, outcome in zip(messages, outcomes, strict=True)
        ]

    def count_settled(
        self,
        messages: Sequence[Message],
        lost: Collection[int] = (),
        outcome: Outcome = "archived",
    ) -> None:
        """Forget the leases of messages that a statement settled, or found lost."""
        self._handled += self._leases.drop_settled(messages, lost)
        self._reporter.settled(messages, outcome, lost)

    async def _settle(
        self,
        statement: str,
        outcome: Outcome,
        messages: Sequence[Message],
        *more: object,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        arguments = [*settle_arguments(messages), *more]
        if connection is not None:
            settled = await _settle_on(
                connection, self._database, self._leases, statement, messages, arguments
            )
            lost = _lost(messages, settled)
            self._reporter.settled(messages, outcome, lost, in_transaction=True)
            return settled
        with self._leases.settling(messages):
            (settled,) = await self._database.fetch_one(statement, arguments)
        self.count_settled(messages, _lost(messages, settled), outcome)
        return list(settled)


async def _settle_on(
    connection: AnyConnection,
    database: Database,
    leases: Leases,
    statement: str,
    messages: Sequence[Message],
    arguments: Sequence[object],
) -> list[bool]:
    """Settle messages in the caller's transaction.

    Only its end shows whether they are settled: see ``leases.py``.
    """
    check_connection(connection)
    new = leases.mark_in_transaction(messages)
    settled = await fetch_value(connection, database.schema, statement, arguments)
    refused = [m for m, was in zip(messages, settled, strict=True) if not was]
    leases.unmark_in_transaction([m for m in refused if m in new])
    if statement is not _ARCHIVE_IN_TRANSACTION:  # a cancelled job keeps its lease
        leases.drop_gone(refused)
    return list(settled)


def _lost(messages: Sequence[Message], settled: Sequence[bool]) -> list[int]:
    return [m.id for m, was in zip(messages, settled, strict=True) if not was]


def _in_ascii(texts: list[str | None]) -> list[str | None]:
    return [text and text.encode("ascii", "backslashreplace").decode() for text in texts]
