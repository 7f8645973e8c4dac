"""The choice of the statement that settles each message of a run.

The completer sorts messages by how their calls of the handler have ended, and buffers
them: while a statement is under way, more calls end, and the next statement settles the
messages of all of them. ``settlement.py`` sends the statements; ``failing.py`` settles
the messages that have failed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psycopg

from tocsin._database.error_mapping import is_lock_timeout, is_refusal
from tocsin._queue.message import Message
from tocsin.errors import ConnectionLost, TocsinError

from .failing import FailureSettler
from .failure import describe_failure
from .failure_log import UNANSWERED
from .handler_transactions import HandlerTransactions
from .handlers import HandlerOptions
from .invocation import Raised
from .locked_messages import LockedMessages
from .parts import ConsumerParts
from .prefetch import PrefetchBuffer
from .run import Run
from .unsettled import Unsettled

logger = logging.getLogger("tocsin.consumer")


class Completer:
    """The messages of a run whose calls have ended, until they are settled."""

    def __init__(self, parts: ConsumerParts, run: Run, options: HandlerOptions) -> None:
        self.unsettled = Unsettled()
        """Messages that the next statements are to settle."""
        self.locked = LockedMessages(parts.database)
        """Messages that another transaction has locked."""
        self.transactions = HandlerTransactions(parts.leases, parts.keeper)
        """Messages settled by handlers in transactions that may not have ended."""
        self.failing = FailureSettler(parts.settler, parts.leases, self.unsettled, options)
        """The settlement of messages that have failed."""
        self.archive_refused = False
        """Whether the database has refused to archive all messages in one statement."""
        self._parts = parts
        self._run = run
        self._outcome_unknown = False

    def add(self, messages: Sequence[Message], raised: Raised | None) -> None:
        """Record the outcome of a call of the handler."""
        leases = self._parts.leases
        unsettled = self.unsettled
        if raised is None:
            for message in messages:
                if leases.is_in_transaction(message):
                    self.transactions.add(message)
                elif message in leases:
                    unsettled.to_archive.append(message)
            return
        left = [m for m in messages if m in leases]
        failure = describe_failure(raised.error)
        unsettled.to_fail += [(m, failure) for m in left]
        if not left:
            self.failing.log_unsettled(failure, messages)

    # Archive

    def take_handled(self) -> list[Message]:
        """Take the messages to archive, for a statement that archives them."""
        handled, self.unsettled.to_archive = self.unsettled.to_archive, []
        return handled

    def archive_failed(self, handled: list[Message]) -> None:
        """Take messages back, since the statement to archive them was not answered."""
        self.unsettled.to_archive += handled
        self._outcome_unknown = True

    def warn_of_lost(self, lost: set[int]) -> None:
        """Warn of messages that a statement has not archived."""
        # A statement whose answer was lost may have archived them before.
        if lost and not self._outcome_unknown and not self._run.stopped:
            logger.warning(
                "handled but not archived, because the lease was lost; will be delivered again: %s",
                sorted(lost),
            )
        self._outcome_unknown = False

    async def archive(self) -> None:
        """Archive the handled messages."""
        handled = self.take_handled()
        try:
            archived = await self._parts.settler.archive_handled(handled)
        except BaseException:
            self.archive_failed(handled)
            raise
        self.warn_of_lost({m.id for m, was in zip(handled, archived, strict=True) if not was})

    async def archive_one_by_one(self) -> None:
        """Archive messages one by one, since the database has refused one of them.

        A message that is refused has failed.
        """
        unsettled = self.unsettled
        while unsettled.to_archive:
            message = unsettled.to_archive[0]
            try:
                (archived,) = await self._parts.settler.archive_handled([message])
                self.warn_of_lost(set() if archived else {message.id})
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
                unsettled.to_fail.append((message, describe_failure(error)))
            del unsettled.to_archive[0]
        self.archive_refused = False

    # Release, and end

    async def release_uncounted(self, prefetch: PrefetchBuffer) -> None:
        """Release messages that no handler has begun with, uncounted."""
        unhandled, expired = prefetch.take_all(), self.unsettled.to_release
        messages = unhandled + expired
        if self._run.stopped:  # the command has released the messages
            self._run.counts.add_released(self._parts.leases.drop_settled(messages))
            expired.clear()
            return
        try:
            released = await self._parts.settler.release_uncounted(messages)
        except (ConnectionLost, psycopg.Error) as error:
            if is_lock_timeout(error):
                expired += unhandled
            else:
                prefetch.return_messages(unhandled)
            raise
        except BaseException:
            prefetch.return_messages(unhandled)
            raise
        del expired[: len(messages) - len(unhandled)]
        self._run.counts.add_released(released)

    async def check_transactions(self) -> None:
        """Find out how handlers' transactions have ended.

        A message whose transaction was rolled back has failed.
        """
        for message in await self.transactions.check():
            error = TocsinError(
                "the handler settled it in a transaction that was rolled back, and returned"
            )
            self.unsettled.to_fail.append((message, describe_failure(error)))

    async def flush(self) -> None:
        """Settle the messages that are left when the handlers have ended."""
        try:
            try:
                await self._settle_all()
            except (ConnectionLost, psycopg.Error) as error:
                if not (is_lock_timeout(error) and await self.locked.take_from(self.unsettled)):
                    raise
                await self._settle_all()
            self.unsettled.add(self.locked.unsettled.take_all())
            await self._settle_all()
        finally:
            failed = self.unsettled.to_fail + self.locked.unsettled.to_fail
            self.failing.log(failed, [UNANSWERED] * len(failed))

    async def _settle_all(self) -> None:
        try:
            if self.unsettled.to_archive and not self.archive_refused:
                await self.archive()
        except psycopg.Error as error:
            if not is_refusal(error):
                raise
        if self.unsettled.to_archive:
            await self.archive_one_by_one()
        if self.transactions:
            await self.check_transactions()
        if self.unsettled.to_fail:
            await self.failing.fail()
