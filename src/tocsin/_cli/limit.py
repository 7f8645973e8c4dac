"""``tocsin limit``: show limits and rates, and set their numbers."""

from __future__ import annotations

import click

from tocsin import Store

from .options import COUNT
from .program import Group, on_store
from .render import Screen
from .tables import LIMITS

name_argument = click.argument("name")


@click.group(cls=Group)
def limit() -> None:
    """Show limits and rates, and set their numbers while workers run."""


@limit.command("list", examples=["tocsin limit list", "tocsin limit list smtp"])
@click.argument("name", required=False)
@on_store
async def list_(store: Store, screen: Screen, name: str | None) -> None:
    """List the keys of all limits, or of one, with the jobs that hold slots."""
    screen.table(await store.limits.list(name), LIMITS, empty="no limits")


@limit.command("set", examples=["tocsin limit set smtp 8"])
@name_argument
@click.argument("n", type=COUNT)
@on_store
async def set_(store: Store, screen: Screen, name: str, n: int) -> None:
    """Set the number of a limit, whatever its tasks say."""
    await store.limits.set(name, n)
    screen.say(f"limit {name} is {n}", {"name": name, "n": n})


@limit.command(examples=["tocsin limit reset smtp"])
@name_argument
@on_store
async def reset(store: Store, screen: Screen, name: str) -> None:
    """Give a limit the number that its tasks say."""
    await store.limits.set(name, None)
    n = (await store.limits.list(name))[0].n
    screen.say(f"limit {name} is {n}, as its tasks say", {"name": name, "n": n})
