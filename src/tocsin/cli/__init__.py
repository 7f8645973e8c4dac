"""The command line: one file for each group of commands, and ``program``, which runs them all."""

from __future__ import annotations

from typing import NoReturn

import click

from tocsin.version import VERSION

from . import program
from .admin import admin
from .demo import demo

__all__ = ["run", "tocsin"]


@click.group(cls=program.Group)
@click.version_option(VERSION, prog_name="tocsin", message="%(prog)s %(version)s")
def tocsin() -> None:
    """An event-driven message queue in PostgreSQL.

    Exit codes: 0 done, 1 refused or not found, 2 bad usage, 3 database unreachable, 4 unhealthy, 128 + n ended by signal n.
    """


tocsin.add_command(admin)
tocsin.add_command(demo)


def run() -> NoReturn:
    """Run the command line that this process was called with, and exit."""
    program.run(tocsin)
