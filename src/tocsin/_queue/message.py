"""A message as a consumer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Protocol, TypeAlias

import attrs

from tocsin._database.caller_connection import AnyConnection
from tocsin._durations import Duration
from tocsin.errors import LeaseLost

from .payload import decode

Row: TypeAlias = tuple[
    str,
    int,
    int,
    int,
    int,
    datetime,
    datetime,
    datetime,
    datetime,
    int | None,
    str | None,
    str | None,
    int,
    str | None,
    str,
    str | None,
    str | None,
    None,
]
"""A row of ``tocsin.claim`` with a message; the constants below are its columns."""

KIND: Final = 0
"""The kind of the row: ``message`` for one that is a message."""
ID: Final = 1
LEASE: Final = 2
PRIORITY: Final = 3
DUE: Final = 5
VT: Final = 7
DEQUEUED_AT: Final = 8
PAYLOAD: Final = 14
TASK: Final = 15
"""The task of a job; None: a plain message."""
OPTIONS: Final = 16

TICK: Final = "$tick"
"""The task of the messages of schedules; it is no task of a program."""


def task_of(message: Message) -> str | None:
    """Return the task of a job; None: the message is a plain one."""
    return message._row[TASK]


def is_tick(message: Message) -> bool:
    """Return whether a message is the tick of a schedule."""
    return message._row[TASK] == TICK


def options_of(message: Message) -> Mapping[str, Any]:
    """Return what the call of a job has chosen apart from the task's options.

    Raises:
        PayloadUnreadable: Python cannot hold a value.
    """
    options = message._row[OPTIONS]
    return {} if options is None else decode(options)


def settle_arguments(messages: Iterable[Message]) -> tuple[str, str]:
    """Return the ids and the leases of messages as arrays in PostgreSQL's notation.

    psycopg would take much longer to write them.
    """
    rows = [m._row for m in messages]
    return (
        "{" + ",".join([str(row[ID]) for row in rows]) + "}",
        "{" + ",".join([str(row[LEASE]) for row in rows]) + "}",
    )


def result_argument(messages: Iterable[Message]) -> str | None:
    """Return the results of jobs as a JSON array; None where no message is a job."""
    results = [m.__dict__.get("_result") for m in messages]
    if not any(results):
        return None
    return f"[{','.join([result or 'null' for result in results])}]"


async def finish_by(message: Message, statement: str, arguments: Sequence[object]) -> bool:
    """Finish a message by a statement that deletes it and does more.

    Args:
        message: The message.
        statement: It takes the message's id and lease token, each as an array of one,
            and then the arguments. It returns an array that says whether the lease was
            still ours.
        arguments: Its other parameters.

    Returns:
        Whether the lease was still ours.
    """
    return await message._source.settler.finish_by(message, statement, arguments)


def report_progress(message: Message, progress: str) -> None:
    """Have the progress of a message written, which is given as JSON."""
    message._source.settler.report_progress(message, progress)


class SupportsSettling(Protocol):
    """The part of a consumer that settles the messages that it has claimed.

    Each method settles all of its messages in one statement, and returns for each
    message, in order, whether its lease was still ours.
    """

    async def archive(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]: ...
    async def delete(
        self, messages: Sequence[Message], *, connection: AnyConnection | None = None
    ) -> list[bool]: ...
    async def release(
        self,
        messages: Sequence[Message],
        *,
        delay: Duration = 0,
        connection: AnyConnection | None = None,
    ) -> list[bool]: ...
    async def extend(self, messages: Sequence[Message], seconds: Duration) -> list[bool]: ...
    def report_progress(self, message: Message, progress: str) -> None: ...
    async def finish_by(
        self, message: Message, statement: str, arguments: Sequence[object]
    ) -> bool: ...


@attrs.frozen
class Source:
    """The queue and the consumer of messages that were claimed."""

    queue: str
    queue_id: int
    worker_id: int
    settler: SupportsSettling = attrs.field(eq=False)


@attrs.frozen
class JobData:
    """What makes a message a job."""

    task: str
    """Name of the task whose function a worker calls."""
    options: dict[str, Any]
    """What the call has chosen apart from the task's options."""


