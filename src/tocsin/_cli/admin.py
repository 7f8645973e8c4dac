"""``tocsin admin``: install, verify and maintain the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from tocsin import Roles, SchemaMissing, SchemaNewer, SchemaOutdated, Store
from tocsin._database.dsn import describe_address
from tocsin._database.schema import Schema
from tocsin._database.script import known_versions, write_script

from .advice import describe
from .options import confirm, yes_option
from .program import (
    Common,
    ExitCode,
    Group,
    Unhealthy,
    format_option,
    on_store,
    pass_common,
    schema_option,
)
from .render import Screen

R = TypeVar("R")


@click.group(cls=Group)
def admin() -> None:
    """Install, verify, maintain and remove Tocsin in a database."""


def _role_option(name: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    return click.option(
        name,
        metavar="NAME",
        help="Give access to this role; only the named roles get access.",
    )


@admin.command(
    examples=[
        "tocsin admin install",
        "tocsin admin install --dsn postgresql:///app --schema queues",
        "tocsin admin install --roles",
        "tocsin admin install --producer-role shop --consumer-role mailer",
    ]
)
@click.option(
    "--roles",
    is_flag=True,
    help="Give access to the roles tocsin_producer, tocsin_consumer and tocsin_admin.",
)
@_role_option("--producer-role")
@_role_option("--consumer-role")
@_role_option("--admin-role")
@pass_common
@on_store
async def install(
    store: Store,
    screen: Screen,
    common: Common,
    *,
    roles: bool,
    producer_role: str | None,
    consumer_role: str | None,
    admin_role: str | None,
) -> None:
    """Install the schema of this version of Tocsin, or upgrade to it.

    A second installation changes nothing. Only the schema's owner and the roles that
    the options name have access. Members of the producer role enqueue to queues that
    they were granted (tocsin queue grant), members of the consumer role consume, and
    members of the admin role may do everything except install. Missing roles are
    created.
    """
    if producer_role or consumer_role or admin_role:
        await store.install(roles=Roles(producer_role, consumer_role, admin_role))
    else:
        await store.install(roles=roles)
    screen.say(
        f"schema {common.settings().schema!r} is up to date", {"schema": common.settings().schema}
    )


@admin.command(examples=["tocsin admin verify", "tocsin admin verify --format json"])
@pass_common
@on_store
async def verify(store: Store, screen: Screen, common: Common) -> ExitCode:
    """Compare the schema with what this version installs.

    Shows each difference. Exits with 4 if there are differences, or if there is no
    schema.
    """
    try:
        differences = await store.verify()
    except (SchemaMissing, SchemaNewer, SchemaOutdated) as error:
        raise Unhealthy(describe(error)) from error
    found = (
        "\n".join(map(str, differences))
        or f"schema {common.settings().schema!r} has no differences"
    )
    screen.say(found, differences)
    return ExitCode.UNHEALTHY if differences else ExitCode.DONE


@admin.command(
    examples=[
        "tocsin admin sql | less",
        "tocsin admin sql --schema queues | psql -X app",
        "tocsin admin sql --from 1 | psql -X app",
    ]
)
@click.option(
    "--from",
    "upgrade_from",
    type=int,
    metavar="VERSION",
    help="Upgrade from this version of the SQL contract, which `tocsin admin stats` shows.",
)
@schema_option
@format_option
@pass_common
def sql(common: Common, *, upgrade_from: int | None) -> None:
    """Print the SQL that an installation runs, or with --from an upgrade.

    The script is for databases in which an administrator runs all changes; psql runs it
    in one transaction. It gives no access to roles; the function install_roles does
    that.
    """
    if upgrade_from is not None and upgrade_from not in known_versions():
        known = ", ".join(map(str, known_versions()))
        raise click.UsageError(f"--from must be a version that this package upgrades: {known}")
    script = write_script(Schema(common.settings().schema), upgrade_from=upgrade_from)
    if common.format == "json":
        Screen(common.format).say("", {"sql": script})
    else:
        click.echo(script, nl=False)


@admin.command(examples=["tocsin admin stats", "tocsin admin stats --format json"])
@on_store
async def stats(store: Store, screen: Screen) -> None:
    """Count queues, workers, processes and messages.

    Large numbers are estimates.
    """
    screen.record(await store.stats())


@admin.command(examples=["tocsin admin reclaim"])
@on_store
async def reclaim(store: Store, screen: Screen) -> None:
    """Stop workers whose process is dead, and requeue the messages that they hold.

    Messages with an expired lease are requeued, too. Running consumers do both
    automatically; this command is for a database without them.

    In the first ten seconds of a server, no process is declared dead, because processes
    are still reconnecting. If no process has registered since the server started, the
    ten seconds begin with the first reclaim, so repeat the command ten seconds later.
    """
    reclaimed = await store.reclaim()
    screen.say(
        f"{reclaimed.workers} dead workers stopped, {reclaimed.messages} messages requeued",
        reclaimed,
    )


@admin.command(examples=["tocsin admin maintain", "tocsin admin maintain --format json"])
@on_store
async def maintain(store: Store, screen: Screen) -> None:
    """Create and drop partitions of the archive, and delete expired dead letters.

    Processes with consumers do maintenance automatically, at most once a minute across
    all processes. This command is for cron, in a database without consumers.
    """
    screen.record(await store.maintain())


@admin.command(
    examples=["tocsin admin uninstall", "tocsin admin uninstall --schema tocsin_demo --yes"]
)
@yes_option
@pass_common
@on_store
async def uninstall(store: Store, screen: Screen, common: Common, *, yes: bool) -> None:
    """Drop the schema, with all queues and messages."""
    await confirm(
        f"Drop schema {common.settings().schema!r} at"
        f" {describe_address(common.settings().dsn or '')}, with all its queues and messages?",
        yes=yes,
    )
    await store.uninstall()
    screen.say(
        f"schema {common.settings().schema!r} is dropped", {"schema": common.settings().schema}
    )
