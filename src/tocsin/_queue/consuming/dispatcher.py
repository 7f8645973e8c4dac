"""The loop that handles messages: claim, hand to the handler, settle.

One task sends all statements of the loop, one at a time. While a statement is under
way, the outcomes of handlers gather (``completer.py``); the next statement archives all
of them and claims the next messages in the same commit. So a busy consumer pays one
commit for many messages, and one that handles a single message has it archived at once.
Handlers go on with prefetched messages (``prefetch.py``) during a statement.

`next_step` decides the next step from the state of the loop, which is a value.

A call of a handler ends in one of four ways:

- It returns: the messages that it has not settled are archived.
- It raises: its messages go back to the queue with backoff, or to the dead letters (see
  ``failure.py``).
- Its lease is lost: nothing can be settled.
- The grace of an interruption is over: its messages are released at the end of the run.

None of them ends the loop, except a `SystemExit` of an async handler: a signal handler
may have raised it, so it ends the run when its message has failed.
"""

from __future__ import annotations

import logging
import math
from enum import Enum, auto

import attrs
import psycopg
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._concurrency.scheduling import run_woken_tasks
from tocsin._database.error_mapping import TRANSIENT, is_lock_timeout, is_refusal
from tocsin.errors import ConnectionLost, StateTransitionError

from .completer import Completer
from .handler_pool import HandlerPool
from .handlers import HandlerOptions
from .parts import ConsumerParts
from .prefetch import PrefetchBuffer
from .run import Run
from .running import settling_at_the_end

logger = logging.getLogger("tocsin.consumer")

OPEN_AT_THE_END = 5.0
"""Seconds for which a run that is to end waits for handlers' transactions.

Handlers have settled their messages in these.
"""


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
        and state.capacity > 0
        and not (state.unfinished or state.transactions or state.held_up)
    ):
        # Producers did not ring for messages that they enqueued while handlers were
        # running, because the consumer did not wait.
        return Step.END if state.found_nothing else Step.CLAIM_AGAIN
    return Step.WAIT


@attrs.frozen
class ClaimedLast:
    """The outcome of the last claim."""

    found_nothing: bool = False
    """Whether it found nothing while nothing was going on."""
    held_up: bool = False
    """Whether messages are ready that the order does not let the run have yet."""


class Situation:
    """Everything that a run's next step depends on."""

    def __init__(
        self, run: Run, prefetch: PrefetchBuffer, completer: Completer, options: HandlerOptions
    ) -> None:
        self.claimed = ClaimedLast()
        """The outcome of the last claim."""
        self.fail_next = False
        """Whether a claim or an archive has come since messages last failed."""
        self.lock_timeout: ConnectionLost | psycopg.Error | None = None
        """The error of a statement that waited for a lock in vain."""
        self._run = run
        self._prefetch = prefetch
        self._completer = completer
        self._options = options
        self._give_up_at = math.inf

    def state(self, now: float) -> State:
        """Return the state of the loop at this time (`trio.current_time`)."""
        run, completer, options = self._run, self._completer, self._options
        prefetch, unsettled = self._prefetch, completer.unsettled
        may_claim = run.may_claim
        state = State(
            ending=run.ended_by is not None,
            may_claim=may_claim,
            capacity=self._capacity(now) if may_claim else 0,
            wake_pending=run.waiter.wake_pending,
            calling=run.calls > 0,
            prefetched=len(prefetch) > 0,
            prefetched_too_long=prefetch.waited_too_long(now),
            to_archive=bool(unsettled.to_archive),
            to_fail=bool(unsettled.to_fail),
            to_release=bool(unsettled.to_release),
            archive_refused=completer.archive_refused,
            fail_next=self.fail_next,
            lock_timeout=self.lock_timeout is not None,
            locked=bool(completer.locked),
            check_locked=now >= completer.locked.check_at,
            transactions=bool(completer.transactions),
            check_transactions=now >= completer.transactions.check_at,
            transactions_overdue=now >= self._give_up_at,
            once=options.once,
            ordered=options.ordered,
            found_nothing=self.claimed.found_nothing,
            held_up=self.claimed.held_up,
        )
        if self._give_up_at == math.inf and state.ending and not state.unfinished:
            self._give_up_at = now + OPEN_AT_THE_END
        return state

    def _capacity(self, now: float) -> int:
        capacity = (self._options.concurrency - self._run.calls) * self._options.size
        if self._options.ordered:
            return capacity - len(self._prefetch)
        return capacity + self._prefetch.capacity(now)