@attrs.frozen(repr=False, slots=False)
class MessageData:
    """The data of one delivery, as they were when it was claimed.

    It keeps the row of the claim, and reads a value from the row when the value is
    asked for: most handlers ask for the payload and nothing else.
    """

    _row: Row
    _source: Source

    @property
    def id(self) -> int:
        """Its id, unique among all queues of the schema; it grows with each message."""
        return self._row[ID]

    @property
    def lease_token(self) -> int:
        """Token of this delivery.

        Later deliveries have larger ones, so it can fence writes to other systems too.
        """
        return self._row[LEASE]

    @property
    def queue(self) -> str:
        """Name of its queue."""
        return self._source.queue

    @property
    def queue_id(self) -> int:
        """Id of its queue."""
        return self._source.queue_id

    @property
    def priority(self) -> int:
        """Its priority; messages with smaller numbers are delivered first."""
        return self._row[PRIORITY]

    @property
    def read_ct(self) -> int:
        """The number of its deliveries, this one included."""
        return self._row[4]

    @property
    def enqueued_at(self) -> datetime:
        """The time at which it was enqueued, by the server's clock."""
        return self._row[6]

    @property
    def vt(self) -> datetime:
        """The end of this delivery's lease (visibility timeout), by the server's clock.

        An extension of the lease does not change it.
        """
        return self._row[VT]

    @property
    def dequeued_at(self) -> datetime:
        """The time at which this delivery was claimed, by the server's clock."""
        return self._row[DEQUEUED_AT]

    @property
    def producer_worker_id(self) -> int | None:
        """Id of the producer that enqueued it.

        None when it was enqueued by SQL or `Store.produce`.
        """
        return self._row[9]

    @property
    def consumer_worker_id(self) -> int:
        """Id of the consumer that claimed it."""
        return self._source.worker_id

    @property
    def last_error(self) -> str | None:
        """The error of its last failed delivery; None without one."""
        return self._row[11]

    @property
    def max_deliveries(self) -> int:
        """The message's own maximum of deliveries, or its queue's.

        A delivery whose `read_ct` is as large is the last one.
        """
        return self._row[12]

    @property
    def key(self) -> str | None:
        """Its unique key; None without."""
        return self._row[13]

    @cached_property
    def payload(self) -> Any:
        """The payload as it was enqueued, decoded when it is first asked for.

        Raises:
            PayloadUnreadable: Python cannot hold the value.
        """
        return decode(self._row[PAYLOAD])

    @cached_property
    def job(self) -> JobData | None:
        """What makes the message a job; None: it is a plain message."""
        task, options = self._row[TASK], self._row[OPTIONS]
        if task is None:
            return None
        return JobData(task, {} if options is None else decode(options))

    def keep_result(self, result: str) -> None:
        """Have the result of a job, as JSON, stored when the message is archived."""
        self.__dict__["_result"] = result

    @cached_property
    def headers(self) -> Any:
        """The headers as they were enqueued; None without.

        Raises:
            PayloadUnreadable: Python cannot hold the value.
        """
        text = self._row[10]
        return None if text is None else decode(text)

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.queue!r}, delivery {self.read_ct}>"


class Message(MessageData):
    """One delivery of a message.

    Its attributes are as they were when it was claimed.
    """

    async def archive(self, *, connection: AnyConnection | None = None) -> None:
        """Finish the message and keep it in the archive.

        On the caller's connection the message is archived when the caller's
        transaction commits, together with the caller's own rows. Until then the lease
        is extended as before. After a rollback the message is still this consumer's:
        settle it in another way, or let the handler raise. A handler that returns has
        failed then.

        Args:
            connection: Of `Store.transaction`, or a blocking ``psycopg.Connection``,
                which is used in a thread. The caller's transaction.

        Raises:
            LeaseLost: The lease is gone; with a connection also: the message is a job
                that was cancelled.
            TypeError: The connection cannot be used. Also what the connection raises.

        Cancellation:
            Atomic.
        """
        self._check("archive", await self._source.settler.archive([self], connection=connection))

    async def delete(self, *, connection: AnyConnection | None = None) -> None:
        """Finish the message and keep nothing.

        Args:
            connection: Delete in the caller's transaction, as `archive` does.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        self._check("delete", await self._source.settler.delete([self], connection=connection))

    async def release(
        self, *, delay: Duration = 0, connection: AnyConnection | None = None
    ) -> None:
        """Return the message to its queue.

        After its last delivery it becomes a dead letter.

        Args:
            delay: Seconds until the next delivery.
            connection: Release in the caller's transaction, as `archive` does.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        self._check(
            "release",
            await self._source.settler.release([self], delay=delay, connection=connection),
        )

    async def extend(self, seconds: Duration) -> None:
        """Make the lease end this many seconds from now, by the server's clock.

        `vt` does not change.

        Raises:
            LeaseLost: The lease is gone.

        Cancellation:
            Atomic.
        """
        self._check("extend", await self._source.settler.extend([self], seconds))

    def _check(self, operation: str, settled: Sequence[bool]) -> None:
        if not settled[0]:
            raise LeaseLost(self.id, operation)
