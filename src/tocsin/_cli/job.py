"""``tocsin job``: submit jobs, look at them, and change them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, get_args

import attrs
import click
import trio

from tocsin import Attempt, JobInfo, JobState, ListedJob, MessageNotWaiting, Store
from tocsin._jobs.job_info import read_outcome

from .handlers import make_call
from .options import (
    COUNT,
    DURATION,
    JSON,
    MOMENT,
    PRIORITY,
    Json,
    after_option,
    confirm,
    dry_run_option,
    id_argument,
    limit_option,
    tasks_option,
    yes_option,
)
from .program import Group, on_store
from .render import Screen, write_payload
from .tables import ATTEMPTS, JOBS, TASK_COUNTS, write_progress
from .task_counts import count_by_task

FINISHED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")
"""The states of finished jobs."""

task_option = click.option("--task", metavar="TASK", help="Only jobs of this task.")


@click.group(cls=Group)
def job() -> None:
    """Submit jobs, look at them, and change them."""


@job.command(
    examples=[
        """tocsin job submit mail.confirm '{"to": "ada@example.org"}'""",
        """tocsin job submit mail.confirm '["ada@example.org"]' --delay 10m --key confirm-ada""",
        """tocsin job submit reports.nightly --tasks reports""",
    ]
)
@click.argument("task")
@click.argument("arguments", type=JSON, required=False, metavar="[ARGUMENTS]")
@tasks_option
@click.option("--delay", type=DURATION, help="Run the job only after this time.")
@click.option("--at", type=MOMENT, help="Run the job at this time, such as 2030-01-31T08:00:00Z.")
@click.option("--priority", type=PRIORITY, help="Jobs with smaller numbers are run first.")
@click.option(
    "--key",
    metavar="TEXT",
    help="If an unfinished job has this key, show its id and submit nothing.",
)
@click.option("--headers", type=JSON, help="A JSON value in addition to the arguments.")
@click.option(
    "--expires-in",
    type=DURATION,
    help="Make the job a dead letter if it has not begun within this time.",
)
@click.option(
    "--max-attempts", type=COUNT, help="Make the job a dead letter after this many attempts."
)
@click.option("--timeout", type=DURATION, help="Longest time of an attempt.")
@on_store
async def submit(
    store: Store,
    screen: Screen,
    task: str,
    arguments: Json | None,
    headers: Json | None,
    tasks: tuple[str, ...],
    **options: Any,
) -> None:
    """Submit a job of a TASK, and show its id.

    ARGUMENTS is a JSON object with the arguments by name, or an array with the
    arguments by position. An option that is not given is as the task says.

    Without --tasks a worker must have registered the task.
    """
    given = [] if arguments is None else arguments.value
    options = {name: value for name, value in options.items() if value is not None}
    if headers is not None:
        options["headers"] = headers.value
    if tasks:
        job_id = (await store.jobs.submit(make_call(tasks, task, given, options))).id
    else:
        job_id = await store.jobs.submit_by_name(task, given, **options)
    screen.say(str(job_id), {"id": job_id})


# Look at jobs


@job.command(
    "list",
    examples=[
        "tocsin job list",
        "tocsin job list --state failed --task mail.confirm",
        "tocsin job list --since 2030-01-31T08:00:00Z --limit 10 --after 4711",
    ],
)
@task_option
@click.option("--queue", metavar="QUEUE", help="Only jobs of this queue.")
@click.option("--state", type=click.Choice(get_args(JobState)), help="Only jobs in this state.")
@click.option("--key", metavar="TEXT", help="Only jobs with this key.")
@click.option("--since", type=MOMENT, help="Only jobs that were submitted then or later.")
@click.option("--until", type=MOMENT, help="Only jobs that were submitted before.")
@click.option("--oldest-first", is_flag=True, help="Begin with the job that was submitted first.")
@limit_option
@after_option
@on_store
async def list_(store: Store, screen: Screen, *, oldest_first: bool, **filters: Any) -> None:
    """List jobs, the last one first, with the progress of those that run.

    `tocsin job show ID` shows all values of a job.
    """
    jobs = await store.jobs.list(newest_first=not oldest_first, **filters)
    screen.table(jobs, JOBS, empty="no jobs found")
    if jobs and len(jobs) == filters["limit"]:
        screen.remark(f"there may be more: --after {jobs[-1].id} shows the next ones")


@attrs.frozen
class JobDetails:
    """All values of a job."""

    job: ListedJob
    """The job as a list shows it."""
    traceback: str | None
    """The traceback of the last attempt; None unless the job has failed."""
    attempts: Sequence[Attempt]
    """Its attempts."""


@job.command(examples=["tocsin job show 42", "tocsin job show 42 --format json"])
@id_argument("job")
@on_store
async def show(store: Store, screen: Screen, id: int) -> None:
    """Show all values of a job, its attempts and its traceback."""
    listed = await store.jobs.get_listed(id)
    info = await store.jobs.get(id)
    attempts = await store.jobs.attempts(id)
    if screen.json:
        screen.record(JobDetails(listed, info.traceback, attempts))
        return
    screen.record(listed, progress=write_progress(listed.progress))
    if attempts:
        screen.say("", None)
        screen.table(attempts, ATTEMPTS, empty="")
    if info.traceback:
        screen.say(f"\n{info.traceback.rstrip()}", None)


@job.command(examples=["tocsin job attempts 42"])
@id_argument("job")
@on_store
async def attempts(store: Store, screen: Screen, id: int) -> None:
    """Show the attempts of a job: their workers, times, outcomes and errors."""
    screen.table(await store.jobs.attempts(id), ATTEMPTS, empty="no attempt has begun")


@job.command(examples=["tocsin job result 42", "tocsin job result 42 --timeout 30s"])
@id_argument("job")
@click.option("--timeout", type=DURATION, help="Longest wait; without it, any time.")
@on_store
async def result(store: Store, screen: Screen, id: int, timeout: timedelta | None) -> None:  # noqa: ASYNC109 - an option
    """Wait until a job is finished, and show its result as JSON.

    The exit code is 1 if the job has failed, was cancelled, or is not finished in time.
    """
    try:
        info: JobInfo = await store.jobs.wait(id, timeout=timeout)
    except trio.TooSlowError:
        raise click.ClickException(
            f"job {id} is not finished; `tocsin job show {id}` shows its state"
        ) from None
    value = read_outcome(info)
    screen.say(write_payload(value), value)


@job.command(examples=["tocsin job stats", "tocsin job stats --format json"])
@on_store
async def stats(store: Store, screen: Screen) -> None:
    """Show the number of jobs of each task in each state.

    Large numbers are estimates; COUNTED (in JSON: exact) says whether a number was
    counted.
    """
    counts = await store.jobs.stats()
    if screen.json:
        screen.record(counts)
    else:
        screen.table(count_by_task(counts), TASK_COUNTS, empty="no jobs")


# Change jobs


@contextmanager
def _advising_on(job_id: int) -> Iterator[None]:
    """Say of a job whose state refuses a change how to go on."""
    try:
        yield
    except MessageNotWaiting as error:
        problem, advice = {
            "leased": ("it is running", f"`tocsin job cancel {job_id}` ends it"),
            "dead": ("it has failed", f"`tocsin job requeue {job_id}` runs it again"),
            "archived": ("it is finished", f"`tocsin job requeue {job_id}` runs it again"),
        }.get(
            error.state,
            ("it is not finished", f"`tocsin job reschedule {job_id} --delay 0` runs it now"),
        )
        raise click.ClickException(f"job {job_id} cannot be changed: {problem}; {advice}") from None


@job.command(examples=["tocsin job cancel 42 --reason 'the order was withdrawn'"])
@id_argument("job")
@click.option(
    "--reason",
    default="cancelled",
    show_default=True,
    metavar="TEXT",
    help="The reason, which the job keeps as its error.",
)
@on_store
async def cancel(store: Store, screen: Screen, id: int, reason: str) -> None:
    """Cancel a job that waits, or that runs.

    The worker of a running job is notified and ends the attempt.
    """
    with _advising_on(id):
        await store.jobs.cancel(id, reason=reason)
    screen.say(f"cancelled job {id}", {"id": id})


@job.command(examples=["tocsin job requeue 42"])
@id_argument("job")
@on_store
async def requeue(store: Store, screen: Screen, id: int) -> None:
    """Run a finished job again, due now and with all of its attempts."""
    with _advising_on(id):
        await store.jobs.requeue(id)
    screen.say(f"requeued job {id}", {"id": id})


@job.command(
    examples=[
        "tocsin job reschedule 42 --delay 0",
        "tocsin job reschedule 42 --at 2030-01-31T08:00:00Z",
    ]
)
@id_argument("job")
@click.option("--delay", type=DURATION, help="Run the job after this time; 0: now.")
@click.option("--at", type=MOMENT, help="Run the job at this time, such as 2030-01-31T08:00:00Z.")
@on_store
async def reschedule(
    store: Store, screen: Screen, id: int, delay: timedelta | None, at: datetime | None
) -> None:
    """Have a job that waits run at another time."""
    with _advising_on(id):
        await store.jobs.reschedule(id, delay=delay, at=at)
    screen.say(f"rescheduled job {id}", {"id": id})


@job.command(
    examples=[
        "tocsin job edit 42 --priority -1",
        """tocsin job edit 42 --arguments '{"to": "ada@example.org"}'""",
    ]
)
@id_argument("job")
@click.option("--priority", type=PRIORITY, help="Jobs with smaller numbers are run first.")
@click.option("--arguments", type=JSON, help="All arguments by name, as a JSON object.")
@on_store
async def edit(
    store: Store, screen: Screen, id: int, priority: int | None, arguments: Json | None
) -> None:
    """Give a job that waits another priority or other arguments."""
    given: Any = None if arguments is None else arguments.value
    if arguments is not None and not isinstance(given, dict):
        raise click.UsageError("--arguments must be a JSON object", click.get_current_context())
    with _advising_on(id):
        await store.jobs.edit(id, priority=priority, arguments=given)
    screen.say(f"edited job {id}", {"id": id})


@job.command(
    examples=[
        "tocsin job clear --older-than 7d --dry-run",
        "tocsin job clear --state failed --task mail.confirm --yes",
    ]
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(FINISHED),
    default=["succeeded", "cancelled"],
    show_default=True,
    help="Only jobs in this state; may be repeated.",
)
@task_option
@click.option(
    "--older-than", type=DURATION, help="Only jobs that were finished longer ago, such as 7d."
)
@dry_run_option
@yes_option
@on_store
async def clear(
    store: Store,
    screen: Screen,
    *,
    states: Collection[Any],
    task: str | None,
    older_than: timedelta | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete finished jobs, with their results and attempts."""
    jobs = store.jobs
    count = await jobs.clear(states=states, task=task, older_than=older_than, dry_run=True)
    if not dry_run and count:
        await confirm(f"delete {count} jobs ({', '.join(states)})?", yes=yes)
        count = await jobs.clear(states=states, task=task, older_than=older_than)
    screen.say(f"{'would delete' if dry_run else 'deleted'} {count} jobs", {"jobs": count})
