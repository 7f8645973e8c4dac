"""Write jobs as messages with the name of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import attrs

from tocsin._arguments import check_count, check_queue
from tocsin._durations import to_seconds
from tocsin._queue.payload import encode
from tocsin._queue.producing.enqueue_request import (
    CHUNK,
    CHUNK_SIZE,
    EnqueueRequest,
    Parameters,
    build_request,
)
from tocsin.errors import FlowInvalid

from .definition import Call, SubmitOptions, check_call
from .packing import run_packing

R = TypeVar("R")

ENQUEUE_JOBS: Final = "select tocsin.enqueue_jobs(%s::jsonb, %s)"
"""Some jobs of a batch; takes what `SubmissionBatch.statements` gives."""


@attrs.frozen
class Submission:
    """A job that is to be submitted."""

    call: Call[Any]
    """The call of the task."""
    queue: str
    """Name of the job's queue."""
    request: EnqueueRequest
    """The job's message."""

    def to_json(self) -> str:
        """Return it as a JSON object for ``tocsin.enqueue_jobs``."""
        key = "" if self.request.key is None else f'"key":{encode(self.request.key)},'
        return f'{{"queue":{encode(self.queue)},{key}{self.request.to_json()[1:]}'


def check_options(options: SubmitOptions) -> SubmitOptions:
    """Return the options of a call if they are valid.

    Raises:
        FlowInvalid: An argument is a planned job.
        ValueError: An option is out of its range.
        TypeError: An option has a wrong type, or does not exist.
    """
    if unknown := options.keys() - SubmitOptions.__annotations__.keys():
        raise TypeError(f"a job has no option {', '.join(sorted(unknown))}")
    _build_request(options, 0, 1)
    if (queue := options.get("queue")) is not None:
        check_queue(queue)
    return options


def queue_of(call: Call[Any]) -> str:
    """Return the name of the queue of a call's job."""
    queue = call.options.get("queue")
    return call.definition.options.queue if queue is None else queue


def pack(call: Call[R]) -> Call[R]:
    """Return a call as it is stored; a payload store may block.

    Raises:
        Exception: The codec or the payload store has raised it.
    """
    packing = call.definition.packing
    return call if packing is None else attrs.evolve(call, arguments=packing.pack(call.arguments))


async def pack_all(calls: Sequence[Call[R]]) -> list[Call[R]]:
    """Return calls as they are stored.

    Cancellation:
        The payload store may keep some of them.
    """
    return [await run_packing(call.definition.packing, pack, call) for call in calls]


def check_calls(calls: Sequence[Call[Any]]) -> None:
    """Check that a store takes these calls: none of them names a schema.

    Raises:
        TypeError: One does, or is no call.
    """
    for call in calls:
        check_call(call)
    if any("schema" in call.options for call in calls):
        raise TypeError("the option schema is for a connection as target; a store has its own")


def refuse_links(call: Call[Any]) -> None:
    """Check that no argument is the result of a planned job.

    Raises:
        FlowInvalid: One is.
    """
    if call.links:
        names = tuple(link.parent.name for link in call.links)
        raise FlowInvalid(
            f"a call of task {call.definition.name} takes the result of {', '.join(names)}, so it"
            " is submitted with the flow of that job: give it to Flow.add",
            unknown=names,
        )


def build_submission(
    call: Call[Any], headers: object = None, *, in_flow: bool = False
) -> Submission:
    """Return the job that a call becomes.

    Args:
        call: The call, whose options are valid.
        headers: What the call has unless it chooses its own.
        in_flow: Whether the call may take results of planned jobs.

    Raises:
        FlowInvalid: The call takes such a result, and is not of a flow.
    """
    task = call.definition
    if not in_flow:
        refuse_links(call)
    options = (
        call.options if headers is None else SubmitOptions(**{"headers": headers, **call.options})
    )
    request = _build_request(options, task.options.priority, task.options.max_attempts)
    return Submission(
        call,
        queue_of(call),
        request._replace(
            payload=call.arguments, task=task.name, options=_write_chosen(options, call.limits)
        ),
    )


def _write_chosen(
    options: SubmitOptions, limits: Sequence[Mapping[str, object]] = ()
) -> str | None:
    """Return what the job's message keeps as its options, as JSON."""
    chosen: dict[str, object] = {}
    if (timeout := options.get("timeout")) is not None:
        chosen["timeout"] = to_seconds(timeout, "timeout")
    if limits:
        chosen["limits"] = limits
    return encode(chosen) if chosen else None


def _build_request(options: SubmitOptions, priority: int, max_attempts: int) -> EnqueueRequest:
    """Return the message of a job without its task, and with these defaults."""
    chosen, attempts = options.get("priority"), options.get("max_attempts")
    return build_request(
        None,
        delay=options.get("delay"),
        at=options.get("at"),
        priority=priority if chosen is None else chosen,
        headers=options.get("headers"),
        key=options.get("key"),
        expires_in=options.get("expires_in"),
        max_deliveries=max_attempts if attempts is None else check_count(attempts, "max_attempts"),
    )._replace(options=_write_chosen(options))


class SubmissionBatch:
    """Jobs that are submitted all or none, in one statement or more."""

    statement: Final = ENQUEUE_JOBS
    """What each part is sent with."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self._chunks = list(_chunk(submission.to_json() for submission in submissions))

    @property
    def one_statement(self) -> bool:
        """Whether one statement takes it all."""
        return len(self._chunks) == 1

    def statements(self) -> Iterator[Parameters]:
        """Yield the arguments of ``tocsin.enqueue_jobs`` for each statement."""
        first = 0
        for texts in self._chunks:
            yield [f"[{','.join(texts)}]", str(first)]
            first += len(texts)


def _chunk(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yield the texts in order, as many at a time as one statement takes."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if len(chunk) == CHUNK or size >= CHUNK_SIZE:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    yield chunk
