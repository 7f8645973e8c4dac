"""The loop that handles messages: claim, hand to the handler, settle.

One task, the *pump*, sends all statements of the loop, one at a time. While a statement
is under way, finished messages gather; the next statement archives all of them and
claims the next messages in the same commit. So a busy consumer pays one commit for many
messages, and one that handles a single message has it archived at once. Meanwhile
handlers go on with what was claimed ahead (``prefetch.py``).

*Runners* call the handler: each takes waiting messages and calls it, one call after the
other. When a handler waits for something, another runner begins, up to the concurrency;
handlers that never wait need no second one, and no task of their own. Each time a
runner works it has a cancel scope, and stops at a call that was cancelled. A call ends
in one of four ways: it returned (archive what it has not settled itself), it raised
(back to the queue with backoff, or to the dead letters: see ``failure.py``), its lease
was lost (nothing can be settled), or the grace of an interruption was over (released at
the end of the run). None of them ends the loop, except a `SystemExit` of an async
handler: a signal handler may have raised it, so it ends the run when its message has
failed.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import psycopg
import trio

from tocsin._concurrency.backoff import OutageRetry
from tocsin._database.error_mapping import TRANSIENT, is_lock_timeout, is_refusal
from tocsin._queue.message import Message
from tocsin.errors import ConnectionLost, StateTransitionError, TocsinError

from .failure import Escaped, Failure, describe, describe_failure, split
from .failure_log import UNANSWERED, log_failure, log_outcomes
from .invocation import invoke_watched
from .lease_clock import lease_time
from .leases import HandlerCall
from .prefetch import PrefetchBuffer
from .set_aside import LOOK_AFTER, SetAside, Unsettled

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger("tocsin.consumer")

LOOK_PAUSE = 0.01
"""Seconds after which to look again, at first, whether the transaction has ended in
which a handler has settled its message."""

MAX_LOOK_PAUSE = 1.0
"""That pause doubles up to this."""

OPEN_AT_THE_END = 5.0
"""Seconds for which a run that is to end waits for such transactions."""

MAX_TURN = 0.0003
"""Seconds for which handlers that never wait are called before other tasks may run: the
one that sends statements, above all."""


def describe_handler(handler: Callable[..., object]) -> str:
    """Return the handler's name for messages."""
    name = getattr(handler, "__qualname__", None)
    return f"{handler.__module__}.{name}" if name else repr(handler)


def check_handler(handler: Callable[[Any], object]) -> None:
    """Refuse what cannot be a handler: nothing callable, or a generator function, whose
    call runs none of its code."""
    if not callable(handler):
        raise TypeError(f"a handler is a function of one argument, not {handler!r}")
    for function in (handler, type(handler).__call__):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"handler {describe_handler(handler)} is a generator function: a call runs none of"
                " its code; it must not yield"
            )


def check_that_it_ran(returned: object, name: str) -> None:
    """Raise TypeError if what a handler returned is code that nobody runs: then its
    message has not been handled."""
    if (
        inspect.isawaitable(returned)
        or inspect.isgenerator(returned)
        or inspect.isasyncgen(returned)
    ):
        if inspect.iscoroutine(returned):
            returned.close()  # else Python warns of it, too
        kind = type(returned).__name__
        raise TypeError(
            f"handler {name} returned {kind}, which nobody runs. Does a decorator hide an async"
            " function, or a yield?"
        )


Caller: TypeAlias = Callable[[Any, Callable[[], None]], Awaitable[object]]
"""Calls a handler with its argument; and another function as soon as the handler waits
for something. Returns what the handler does."""


