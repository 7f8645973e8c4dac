"""``tocsin queue``: queues, and what is in them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from tocsin import DeleteResult, Queue, QueueAlreadyExists, QueueMetrics, Store
from tocsin._queue.admin.dead_letters import REASONS

from .options import (
    COUNT,
    DURATION,
    ID,
    KEYS,
    LIMIT,
    RETENTION,
    after_option,
    confirm,
    dry_run_option,
    limit_option,
    older_than_option,
    queue_argument,
    yes_option,
)
from .program import Group, on_store
from .render import Column, Screen, since, write_age, write_count, write_duration, write_rate
from .tables import DEAD_LETTERS, MESSAGES, NARROW_MESSAGES

R = TypeVar("R")

STATES = ("ready", "delayed", "leased", "dead", "archived")

_QUEUES: list[Column[Queue]] = [
    Column("NAME", lambda q: q.name, "name"),
    Column("PAUSED", lambda q: since(q.paused_at)),
    Column("VT", lambda q: write_duration(q.vt), "number"),
    Column("DELIVERIES", lambda q: q.max_deliveries, "number"),
    Column(
        "RETRY",
        lambda q: (
            f"{write_duration(q.retry_base)} x{q.retry_factor:g} to {write_duration(q.retry_max)}"
        ),
    ),
    Column("RETENTION", lambda q: write_duration(q.retention), "number"),
    Column("NOTIFY", lambda q: q.notify),
]
_NARROW_QUEUES: list[Column[Queue]] = [
    Column("NAME", lambda q: q.name),
    *(c for c in _QUEUES if c.title in ("PAUSED", "VT", "DELIVERIES", "RETENTION")),
]
"""What there is room for within 80 columns."""
_REASONS = "; ".join(f'"{reason}"' for reason in REASONS)
METRICS: list[Column[QueueMetrics]] = [
    Column("QUEUE", lambda m: m.queue, "name"),
    Column("READY", lambda m: m.ready, "number"),
    Column("DELAYED", lambda m: m.delayed, "number"),
    Column("LEASED", lambda m: m.leased, "number"),
    Column("DEAD", lambda m: m.dead, "number"),
    Column("ARCHIVED", lambda m: m.archived, "number"),
    Column("OLDEST", lambda m: write_age(m.oldest_ready_age), "number"),
    Column("IN/S", lambda m: f"{m.enqueue_rate:.1f}", "number"),
    Column("DONE/S", lambda m: f"{m.settle_rate:.1f}", "number"),
    Column("CONSUMERS", lambda m: m.consumers, "number"),
    Column("PAUSED", lambda m: m.paused),
    Column("COUNTED", lambda m: "exactly" if m.exact else "roughly"),
]
NARROW_METRICS: list[Column[QueueMetrics]] = [
    Column("QUEUE", lambda m: m.queue),
    Column("READY", lambda m: write_count(m.ready), "number"),
    Column("DELAYED", lambda m: write_count(m.delayed), "number"),
    Column("LEASED", lambda m: write_count(m.leased), "number"),
    Column("DEAD", lambda m: write_count(m.dead), "number"),
    Column("OLDEST", lambda m: write_age(m.oldest_ready_age), "number"),
    Column("IN/S", lambda m: write_rate(m.enqueue_rate), "number"),
    Column("DONE/S", lambda m: write_rate(m.settle_rate), "number"),
    Column("CONSUMERS", lambda m: "paused" if m.paused else write_count(m.consumers), "number"),
]
"""What there is room for within 80 columns; what is left to fold are names."""


def settings_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command an option for each setting of a queue."""
    options = [
        click.option(
            "--vt",
            type=DURATION,
            help="Visibility timeout: how long a lease lasts unless it is extended (30s).",
        ),
        click.option(
            "--max-deliveries",
            type=COUNT,
            help="After so many deliveries, what fails again becomes a dead letter (5).",
        ),
        click.option("--retry-base", type=DURATION, help="Delay after the first failure (1s)."),
        click.option(
            "--retry-factor",
            type=float,
            help="By how much the delay grows with each further failure (2).",
        ),
        click.option("--retry-max", type=DURATION, help="The longest delay (1h)."),
        click.option(
            "--retry-jitter",
            type=float,
            help="The share, 0 to 1, by which a delay may differ by chance (0.2).",
        ),
        click.option(
            "--max-payload", type=COUNT, help="Largest payload in bytes of JSON text (1048576)."
        ),
        click.option(
            "--max-string",
            type=LIMIT,
            help="Most characters of a string in a payload; 0: any number (0).",
        ),
        click.option(
            "--max-depth",
            type=LIMIT,
            help="Most levels of arrays and objects in a payload; 0: any number (0).",
        ),
        click.option(
            "--required-keys",
            type=KEYS,
            help="Keys that a payload, an object then, must have; '' for none.",
        ),
        click.option(
            "--forbidden-keys",
            type=KEYS,
            help="Keys that no object in a payload may have; '' for none.",
        ),
        click.option(
            "--retention",
            type=RETENTION,
            help="How long what is archived is kept; 0 for not at all (30d).",
        ),
        click.option(
            "--dead-letter-retention",
            type=RETENTION,
            help="How long dead letters are kept (forever).",
        ),
        click.option(
            "--notify",
            type=click.Choice(["on_demand", "always"]),
            help=(
                "Notify the queue's channel only while a consumer sleeps, or always, for programs"
                " that LISTEN by hand (on_demand)."
            ),
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def dead_letter_filters(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that choose dead letters."""
    function = older_than_option(function)
    function = click.option(
        "--error", metavar="TEXT", help="Only those with this text in their error."
    )(function)
    return click.option(
        "--reason", metavar="TEXT", help=f"Only those that died for this reason: {_REASONS}."
    )(function)


ids_argument = click.argument("ids", nargs=-1, type=ID, metavar="[ID]...")
role_argument = click.argument("role")
few_option = click.option("--limit", type=COUNT, help="So many at most, the oldest first.")


@click.group(cls=Group)
def queue() -> None:
    """Create, inspect, pause, purge and delete queues; replay dead letters."""


@queue.command(
    examples=[
        "tocsin queue create emails",
        "tocsin queue create emails --vt 2m --max-deliveries 10 --if-missing",
    ]
)
@queue_argument
@settings_options
@click.option(
    "--if-missing", is_flag=True, help="Where the queue exists, leave it as it is, and do not fail."
)
@on_store
async def create(
    store: Store, screen: Screen, queue: str, *, if_missing: bool, **settings: Any
) -> None:
    """Create a queue, with these settings or their defaults (in brackets)."""
    try:
        _show(screen, await store.queues.create(queue, **settings))
    except QueueAlreadyExists:
        if not if_missing:
            raise
        _show(screen, await store.queues.get(queue))


@queue.command("list", examples=["tocsin queue list", "tocsin queue list --format json"])
@on_store
async def list_queues(store: Store, screen: Screen) -> None:
    """Show all queues."""
    screen.table(await store.queues.list(), _QUEUES, narrow=_NARROW_QUEUES, empty="no queues")


@queue.command(examples=["tocsin queue get emails"])
@queue_argument
@on_store
async def get(store: Store, screen: Screen, queue: str) -> None:
    """Show a queue and its settings."""
    _show(screen, await store.queues.get(queue))


@queue.command(
    examples=[
        "tocsin queue update emails --vt 5m --retry-max 30m",
        "tocsin queue update emails --retention forever",
    ]
)
@queue_argument
@settings_options
@on_store
async def update(store: Store, screen: Screen, queue: str, **settings: Any) -> None:
    """Change settings of a queue. They count at once, in every process; what is not
    given stays as it is."""
    if all(value is None for value in settings.values()):
        raise click.UsageError("nothing to change: give a setting", click.get_current_context())
    _show(screen, await store.queues.update(queue, **settings))


def _show(screen: Screen, queue: Queue) -> None:
    durations = ("vt", "retry_base", "retry_max", "retention", "dead_letter_retention")
    screen.record(queue, **{name: write_duration(getattr(queue, name)) for name in durations})


@queue.command(
    examples=[
        "tocsin queue messages emails",
        "tocsin queue messages emails --state leased",
        "tocsin queue messages emails --after 4711",
    ]
)
@queue_argument
@click.option(
    "--state",
    type=click.Choice(STATES),
    help="Only those in this state; without it, the unfinished ones.",
)
@click.option("--worker", type=ID, metavar="ID", help="Only those that this consumer holds.")
@limit_option
@after_option
@on_store
async def messages(
    store: Store,
    screen: Screen,
    queue: str,
    state: Any,
    worker: int | None,
    limit: int,
    after: int | None,
) -> None:
    """Show messages of a queue, by id, without touching them. `tocsin message get ID`
    shows all of one."""
    found = await store.messages.list(queue, state=state, worker=worker, limit=limit, after=after)
    screen.table(found, MESSAGES, narrow=NARROW_MESSAGES, empty="no such messages")


@queue.command(examples=["tocsin queue metrics", "tocsin queue metrics emails --format json"])
@click.argument("queue", required=False)
@on_store
async def metrics(store: Store, screen: Screen, queue: str | None) -> None:
    """Show how full and how busy all queues are, or one.

    Large numbers are estimates; COUNTED (in JSON: exact) says so. OLDEST is how long
    the oldest ready message has been waiting.
    """
    if queue is None:
        screen.table(
            await store.queues.metrics(), METRICS, narrow=NARROW_METRICS, empty="no queues"
        )
    elif screen.json:
        screen.record(await store.queues.metrics(queue))
    else:
        screen.table([await store.queues.metrics(queue)], METRICS, narrow=NARROW_METRICS, empty="")


@queue.command(examples=["tocsin queue pause emails"])
@queue_argument
@on_store
async def pause(store: Store, screen: Screen, queue: str) -> None:
    """Have consumers, in every process, get nothing more from a queue. What they have
    they finish; enqueueing goes on."""
    screen.say(
        f"queue {queue!r} is paused; tocsin queue resume ends that", await store.queues.pause(queue)
    )


@queue.command(examples=["tocsin queue grant emails shop"])
@queue_argument
@role_argument
@on_store
async def grant(store: Store, screen: Screen, queue: str, role: str) -> None:
    """Let a database role, and its members, enqueue to a queue. Needed only by roles
    that tocsin admin install --roles has let in."""
    await store.queues.grant(queue, role)
    screen.say(f"role {role!r} may enqueue to {queue!r}", {"queue": queue, "role": role})


@queue.command(examples=["tocsin queue revoke emails shop"])
@queue_argument
@role_argument
@on_store
async def revoke(store: Store, screen: Screen, queue: str, role: str) -> None:
    """Take back what tocsin queue grant gave, at once."""
    await store.queues.revoke(queue, role)
    screen.say(f"role {role!r} may no longer enqueue to {queue!r}", {"queue": queue, "role": role})


@queue.command(examples=["tocsin queue resume emails"])
@queue_argument
@on_store
async def resume(store: Store, screen: Screen, queue: str) -> None:
    """End a pause."""
    screen.say(f"queue {queue!r} is not paused any more", await store.queues.resume(queue))


@queue.command(
    examples=[
        "tocsin queue purge emails --ready --delayed --dry-run",
        "tocsin queue purge emails --archived --older-than 90d --yes",
    ]
)
@queue_argument
@click.option("--ready", is_flag=True, help="Messages that wait for a consumer.")
@click.option("--delayed", is_flag=True, help="Messages that are not due yet.")
@click.option("--archived", is_flag=True, help="The archive.")
@click.option("--dead", is_flag=True, help="Dead letters.")
@older_than_option
@dry_run_option
@yes_option
@on_store
async def purge(
    store: Store, screen: Screen, queue: str, *, dry_run: bool, yes: bool, **scope: Any
) -> None:
    """Delete messages of the kinds that are given, at least one. What a worker holds,
    and workers, are never touched.

    The age of a message counts from its enqueueing, that of an archived one or a dead
    letter from then.
    """
    kinds = [kind for kind in ("ready", "delayed", "archived", "dead") if scope[kind]]
    if not kinds:
        raise click.UsageError(
            "say what to purge: --ready, --delayed, --archived, --dead", click.get_current_context()
        )
    if not dry_run:
        await confirm(f"Delete messages of queue {queue!r} for good ({', '.join(kinds)})?", yes=yes)
    purged = await store.queues.purge(queue, dry_run=dry_run, **scope)
    counts = ", ".join(f"{getattr(purged, kind)} {kind}" for kind in kinds)
    screen.say(f"{'would purge' if dry_run else 'purged'} {counts}", purged)


@queue.command(
    examples=["tocsin queue delete emails --dry-run", "tocsin queue delete emails --force --yes"]
)
@queue_argument
@click.option(
    "--force", is_flag=True, help="Also with unfinished messages and with workers, whose runs end."
)
@dry_run_option
@yes_option
@on_store
async def delete(
    store: Store, screen: Screen, queue: str, *, force: bool, dry_run: bool, yes: bool
) -> None:
    """Delete a queue with its archive and its dead letters. Refused while it has
    workers or unfinished messages, without --force."""
    if not dry_run and not yes:
        would = await store.queues.delete(queue, force=force, dry_run=True)
        await confirm(f"Delete queue {queue!r} with {_count(would)}?", yes=yes)
    deleted = await store.queues.delete(queue, force=force, dry_run=dry_run)
    screen.say(
        f"{'would delete' if dry_run else 'deleted'} queue {queue!r} with {_count(deleted)}",
        deleted,
    )


def _count(deleted: DeleteResult) -> str:
    return (
        f"{deleted.workers} workers, {deleted.messages} messages, {deleted.archived} archived,"
        f" {deleted.dead_letters} dead letters"
    )


# Dead letters


@queue.command(
    "dead-letters",
    examples=[
        "tocsin queue dead-letters emails",
        "tocsin queue dead-letters emails --error timeout --limit 10",
    ],
)
@queue_argument
@dead_letter_filters
@limit_option
@after_option
@on_store
async def dead_letters(store: Store, screen: Screen, queue: str, **options: Any) -> None:
    """Show the dead letters of a queue, by id. `tocsin message get ID` shows all of
    one, with traceback and deliveries."""
    screen.table(
        await store.dead_letters.list(queue, **options), DEAD_LETTERS, empty="no such dead letters"
    )


@queue.command(
    examples=[
        "tocsin queue replay emails 4711 4712",
        "tocsin queue replay emails --error 'connection refused' --limit 100",
        "tocsin queue replay emails --delay 10m --yes",
    ]
)
@queue_argument
@ids_argument
@dead_letter_filters
@few_option
@click.option("--delay", type=DURATION, help="Have them delivered only after this.")
@yes_option
@on_store
async def replay(
    store: Store,
    screen: Screen,
    queue: str,
    ids: tuple[int, ...],
    *,
    delay: timedelta | None,
    yes: bool,
    **which: Any,
) -> None:
    """Put dead letters back into their queue: these, or all that the options choose.
    Their deliveries are counted from zero again.

    When nothing is chosen, it is all of them; then it asks first.
    """
    await _confirm_all(store, "Replay", queue, ids, which, yes=yes)
    replayed = await store.dead_letters.replay(queue, *ids, delay=delay, **which)
    screen.say(f"replayed {len(replayed)} dead letters", {"ids": replayed})
    _check_all(ids, len(replayed), queue)


@queue.command(
    "archive-dlq",
    examples=[
        "tocsin queue archive-dlq emails 4711",
        "tocsin queue archive-dlq emails --older-than 30d",
    ],
)
@queue_argument
@ids_argument
@dead_letter_filters
@few_option
@yes_option
@on_store
async def archive_dlq(
    store: Store, screen: Screen, queue: str, ids: tuple[int, ...], *, yes: bool, **which: Any
) -> None:
    """Move dead letters to the archive, these or all that the options choose: they were
    looked into, and need not run again.

    When nothing is chosen, it is all of them; then it asks first.
    """
    await _confirm_all(store, "Archive", queue, ids, which, yes=yes)
    archived = await store.dead_letters.archive(queue, *ids, **which)
    screen.say(f"archived {archived} dead letters", {"archived": archived})
    _check_all(ids, archived, queue)


@queue.command(
    "purge-dlq",
    examples=[
        "tocsin queue purge-dlq emails --error 'no such user' --dry-run",
        "tocsin queue purge-dlq emails 4711 --yes",
    ],
)
@queue_argument
@ids_argument
@dead_letter_filters
@few_option
@dry_run_option
@yes_option
@on_store
async def purge_dlq(
    store: Store,
    screen: Screen,
    queue: str,
    ids: tuple[int, ...],
    *,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Delete dead letters for good: these, or all that the options choose."""
    if not dry_run:
        count = await store.dead_letters.purge(queue, *ids, dry_run=True, **options)
        await confirm(f"Delete {count} dead letters of queue {queue!r} for good?", yes=yes)
    purged = await store.dead_letters.purge(queue, *ids, dry_run=dry_run, **options)
    screen.say(
        f"{'would purge' if dry_run else 'purged'} {purged} dead letters", {"purged": purged}
    )
    _check_all(ids, purged, queue)


async def _confirm_all(
    store: Store, what: str, queue: str, ids: tuple[int, ...], which: dict[str, Any], *, yes: bool
) -> None:
    """Ask before all dead letters of a queue are taken, if there are any: nothing was
    said of which are meant."""
    if not yes and not ids and all(value is None for value in which.values()):
        count = await store.dead_letters.purge(queue, dry_run=True)
        if count:
            await confirm(f"{what} all {count} dead letters of queue {queue!r}?", yes=yes)


def _check_all(ids: tuple[int, ...], found: int, queue: str) -> None:
    if missing := len(set(ids)) - found if ids else 0:
        raise click.ClickException(
            f"{missing} of these ids are no dead letters of queue {queue!r}, or not any more"
        )
