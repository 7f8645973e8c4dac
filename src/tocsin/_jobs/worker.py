"""A worker that runs jobs: a consumer for each queue of its tasks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NoReturn

import trio

from tocsin._arguments import check_count, check_queue
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.client import Database
from tocsin._durations import Duration
from tocsin._queue.consuming.joint_end import NOTHING_LEFT, JointEnd
from tocsin._queue.consuming.slots import Share, Slots
from tocsin._queue.consuming.worker_options import WorkerOptions
from tocsin._queue.payload import encode
from tocsin._queue.process.process import Process
from tocsin._queue.workers.registration import registered
from tocsin.errors import Suspended

from .completion import BeginTransaction
from .definition import describe_definition
from .executor import open_executor
from .function_callers import FunctionCallers
from .job_consumer import JobConsumer
from .running import TaskRunner, find_tasks
from .task import Task
from .turns import Turns
from .worker_options import JobWorkerOptions, Lifespan

MOST_THREADS: Final = 40
"""The most functions that run in threads at a time, unless the program says more."""


class JobWorker:
    """Runs the jobs of some tasks; made by `Store.worker`."""

    def __init__(
        self,
        runner: TaskRunner,
        consumers: Sequence[JobConsumer],
        weights: Sequence[int],
        concurrency: int,
        lifespan: Lifespan | None,
    ) -> None:
        self.consumers: tuple[JobConsumer, ...] = tuple(consumers)
        """The consumers, one for each queue that the worker serves."""
        self._runner = runner
        self._weights = weights
        self._concurrency = concurrency
        self._lifespan = lifespan
        self._turns = Turns(weights)

    def __repr__(self) -> str:
        return f"<tocsin.JobWorker of {self._runner.names}>"

    async def run(
        self,
        *,
        once: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Run jobs until interrupted; then raise `Suspended`.

        Args:
            once: Also end when no job is due in any of the queues, and none is running.
                A job that a running job submits to one of the queues is run, too.

        Raises:
            Suspended: The run has ended, for all queues.
            StateTransitionError: A consumer may not poll.
            WorkerStopped: A consumer is stopped.

        Cancellation:
            Functions are cancelled, and their jobs released; the attempts do not count.
        """
        ends: list[Suspended] = []

        @trio.lowlevel.enable_ki_protection
        async def run_consumer(
            consumer: JobConsumer, options: WorkerOptions, *, task_status: trio.TaskStatus[None]
        ) -> None:
            status = _Started(task_status)
            try:
                await consumer.run(
                    self._runner,
                    concurrency=self._concurrency,
                    once=once,
                    worker=options,
                    task_status=status,
                )
            except Suspended as end:
                ends.append(end)
                status.started()  # unless it ended before it began
            finally:
                if options.joint_end is not None:
                    options.joint_end.leave()

        async with self._living(), open_nursery_bare() as nursery:
            for consumer, options in zip(self.consumers, self._share_out(), strict=True):
                await nursery.start(run_consumer, consumer, options)
            task_status.started()
        raise Suspended(
            ends[0].reason,
            handled=sum(end.handled for end in ends),
            failed=sum(end.failed for end in ends),
            released=sum(end.released for end in ends),
        )

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        """Have functions reach the value of the lifespan in the block."""
        if self._lifespan is None:
            yield
            return
        async with self._lifespan() as self._runner.state:
            try:
                yield
            finally:
                self._runner.state = None

    def _share_out(self) -> list[WorkerOptions]:
        """Return for each consumer its part of what the consumers have in common."""
        if len(self.consumers) == 1:
            return [WorkerOptions()]
        slots, joint_end = Slots(self._concurrency), JointEnd()
        return [
            WorkerOptions(share=Share(slots, weight), joint_end=joint_end.add())
            for weight in self._weights
        ]

    async def process_one(self) -> bool:
        """Run one attempt of a job that is due, whichever queue it is in.

        The queues take turns by their weights.

        Returns:
            Whether there was one.

        Raises:
            Suspended: A consumer was interrupted before it found a job.
            StateTransitionError: A consumer may not poll.
            WorkerStopped: A consumer is stopped.

        Cancellation:
            The function is cancelled, and its job released; the attempt does not count.
        """
        async with self._living():
            number = await self._find_one()
        if isinstance(number, Suspended):
            raise number
        return number

    async def _find_one(self) -> bool | Suspended:
        """Run one job; return whether there was one, or the end of an interruption."""
        for number in self._turns.order():
            while True:
                begun, called = self._runner.begun, self._runner.called
                try:
                    await self.consumers[number].run(
                        self._runner, concurrency=1, once=True, worker=WorkerOptions(limit=1)
                    )
                except Suspended as end:
                    if self._runner.begun > begun:
                        self._turns.served(number)
                        return True
                    if end.reason != NOTHING_LEFT:
                        return end
                    if self._runner.called == called:
                        break
        return False

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
    begin_transaction: BeginTransaction,
    options: JobWorkerOptions,
) -> AsyncIterator[JobWorker]:
    """Register tasks, and a consumer for each queue; see `Store.worker`.

    Raises:
        TocsinError: What `Store.worker` raises.

    Cancellation:
        The registrations of the consumers end, as they do at any end of the block.
    """
    concurrency = check_count(options.get("concurrency", 1), "concurrency")
    threads, processes = options.get("threads"), options.get("processes")
    executor, name = options.get("executor"), options.get("name")
    by_name = find_tasks(tasks)
    weights = _check_weights(by_name, options.get("queues"))
    await database.fetch("select tocsin.register_tasks(%s)", [_describe(by_name)])
    async with AsyncExitStack() as stack:
        if executor is None and any(t.options.runs == "process" for t in by_name.values()):
            executor = await stack.enter_async_context(open_executor())
        callers = FunctionCallers(
            min(concurrency, MOST_THREADS) if threads is None else check_count(threads, "threads"),
            (os.cpu_count() or 1) if processes is None else check_count(processes, "processes"),
            executor,
        )
        runner = TaskRunner(by_name, begin_transaction, callers)
        consumers = [
            await stack.enter_async_context(
                registered(JobConsumer(database, process, process.bell, queue, name, list(by_name)))
            )
            for queue in weights
        ]
        yield JobWorker(
            runner, consumers, list(weights.values()), concurrency, options.get("lifespan")
        )


def _check_weights(
    tasks: dict[str, Task[..., Any]], queues: Mapping[str, int] | None
) -> dict[str, int]:
    """Return the queues that a worker serves, with their weights."""
    if queues is None:
        return {task.options.queue: 1 for task in tasks.values()}
    if not queues:
        raise ValueError("a worker needs at least one queue")
    return {
        check_queue(queue): check_count(weight, f"the weight of queue {queue!r}")
        for queue, weight in queues.items()
    }


def _describe(tasks: dict[str, Task[..., Any]]) -> str:
    """Return the tasks as ``tocsin.register_tasks`` takes them."""
    return encode([describe_definition(task.definition) for task in tasks.values()])
