"""``tocsin message``: show and change one message."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from tocsin import Store

from .options import DURATION, ID, MOMENT, PRIORITY, id_argument
from .program import Group, on_store
from .render import Screen

R = TypeVar("R")


@click.group(cls=Group)
def message() -> None:
    """Show a single message, or change a waiting one.

    `tocsin queue messages` lists the messages of a queue.
    """


@message.command(examples=["tocsin message get 4711", "tocsin message get 4711 --format json"])
@id_argument("message")
@on_store
async def get(store: Store, screen: Screen, id: int) -> None:
    """Show all values of a waiting, leased, dead or archived message.

    A dead letter is shown with its traceback.
    """
    info = await store.messages.get(id)
    screen.record(await store.dead_letters.get(id) if info.state == "dead" else info)


# Change a message that waits


def name_of_message(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the id of a message, or its queue and key."""

    @functools.wraps(function)
    def call(*args: Any, argument_id: int | None, option_id: int | None, **kwargs: Any) -> R:
        given = {argument_id, option_id} - {None}
        if len(given) > 1:
            raise click.UsageError("give the message's id once", click.get_current_context())
        return function(*args, message_id=next(iter(given), None), **kwargs)

    argument = click.argument("argument_id", type=ID, required=False, metavar="[ID]")
    option = click.option(
        "--id",
        "option_id",
        type=ID,
        metavar="ID",
        help="The message's id, instead of the argument.",
    )
    queue = click.option(
        "--queue", metavar="QUEUE", help="The message's queue, together with --key."
    )
    key = click.option("--key", metavar="TEXT", help="The message's key, instead of its id.")
    return argument(option(queue(key(call))))


@message.command(
    examples=[
        "tocsin message cancel 4711",
        "tocsin message cancel --queue emails --key welcome-ada",
    ]
)
@name_of_message
@on_store
async def cancel(
    store: Store, screen: Screen, message_id: int | None, queue: str | None, key: str | None
) -> None:
    """Finish a waiting message, so that it is never delivered.

    The archive keeps the message. The command is refused while a worker holds it.
    """
    cancelled = await store.messages.cancel(message_id, queue=queue, key=key)
    screen.say(f"cancelled message {cancelled}", {"id": cancelled})


@message.command(
    examples=[
        "tocsin message reschedule 4711 --delay 0",
        "tocsin message reschedule 4711 --at 2030-01-31T08:00:00Z",
        "tocsin message reschedule --queue emails --key welcome-ada --delay 10m",
    ]
)
@name_of_message
@click.option("--delay", type=DURATION, help="Deliver the message after this time; 0: now.")
@click.option(
    "--at", type=MOMENT, help="Deliver the message at this time, such as 2030-01-31T08:00:00Z."
)
@on_store
async def reschedule(
    store: Store,
    screen: Screen,
    message_id: int | None,
    queue: str | None,
    key: str | None,
    delay: timedelta | None,
    at: datetime | None,
) -> None:
    """Change the time at which a waiting message is delivered.

    The command is refused while a worker holds the message.
    """
    rescheduled = await store.messages.reschedule(
        message_id, delay=delay, at=at, queue=queue, key=key
    )
    screen.say(f"rescheduled message {rescheduled}", {"id": rescheduled})


@message.command(
    examples=[
        "tocsin message reprioritise 4711 --priority -1",
        "tocsin message reprioritise 4711 --priority 10",
    ]
)
@name_of_message
@click.option(
    "--priority",
    type=PRIORITY,
    required=True,
    help="Messages with smaller numbers are delivered first.",
)
@on_store
async def reprioritise(
    store: Store,
    screen: Screen,
    message_id: int | None,
    queue: str | None,
    key: str | None,
    priority: int,
) -> None:
    """Change the priority of a waiting message.

    The command is refused while a worker holds the message.
    """
    changed = await store.messages.reprioritise(message_id, priority=priority, queue=queue, key=key)
    screen.say(f"reprioritised message {changed}", {"id": changed})
