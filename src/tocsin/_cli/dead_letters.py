"""The commands of ``tocsin queue`` for dead letters."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from tocsin import Store
from tocsin._queue.admin.dead_letters import REASONS

from .options import (
    COUNT,
    DURATION,
    ID,
    after_option,
    confirm,
    dry_run_option,
    limit_option,
    older_than_option,
    queue_argument,
    yes_option,
)
from .program import Command, on_store
from .render import Screen
from .tables import DEAD_LETTERS

R = TypeVar("R")

_REASONS = "; ".join(f'"{reason}"' for reason in REASONS)


def dead_letter_filters(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that choose dead letters."""
    function = older_than_option(function)
    function = click.option(
        "--error", metavar="TEXT", help="Only dead letters with this text in their error."
    )(function)
    return click.option(
        "--reason", metavar="TEXT", help=f"Only dead letters with this reason: {_REASONS}."
    )(function)


ids_argument = click.argument("ids", nargs=-1, type=ID, metavar="[ID]...")
few_option = click.option("--limit", type=COUNT, help="At most this many, oldest first.")


@click.command(
    "dead-letters",
    cls=Command,
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
    """Show the dead letters of a queue, in the order of their ids.

    `tocsin message get ID` shows a dead letter with its traceback and deliveries.
    """
    screen.table(
        await store.dead_letters.list(queue, **options), DEAD_LETTERS, empty="no dead letters found"
    )


@click.command(
    cls=Command,
    examples=[
        "tocsin queue replay emails 4711 4712",
        "tocsin queue replay emails --error 'connection refused' --limit 100",
        "tocsin queue replay emails --delay 10m --yes",
    ],
)
@queue_argument
@ids_argument
@dead_letter_filters
@few_option
@click.option("--delay", type=DURATION, help="Deliver the messages after this delay.")
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
    """Replay the dead letters that the ids name or the options select.

    The deliveries of these messages are counted from zero again.

    Without ids and options the command affects all dead letters, and asks first.
    """
    await _confirm_all(store, "Replay", queue, ids, which, yes=yes)
    replayed = await store.dead_letters.replay(queue, *ids, delay=delay, **which)
    screen.say(f"replayed {len(replayed)} dead letters", {"ids": replayed})
    _check_all(ids, len(replayed), queue)


@click.command(
    "archive-dlq",
    cls=Command,
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
    """Archive the dead letters that the ids name or the options select.

    The command is for dead letters that need no further delivery.

    Without ids and options the command affects all dead letters, and asks first.
    """
    await _confirm_all(store, "Archive", queue, ids, which, yes=yes)
    archived = await store.dead_letters.archive(queue, *ids, **which)
    screen.say(f"archived {archived} dead letters", {"archived": archived})
    _check_all(ids, archived, queue)


@click.command(
    "purge-dlq",
    cls=Command,
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
    """Delete the dead letters that the ids name or the options select."""
    if not dry_run:
        count = await store.dead_letters.purge(queue, *ids, dry_run=True, **options)
        await confirm(f"Permanently delete {count} dead letters of queue {queue!r}?", yes=yes)
    purged = await store.dead_letters.purge(queue, *ids, dry_run=dry_run, **options)
    screen.say(
        f"{'would purge' if dry_run else 'purged'} {purged} dead letters", {"purged": purged}
    )
    _check_all(ids, purged, queue)


async def _confirm_all(
    store: Store, what: str, queue: str, ids: tuple[int, ...], which: dict[str, Any], *, yes: bool
) -> None:
    """Ask before a command takes all dead letters of a queue, if there are any."""
    if not yes and not ids and all(value is None for value in which.values()):
        count = await store.dead_letters.purge(queue, dry_run=True)
        if count:
            await confirm(f"{what} all {count} dead letters of queue {queue!r}?", yes=yes)


def _check_all(ids: tuple[int, ...], found: int, queue: str) -> None:
    if missing := len(set(ids)) - found if ids else 0:
        raise click.ClickException(
            f"{missing} of these ids are not dead letters of queue {queue!r}"
        )
