"""The command line: a module for each group of commands.

``program`` runs the commands of all groups.
"""

from __future__ import annotations

from typing import NoReturn

import click

from tocsin._cli import program
from tocsin._version import VERSION

from .admin import admin
from .completion import completion
from .demo import demo
from .enqueue import enqueue
from .flow import flow
from .job import job
from .limit import limit
from .message import message
from .queue import queue
from .schedule import schedule
from .top import top
from .worker import worker

__all__ = ["run", "tocsin"]


@click.group(
    cls=program.Group,
    examples=[
        "tocsin queue metrics                        # do messages wait?",
        "tocsin worker health                        # do consumers handle them?",
        "tocsin worker list --queue emails           # which workers, where",
        (
            "tocsin worker suspend 42 --drain            # the worker finishes its messages and"
            " claims no more"
        ),
        "tocsin worker resume 42",
        (
            "tocsin queue pause emails                   # no consumer claims more, until queue"
            " resume"
        ),
        "tocsin queue dead-letters emails            # messages that have failed finally",
        "tocsin message get 4711                     # why this message has failed",
        "tocsin queue replay emails --error timeout  # deliver them again",
    ],
)
@click.version_option(VERSION, prog_name="tocsin", message="%(prog)s %(version)s")
def tocsin() -> None:
    """Work with an event-driven message queue in PostgreSQL.

    Exit codes: 0 done, 1 refused or not found, 2 wrong usage, 3 database unreachable, 4
    unhealthy, 128 + n ended by signal n.
    """


_GROUPS = admin, queue, worker, message, job, flow, limit, schedule
for _command in (*_GROUPS, enqueue, top, demo, completion):
    tocsin.add_command(_command)


def run() -> NoReturn:
    """Run the command line of this process, and exit."""
    program.run(tocsin)
