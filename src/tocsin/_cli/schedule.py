"""``tocsin schedule``: set, show and change schedules."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click

from tocsin import All, Store

from .handlers import make_call
from .options import (
    COUNT,
    DURATION,
    JSON,
    MOMENT,
    PRIORITY,
    Json,
    ParamType,
    confirm,
    tasks_option,
    yes_option,
)
from .program import Group, on_store
from .render import Screen, to_text, write_duration
from .tables import SCHEDULES, write_missed

name_argument = click.argument("name")


class MissedType(ParamType):
    """What becomes of ticks that were missed."""

    name = "skip|once|number"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Parse the rule."""
        if value in ("skip", "once") or isinstance(value, All):
            return value
        try:
            return All(COUNT.convert(value, parameter, context))
        except click.BadParameter:
            self.fail(f"{value!r} is not skip, once, or a number of ticks", parameter, context)


@click.group(cls=Group)
def schedule() -> None:
    """Set, show and change schedules, which submit jobs by the clock."""


@schedule.command("list", examples=["tocsin schedule list"])
@on_store
async def list_(store: Store, screen: Screen) -> None:
    """List all schedules, with their next ticks."""
    screen.table(await store.schedules.list(), SCHEDULES, empty="no schedules")


@schedule.command(examples=["tocsin schedule show nightly"])
@name_argument
@on_store
async def show(store: Store, screen: Screen, name: str) -> None:
    """Show all values of a schedule."""
    found = await store.schedules.get(name)
    lengths = {"every": found.every, "expires_in": found.expires_in}
    screen.record(
        found,
        missed=write_missed(found.missed),
        timeout=write_duration(found.timeout),
        **{
            field: None if length is None else write_duration(length.total_seconds())
            for field, length in lengths.items()
        },
    )


@schedule.command(
    "set",
    examples=[
        "tocsin schedule set nightly reports.nightly --cron '0 3 * * *' --zone Europe/Vienna",
        """tocsin schedule set poll feeds.read '{"feed": "news"}' --every 15m --overlap skip""",
        "tocsin schedule set hourly reports.hourly --cron @hourly --tasks reports --missed skip",
    ],
)
@name_argument
@click.argument("task")
@click.argument("arguments", type=JSON, required=False, metavar="[ARGUMENTS]")
@tasks_option
@click.option(
    "--cron",
    metavar="EXPRESSION",
    help="Minute, hour, day of the month, month and day of the week; or a word such as @daily.",
)
@click.option("--every", type=DURATION, help="Time between two ticks, instead of --cron.")
@click.option("--start", type=MOMENT, help="First tick of --every; without it, after an interval.")
@click.option(
    "--zone", default="UTC", show_default=True, metavar="NAME", help="Time zone of --cron."
)
@click.option(
    "--missed",
    type=MissedType(),
    default="once",
    show_default=True,
    help=(
        "What missed ticks become: no job (skip), one job (once), or a job for each of this number"
        " of ticks, the latest ones."
    ),
)
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip"]),
    default="allow",
    show_default=True,
    help="With skip, a tick submits nothing while an earlier job of the schedule is unfinished.",
)
@click.option("--queue", metavar="QUEUE", help="Queue of the jobs, instead of the task's.")
@click.option("--priority", type=PRIORITY, help="Jobs with smaller numbers are run first.")
@click.option("--headers", type=JSON, help="A JSON value in addition to the arguments.")
@click.option(
    "--expires-in",
    type=DURATION,
    help="Make a job a dead letter if it has not begun within this time.",
)
@click.option(
    "--max-attempts", type=COUNT, help="Make a job a dead letter after this many attempts."
)
@click.option("--timeout", type=DURATION, help="Longest time of an attempt.")
@on_store
async def set_(
    store: Store,
    screen: Screen,
    name: str,
    task: str,
    arguments: Json | None,
    tasks: tuple[str, ...],
    headers: Json | None,
    *,
    cron: str | None,
    every: timedelta | None,
    start: datetime | None,
    zone: str,
    missed: Any,
    overlap: Any,
    **options: Any,
) -> None:
    """Make a schedule that submits a job of a TASK at each tick, or change it.

    ARGUMENTS is a JSON object with the arguments by name, or an array with the
    arguments by position. A schedule that is paused stays so.

    Without --tasks a worker must have registered the task.
    """
    given: Any = [] if arguments is None else arguments.value
    options = {option: value for option, value in options.items() if value is not None}
    if headers is not None:
        options["headers"] = headers.value
    call = make_call(tasks, task, given, {}) if tasks else task
    changed = await store.schedules.set(
        name,
        call,
        arguments=given,
        cron=cron,
        every=every,
        start=start,
        zone=zone,
        missed=missed,
        overlap=overlap,
        **options,
    )
    found = await store.schedules.get(name)
    tick = "it is paused" if found.paused_at else f"the next tick is at {to_text(found.next_tick)}"
    screen.say(
        f"schedule {name!r} is {'set' if changed else 'as it was'}; {tick}",
        {"schedule": name, "changed": changed, "next_tick": found.next_tick},
    )


@schedule.command(examples=["tocsin schedule pause nightly"])
@name_argument
@on_store
async def pause(store: Store, screen: Screen, name: str) -> None:
    """Pause a schedule, whose ticks do not count until it is resumed."""
    changed = await store.schedules.pause(name)
    screen.say(
        f"schedule {name!r} {'is' if changed else 'was already'} paused; tocsin schedule resume"
        " ends the pause",
        {"schedule": name, "changed": changed},
    )


@schedule.command(examples=["tocsin schedule resume nightly"])
@name_argument
@on_store
async def resume(store: Store, screen: Screen, name: str) -> None:
    """End the pause of a schedule, whose ticks count from now on."""
    changed = await store.schedules.resume(name)
    screen.say(
        f"schedule {name!r} {'is no longer' if changed else 'was not'} paused",
        {"schedule": name, "changed": changed},
    )


@schedule.command("run-now", examples=["tocsin schedule run-now nightly"])
@name_argument
@on_store
async def run_now(store: Store, screen: Screen, name: str) -> None:
    """Submit a job of a schedule now, and show its id.

    The next tick stays as it is, and a paused schedule stays paused.
    """
    job_id = await store.schedules.run_now(name)
    screen.say(str(job_id), {"schedule": name, "id": job_id})


@schedule.command(examples=["tocsin schedule remove nightly --yes"])
@name_argument
@yes_option
@on_store
async def remove(store: Store, screen: Screen, name: str, *, yes: bool) -> None:
    """Delete a schedule. The jobs that it has submitted stay."""
    await store.schedules.get(name)
    await confirm(f"delete schedule {name!r}?", yes=yes)
    await store.schedules.delete(name)
    screen.say(f"deleted schedule {name!r}", {"schedule": name})


@schedule.command("next", examples=["tocsin schedule next nightly --limit 3"])
@name_argument
@click.option("--limit", type=COUNT, default=10, show_default=True, help="Show at most this many.")
@on_store
async def next_(store: Store, screen: Screen, name: str, limit: int) -> None:
    """Show the next ticks of a schedule in its zone, as if it were not paused."""
    ticks = await store.schedules.next_ticks(name, limit)
    screen.say("\n".join(tick.isoformat(" ") for tick in ticks), ticks)
