"""The jobs of a store: submit, look at and change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, TypeAlias, TypeVar, Unpack

from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Database
from tocsin._durations import Duration
from tocsin._queue.payload import encode
from tocsin._queue.process.process import Process
from tocsin._queue.producing.batcher import EnqueueBatcher
from tocsin._queue.producing.enqueue_request import BatchStatements, EnqueueRequest
from tocsin._queue.producing.sending import QueueSender
from tocsin.telemetry.events import Enqueued
from tocsin.telemetry.instruments import EnqueueCall, Telemetry

from .attempts import Attempt, list_attempts
from .by_name import NamedOptions, submit_by_name
from .control import cancel_job, edit_job, requeue_job, reschedule_job
from .definition import Call, Definition
from .job import Job, look_up, wait_finished
from .job_info import JobInfo
from .listing import JobLists
from .submitting import (
    Submission,
    SubmissionBatch,
    build_submission,
    check_calls,
    pack_all,
    queue_of,
)

R = TypeVar("R")

WriteFlow: TypeAlias = Callable[[Sequence[Submission]], BatchStatements]
"""Returns what submits the jobs of a flow."""


class _JobSender(QueueSender):
    """Sends jobs to one queue."""

    async def send(self, request: EnqueueRequest, connection: AnyConnection | None) -> int:
        """Enqueue a job's message, and return its id."""
        return await self._send_request(request, connection)

    async def send_many(
        self, batch: BatchStatements, connection: AnyConnection | None
    ) -> list[int]:
        """Enqueue the messages of jobs, to any queues, and return their ids."""
        return await self._send(batch, connection)

    def note_enqueued(self, ids: list[int], connection: AnyConnection | None) -> None:
        """Tell the event channel of messages of this queue that were enqueued."""
        if self._telemetry.events.wants(Enqueued):
            self._note_enqueued(ids, connection)


