"""``tocsin admin``: the schema."""

from __future__ import annotations

import sys

import click

from tocsin.database import describe_address

from .program import ExitCode, Group, Target, with_target


@click.group(cls=Group)
def admin() -> None:
    """Install, verify and remove Tocsin in a database."""


@admin.command()
@with_target
async def install(target: Target) -> None:
    """Bring the schema to this version of Tocsin. Doing it again changes nothing."""
    async with target.connect() as store:
        await store.install()
    click.echo(f"schema {target.schema!r} is up to date")


@admin.command()
@with_target
async def verify(target: Target) -> ExitCode:
    """Compare the schema with what this version installs; print each difference, and exit with 4 if there is any."""
    async with target.connect() as store:
        differences = await store.verify()
    for difference in differences:
        click.echo(str(difference))
    if differences:
        return ExitCode.UNHEALTHY
    click.echo(f"schema {target.schema!r} is as it should be")
    return ExitCode.DONE


@admin.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_target
async def uninstall(target: Target, *, yes: bool) -> ExitCode:
    """Drop the schema, with all queues and messages."""
    if not yes and not _confirmed(target):
        return ExitCode.REFUSED
    async with target.connect() as store:
        await store.uninstall()
    click.echo(f"schema {target.schema!r} is gone")
    return ExitCode.DONE


def _confirmed(target: Target) -> bool:
    address = describe_address(target.dsn or "")
    if not sys.stdin.isatty():
        click.echo("tocsin: there is nobody to ask whether to drop everything; say --yes", err=True)
        return False
    # Nothing else goes on in this event loop, so the question may block it.
    return click.confirm(f"Drop schema {target.schema!r} at {address}, with all its queues and messages?")
