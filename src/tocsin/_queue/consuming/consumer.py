"""Consuming: taking messages from a queue, by hand or with a handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import NoReturn

import trio

from tocsin._arguments import check_count
from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Database
from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import Message
from tocsin._queue.process.bell import Bell, Waiter
from tocsin._queue.process.process import Process
from tocsin._queue.workers.handle import WorkerHandle
from tocsin._queue.workers.registration import Registered, Registration
from tocsin.errors import ConnectionLost, LeaseLost, StateTransitionError, Suspended

from .dispatcher import Caller, Dispatcher, describe_handler, make_caller
from .draining import wait_for_others
from .intake import Intake
from .run import open_run
from .stream import open_stream


class _Registration(Registration):
    """A consumer's, which passes on to its intake what the registry says."""

    def __init__(self, database: Database, queue: str, name: str | None, intake: Intake) -> None:
        super().__init__(database, "consumer", queue, name)
        self._intake = intake

    @property
    def listens_to(self) -> tuple[str, int]:
        return self.channel, self.queue_id

    async def register(self, process_id: int) -> None:
        """See `Registration.register`. Registered again, the process had been declared
        dead, and the leases are gone."""
        await super().register(process_id)
        intake = self._intake
        intake.begin(self.queue, self.queue_id, self.worker_id, self.token, self.name or "")
        if intake.run is not None:
            await intake.leases.refresh()
            intake.on_worker_status(self.status, None)

    def on_worker_status(self, status: str, grace: float | None) -> None:
        self._intake.on_worker_status(status, grace)

    def on_leases_revoked(self) -> None:
        self._intake.on_leases_revoked()

    def end(self) -> None:
        self._intake.end()


