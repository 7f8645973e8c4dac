"""The jobs of a store: submit them, and ask how they stand."""

from __future__ import annotations

from typing import TypeVar, Unpack

from tocsin._database.caller_connection import AnyConnection
from tocsin._database.client import Database
from tocsin._queue.process.process import Process
from tocsin._queue.producing.batcher import EnqueueBatcher
from tocsin._queue.producing.enqueue_request import EnqueueRequest
from tocsin._queue.producing.sending import QueueSender
from tocsin.telemetry.instruments import EnqueueCall, Telemetry

from .definition import Call
from .job import Job, JobInfo, find_job
from .submitting import SubmitOptions, build_submission

R = TypeVar("R")


class _JobSender(QueueSender):
    """Sends jobs to one queue."""

    async def send(self, request: EnqueueRequest, connection: AnyConnection | None) -> int:
        """Enqueue a job's message, and return its id."""
        return await self._send_request(request, connection)


class Jobs:
    """The jobs of a store: `Store.jobs`."""

    def __init__(
        self, database: Database, process: Process, batcher: EnqueueBatcher, telemetry: Telemetry
    ) -> None:
        self._database = database
        self._process = process
        self._batcher = batcher
        self._telemetry = telemetry

    async def submit(self, call: Call[R], **options: Unpack[SubmitOptions]) -> Job[R]:
        """Submit a call of a task; `Task.submit` is shorter.

        Args:
            call: What `Task.call` returned.
            options: Those of `Task.using`.

        Raises:
            QueueNotFound: The task's queue does not exist.
            PayloadTooLarge: The arguments exceed the queue's limit.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The outcome is unknown.
            ValueError: An option is out of its range.
            TypeError: An option has a wrong type.

        Cancellation:
            The job is submitted or not; with a key, submitting it again is safe.
        """
        submission = build_submission(call, options)
        request, connection = submission.request, options.get("connection")
        sender = _JobSender(self._database, self._batcher, submission.queue, self._telemetry)
        if not self._telemetry.instruments:
            job_id = await sender.send(request, connection)
        else:
            enqueueing = EnqueueCall(submission.queue, [call], options.get("headers"), None)
            with self._telemetry.instruments.enqueueing(enqueueing):
                options["headers"] = enqueueing.headers
                request = build_submission(call, options).request
                job_id = await sender.send(request, connection)
                enqueueing.ids = [job_id]
        return Job(self._database, self._process, job_id, call.definition)

    async def get(self, job_id: int) -> JobInfo:
        """Return how a job stands.

        Raises:
            JobNotFound: There is no such job, or no longer.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return await find_job(self._database, job_id)
