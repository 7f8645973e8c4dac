"""The next step of a run's loop, as a pure function of the state of the loop."""

from __future__ import annotations

from enum import Enum, auto

import attrs


class Step(Enum):
    """A step of the loop."""

    FINISH = auto()
    """Leave the loop."""
    RESOLVE_LOCK_TIMEOUT = auto()
    """Set aside messages that another transaction has locked, after a lock timeout."""
    CHECK_LOCKED = auto()
    """Find out whether messages that were set aside are still locked."""
    RELEASE_UNCOUNTED = auto()
    """Release messages that no handler has begun with; the delivery does not count."""
    CHECK_TRANSACTIONS = auto()
    """Find out how handlers' transactions have ended."""
    ARCHIVE_ONE_BY_ONE = auto()
    """Archive messages one by one, since the database has refused one of them."""
    FAIL = auto()
    """Settle the messages that have failed."""
    CLAIM = auto()
    """Claim messages, and archive the handled ones."""
    ARCHIVE = auto()
    """Archive the handled messages."""
    END = auto()
    """End the run: nothing is left to do."""
    CLAIM_AGAIN = auto()
    """Find out whether anything is left to do."""
    WAIT = auto()
    """Wait until something changes."""


@attrs.frozen(kw_only=True, slots=False)  # created at each turn, which is faster without slots
class State:
    """The state of the loop."""

    ending: bool = False
    """Whether the run is to end."""
    may_claim: bool = True
    """Whether the run may take more messages."""
    capacity: int = 0
    """The number of messages that there is room for."""
    wake_pending: bool = False
    """Whether messages may be ready."""
    calling: bool = False
    """Whether handlers are running."""
    prefetched: bool = False
    """Whether messages wait for a handler."""
    prefetched_too_long: bool = False
    """Whether some of them have waited for too long."""
    to_archive: bool = False
    """Whether handled messages are to be archived."""
    to_fail: bool = False
    """Whether messages have failed, been rejected or been snoozed."""
    to_release: bool = False
    """Whether messages are to be released that no handler has begun with."""
    archive_refused: bool = False
    """Whether the database has refused to archive all messages in one statement."""
    fail_next: bool = False
    """Whether a claim or an archive has come since messages last failed."""
    lock_timeout: bool = False
    """Whether a statement has waited for a lock in vain."""
    locked: bool = False
    """Whether messages are set aside that another transaction has locked."""
    check_locked: bool = False
    """Whether it is time to find out whether they are still locked."""
    transactions: bool = False
    """Whether handlers' transactions may not have ended."""
    check_transactions: bool = False
    """Whether it is time to find out whether they have ended."""
    transactions_overdue: bool = False
    """Whether the run has waited for them long enough."""
    once: bool = False
    """Whether the run ends when nothing is left to do."""
    ordered: bool = False
    """Whether the run keeps the queue's order."""
    found_nothing: bool = False
    """Whether the last claim found nothing while nothing was going on."""
    held_up: bool = False
    """Whether messages are ready that the order does not let the run have yet."""
    limit_reached: bool = False
    """Whether the run has claimed as many messages as it may."""

    @property
    def unfinished(self) -> bool:
        """Whether anything is left but handlers' transactions."""
        return (
            self.calling
            or self.prefetched
            or self.to_archive
            or self.to_fail
            or self.to_release
            or self.locked
        )


def next_step(state: State) -> Step:
    """Return what the loop does next."""
    # An open transaction may still settle its message. Otherwise the message is
    # requeued when its lease ends.
    waits_for_transactions = state.transactions and not state.transactions_overdue
    if state.ending and not (state.unfinished or waits_for_transactions):
        return Step.FINISH
    if state.lock_timeout:
        return Step.RESOLVE_LOCK_TIMEOUT
    if state.check_locked:
        return Step.CHECK_LOCKED
    if state.to_release or state.prefetched_too_long or (state.prefetched and not state.may_claim):
        return Step.RELEASE_UNCOUNTED
    if state.check_transactions:
        return Step.CHECK_TRANSACTIONS
    if state.archive_refused:
        return Step.ARCHIVE_ONE_BY_ONE
    if state.to_fail and (state.ordered or state.fail_next):
        return Step.FAIL
    if state.capacity > 0 and state.wake_pending:
        return Step.CLAIM
    if state.to_archive:
        return Step.ARCHIVE
    if state.to_fail:
        return Step.FAIL
    if (
        state.once
        and (state.capacity > 0 or state.limit_reached)
        and not (state.unfinished or state.transactions or state.held_up)
    ):
        # Producers did not ring for messages that they enqueued while handlers were
        # running, because the consumer did not wait.
        return Step.END if state.found_nothing or state.limit_reached else Step.CLAIM_AGAIN
    return Step.WAIT