class Jobs(JobLists):
    """The jobs of a store: `Store.jobs`."""

    def __init__(
        self, database: Database, process: Process, batcher: EnqueueBatcher, telemetry: Telemetry
    ) -> None:
        super().__init__(database)
        self._process = process
        self._batcher = batcher
        self._telemetry = telemetry

    async def submit(self, call: Call[R], *, connection: AnyConnection | None = None) -> Job[R]:
        """Submit a call of a task; `Task.submit` is shorter.

        Args:
            call: What `Task.call` returned.
            connection: Submit in the transaction of this connection; see
                `Producer.enqueue`.

        Raises:
            QueueNotFound: The task's queue does not exist.
            PayloadTooLarge: The arguments exceed the queue's limit.
            KeyConflict: A job of another task, or a plain message, has the key.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The outcome is unknown.

        Cancellation:
            The job is submitted or not; with a key, submitting it again is safe.
        """
        check_calls([call])
        (call,) = await pack_all([call])
        submission = build_submission(call)
        sender = self._sender(submission.queue)
        if not self._telemetry.instruments:
            job_id = await sender.send(submission.request, connection)
        else:
            headers = call.options.get("headers")
            enqueueing = EnqueueCall(submission.queue, [call], headers, None)
            with self._telemetry.instruments.enqueueing(enqueueing):
                request = build_submission(call, enqueueing.headers).request
                job_id = await sender.send(request, connection)
                enqueueing.ids = [job_id]
        return self._submitted(call, job_id)

    async def submit_many(
        self, calls: Iterable[Call[R]], *, connection: AnyConnection | None = None
    ) -> list[Job[R]]:
        """Submit all calls or, on any refusal, none; return their jobs in order.

        The calls may be of different tasks, and each has its own options. A few
        thousand are sent in one statement.

        Args:
            calls: What `Task.call` returned.
            connection: Submit in the transaction of this connection; see
                `Producer.enqueue_many`.

        Raises:
            TocsinError: What `submit` raises.

        Cancellation:
            The jobs are submitted or not.
        """
        calls = list(calls)
        ids = await self._submit_all(calls, SubmissionBatch, connection)
        return [self._submitted(call, job_id) for call, job_id in zip(calls, ids, strict=True)]

    async def _submit_all(
        self,
        calls: Sequence[Call[Any]],
        write: Callable[[list[Submission]], BatchStatements],
        connection: AnyConnection | None,
        *,
        in_flow: bool = False,
    ) -> list[int]:
        """Submit calls, all or none, and return the ids that the statements give.

        The ids of the jobs are the last ones.
        """
        check_calls(calls)
        calls = await pack_all(calls)
        queues = dict[str, list[Call[Any]]]()
        for call in calls:
            queues.setdefault(queue_of(call), []).append(call)
        with ExitStack() as stack:
            enqueueings = {
                queue: self._instrument(stack, queue, theirs) for queue, theirs in queues.items()
            }
            submissions = [
                build_submission(c, enqueueings[queue_of(c)].headers, in_flow=in_flow)
                for c in calls
            ]
            ids = await self._sender("").send_many(write(submissions), connection)
            job_ids = ids[len(ids) - len(submissions) :]
            for queue, enqueueing in enqueueings.items():
                enqueueing.ids = [
                    job_id
                    for submission, job_id in zip(submissions, job_ids, strict=True)
                    if submission.queue == queue
                ]
                self._sender(queue).note_enqueued(list(enqueueing.ids), connection)
        return ids

    async def submit_by_name(
        self, task: str, arguments: object = (), **options: Unpack[NamedOptions]
    ) -> int:
        """Submit a job of a task that a worker has registered, and return its id.

        The program need not have the task's function, so the arguments are not checked
        here: wrong ones make the job a dead letter.

        Args:
            task: Name of the task.
            arguments: A JSON object with the arguments by name, or an array with the
                arguments by position.
            options: Those of `NamedOptions`; the rest is as the task says.

        Raises:
            TaskUnknown: No worker has registered the task.
            PayloadTooLarge: The arguments exceed the queue's limit.
            PayloadInvalid: The arguments are no JSON, or break a rule of the queue.
            KeyConflict: A job of another task, or a plain message, has the key.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The outcome is unknown.
            ValueError: A limit has a key that the task's program computes, or an
                option is out of its range.

        Cancellation:
            The job is submitted or not; with a key, submitting it again is safe.
        """
        return await submit_by_name(self._database, task, arguments, options)

    def _submitted(self, call: Call[R], job_id: int) -> Job[R]:
        return Job(self._database, self._process, job_id, call.definition, just_submitted=True)

    def job_of(self, definition: Definition[R], job_id: int) -> Job[R]:
        """Return the job of a task by its id, without asking the database."""
        return Job(self._database, self._process, job_id, definition)

    def _instrument(self, stack: ExitStack, queue: str, calls: Sequence[Call[Any]]) -> EnqueueCall:
        """Run the instruments round a submission to one queue."""
        enqueueing = EnqueueCall(queue, calls, None, None)
        if self._telemetry.instruments:
            stack.enter_context(self._telemetry.instruments.enqueueing(enqueueing))
        return enqueueing

    def _sender(self, queue: str) -> _JobSender:
        return _JobSender(self._database, self._batcher, queue, self._telemetry)

    async def get(self, job_id: int) -> JobInfo:
        """Return the state of a job, with its result or error.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return await look_up(self._process, job_id)

    async def wait(self, job_id: int, *, timeout: Duration | None = None) -> JobInfo:  # noqa: ASYNC109 - as in Job.result
        """Wait until a job is finished, and return its state, whatever its task is.

        `Job.result` returns the result as the task's function did.

        Args:
            timeout: The longest wait in seconds; None: any time.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer to begin with; a later outage
                does not end the wait.
            trio.TooSlowError: The time is over. The job goes on.

        Cancellation:
            The job goes on.
        """
        return await wait_finished(self._process, job_id, timeout)

    async def attempts(self, job_id: int) -> Sequence[Attempt]:
        """Return the attempts of a job, in the order in which they began.

        Of the attempts that have not succeeded, the last twenty are kept. They are
        deleted with the job.

        Raises:
            JobNotFound: No job has this id, or it was deleted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return await list_attempts(self._database, job_id)

    async def cancel(self, job_id: int, *, reason: str = "cancelled") -> None:
        """Cancel a job, so that no attempt begins any more.

        A job that waits is cancelled at once. If the job runs, the worker's process is
        notified, and cancels the function: an async one by its cancel scope; a plain
        one is left alone in its thread, where `CurrentJob.check_cancelled` raises. The
        job is cancelled when the attempt has ended, also if the function returns. A job
        whose function has ended before the call keeps its outcome.

        Args:
            reason: The reason, which `JobCancelled` has.

        Raises:
            MessageNotWaiting: The job is finished.
            JobNotFound: No job has this id, or it was deleted.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        await cancel_job(self._database, job_id, reason)

    async def requeue(self, job_id: int) -> None:
        """Run a finished job again, from its first attempt and due now.

        It keeps its id, its key, its flow and its history, and loses its result and its
        error. It has as many attempts as its task says now, and a job of a flow takes
        the results of its parents once more.

        Raises:
            ValueError: A job before it in its flow has not succeeded.
            KeyTaken: Another unfinished message of the queue has its key.
            MessageNotWaiting: The job is not finished.
            JobNotFound: No job has this id, or it was deleted.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.

        Cancellation:
            Atomic.
        """
        await requeue_job(self._database, job_id)

    async def reschedule(
        self, job_id: int, *, delay: Duration | None = None, at: datetime | None = None
    ) -> None:
        """Have a job that waits run at another time.

        Args:
            delay: Seconds from now.
            at: The time, with its zone.

        Raises:
            MessageNotWaiting: The job is running or finished.
            JobNotFound: No job has this id, or it was deleted.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.
            ValueError: Neither ``delay`` nor ``at`` is given, or both are.

        Cancellation:
            Atomic.
        """
        await reschedule_job(self._database, job_id, delay, at)

    async def edit(
        self,
        job_id: int,
        *,
        priority: int | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        """Give a job that waits another priority or other arguments.

        `Job.edit` checks the arguments against the function's signature; here the task
        is not known, and a wrong argument fails the attempt. The keys of the job's
        limits are those of the new arguments.

        Args:
            priority: Smaller numbers are run first.
            arguments: All arguments by name, as JSON values.

        Raises:
            MessageNotWaiting: The job is running or finished.
            JobNotFound: No job has this id, or it was deleted.
            PayloadTooLarge: The arguments exceed the queue's limit.
            PayloadInvalid: The arguments are no JSON, or break a rule of the queue.
            TaskUnknown: The task has limits, and no worker has registered it.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The database did not answer.
            ValueError: Nothing is given, a value is out of its range, the message is no
                job, or an argument is to be the result of another job of its flow.

        Cancellation:
            Atomic.
        """
        text = None if arguments is None else encode(dict(arguments))
        await edit_job(self._database, job_id, priority, text)


async def submit_flow_to(
    jobs: Jobs, calls: Sequence[Call[Any]], write: WriteFlow, connection: AnyConnection | None
) -> list[int]:
    """Submit the jobs of a flow, and return its id and theirs; see `Flow`.

    Args:
        jobs: The jobs of the store.
        calls: The calls of the jobs, parents before children.
        write: Returns what submits them, with their order.
        connection: Submit in the transaction of this connection.

    Raises:
        TocsinError: What `Jobs.submit` raises.

    Cancellation:
        The flow is submitted or not.
    """
    return await jobs._submit_all(calls, write, connection, in_flow=True)