class Consumer(Registered, WorkerHandle):
    """Consumes one queue; made by `Store.consumer`.

    Take messages by hand with `dequeue`, or have `handle`, `handle_batches` or
    `messages` take them; these three *run* until interrupted, and a consumer has one
    run at a time.
    """

    def __init__(
        self, database: Database, process: Process, bell: Bell, queue: str, name: str | None
    ) -> None:
        self._bell = bell
        self._intake = Intake(database, process, bell)
        super().__init__(database, process, _Registration(database, queue, name, self._intake))

    # By hand

    async def dequeue(
        self, limit: int = 1, *, vt: Duration | None = None, wait: Duration = 0
    ) -> list[Message]:
        """Take up to ``limit`` messages, each with a lease of ``vt`` seconds (default:
        the queue's).

        With ``wait``, returns as soon as there is one, or with none after that many
        seconds. The leases are not extended by themselves: settle each message in time,
        or extend it. Raises `StateTransitionError` for a suspended or interrupted
        worker, also when it comes to that while this waits, `WorkerStopped`,
        `ConnectionLost`, `ValueError`; and `Suspended` after a signal, within
        `drain_on_signals`. Cancelled, nothing is taken.
        """
        check_count(limit, "limit")
        length = None if vt is None else to_seconds(vt, "vt")
        self._intake.leases.forget_lapsed()
        with self._manual_waiter() as waiter:
            deadline = trio.current_time() + to_seconds(wait, "wait", zero=True)
            while True:
                if self._intake.closed:
                    await trio.lowlevel.checkpoint()
                    raise await self._drained()
                waiter.begin_claim()
                try:
                    claim = await self._intake.claim(limit, length, look=True, kept=False)
                except BaseException as error:
                    waiter.claim_failed()
                    if self._intake.closed and isinstance(
                        error, (StateTransitionError, ConnectionLost)
                    ):
                        raise await self._drained() from error
                    raise
                rung_meanwhile = waiter.wake_pending
                waiter.end_claim(claim.again_at, full=claim.full)
                messages = claim.batch.take_all()
                if messages or trio.current_time() >= deadline:
                    waiter.wake_pending = rung_meanwhile
                    return messages
                while not waiter.wake_pending and trio.current_time() < deadline:
                    await waiter.wait(until=deadline)

    async def _drained(self) -> Suspended:
        await wait_for_others(self._intake)
        return Suspended("interrupted", handled=0, released=0)

    @contextmanager
    def _manual_waiter(self) -> Iterator[Waiter]:
        with self._bell.waiter(self.queue_id) as waiter:
            self._intake.manual_waiters.add(waiter)
            try:
                yield waiter
            finally:
                self._intake.manual_waiters.discard(waiter)

    async def archive(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep it in the archive; with a ``connection``, in the
        caller's transaction: see `Message.archive`.

        Raises `LeaseLost`. Cancelled, it has happened or it has not.
        """
        await self._intake.archive(self._find(message, "archive"), connection=connection)

    async def archive_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Archive messages in one statement; return for each, in order, whether its
        lease was still ours. Cancelled, all or none.

        With a ``connection``, in the caller's transaction: see `Message.archive`.
        Raises `LeaseLost` for an id that is not held here.
        """
        return await self._intake.archive_many(
            self._find_all(messages, "archive"), connection=connection
        )

    async def delete(
        self, message: Message | int, *, connection: AnyConnection | None = None
    ) -> None:
        """Finish a message and keep nothing; with a ``connection``, in the caller's
        transaction: see `Message.archive`.

        Raises `LeaseLost`. Cancelled, it has happened or it has not.
        """
        await self._intake.delete(self._find(message, "delete"), connection=connection)

    async def delete_many(
        self, messages: Iterable[Message | int], *, connection: AnyConnection | None = None
    ) -> list[bool]:
        """Delete messages in one statement; return and raise as `archive_many` does.
        Cancelled, all or none."""
        return await self._intake.delete_many(
            self._find_all(messages, "delete"), connection=connection
        )

    async def release(
        self,
        message: Message | int,
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> None:
        """Give a message back for another delivery after ``delay`` seconds; after its
        last delivery it becomes a dead letter.

        With a ``connection``, in the caller's transaction: see `Message.archive`.
        Raises `LeaseLost`. Cancelled, it has happened or it has not.
        """
        await self._intake.release(
            self._find(message, "release"), delay=delay, connection=connection
        )

    async def release_many(
        self,
        messages: Iterable[Message | int],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]:
        """Release messages for delivery after ``delay`` seconds, in one statement;
        return and raise as `archive_many` does.

        Cancelled, all or none.
        """
        return await self._intake.release_many(
            self._find_all(messages, "release"), delay=delay, connection=connection
        )

    async def extend(self, message: Message | int, seconds: Duration) -> None:
        """Make a lease end ``seconds`` from now, by the server's clock. Raises
        `LeaseLost`. Cancelled, it has happened or it has not."""
        await self._intake.extend(self._find(message, "extend"), seconds)

    async def extend_many(self, messages: Iterable[Message | int], seconds: Duration) -> list[bool]:
        """Make leases end ``seconds`` from now in one statement; return and raise as
        `archive_many` does. Cancelled, all or none."""
        return await self._intake.extend_many(self._find_all(messages, "extend"), seconds)

    def _find(self, message: Message | int, operation: str) -> Message:
        if isinstance(message, Message):
            return message
        found = self._intake.leases.find(message)
        if found is None:
            raise LeaseLost(message, operation)
        return found

    def _find_all(self, messages: Iterable[Message | int], operation: str) -> list[Message]:
        return [self._find(message, operation) for message in messages]

    # Running

    async def handle(
        self,
        handler: Callable[[Message], Awaitable[object]] | Callable[[Message], object],
        *,
        concurrency: int = 1,
        vt: Duration | None = None,
        timeout: (Duration | None) = None,  # noqa: ASYNC109 - of each call of the handler, not of this one
        once: bool = False,
        ordered: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Call the handler for each message, up to ``concurrency`` at a time, until
        interrupted; then raise `Suspended`.

        An async handler runs in this task's nursery, a plain function in a thread, in
        which it is left behind when it is cancelled or takes too long; each call has a
        context (``contextvars``) of its own. When it returns, its message is archived,
        unless it has settled the message itself. When it raises anything at all, or
        takes longer than ``timeout`` seconds, the message goes back to the queue with
        the queue's backoff, or to the dead letters after its last delivery, with the
        error kept; the loop goes on. It decides itself what becomes of the message by
        raising `Retry`, `Snooze` or `Reject`. Leases (``vt`` seconds each, default: the
        queue's) are extended for as long as a handler runs; a handler whose lease is
        lost all the same is cancelled. With ``once`` it also ends, with `Suspended`
        too, when no message is due and no handler runs any more. With ``await
        nursery.start(consumer.handle, handler)`` it is started when it polls.

        With ``ordered`` no message is begun before the one ahead of it in the queue is
        finished: one that has failed holds up those behind it until it has been handled
        or is a dead letter. All consumers of the queue have to run so; one of them
        works at a time. It takes a ``concurrency`` of 1.

        Raises `Suspended`, `StateTransitionError`, `WorkerStopped`; and an async
        handler's `SystemExit`, whose message has failed then. While the database is
        away it waits for it. Cancelled, or on `KeyboardInterrupt`, handlers are
        cancelled and their messages released, without counting as a delivery.
        """
        check_count(concurrency, "concurrency")
        if ordered and concurrency != 1:
            raise ValueError(f"concurrency must be 1 with ordered=True, not {concurrency}")
        call = make_caller(handler)

        def call_with_first(
            messages: list[Message], when_waiting: Callable[[], None]
        ) -> Awaitable[object]:
            return call(messages[0], when_waiting)

        await self._handle(
            call_with_first,
            describe_handler(handler),
            concurrency,
            1,
            vt,
            timeout,
            once,
            ordered,
            task_status,
        )

    async def handle_batches(
        self,
        handler: Callable[[list[Message]], Awaitable[object]] | Callable[[list[Message]], object],
        *,
        size: int,
        concurrency: int = 1,
        vt: Duration | None = None,
        timeout: (Duration | None) = None,  # noqa: ASYNC109 - of each call of the handler, not of this one
        once: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Like `handle`, with a handler that takes up to ``size`` messages in one call:
        as many as there are, without waiting for more.

        It may settle each message on its own; those that it has not settled are
        archived when it returns and fail when it raises. Leases last ``vt`` seconds,
        and a call may take ``timeout`` seconds. Is started by ``nursery.start``, raises
        and, cancelled, leaves behind what `handle` does.
        """
        check_count(size, "size")
        check_count(concurrency, "concurrency")
        call_with = make_caller(handler)

        async def call(messages: list[Message], when_waiting: Callable[[], None]) -> object:
            # the handler may take messages out of its list
            return await call_with(list(messages), when_waiting)

        await self._handle(
            call,
            describe_handler(handler),
            concurrency,
            size,
            vt,
            timeout,
            once,
            False,
            task_status,
        )

    async def _handle(
        self,
        call: Caller,
        name: str,
        concurrency: int,
        size: int,
        vt: Duration | None,
        timeout: Duration | None,  # noqa: ASYNC109
        once: bool,
        ordered: bool,
        task_status: trio.TaskStatus[None],
    ) -> NoReturn:
        lease = None if vt is None else to_seconds(vt, "vt")
        limit = None if timeout is None else to_seconds(timeout, "timeout")
        async with open_run(self._intake, task_status) as run:
            dispatcher = Dispatcher(
                run,
                call,
                concurrency=concurrency,
                size=size,
                vt=lease,
                timeout=limit,
                once=once,
                ordered=ordered,
                name=name,
            )
            await dispatcher.run()
        raise AssertionError("a run that ends raises Suspended")

    def messages(
        self, *, vt: Duration | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Open a stream of messages: ``async with consumer.messages() as stream: async
        for message in stream: ...``.

        Each message is to be settled in the block; what is not is released at its end,
        without counting as a delivery. When the block ends with an error, what it has
        not settled has failed with that, and comes back at once or is a dead letter.
        Leases (``vt`` seconds each, default: the queue's) are extended meanwhile.
        Interrupted, the stream raises `Suspended` when it is asked for the next
        message, and cancels the block when the interruption's grace is over.
        Cancellation leaves nothing behind.
        """
        return open_stream(self._intake, None if vt is None else to_seconds(vt, "vt"))

    async def interrupt(self, *, grace: Duration | None = None) -> None:
        """End the run, with ``grace`` within so many seconds: see
        `WorkerHandle.interrupt`.

        While the database is away the run is ended all the same, and `ConnectionLost`
        raised. Cancelled, it has happened or it has not.
        """
        try:
            await super().interrupt(grace=grace)
        except ConnectionLost:
            self._intake.end_run(grace)
            raise
        self._intake.end_run(grace)

    async def suspend(self, *, release: bool = False, drain: bool = False) -> None:
        """Take no more messages: see `WorkerHandle.suspend`, also for what it raises.

        With ``drain``, returns when nothing is held any more. Cancelled, it has
        happened or it has not; cancelled while it waits for the handlers, it has.
        """
        await super().suspend(release=release, drain=drain)
        self._intake.on_worker_status("suspended", None)
        if drain:
            await self._intake.leases.wait_empty()

    async def resume(self) -> None:
        """End a suspension. Raises what `WorkerHandle.resume` raises. Cancelled, it has
        happened or it has not."""
        await super().resume()
        self._intake.on_worker_status("ready", None)

    async def stop(self) -> int:
        """Stop for good, whatever the state; returns and raises what
        `WorkerHandle.stop` does. Cancelled, it has happened or it has not."""
        released = await super().stop()
        self._intake.on_worker_status("stopped", None)
        return released
