"""Schedules: jobs that are submitted again and again, by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack, cast

import attrs

from tocsin._arguments import check_count, check_priority, check_queue, check_text
from tocsin._database.client import Database
from tocsin._durations import Duration, to_timedelta
from tocsin._queue.payload import decode, encode
from tocsin.errors import ScheduleInvalid, ScheduleNotFound

from .definition import Call, check_call, describe_definition
from .ticks import Ticks, check_cron, load_zone

_SET = (
    "select tocsin.set_schedule(%s, %s, %s::jsonb, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s,"
    " %s, %s, %s, %s, %s::jsonb)"
)
_LIST = (
    "select schedule, task, queue, arguments, headers, priority, max_attempts, timeout, expires_in,"
    " cron, every, start, zone, missed, overlap, next_tick, last_tick, last_job_id, paused_at,"
    " created_at, anchor, handled_to from tocsin.list_schedules(%s)"
)


@attrs.frozen
class All:
    """Make up for all ticks that were missed, the latest ones if there are too many."""

    max: int
    """How many at most."""

    def __attrs_post_init__(self) -> None:
        check_count(self.max, "max")


Missed: TypeAlias = Literal["skip", "once"] | All
"""What becomes of ticks that were missed."""

Overlap: TypeAlias = Literal["allow", "skip"]
"""Whether a tick submits a job while an earlier one of its schedule is unfinished."""

_MISSED: Final[dict[object, int]] = {"skip": 0, "once": 1}


class ScheduleOptions(TypedDict, total=False):
    """What a schedule may choose for its jobs; the rest is as the task says."""

    priority: int | None
    """Smaller numbers are run first."""
    headers: object
    """Any JSON value."""
    expires_in: Duration | None
    """Seconds after which a job that has not begun becomes a dead letter."""
    max_attempts: int | None
    """After how many attempts a job that fails becomes a dead letter."""
    timeout: Duration | None
    """Seconds that an attempt may take."""
    queue: str | None
    """Name of the queue."""


@attrs.frozen
class Schedule:
    """A schedule at the time of the call."""

    name: str
    """Its name."""
    task: str
    """Name of the task whose jobs it submits."""
    queue: str
    """Name of the queue of its jobs."""
    arguments: Any = attrs.field(repr=False)
    """The arguments of its jobs, as JSON; None for a role that may not consume."""
    headers: Any = attrs.field(repr=False)
    """The headers of its jobs; None without, or for such a role."""
    priority: int | None
    """The priority of its jobs; None: the task's."""
    max_attempts: int | None
    """After how many attempts a job becomes a dead letter; None: as the task says."""
    timeout: float | None
    """Seconds that an attempt may take; None: as the task says."""
    expires_in: timedelta | None
    """After how long a job that has not begun becomes a dead letter; None: never."""
    cron: str | None
    """The cron expression; None: it ticks at an interval."""
    every: timedelta | None
    """The interval; None: it ticks by a cron expression."""
    start: datetime | None
    """The first tick of the interval, as it was given; None: not given."""
    zone: str
    """Name of the time zone in which the expression is meant."""
    missed: Missed
    """What becomes of ticks that were missed."""
    overlap: Overlap
    """Whether a tick submits a job while an earlier one is unfinished."""
    next_tick: datetime | None
    """The next tick; None: the schedule is paused, or SQL has set it and no worker has
    computed the tick yet."""
    last_tick: datetime | None
    """The last tick that has submitted a job; None: none has."""
    last_job_id: int | None
    """Id of the last job; None: there was none."""
    paused_at: datetime | None
    """When it was paused; None: it is not."""
    created_at: datetime
    """When it was made."""


