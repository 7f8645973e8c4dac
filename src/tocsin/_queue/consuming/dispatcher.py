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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import attrs
import psycopg
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._concurrency.cancelling import cancel
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._concurrency.scheduling import run_woken_tasks
from tocsin._database.error_mapping import TRANSIENT, is_lock_timeout, is_refusal
from tocsin.errors import ConnectionLost, StateTransitionError

from .capacity import Capacity
from .completer import Completer
from .consumer_state import ConsumerState
from .handler_pool import HandlerPool
from .handlers import HandlerOptions
from .joint_end import NOTHING_LEFT
from .parts import ConsumerParts
from .prefetch import PrefetchBuffer
from .run import Run
from .running import open_run, settling_at_the_end
from .steps import State, Step, next_step

logger = logging.getLogger("tocsin.consumer")

OPEN_AT_THE_END = 5.0
"""Seconds for which a run that is to end waits for handlers' transactions.

Handlers have settled their messages in these.
"""


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
        self.capacity = Capacity(run, prefetch, options)
        """The room for further messages."""
        self._run = run
        self._completer = completer
        self._options = options
        self._give_up_at = math.inf

    def state(self, now: float) -> State:
        """Return the state of the loop at this time (`trio.current_time`)."""
        run, completer, options = self._run, self._completer, self._options
        prefetch, unsettled = self.capacity.prefetch, completer.unsettled
        may_claim = run.may_claim
        state = State(
            ending=run.ended_by is not None,
            may_claim=may_claim,
            capacity=self.capacity.count(now) if may_claim else 0,
            wake_pending=run.waiter.wake_pending,
            calling=bool(run.calls),
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
            once=options.once and not self._waits_for_others(),
            ordered=options.ordered,
            found_nothing=self.claimed.found_nothing,
            held_up=self.claimed.held_up,
            limit_reached=self.capacity.used_up,
        )
        if self._give_up_at == math.inf and state.ending and not state.unfinished:
            self._give_up_at = now + OPEN_AT_THE_END
        return state

    @contextmanager
    def joined_with_others(self, pool: HandlerPool) -> Iterator[None]:
        """Share slots and the end with the other runs of the worker in the block."""
        share, joint_end = self._options.worker.share, self._options.worker.joint_end
        with ExitStack() as stack:
            if share is not None:
                stack.enter_context(share.joined(self.capacity.wants_slot, pool.on_free_slot))
            if joint_end is not None:
                joint_end.begin(self._run)
            yield

    def end(self) -> None:
        """End the run, or have it wait for runs with which it ends."""
        joint_end = self._options.worker.joint_end
        if joint_end is None:
            self._run.end(NOTHING_LEFT)
        else:
            # What this run has found is out of date when another one has worked.
            self.claimed = ClaimedLast()
            joint_end.found_nothing()

    def _waits_for_others(self) -> bool:
        joint_end = self._options.worker.joint_end
        return joint_end is not None and joint_end.idle


async def dispatch(
    state: ConsumerState, options: HandlerOptions, task_status: trio.TaskStatus[None]
) -> NoReturn:
    """Run a consumer's handler until the run ends; then raise `Suspended`.

    Raises:
        Suspended: The run has ended.
        StateTransitionError: The worker may not poll.
        WorkerStopped: The worker is stopped.

    Cancellation:
        Handlers are cancelled and their messages released.
    """
    async with open_run(state, task_status) as run:
        await Dispatcher(state.parts, run, options).run()
    raise AssertionError("a run that ends raises Suspended")


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
                with self._run.closing.scope, self._situation.joined_with_others(pool):
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
                situation.capacity.release_unused()
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
                situation.end()
            case Step.CLAIM_AGAIN:
                self._run.claim_again()
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
        with situation.capacity.reserving(state.capacity):
            try:
                claim = await self._run.claim(
                    state.capacity, self._options.vt, archive=handled, ordered=self._options.ordered
                )
            except BaseException:
                completer.archive_failed(handled)
                raise
            if claim.batch:
                prefetch.add(claim.batch, trio.current_time())
        found_nothing = nothing_waited and not claim.batch and not claim.held_up
        situation.claimed = ClaimedLast(found_nothing, claim.held_up)
        self._parts.settler.count_settled(handled, claim.lost)
        completer.warn_of_lost(claim.lost)
        if claim.batch:
            if self._options.worker.joint_end is not None:
                self._options.worker.joint_end.found_work()
            pool.start_task()
            # The consumer was idle, so latency matters: start the handler before
            # sending the next claim.
            if nothing_waited:
                await run_woken_tasks()


_SAYS_NOTHING = frozenset({Step.RESOLVE_LOCK_TIMEOUT, Step.END, Step.CLAIM_AGAIN, Step.WAIT})
"""Steps whose end does not say that the database works."""
_FINISHING = frozenset({Step.ARCHIVE, Step.ARCHIVE_ONE_BY_ONE, Step.FAIL, Step.CHECK_TRANSACTIONS})
