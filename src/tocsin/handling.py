"""The loop that handles messages: claim, hand to the handler, settle.

One task, the *pump*, sends all statements of the loop, one at a time. While a statement is under way, finished messages gather; the next
statement archives all of them and claims the next messages in the same commit. So a busy consumer pays one commit for many messages, and
one that handles a single message has it archived at once.

Each call of the handler is a task of its own in the run's nursery, within its own cancel scope. It ends in one of four ways: it returned
(archive what it has not settled itself), it raised (back to the queue with backoff, or to the dead letters), its lease was lost (nothing
can be settled), or the grace of an interruption was over (released at the end of the run). None of them ends the loop.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import trio

from .blocking import call_and_watch
from .errors import TRANSIENT, StateTransitionError
from .leases import Unit
from .message import Message
from .retry import Retries

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger("tocsin")

MAX_ERROR_CHARACTERS = 10_000
"""How much of an error's text and of its traceback is kept."""


def describe_handler(handler: Callable[..., object]) -> str:
    """Return the handler's name for messages."""
    name = getattr(handler, "__qualname__", None)
    return f"{handler.__module__}.{name}" if name else repr(handler)


def make_caller(handler: Callable[[Any], object], concurrency: int) -> Callable[[Any], Awaitable[None]]:
    """Return how to call a handler: an async function directly, watched for blocking the event loop; any other in a thread."""
    if not callable(handler):
        raise TypeError(f"a handler is a function of one argument, not {handler!r}")
    name = describe_handler(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        return lambda work: call_and_watch(cast(Callable[[Any], Awaitable[object]], handler), work, name)

    threads = trio.CapacityLimiter(concurrency)

    async def call_in_thread(work: Any) -> None:
        # A thread cannot be stopped: when the handler's scope is cancelled it is left to itself. Its message is another's by then, and it
        # cannot settle it. A long one can ask trio.from_thread.check_cancelled().
        await trio.to_thread.run_sync(handler, work, abandon_on_cancel=True, limiter=threads)

    return call_in_thread


class Handling:
    """One loop. ``size`` is the number of messages in one call of the handler at most."""

    def __init__(
        self,
        run: Run,
        call: Callable[[list[Message]], Awaitable[None]],
        *,
        concurrency: int,
        size: int,
        vt: float | None,
        timeout: float | None,
        name: str,
    ) -> None:
        self._run = run
        self._intake = run.intake
        self._call = call
        self._concurrency = concurrency
        self._size = size
        self._vt = vt
        self._timeout = timeout
        self._name = name
        self._done: list[Message] = []
        self._failed: list[tuple[Message, Exception]] = []
        self._answer_lost = False
        run.flush = self._flush

    async def pump(self) -> None:
        """Handle messages until the run is to end and all handlers have. Cancellation ends it at once; the run's end cleans up."""
        run = self._run
        retries = Retries("handling")
        while run.ended_by is None or run.units or self._done or self._failed:
            try:
                if self._failed:
                    await self._fail()
                room = self._concurrency - len(run.units) if run.may_claim else 0
                if room and run.bed.rung:
                    await run.poll()
                    await self._claim(room * self._size)
                elif self._done:
                    await self._archive()
                else:
                    await run.bed.sleep(sound=not room)
                retries.succeeded()
            except StateTransitionError:
                run.pause()
            except TRANSIENT as lost:
                await trio.sleep(retries.failed(lost))

    async def _claim(self, limit: int) -> None:
        run, intake = self._run, self._intake
        done, self._done = self._done, []
        run.bed.rung = False
        try:
            claim = await intake.claim(limit, self._vt, archive=done)
        except BaseException:
            self._done += done
            self._answer_lost = True
            run.bed.rung = True
            raise
        intake.note_settled(done, claim.lost)
        self._warn_of_lost(claim.lost)
        for start in range(0, len(claim.messages), self._size):
            unit = Unit(claim.messages[start : start + self._size])
            intake.leases.take(unit.messages, claim.vt, claim.claimed_at, unit)
            run.units.add(unit)
            run.nursery.start_soon(self._attend, unit)
        if claim.exhausted:
            run.bed.set_alarm(claim.next_due_at)
        else:
            run.bed.ring()

    async def _attend(self, unit: Unit) -> None:
        error: Exception | None = None
        try:
            with unit.scope:
                try:
                    if self._timeout is None:
                        await self._call(unit.messages)
                    else:
                        with trio.fail_after(self._timeout):
                            await self._call(unit.messages)
                except Exception as raised:
                    error = raised
        finally:
            self._run.units.discard(unit)
            self._run.bed.nudge()
        if not unit.scope.cancelled_caught:
            unsettled = [m for m in unit.messages if m in self._intake.leases]
            if error is None:
                self._done += unsettled
            else:
                for message in unsettled:
                    logger.warning("%s failed with message %d, delivery %d: %r", self._name, message.id, message.read_ct, error)
                self._failed += [(m, error) for m in unsettled]

    async def _archive(self) -> None:
        done, self._done = self._done, []
        try:
            archived = await self._intake.archive_many(done)
        except BaseException:
            self._done += done
            self._answer_lost = True
            raise
        self._warn_of_lost({m.id for m, was in zip(done, archived, strict=True) if not was})

    def _warn_of_lost(self, lost: set[int]) -> None:
        if lost and not self._answer_lost:  # else they were archived by the statement whose answer was lost
            logger.warning("handled, but not archived, since the lease was gone; will be delivered again: %s", sorted(lost))
        self._answer_lost = False

    async def _fail(self) -> None:
        failed, self._failed = self._failed, []
        try:
            await self._intake.fail_many([m for m, _ in failed], [_describe(e) for _, e in failed], [_trace(e) for _, e in failed])
        except BaseException:
            self._failed += failed
            raise

    async def _flush(self) -> None:
        if self._failed:
            await self._fail()
        if self._done:
            await self._archive()


def _describe(error: Exception) -> str:
    return _storable(f"{type(error).__name__}: {error}")


def _trace(error: Exception) -> str:
    return _storable("".join(traceback.format_exception(error)))


def _storable(text: str) -> str:
    """Text that PostgreSQL can store, the end of it if it is long."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[-MAX_ERROR_CHARACTERS:]
