"""A worker that runs jobs: a consumer for each queue of its tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

import trio

from tocsin._arguments import check_count
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.client import Database
from tocsin._durations import Duration
from tocsin._queue.consuming.consumer_worker import ConsumerWorker
from tocsin._queue.consuming.dispatcher import dispatch
from tocsin._queue.consuming.handlers import make_options
from tocsin._queue.consuming.slots import Slots
from tocsin._queue.payload import encode
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import registered
from tocsin.errors import Suspended

from .running import TaskRunner
from .task import Task


class JobConsumer(ConsumerWorker):
    """A worker's consumer of one queue."""

    async def run(
        self,
        runner: TaskRunner,
        *,
        concurrency: int,
        slots: Slots | None,
        once: bool,
        task_status: trio.TaskStatus[None],
    ) -> NoReturn:
        """Run the queue's jobs until interrupted; then raise `Suspended`.

        Args:
            runner: Runs a job.
            concurrency: How many jobs run at a time.
            slots: What this consumer shares with the others of its worker.
            once: Also end when no job is due and none is running.
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
            slots=slots,
            once=once,
            batches=False,
            vt=None,
            timeout=None,
        )
        await dispatch(self._state, options, task_status)


class JobWorker:
    """Runs the jobs of some tasks; made by `Store.worker`."""

    def __init__(
        self, runner: TaskRunner, consumers: Sequence[JobConsumer], concurrency: int
    ) -> None:
        self.consumers: tuple[JobConsumer, ...] = tuple(consumers)
        """The consumers, one for each queue of the tasks."""
        self._runner = runner
        self._concurrency = concurrency

    def __repr__(self) -> str:
        return f"<tocsin.JobWorker of {', '.join(sorted(self._runner.tasks))}>"

    async def run(
        self,
        *,
        once: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Run jobs until interrupted; then raise `Suspended`.

        Args:
            once: Also end when no job is due and none is running.

        Raises:
            Suspended: The run has ended, for all queues.
            StateTransitionError: A consumer may not poll.
            WorkerStopped: A consumer is stopped.

        Cancellation:
            Functions are cancelled, and their jobs released; the attempts do not count.
        """
        ends: list[Suspended] = []
        slots = Slots(self._concurrency) if len(self.consumers) > 1 else None

        @trio.lowlevel.enable_ki_protection
        async def run_consumer(
            consumer: JobConsumer, *, task_status: trio.TaskStatus[None]
        ) -> None:
            status = _Started(task_status)
            try:
                await consumer.run(
                    self._runner,
                    concurrency=self._concurrency,
                    slots=slots,
                    once=once,
                    task_status=status,
                )
            except Suspended as end:
                ends.append(end)
                status.started()  # unless it ended before it began

        async with open_nursery_bare() as nursery:
            for consumer in self.consumers:
                await nursery.start(run_consumer, consumer)
            task_status.started()
        raise Suspended(
            ends[0].reason,
            handled=sum(end.handled for end in ends),
            failed=sum(end.failed for end in ends),
            released=sum(end.released for end in ends),
        )

    async def interrupt(self, *, grace: Duration | None = None) -> None:
        """End the run: see `WorkerHandle.interrupt`.

        Args:
            grace: The seconds after which functions that still run are cancelled.

        Raises:
            TocsinError: What `WorkerHandle.interrupt` raises.

        Cancellation:
            Some of the consumers are interrupted.
        """
        for consumer in self.consumers:
            await consumer.interrupt(grace=grace)


class _Started(trio.TaskStatus[None]):
    """Takes note of the first start, and of no other."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status: trio.TaskStatus[None] | None = status

    def started(self, value: None = None) -> None:
        status, self._status = self._status, None
        if status is not None:
            status.started(value)


@asynccontextmanager
async def open_worker(
    database: Database,
    process: Process,
    tasks: Iterable[Task[..., Any]],
    *,
    concurrency: int,
    name: str | None,
) -> AsyncIterator[JobWorker]:
    """Register tasks, and a consumer for each of their queues; see `Store.worker`.

    Raises:
        TocsinError: What `Store.worker` raises.

    Cancellation:
        The registrations of the consumers end, as they do at any end of the block.
    """
    check_count(concurrency, "concurrency")
    runner = TaskRunner(tasks)
    if not runner.tasks:
        raise ValueError("a worker needs at least one task")
    await database.fetch("select tocsin.register_tasks(%s)", [_describe(runner)])
    queues = dict.fromkeys(task.options.queue for task in runner.tasks.values())
    async with AsyncExitStack() as stack:
        consumers = [
            await stack.enter_async_context(
                registered(JobConsumer(database, process, process.bell, queue, name))
            )
            for queue in queues
        ]
        yield JobWorker(runner, consumers, concurrency)


def _describe(runner: TaskRunner) -> str:
    """Return the tasks as ``tocsin.register_tasks`` takes them."""
    return encode(
        [
            {
                "name": task.name,
                "queue": task.options.queue,
                "max_deliveries": task.options.max_attempts,
                "priority": task.options.priority,
                "timeout": task.options.timeout,
                "description": task.options.description,
            }
            for task in runner.tasks.values()
        ]
    )
