"""A worker's consumer of one queue."""

from __future__ import annotations

from typing import NoReturn

import trio

from tocsin._queue.consuming.consumer_worker import ConsumerWorker
from tocsin._queue.consuming.dispatcher import dispatch
from tocsin._queue.consuming.handlers import make_options
from tocsin._queue.consuming.worker_options import WorkerOptions

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
        options = make_options(
            runner,
            instruments=self._parts.process.telemetry.instruments,
            concurrency=concurrency,
            worker=worker,
            once=once,
            batches=False,
            vt=None,
            timeout=None,
        )
        await dispatch(self._state, options, task_status)
