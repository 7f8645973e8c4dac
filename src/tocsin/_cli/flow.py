"""``tocsin flow``: show, cancel and requeue flows."""

from __future__ import annotations

from typing import get_args

import click

from tocsin import FlowForm, Store

from .options import id_argument, limit_option
from .program import Group, on_store
from .render import Screen
from .tables import FLOWS


@click.group(cls=Group)
def flow() -> None:
    """Show, cancel and requeue flows, which are graphs of jobs."""


@flow.command("list", examples=["tocsin flow list --limit 10"])
@limit_option
@on_store
async def list_(store: Store, screen: Screen, limit: int) -> None:
    """List the newest flows with the numbers of their jobs."""
    screen.table(await store.flows.list(limit=limit), FLOWS, empty="no flows")


@flow.command(examples=["tocsin flow show 42", "tocsin flow show 42 --draw svg"])
@id_argument("flow")
@click.option(
    "--draw",
    type=click.Choice(get_args(FlowForm)),
    default="tree",
    help="A tree, a diagram in the language of Mermaid, or a picture in SVG.",
)
@on_store
async def show(store: Store, screen: Screen, id: int, draw: FlowForm) -> None:
    """Show the jobs of a flow, each below the job that it waits for."""
    info = await store.flows.get(id)
    screen.say(info.draw(draw), info)


@flow.command(examples=["tocsin flow cancel 42"])
@id_argument("flow")
@on_store
async def cancel(store: Store, screen: Screen, id: int) -> None:
    """Cancel the unfinished jobs of a flow."""
    ids = await store.flows.cancel(id)
    screen.say(f"cancelled {len(ids)} jobs of flow {id}", {"flow_id": id, "jobs": ids})


@flow.command(examples=["tocsin flow requeue 42"])
@id_argument("flow")
@on_store
async def requeue(store: Store, screen: Screen, id: int) -> None:
    """Run the jobs of a flow again that have failed or were cancelled."""
    ids = await store.flows.requeue(id)
    screen.say(f"requeued {len(ids)} jobs of flow {id}", {"flow_id": id, "jobs": ids})
