"""Define options and arguments of several commands: durations, times, ids, JSON.

`confirm` asks before a command destroys something.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
import trio

from tocsin._durations import parse_duration

from .render import printable
from .streams import is_terminal

R = TypeVar("R")

if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any]
else:  # generic only in its latest versions
    ParamType = click.ParamType


DURATIONS = "Durations: 250ms, 1.5s, 30m, 2h, 7d, 1w; a number without a unit is in seconds."
"""The help below the options of each command that takes a duration."""


class DurationType(ParamType):
    """A duration such as ``7d``."""

    name = "duration"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> timedelta:
        """Parse the duration."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


class RetentionType(DurationType):
    """A duration, or ``forever``."""

    name = "duration|forever"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Parse the duration."""
        return (
            math.inf
            if value in ("forever", math.inf)
            else super().convert(value, parameter, context)
        )


class MomentType(ParamType):
    """A time with a time zone."""

    name = "time"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> datetime:
        """Parse the time."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is not a time; expected a time such as 2030-01-31T08:00:00Z",
                parameter,
                context,
            )
        if moment.tzinfo is None:
            self.fail(
                f"{value!r} has no time zone; end it with Z, or with an offset such as +02:00",
                parameter,
                context,
            )
        return moment


class KeysType(ParamType):
    """Names of keys."""

    name = "key,..."

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> list[str]:
        """Parse keys that are separated by commas.

        Keys that contain a comma are given as a JSON array.
        """
        if isinstance(value, list):
            return value
        text = str(value)
        if not text.startswith("["):
            return [key for key in text.split(",") if key]
        try:
            keys = json.loads(text)
        except ValueError as error:
            self.fail(f"not a JSON array: {error}", parameter, context)
        if not all(isinstance(key, str) for key in keys):
            self.fail("each key must be a string", parameter, context)
        return list(keys)


class NumberType(ParamType):
    """A whole number within limits."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Parse the number."""
        try:
            number = int(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a whole number", parameter, context)
        if not self._least <= number <= self._most:
            self.fail(f"{number} is not between {self._least} and {self._most}", parameter, context)
        return number


class Json:
    """A JSON value that may be None. click would treat a bare None as no value."""

    def __init__(self, value: object) -> None:
        self.value = value


class JsonType(ParamType):
    """A JSON value."""

    name = "json"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> Json:
        """Parse the value."""
        if isinstance(value, Json):
            return value
        try:
            return Json(json.loads(str(value)))
        except (ValueError, RecursionError) as error:
            self.fail(
                f"{value!r} is not JSON: {error}; a string needs quotes, as in '\"text\"'",
                parameter,
                context,
            )


DURATION = DurationType()
RETENTION = RetentionType()
MOMENT = MomentType()
KEYS = KeysType()
JSON = JsonType()
COUNT = NumberType(1, 2**31 - 1)
LIMIT = NumberType(0, 2**31 - 1)
PRIORITY = NumberType(-(2**31), 2**31 - 1)
ID = NumberType(1, 2**63 - 1)

queue_argument = click.argument("queue")
queue_option = click.option("--queue", metavar="QUEUE", help="Consider only this queue.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be deleted, and change nothing."
)
older_than_option = click.option(
    "--older-than", type=DURATION, help="Only messages older than this, such as 7d."
)
limit_option = click.option(
    "--limit", type=COUNT, default=100, show_default=True, help="Show at most this many."
)
tasks_option = click.option(
    "--tasks",
    multiple=True,
    metavar="MODULE[:TASK]",
    help=(
        "Take the task from this module, so that the arguments are checked, and no worker need"
        " have registered it; may be repeated."
    ),
)
after_option = click.option(
    "--after", type=ID, metavar="ID", help="Continue after this id, the last one shown."
)


def id_argument(what: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command an id as an argument or as ``--id``."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(*args: Any, argument_id: int | None, option_id: int | None, **kwargs: Any) -> R:
            given = {argument_id, option_id} - {None}
            if len(given) != 1:
                raise click.UsageError(
                    f"give the {what}'s id once" if given else f"missing the {what}'s ID",
                    click.get_current_context(),
                )
            (kwargs["id"],) = given
            return function(*args, **kwargs)

        option = click.option(
            "--id",
            "option_id",
            type=ID,
            metavar="ID",
            help=f"The {what}'s id, instead of the argument.",
        )
        argument = click.argument("argument_id", type=ID, required=False, metavar="[ID]")
        return argument(option(call))

    return decorate


async def confirm(question: str, *, yes: bool) -> None:
    """Ask at the terminal. Return if the answer is yes, or if --yes was given.

    Raises:
        click.ClickException: The answer is no, or there is no terminal.
    """
    if yes:
        return
    if not is_terminal():
        raise click.ClickException(
            "there is no terminal to ask at; use --yes, or --dry-run if the command has it"
        )
    click.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
    # Do not read in blocking mode, so that a signal ends the command. A terminal is
    # readable when it has a whole line.
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise click.ClickException("nothing was changed")
