"""A worker's consumer of one queue."""

from __future__ import annotations

from typing import NoReturn

import trio

from tocsin._queue.consuming.calls import CallScope
from tocsin._queue.consuming.consumer_worker import ConsumerWorker
from tocsin._queue.consuming.dispatcher import dispatch
from tocsin._queue.consuming.handlers import HandlerOptions, make_caller
from tocsin._queue.consuming.instrumented import instrument
from tocsin._queue.consuming.worker_options import WorkerOptions
from tocsin._queue.message import Message

from .running import TaskRunner


class JobConsumer(ConsumerWorker):
    """A worker's consumer of one queue."""

    async def run(
        self,
        runner: TaskRunner,
        *,
        concurrency: int,
        once: bool,
        worker: WorkerOptions,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Run the queue's jobs until interrupted; then raise `Suspended`.

        Args:
            runner: Runs a job.
            concurrency: How many jobs run at a time.
            once: Also end when no job is due and none is running.
            worker: What this run has in common with those of the worker's other queues.
            task_status: Started when the consumer polls.

        Raises:
            Suspended: The run has ended.
            StateTransitionError: The consumer may not poll.
            WorkerStopped: The consumer is stopped.

        Cancellation:
            Functions are cancelled, and their jobs released.
        """
        instruments = self._parts.process.telemetry.instruments
        options = HandlerOptions(
            call=make_caller(instrument(runner, instruments, _messages_of)),
            name="a worker of jobs",
            concurrency=concurrency,
            worker=worker,
            once=once,
            vt=None,
            timeout=None,
        )
        await dispatch(self._state, options, task_status)


def _messages_of(call: CallScope) -> list[Message]:
    return call.messages