class Schedules:
    """The schedules of a store: `Store.schedules`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(
        self,
        name: str,
        call: Call[Any] | str,
        *,
        arguments: object = (),
        cron: str | None = None,
        every: Duration | None = None,
        start: datetime | None = None,
        zone: str = "UTC",
        missed: Missed = "once",
        overlap: Overlap = "allow",
        **options: Unpack[ScheduleOptions],
    ) -> bool:
        """Make a schedule, or change the one that has the name.

        Setting the same again changes nothing, so each process may do it at its start.
        A change takes effect at once. A schedule that is paused stays so.

        Args:
            name: A name of your choice.
            call: The call that is submitted at each tick, as `Task.call` returns it; or
                the name of a task that a worker has registered.
            arguments: For the name of a task, its arguments: a JSON object by name, or
                an array by position.
            cron: When it ticks: minute, hour, day of the month, month and day of the
                week, or a word such as ``@daily``.
            every: Instead of ``cron``: seconds between two ticks.
            start: The first tick of ``every``; without, it comes after one interval.
            zone: Name of the time zone in which ``cron`` is meant.
            missed: What becomes of ticks that were missed. ``"skip"``: nothing.
                ``"once"``: one job makes up for all. `All`: each has a job of its own.
            overlap: ``"skip"``: a tick submits nothing while an earlier job of the
                schedule is unfinished.
            options: Those of `ScheduleOptions`; they replace those of the call.

        Returns:
            Whether anything was changed.

        Raises:
            ScheduleInvalid: The zone is unknown, or ``cron`` or ``every`` is invalid.
            TaskUnknown: No worker has registered a task of this name.
            QueueNotFound: The queue does not exist.
            PayloadTooLarge: The arguments exceed the queue's limit.
            PermissionDenied: The queue was not granted.
            ConnectionLost: The outcome is unknown; setting it again is safe.
            ValueError: An option is out of its range.
            TypeError: An option has a wrong type, or does not exist.

        Cancellation:
            Atomic.
        """
        if not isinstance(call, str):
            check_call(call)
            options = cast(ScheduleOptions, {**call.options, **options})
        if unknown := options.keys() - ScheduleOptions.__annotations__.keys():
            raise TypeError(f"a schedule has no option {', '.join(sorted(unknown))}")
        if not isinstance(call, str):
            task, written = call.definition.name, call.arguments
            definition = encode([describe_definition(call.definition)])[1:-1]
        else:
            task, written, definition = check_text(call, "call"), encode(arguments), None
        interval = _check_every(every)
        if (cron is None) == (interval is None):
            raise ValueError("give cron= or every=, and not both")
        if start is not None and (interval is None or start.tzinfo is None):
            raise ValueError("start is the first tick of every, with a time zone")
        if cron is not None:
            cron = cron if cron.strip().startswith("@") else check_cron(cron)
        load_zone(check_text(zone, "zone"))
        (now,) = await self._database.fetch_one("select tocsin.server_time()")
        ticks = Ticks(cron=cron, every=interval, anchor=start or now, zone=zone)
        headers, priority, queue = (options.get(o) for o in ("headers", "priority", "queue"))
        max_attempts = options.get("max_attempts")
        parameters = [
            check_text(name, "name"),
            task,
            written,
            cron,
            interval,
            start,
            zone,
            _write_missed(missed),
            overlap,
            None if queue is None else check_queue(options["queue"] or ""),
            None if priority is None else check_priority(options["priority"] or 0),
            None if headers is None else encode(headers),
            None if max_attempts is None else check_count(max_attempts, "max_attempts"),
            to_timedelta(options.get("timeout"), "timeout"),
            to_timedelta(options.get("expires_in"), "expires_in"),
            ticks.next(now),
            now,
            definition,
        ]
        (changed,) = await self._database.fetch_one(_SET, parameters)
        return bool(changed)

    async def get(self, name: str) -> Schedule:
        """Return a schedule.

        Raises:
            ScheduleNotFound: There is no such schedule.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        schedule, _, _ = await self._find(name)
        return schedule

    async def list(self) -> Sequence[Schedule]:
        """Return all schedules, by name.

        Raises:
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        return [_read(row)[0] for row in await self._database.fetch(_LIST, [None])]

    async def next_ticks(self, name: str, n: int = 10) -> Sequence[datetime]:
        """Return the next ticks of a schedule, in its zone, as if it were not paused.

        Args:
            name: Name of the schedule.
            n: How many.

        Raises:
            ScheduleNotFound: There is no such schedule.
            ScheduleInvalid: This system does not know its zone.
            ConnectionLost: The database did not answer.

        Cancellation:
            Nothing has changed.
        """
        check_count(n, "n")
        schedule, ticks, handled_to = await self._find(name)
        (now,) = await self._database.fetch_one("select tocsin.server_time()")
        zone = load_zone(schedule.zone)
        return [tick.astimezone(zone) for tick in islice(ticks.iterate(max(now, handled_to)), n)]

    async def pause(self, name: str) -> bool:
        """Pause a schedule; return whether it was not paused before.

        Its ticks do not count until it is resumed.

        Raises:
            ScheduleNotFound: There is no such schedule.
            PermissionDenied: Its queue was not granted.
            ConnectionLost: The outcome is unknown; pausing it again is safe.

        Cancellation:
            Atomic.
        """
        (changed,) = await self._database.fetch_one("select tocsin.pause_schedule(%s)", [name])
        return bool(changed)

    async def resume(self, name: str) -> bool:
        """Resume a schedule; return whether it was paused.

        Its ticks count from now on.

        Raises:
            ScheduleNotFound: There is no such schedule.
            PermissionDenied: Its queue was not granted.
            ConnectionLost: The outcome is unknown; resuming it again is safe.

        Cancellation:
            Atomic.
        """
        _, ticks, _ = await self._find(name)
        (now,) = await self._database.fetch_one("select tocsin.server_time()")
        (changed,) = await self._database.fetch_one(
            "select tocsin.resume_schedule(%s, %s, %s)", [name, ticks.next(now), now]
        )
        return bool(changed)

    async def run_now(self, name: str) -> int:
        """Submit a job of a schedule now, and return its id.

        The next tick stays as it is. A schedule that is paused stays so. Under the
        overlap rule ``"skip"``, an unfinished job is returned instead of another.

        Raises:
            ScheduleNotFound: There is no such schedule.
            PermissionDenied: Its queue was not granted.
            ConnectionLost: The outcome is unknown.

        Cancellation:
            The job is submitted or not.
        """
        (job_id,) = await self._database.fetch_one("select tocsin.run_schedule(%s)", [name])
        return int(job_id)

    async def delete(self, name: str) -> None:
        """Delete a schedule. The jobs that it has submitted stay.

        Raises:
            ScheduleNotFound: There is no such schedule.
            PermissionDenied: Its queue was not granted.
            ConnectionLost: The outcome is unknown.

        Cancellation:
            Atomic.
        """
        await self._database.fetch("select tocsin.delete_schedule(%s)", [name])

    async def _find(self, name: str) -> tuple[Schedule, Ticks, datetime]:
        rows = await self._database.fetch(_LIST, [check_text(name, "name")])
        if not rows:
            raise ScheduleNotFound(name)
        return _read(rows[0])


def _check_every(every: Duration | None) -> timedelta | None:
    try:
        return to_timedelta(every, "every")
    except ValueError as error:
        raise ScheduleInvalid("every", str(error).removeprefix("every ")) from None


def _write_missed(missed: Missed) -> int:
    if isinstance(missed, All):
        return missed.max
    if missed not in _MISSED:
        raise ValueError(f"missed must be 'skip', 'once' or tocsin.All(max=...), not {missed!r}")
    return _MISSED[missed]


def _read_missed(missed: int) -> Missed:
    return "skip" if missed == 0 else "once" if missed == 1 else All(missed)


def _read(row: Sequence[Any]) -> tuple[Schedule, Ticks, datetime]:
    """Return a schedule, its ticks, and up to when they have been handled."""
    *values, anchor, handled_to = row
    fields = dict(zip((field.name for field in attrs.fields(Schedule)), values, strict=True))
    for name in "arguments", "headers":
        fields[name] = None if fields[name] is None else decode(fields[name])
    fields["missed"] = _read_missed(fields["missed"])
    schedule = Schedule(**fields)
    ticks = Ticks(cron=schedule.cron, every=schedule.every, anchor=anchor, zone=schedule.zone)
    return schedule, ticks, handled_to.astimezone(UTC)
