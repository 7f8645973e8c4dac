"""``tocsin message``: one message."""

from __future__ import annotations

import click

from tocsin import Store

from .options import id_argument
from .program import Group, on_store
from .render import Screen


@click.group(cls=Group)
def message() -> None:
    """Look at a single message; `tocsin queue messages` lists many."""


@message.command(examples=["tocsin message get 4711", "tocsin message get 4711 --format json"])
@id_argument("message")
@on_store
async def get(store: Store, screen: Screen, id: int) -> None:
    """Show all of a message: waiting, leased, dead or archived; of a dead letter also its traceback."""
    info = await store.messages.get(id)
    screen.record(await store.dead_letters.get(id) if info.state == "dead" else info)