def make_caller(handler: Callable[[Any], object]) -> Caller:
    """Return how to call a handler: an async function directly, watched for blocking
    the event loop; any other in a thread."""
    check_handler(handler)
    name = describe_handler(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        async_handler = cast(Callable[[Any], Awaitable[object]], handler)
        return lambda work, when_waiting: invoke_watched(async_handler, work, when_waiting, name)

    # The runners are the limit. A thread that was left behind does not count: the next
    # message would wait for it, and its time run out.
    threads = trio.CapacityLimiter(math.inf)

    @wraps(handler)
    def run(work: Any) -> object:
        try:
            return handler(work)
        except (
            BaseException
        ) as raised:  # no signal and no cancellation arrives in a thread: it is the handler's own
            raise Escaped(raised) from None

    async def call_in_thread(work: Any, when_waiting: Callable[[], None]) -> object:
        # A thread cannot be stopped: when the handler's scope is cancelled it is left
        # to itself. Its message is another's by then, and it cannot settle it. A long
        # one can ask trio.from_thread.check_cancelled().
        when_waiting()
        return await trio.to_thread.run_sync(run, work, abandon_on_cancel=True, limiter=threads)

    return call_in_thread


class Dispatcher:
    """One loop. ``size`` is the number of messages in one call of the handler at most.
    ``once``: it ends when nothing is left to do.

    ``ordered``: no message before the one ahead of it in the queue is finished; so
    nothing is claimed prefetch.
    """

    def __init__(
        self,
        run: Run,
        call: Caller,
        *,
        concurrency: int,
        size: int,
        vt: float | None,
        timeout: float | None,
        once: bool,
        ordered: bool,
        name: str,
    ) -> None:
        self._run = run
        self._intake = run.intake
        self._call = call
        self._concurrency = concurrency
        self._size = size
        self._vt = vt
        self._timeout = timeout
        self._once = once
        self._ordered = ordered
        self._name = name
        self._prefetch = PrefetchBuffer()
        self._worker_tasks = 0
        self._idle_workers = trio.lowlevel.ParkingLot()
        self._left = Unsettled()
        self._aside = SetAside()
        self._blocked: ConnectionLost | psycopg.Error | None = None
        # their handlers have settled them in transactions that may not have ended
        self._open: list[Message] = []
        self._look_at = math.inf
        self._look_pause = LOOK_PAUSE
        self._archive_refused = False
        self._outcome_unknown = False
        self._drained = False
        run.flush = self._flush

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Handle messages until the run is to end and all handlers have. Cancellation
        ends it at once; the run's end cleans up."""
        with self._run.closing:
            await self._run_steps()

    async def _run_steps(self) -> None:
        run = self._run
        retries = OutageRetry("handling", logger)
        prefetch = self._prefetch
        give_up_at = math.inf
        while (
            run.ended_by is None or run.units or prefetch or self._left or self._aside or self._open
        ):
            now = trio.current_time()
            if (
                run.ended_by is not None
                and self._open
                and not (run.units or prefetch or self._left or self._aside)
            ):
                give_up_at = min(give_up_at, now + OPEN_AT_THE_END)
                if now >= give_up_at:
                    # the transaction may settle it yet; else it comes back when its
                    # lease ends
                    return
            room = self._find_room(now) if run.may_claim else 0
            try:
                if self._blocked is not None:
                    await self._get_round(self._blocked, retries)
                if now >= self._aside.look_at:
                    await self._bring_back()
                if (
                    self._left.over
                    or prefetch.waited_too_long(now)
                    or (prefetch and not run.may_claim)
                ):
                    await self._give_back()
                if now >= self._look_at:
                    await self._look()
                if self._archive_refused:
                    await self._archive_one_by_one()
                if self._ordered and self._left.failed:
                    await self._fail()
                if room > 0 and run.waiter.wake_pending:
                    await self._claim(room)
                elif self._left.done:
                    await self._archive()
                elif (
                    self._once
                    and room > 0
                    and not (
                        run.units or prefetch or self._left.failed or self._aside or self._open
                    )
                ):
                    if self._drained:
                        run.end("nothing is left to do")
                    else:  # nobody rings for what came while handlers were running, as they were not asleep
                        run.waiter.ring()
                elif not self._left.failed:
                    await run.waiter.wait(
                        ignore_rings=room <= 0,
                        until=min(prefetch.check_at, self._look_at, self._aside.look_at),
                    )
                if self._left.failed:
                    await self._fail()
                retries.succeeded()
                if not self._aside:
                    run.limit_lock_waits_again()
            except StateTransitionError:
                run.pause()
            except (ConnectionLost, psycopg.Error) as error:
                refused = isinstance(error, psycopg.Error) and is_refusal(error)
                if refused and self._left.done:
                    self._archive_refused = True
                elif is_lock_timeout(error):
                    self._blocked = error
                elif isinstance(error, TRANSIENT) and not refused:
                    await trio.sleep(retries.failed(error))
                else:
                    raise

    # Claiming

    def _find_room(self, now: float) -> int:
        room = (self._concurrency - len(self._run.units)) * self._size
        if self._ordered:
            return room - len(self._prefetch)
        return room + self._prefetch.capacity(now)

    async def _claim(self, limit: int) -> None:
        done, self._left.done = self._left.done, []
        nothing_waited = not (self._run.units or self._prefetch or self._left.failed or self._open)
        self._prefetch.claim_begins(trio.current_time())
        try:
            claim = await self._run.claim(limit, self._vt, archive=done, ordered=self._ordered)
        except BaseException:
            self._left.done += done
            self._outcome_unknown = True
            raise
        self._drained = nothing_waited and not claim.batch
        self._intake.note_settled(done, claim.lost)
        self._warn_of_lost(claim.lost)
        if claim.batch:
            self._prefetch.add(claim.batch, trio.current_time())
            self._start_worker_task()
            # the handler is what somebody waits for now, not the next claim; in the
            # second pass it has begun
            if nothing_waited:
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()

    async def _give_back(self) -> None:
        """Give back what no handler has begun with, uncounted."""
        unhandled, over = self._prefetch.take_all(), self._left.over
        if self._run.stopped:  # they have been given back
            self._run.requeued += self._intake.leases.drop_settled(unhandled + over)
            over.clear()
            return
        messages = unhandled + over
        try:
            requeued = await self._intake.requeue_many(messages)
        except (ConnectionLost, psycopg.Error) as error:
            if is_lock_timeout(error):
                over += unhandled
            else:
                self._prefetch.return_messages(unhandled)
            raise
        except BaseException:
            self._prefetch.return_messages(unhandled)
            raise
        del over[: len(messages) - len(unhandled)]
        if self._run.ended_by is not None:
            self._run.requeued += requeued

    # What another transaction has locked

    async def _get_round(
        self, blocked: ConnectionLost | psycopg.Error, retries: OutageRetry
    ) -> None:
        """Go on without what is locked, if it is that which a statement has waited for."""
        if not await self._set_aside_locked():
            await trio.sleep(retries.failed(blocked))
        self._blocked = None

    async def _set_aside_locked(self) -> bool:
        locked = await self._intake.find_locked(self._left.messages())
        if not locked:
            return False
        logger.warning(
            "other transactions have locked messages that are to be settled; that is tried again"
            " later: %s",
            sorted(locked),
        )
        self._aside.add(self._left.take(locked))
        self._aside.look_at = trio.current_time() + LOOK_AFTER
        return True

    async def _bring_back(self) -> None:
        messages = self._aside.messages()
        locked = await self._intake.find_locked(messages)
        self._left.add(self._aside.take({m.id for m in messages} - locked))
        self._aside.look_at = trio.current_time() + LOOK_AFTER if self._aside else math.inf

    # Handling

    @trio.lowlevel.enable_ki_protection
    def _start_worker_task(self) -> None:
        if self._prefetch and self._worker_tasks < self._concurrency and self._run.may_claim:
            self._worker_tasks += 1
            if self._idle_workers:
                self._idle_workers.unpark()
            else:
                self._run.nursery.start_soon(self._run_worker_task)

    @trio.lowlevel.enable_ki_protection
    async def _run_worker_task(self) -> None:
        """Call handlers when `_start_worker_task` says so; stand by in between, unless
        another does.

        For waking a task is faster than starting one.
        """
        unit = HandlerCall()
        while True:
            await self._call_handlers(unit)
            self._start_worker_task()
            if self._idle_workers:
                return
            unit = HandlerCall()
            await self._idle_workers.park()

    async def _call_handlers(self, unit: HandlerCall) -> None:
        """Call the handler for what waits, one call after the other; when it waits for
        something, another runner goes on."""
        run, prefetch, leases = self._run, self._prefetch, self._intake.leases
        run.units.add(unit)
        turn_began = perf_counter()
        now = lease_time()
        try:
            with unit.scope:
                while prefetch and run.may_claim and not unit.scope.cancel_called:
                    unit.messages = prefetch.take(self._size)
                    if over := leases.start(unit, now):
                        self._left.over += over
                        logger.warning(
                            "%d leases ended before a handler could begin; the process was stopped,"
                            " or blocked",
                            len(over),
                        )
                    if unit.messages:
                        await self._invoke(unit)
                    if perf_counter() - turn_began > MAX_TURN:
                        await trio.lowlevel.checkpoint()
                        turn_began = perf_counter()
                        now = lease_time()
        finally:
            self._worker_tasks -= 1
            run.units.discard(unit)
            run.limit_lock_wait()
            run.waiter.wake()

    async def _invoke(self, unit: HandlerCall) -> None:
        messages = unit.messages
        error: BaseException | None = None
        exits: SystemExit | None = None
        try:
            if self._timeout is None:
                returned = await self._call(messages, self._start_worker_task)
            else:
                with trio.fail_after(self._timeout):
                    returned = await self._call(messages, self._start_worker_task)
            if returned is not None:
                check_that_it_ran(returned, self._name)
        except Escaped as escaped:
            error = escaped.error
        except Exception as raised:
            error = raised
        except BaseException as raised:
            own, outer = split(raised)
            if outer:
                if own:
                    logger.warning(
                        "%s raised while it was cancelled: %s",
                        self._name,
                        describe(BaseExceptionGroup("its own", own)),
                    )
                    raise (
                        outer[0]
                        if len(outer) == 1
                        else BaseExceptionGroup("several ends of a handler", outer)
                    ) from None
                raise
            error = raised
            exits = next((leaf for leaf in own if isinstance(leaf, SystemExit)), None)
        self._prefetch.finished += len(messages)
        leases = self._intake.leases
        if error is None:
            for message in messages:
                if leases.is_promised(message):
                    self._open.append(message)
                    self._look_at, self._look_pause = -math.inf, LOOK_PAUSE
                elif message in leases:
                    self._left.done.append(message)
        else:
            unsettled = [m for m in messages if m in leases]
            failure = describe_failure(error)
            self._left.failed += [(m, failure) for m in unsettled]
            if not unsettled:
                log_failure(
                    self._name,
                    failure,
                    messages,
                    "nothing was left to settle",
                    batches=self._size > 1,
                )
        unit.messages = []
        self._run.waiter.wake()
        if exits is not None:
            raise exits

    # Settling

    async def _look(self) -> None:
        """Find out how the transactions have ended in which handlers have settled their
        messages."""
        leases = self._intake.leases
        asked, self._look_at = self._open[:], math.inf
        try:
            rolled_back = await leases.look_at_promised(asked)
        except BaseException:
            self._look_at = -math.inf
            raise
        leases.break_promise(rolled_back)
        for message in rolled_back:
            error = TocsinError(
                "the handler settled it in a transaction that was rolled back, and returned"
            )
            self._left.failed.append((message, describe_failure(error)))
        self._go_on_in_order()
        still_open = [m for m in asked if leases.is_promised(m)]
        new = self._open[len(asked) :]
        self._open = still_open + new
        if new:
            self._look_at = -math.inf
        elif still_open:
            self._look_at = trio.current_time() + self._look_pause
            self._look_pause = min(2 * self._look_pause, MAX_LOOK_PAUSE)

    async def _archive(self) -> None:
        done, self._left.done = self._left.done, []
        try:
            archived = await self._intake.archive_soon(done)
        except BaseException:
            self._left.done += done
            self._outcome_unknown = True
            raise
        self._warn_of_lost({m.id for m, was in zip(done, archived, strict=True) if not was})
        self._go_on_in_order()

    def _go_on_in_order(self) -> None:
        """Have the next message claimed when one was finished by another statement than
        a claim, since nobody rings for that."""
        if self._ordered:
            self._run.waiter.ring()

    async def _archive_one_by_one(self) -> None:
        """Archive messages one by one since it failed for all together; one that cannot
        be archived has failed."""
        while self._left.done:
            message = self._left.done[0]
            try:
                self._warn_of_lost(
                    {message.id} if await self._intake.archive_soon([message]) == [False] else set()
                )
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
                self._left.failed.append((message, describe_failure(error)))
            del self._left.done[0]
        self._archive_refused = False

    def _warn_of_lost(self, lost: set[int]) -> None:
        # else they were archived by the statement whose answer was lost
        if lost and not self._outcome_unknown and not self._run.stopped:
            logger.warning(
                "handled, but not archived, since the lease was gone; will be delivered again: %s",
                sorted(lost),
            )
        self._outcome_unknown = False

    async def _fail(self) -> None:
        while self._left.failed:
            failed = self._left.failed[:]
            try:
                outcomes = await self._intake.fail_many(
                    [m for m, _ in failed], [f for _, f in failed], keep_place=self._ordered
                )
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
                for message, failure in failed:  # it fails for one of them: try each alone
                    outcome: float | str | None
                    try:
                        (outcome,) = await self._intake.fail_many(
                            [message], [failure], keep_place=self._ordered
                        )
                    except psycopg.Error as error:
                        if not is_refusal(error):
                            raise
                        outcome = (
                            f"it can neither be archived nor put back ({error}), and will be when"
                            " its lease ends"
                        )
                        self._intake.leases.drop(message)
                    del self._left.failed[0]
                    self._log_outcomes([(message, failure)], [outcome])
            else:
                del self._left.failed[: len(failed)]
                self._log_outcomes(failed, outcomes)
        self._go_on_in_order()

    async def _flush(self) -> None:
        try:
            try:
                await self._settle_left()
            except (ConnectionLost, psycopg.Error) as error:
                if not (is_lock_timeout(error) and await self._set_aside_locked()):
                    raise
                await self._settle_left()
            self._left.add(self._aside.take({m.id for m in self._aside.messages()}))
            await self._settle_left()
        finally:
            failed = self._left.failed + self._aside.failed
            self._log_outcomes(failed, [UNANSWERED] * len(failed))

    async def _settle_left(self) -> None:
        try:
            if self._left.done and not self._archive_refused:
                await self._archive()
        except psycopg.Error as error:
            if not is_refusal(error):
                raise
        if self._left.done:
            await self._archive_one_by_one()
        if self._open:
            await self._look()
        if self._left.failed:
            await self._fail()

    def _log_outcomes(
        self, failed: Sequence[tuple[Message, Failure]], outcomes: Sequence[float | str | None]
    ) -> None:
        log_outcomes(self._name, failed, outcomes, batches=self._size > 1)
