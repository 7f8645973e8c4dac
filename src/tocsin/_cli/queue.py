"""``tocsin queue``: manage queues and show their messages."""

from __future__ import annotations

from typing import Any, get_args

import click

from tocsin import DeleteResult, MessageState, Queue, QueueAlreadyExists, Store

from .dead_letters import archive_dlq, dead_letters, purge_dlq, replay
from .options import (
    ID,
    after_option,
    confirm,
    dry_run_option,
    limit_option,
    older_than_option,
    queue_argument,
    yes_option,
)
from .program import Group, on_store
from .queue_settings import settings_options
from .render import Screen, write_duration
from .tables import MESSAGES, METRICS, QUEUES

role_argument = click.argument("role")


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
    "--if-missing", is_flag=True, help="If the queue exists, do not change it, and do not fail."
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
    screen.table(await store.queues.list(), QUEUES, empty="no queues")


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
    """Change settings of a queue, immediately and for every process.

    A setting that is not given stays unchanged.
    """
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
    type=click.Choice(get_args(MessageState)),
    help="Only messages in this state; by default all unfinished ones.",
)
@click.option("--worker", type=ID, metavar="ID", help="Only messages that this consumer holds.")
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
    """Show messages of a queue, in the order of their ids.

    `tocsin message get ID` shows all values of a message.
    """
    found = await store.messages.list(queue, state=state, worker=worker, limit=limit, after=after)
    screen.table(found, MESSAGES, empty="no messages found")


@queue.command(examples=["tocsin queue metrics", "tocsin queue metrics emails --format json"])
@click.argument("queue", required=False)
@on_store
async def metrics(store: Store, screen: Screen, queue: str | None) -> None:
    """Show the size and the load of all queues, or of one.

    Large numbers are estimates; COUNTED (in JSON: exact) says whether a number was
    counted. OLDEST is how long the oldest ready message has been waiting.
    """
    if queue is None:
        screen.table(await store.queues.metrics(), METRICS, empty="no queues")
    elif screen.json:
        screen.record(await store.queues.metrics(queue))
    else:
        screen.table([await store.queues.metrics(queue)], METRICS, empty="")


@queue.command(examples=["tocsin queue pause emails"])
@queue_argument
@on_store
async def pause(store: Store, screen: Screen, queue: str) -> None:
    """Stop the delivery of a queue's messages to consumers of every process.

    Consumers finish the messages that they hold, and enqueueing continues.
    """
    screen.say(
        f"queue {queue!r} is paused; tocsin queue resume ends the pause",
        await store.queues.pause(queue),
    )


@queue.command(examples=["tocsin queue grant emails shop"])
@queue_argument
@role_argument
@on_store
async def grant(store: Store, screen: Screen, queue: str, role: str) -> None:
    """Allow a database role and its members to enqueue to a queue.

    Only roles with access by `tocsin admin install --roles` need this grant.
    """
    await store.queues.grant(queue, role)
    screen.say(f"role {role!r} may enqueue to {queue!r}", {"queue": queue, "role": role})


@queue.command(examples=["tocsin queue revoke emails shop"])
@queue_argument
@role_argument
@on_store
async def revoke(store: Store, screen: Screen, queue: str, role: str) -> None:
    """Revoke a grant of `tocsin queue grant`, immediately."""
    await store.queues.revoke(queue, role)
    screen.say(f"role {role!r} may no longer enqueue to {queue!r}", {"queue": queue, "role": role})


@queue.command(examples=["tocsin queue resume emails"])
@queue_argument
@on_store
async def resume(store: Store, screen: Screen, queue: str) -> None:
    """End the pause of a queue."""
    screen.say(f"queue {queue!r} is no longer paused", await store.queues.resume(queue))


@queue.command(
    examples=[
        "tocsin queue purge emails --ready --delayed --dry-run",
        "tocsin queue purge emails --archived --older-than 90d --yes",
    ]
)
@queue_argument
@click.option("--ready", is_flag=True, help="Messages that wait for a consumer.")
@click.option("--delayed", is_flag=True, help="Messages that are not due yet.")
@click.option("--held", is_flag=True, help="Messages that wait for other messages.")
@click.option("--archived", is_flag=True, help="Archived messages.")
@click.option("--dead", is_flag=True, help="Dead letters.")
@older_than_option
@dry_run_option
@yes_option
@on_store
async def purge(
    store: Store, screen: Screen, queue: str, *, dry_run: bool, yes: bool, **scope: Any
) -> None:
    """Delete messages in the given states, of which at least one is required.

    The command never deletes leased messages and workers.

    The age of a message begins when it is enqueued, and the age of an archived message
    or a dead letter when it became one.
    """
    kinds = [kind for kind in ("ready", "delayed", "held", "archived", "dead") if scope[kind]]
    if not kinds:
        raise click.UsageError(
            "choose what to purge: --ready, --delayed, --held, --archived, --dead",
            click.get_current_context(),
        )
    if not dry_run:
        await confirm(
            f"Permanently delete messages of queue {queue!r} ({', '.join(kinds)})?", yes=yes
        )
    purged = await store.queues.purge(queue, dry_run=dry_run, **scope)
    counts = ", ".join(f"{getattr(purged, kind)} {kind}" for kind in kinds)
    screen.say(f"{'would purge' if dry_run else 'purged'} {counts}", purged)


@queue.command(
    examples=["tocsin queue delete emails --dry-run", "tocsin queue delete emails --force --yes"]
)
@queue_argument
@click.option(
    "--force", is_flag=True, help="Also delete unfinished messages and workers, whose runs end."
)
@dry_run_option
@yes_option
@on_store
async def delete(
    store: Store, screen: Screen, queue: str, *, force: bool, dry_run: bool, yes: bool
) -> None:
    """Delete a queue with its archive and its dead letters.

    Without --force, the command is refused while the queue has workers or unfinished
    messages.
    """
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


for _command in (dead_letters, replay, archive_dlq, purge_dlq):
    queue.add_command(_command)