class Dispatcher:
    """The loop of one run."""

    def __init__(self, parts: ConsumerParts, run: Run, options: HandlerOptions) -> None:
        self._parts = parts
        self._run = run
        self._options = options
        self._prefetch = PrefetchBuffer()
        self._completer = Completer(parts, run, options)
        self._retries = OutageRetry("handling", logger)
        self._situation = Situation(run, self._prefetch, self._completer, options)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Handle messages until the run is to end and all handlers have ended.

        Cancellation:
            Handlers are cancelled; messages that they handled before are settled.
        """
        registration = self._parts.registration
        name = f"tocsin consumer {registration.name} of {registration.queue}"
        try:
            async with open_nursery_bare() as nursery:
                pool = HandlerPool(
                    self._run,
                    self._parts.leases,
                    self._prefetch,
                    self._completer,
                    self._options,
                    nursery,
                    name,
                    self._parts.reporter,
                )
                with self._run.closing.scope:
                    await self._run_steps(pool)
                cancel(nursery.cancel_scope, "the run has ended")
        finally:
            with settling_at_the_end(self._parts):
                await self._completer.flush()

    async def _run_steps(self, pool: HandlerPool) -> None:
        situation = self._situation
        while (step := next_step(state := situation.state(trio.current_time()))) is not Step.FINISH:
            try:
                await self._execute(step, state, pool)
            except StateTransitionError:
                self._run.pause()
            except (ConnectionLost, psycopg.Error) as error:
                refused = isinstance(error, psycopg.Error) and is_refusal(error)
                if refused and self._completer.unsettled.to_archive:
                    self._completer.archive_refused = True
                elif is_lock_timeout(error):
                    situation.lock_timeout = error
                elif isinstance(error, TRANSIENT) and not refused:
                    await self._retries.pause_after(error)
                else:
                    raise
            else:
                if step not in _SAYS_NOTHING:
                    self._retries.succeeded()
                    if not self._completer.locked:
                        self._run.closing.extend()

    async def _execute(self, step: Step, state: State, pool: HandlerPool) -> None:
        completer, situation = self._completer, self._situation
        match step:
            case Step.RESOLVE_LOCK_TIMEOUT:
                await self._resolve_lock_timeout()
            case Step.CHECK_LOCKED:
                await completer.locked.return_to(completer.unsettled)
            case Step.RELEASE_UNCOUNTED:
                await completer.release_uncounted(self._prefetch)
            case Step.CHECK_TRANSACTIONS:
                await completer.check_transactions()
            case Step.ARCHIVE_ONE_BY_ONE:
                await completer.archive_one_by_one()
            case Step.FAIL:
                await completer.failing.fail()
                situation.fail_next = False
            case Step.CLAIM:
                await self._claim(state, pool)
                situation.fail_next = True
            case Step.ARCHIVE:
                await completer.archive()
                situation.fail_next = True
            case Step.END:
                self._run.end("nothing is left to do")
            case Step.CLAIM_AGAIN:
                self._run.waiter.ring()
            case Step.WAIT:
                await self._run.waiter.wait(
                    ignore_rings=state.capacity <= 0,
                    until=min(
                        self._prefetch.check_at,
                        completer.transactions.check_at,
                        completer.locked.check_at,
                    ),
                )
        if self._options.ordered and step in _FINISHING:
            # Only a claim rings for the message behind the finished one.
            self._run.waiter.ring()

    async def _resolve_lock_timeout(self) -> None:
        """Set locked messages aside; without any, treat the timeout as an outage."""
        error = self._situation.lock_timeout
        assert error is not None
        if not await self._completer.locked.take_from(self._completer.unsettled):
            await self._retries.pause_after(error)
        self._situation.lock_timeout = None

    async def _claim(self, state: State, pool: HandlerPool) -> None:
        completer, situation, prefetch = self._completer, self._situation, self._prefetch
        nothing_waited = not (
            state.calling or state.prefetched or state.to_fail or state.transactions
        )
        handled = completer.take_handled()
        prefetch.claim_begins(trio.current_time())
        try:
            claim = await self._run.claim(
                state.capacity, self._options.vt, archive=handled, ordered=self._options.ordered
            )
        except BaseException:
            completer.archive_failed(handled)
            raise
        found_nothing = nothing_waited and not claim.batch and not claim.held_up
        situation.claimed = ClaimedLast(found_nothing, claim.held_up)
        self._parts.settler.count_settled(handled, claim.lost)
        completer.warn_of_lost(claim.lost)
        if claim.batch:
            prefetch.add(claim.batch, trio.current_time())
            pool.start_task()
            # The consumer was idle, so latency matters: start the handler before
            # sending the next claim.
            if nothing_waited:
                await run_woken_tasks()


_SAYS_NOTHING = frozenset({Step.RESOLVE_LOCK_TIMEOUT, Step.END, Step.CLAIM_AGAIN, Step.WAIT})
"""Steps whose end does not say that the database works."""
_FINISHING = frozenset({Step.ARCHIVE, Step.ARCHIVE_ONE_BY_ONE, Step.FAIL, Step.CHECK_TRANSACTIONS})
