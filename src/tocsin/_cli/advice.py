"""What the command line says of an error: the problem, and the command that helps.

The errors' own advice is for programs: it names functions and arguments of Python. The
command line takes the problem alone from them, and this module has the advice.
"""

from __future__ import annotations

import re
import shlex

import click
from click.core import ParameterSource

from tocsin.errors import (
    ConfigError,
    ConnectionLost,
    DependentObjects,
    KeyTaken,
    MessageNotFound,
    MessageNotWaiting,
    PayloadTooLarge,
    PendingMessages,
    PermissionDenied,
    QueueAlreadyExists,
    QueueBusy,
    QueueNotEmpty,
    QueueNotFound,
    RoleNotFound,
    SchemaBusy,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    StateTransitionError,
    TocsinError,
    WorkerNotFound,
    WorkerStopped,
)


def describe(error: TocsinError) -> str:
    """Return the problem, and the command that solves it."""
    if isinstance(error, ConfigError):
        return f"{_as_source(error.source)}: {error.reason}"
    advice = _advise(error)
    return f"{error.problem}; {advice}" if advice else error.problem


def _advise(error: TocsinError) -> str:
    match error:
        case QueueNotFound():
            return (
                "`tocsin queue list` shows those that do, `tocsin queue create"
                f" {shlex.quote(error.queue)}` makes it"
            )
        case QueueAlreadyExists():
            return (
                "`tocsin queue update` changes its settings, create with --if-missing leaves it as"
                " it is"
            )
        case QueueNotEmpty():
            queue = shlex.quote(error.queue)
            return (
                f"`tocsin worker list --queue {queue}` shows the workers, `tocsin worker stop` ends"
                f" them, `tocsin queue purge {queue}` removes messages; --force takes all of it"
                " along"
            )
        case QueueBusy() | SchemaBusy():
            return (
                "try again; pg_stat_activity shows which sessions have been in a transaction for"
                " long"
            )
        case DependentObjects():
            return "drop what depends on it, run `tocsin admin install`, and create it again"
        case WorkerNotFound():
            return "it may have been purged; `tocsin worker list` shows those that there are"
        case PendingMessages():
            return (
                f"`tocsin worker messages {error.worker_id}` shows them. Wait until they are"
                " finished, or have it suspended with --drain (it may finish them) or --release"
                f" (they are released); `tocsin worker stop {error.worker_id}` releases them and"
                " stops"
            )
        case StateTransitionError():
            return _advise_on_state(error)
        case MessageNotFound():
            return (
                "it may be deleted, purged or replayed by now; `tocsin queue messages` and `tocsin"
                " queue dead-letters` show the rest"
            )
        case MessageNotWaiting():
            return _advise_on_message(error)
        case KeyTaken():
            ids = " ".join(map(str, error.ids))
            return (
                "wait until that one is finished, or give up the dead letter: `tocsin queue"
                f" archive-dlq QUEUE {ids}`, or purge-dlq"
            )
        case PayloadTooLarge():
            return (
                "enqueue a reference to data that is stored elsewhere, or raise the limit: "
                f"`tocsin queue update QUEUE --max-payload {error.actual}`"
            )
        case PermissionDenied():
            return (
                "log in as the role that installed Tocsin or as an administrator of it, or have one"
                " let this role in: `tocsin admin install --roles` (see its --help), and to enqueue"
                " `tocsin queue grant QUEUE ROLE`"
            )
        case RoleNotFound():
            return (
                "`tocsin admin install --roles` creates Tocsin's roles, `create role` in psql any"
                " other"
            )
        case SchemaMissing():
            return (
                f"`{_write_install(error.schema)}` installs it; if it is elsewhere, --dsn and"
                " --schema say where"
            )
        case SchemaNewer():
            return "upgrade the package tocsin on this machine"
        case SchemaOutdated():
            return f"`{_write_install(error.schema)}` brings it up to date"
        case ConnectionLost():
            return "--dsn or TOCSIN_DSN says which server is meant"
    return ""


def _advise_on_message(error: MessageNotWaiting) -> str:
    match error.state:
        case "leased":
            return (
                f"wait until its worker has settled it; `tocsin message get {error.message_id}`"
                " shows which one that is"
            )
        case "dead":
            return (
                f"`tocsin queue replay QUEUE {error.message_id}` delivers it again, archive-dlq or"
                " purge-dlq gives it up"
            )
        case "archived":
            return "it is finished; `tocsin enqueue` enqueues another"
    return "it was changed at the same moment; try again"


def _advise_on_state(error: StateTransitionError) -> str:
    worker = error.worker_id
    if error.code == "name_in_use":
        soon = (
            ""
            if error.retry_after is None
            else f"its process seems to have died: try again in {error.retry_after:.0f} s; or "
        )
        return f"{soon}choose another --name, or end that one: `tocsin worker stop {worker}`"
    if error.code == "not_stopped":
        return f"stop it first: `tocsin worker stop {worker}`"
    if isinstance(error, WorkerStopped):
        return "that is for good; `tocsin worker run` starts another"
    if error.from_ == "suspended":
        return (
            f"`tocsin worker resume {worker}` has it go on, `tocsin worker shutdown {worker}`"
            " stops it"
        )
    if error.to == "ready":
        return "there is nothing to resume"
    if error.to == "stopped":
        return (
            f"`tocsin worker suspend {worker} --drain` comes first, or at once: `tocsin worker stop"
            f" {worker}`"
        )
    return (
        f"its run is ending already; `tocsin worker stop {worker}` does not wait for its handlers"
    )


def _write_install(schema: str) -> str:
    return "tocsin admin install" + (
        "" if schema == "tocsin" else f" --schema {shlex.quote(schema)}"
    )


def _as_source(source: str) -> str:
    """Return where a setting came from.

    An argument of the API is an option here.
    """
    if source.startswith("roles."):
        return f"--{source.removeprefix('roles.')}-role"
    name = source.removeprefix("argument ")
    return f"--{name.replace('_', '-')}" if name in ("dsn", "schema") else source


def with_options(text: str, context: click.Context) -> str:
    """Return what the API says of its arguments, with options in their place.

    ``key=`` is always replaced, and ``key`` where that option was typed.
    """
    for parameter in context.command.params:
        if isinstance(parameter, click.Option):
            typed = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
            end = r"\b=?(?! most| least)" if typed else "="  # not the "at" of "at most"
            text = re.sub(rf"(?<![-\w]){parameter.name}{end}", parameter.opts[0], text)
    return text
