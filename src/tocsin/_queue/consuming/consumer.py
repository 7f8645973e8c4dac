"""The consumer of a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from tocsin._arguments import check_count
from tocsin._durations import Duration
from tocsin._queue.message import Message

from .dispatcher import dispatch
from .handlers import make_options
from .streaming import StreamingConsumer


class Consumer(StreamingConsumer):
    """A consumer of one queue, made by `Store.consumer`.

    `dequeue` takes messages by hand; `handle`, `handle_batches` and `messages` *run*
    until they are interrupted. A consumer has one run at a time.
    """

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
        """Call the handler for each message until interrupted; then raise `Suspended`.

        An async handler runs in a task of this call. A plain function runs in a thread,
        in which it is left behind when it is cancelled or takes too long. Each call has
        a context (``contextvars``) of its own.

        When the handler returns, its message is archived, unless the handler has
        settled it. When the handler raises anything at all, or takes longer than
        ``timeout`` seconds, the message goes back to the queue with the queue's
        backoff, or to the dead letters after its last delivery, and its error is kept.
        The loop goes on. A handler that raises `Retry`, `Snooze` or `Reject` decides
        about its message itself.

        Leases are extended while a handler runs; a handler whose lease is lost all the
        same is cancelled. While the database is away the loop waits for it. ``await
        nursery.start(consumer.handle, handler)`` returns when the consumer polls.

        Args:
            handler: Takes a `Message`.
            concurrency: How many messages are handled at a time.
            vt: Length of the leases in seconds; default: the queue's.
            timeout: Seconds that a call of the handler may take.
            once: Also end, with `Suspended` too, when no message is due and no handler
                runs any more.
            ordered: Begin no message before the one ahead of it in the queue is
                finished. A message that has failed holds up those behind it until it is
                handled or is a dead letter. With ``once``, the run goes on while a
                message that is due is held up. All consumers of the queue must run
                ordered; one of them works at a time. ``concurrency`` must be 1.

        Raises:
            Suspended: The run has ended.
            StateTransitionError: The worker may not poll.
            WorkerStopped: The worker is stopped.
            SystemExit: An async handler has raised it. Its message has failed then.

        Cancellation:
            Handlers are cancelled and their messages released, without counting as a
            delivery; so they are on `KeyboardInterrupt`.
        """
        check_count(concurrency, "concurrency")
        if ordered and concurrency != 1:
            raise ValueError(f"concurrency must be 1 with ordered=True, not {concurrency}")
        options = make_options(
            handler,
            instruments=self._parts.process.telemetry.instruments,
            batches=False,
            concurrency=concurrency,
            vt=vt,
            timeout=timeout,
            once=once,
            ordered=ordered,
        )
        await dispatch(self._state, options, task_status)

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
        """Call the handler for several messages at a time, otherwise as `handle` does.

        A call takes as many messages as there are, without waiting for more.

        The handler may settle each message on its own; those that it has not settled
        are archived when it returns and fail when it raises.

        Args:
            handler: Takes a list of messages.
            size: The most messages in one call.
            concurrency: How many calls go on at a time.
            vt: Length of the leases in seconds; default: the queue's.
            timeout: Seconds that a call of the handler may take.
            once: Also end when no message is due and no handler runs any more.

        Raises:
            Suspended: The run has ended.
            StateTransitionError: The worker may not poll.
            WorkerStopped: The worker is stopped.
            SystemExit: An async handler has raised it. Its messages have failed then.

        Cancellation:
            As that of `handle`.
        """
        check_count(size, "size")
        check_count(concurrency, "concurrency")
        options = make_options(
            handler,
            instruments=self._parts.process.telemetry.instruments,
            batches=True,
            size=size,
            concurrency=concurrency,
            vt=vt,
            timeout=timeout,
            once=once,
        )
        await dispatch(self._state, options, task_status)
