"""Describe an error on the command line: the problem, and the command that helps.

The errors' own advice is for programs: it names functions and arguments of Python. The
command line shows only the problem of an error, with the advice of this module.
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
    FlowNotFound,
    JobCancelled,
    JobFailed,
    JobNotFound,
    KeyConflict,
    KeyTaken,
    LimitNotFound,
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
    ScheduleNotFound,
    SchemaBusy,
    SchemaMissing,
    SchemaNewer,
    SchemaOutdated,
    StateTransitionError,
    TaskUnknown,
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
                "`tocsin queue list` shows the queues that exist, `tocsin queue create"
                f" {shlex.quote(error.queue)}` creates it"
            )
        case QueueAlreadyExists():
            return (
                "`tocsin queue update` changes its settings, create with --if-missing accepts it"
                " unchanged"
            )
        case QueueNotEmpty():
            queue = shlex.quote(error.queue)
            return (
                f"`tocsin worker list --queue {queue}` shows the workers, `tocsin worker stop` ends"
                f" them, `tocsin queue purge {queue}` deletes messages; --force deletes the queue"
                " with both"
            )
        case QueueBusy() | SchemaBusy():
            return "try again; pg_stat_activity shows the sessions with long transactions"
        case DependentObjects():
            return "drop the dependent objects, run `tocsin admin install`, and create them again"
        case WorkerNotFound():
            return "it may have been purged; `tocsin worker list` shows the workers that exist"
        case PendingMessages():
            return (
                f"`tocsin worker messages {error.worker_id}` shows them. Wait until they are"
                " finished, or suspend the worker with --drain (it finishes them) or --release"
                f" (it releases them); `tocsin worker stop {error.worker_id}` releases them and"
                " stops the worker"
            )
        case StateTransitionError():
            return _advise_on_state(error)
        case MessageNotFound():
            return (
                "it may have been deleted, purged or replayed; `tocsin queue messages` and `tocsin"
                " queue dead-letters` show the messages that exist"
            )
        case MessageNotWaiting():
            return _advise_on_message(error)
        case JobNotFound():
            return "`tocsin job list` shows the jobs that exist"
        case JobFailed() | JobCancelled():
            return (
                f"`tocsin job show {error.job_id}` shows its attempts, `tocsin job requeue"
                f" {error.job_id}` runs it again"
            )
        case TaskUnknown():
            return (
                "start a worker that runs the task: `tocsin worker run --tasks MODULE`; or name its"
                " module with --tasks"
            )
        case LimitNotFound():
            return "`tocsin limit list` shows the limits that exist"
        case ScheduleNotFound():
            return "`tocsin schedule list` shows the schedules that exist"
        case FlowNotFound():
            return "`tocsin flow list` shows the flows that exist"
        case KeyConflict():
            return "choose another key, or wait until that message is finished"
        case KeyTaken():
            ids = " ".join(map(str, error.ids))
            return (
                "wait until that message is finished, or discard the dead letter: `tocsin queue"
                f" archive-dlq QUEUE {ids}`, or purge-dlq"
            )
        case PayloadTooLarge():
            return (
                "enqueue a reference to data that is stored elsewhere, or raise the limit: "
                f"`tocsin queue update QUEUE --max-payload {error.actual}`"
            )
        case PermissionDenied():
            return (
                "log in as the role that installed Tocsin or as an administrator of it, or ask that"
                " role to give this one access: `tocsin admin install --roles` (see its --help),"
                " and to enqueue `tocsin queue grant QUEUE ROLE`"
            )
        case RoleNotFound():
            return (
                "`tocsin admin install --roles` creates Tocsin's roles, `create role` in psql"
                " creates any other role"
            )
        case SchemaMissing():
            return (
                f"`{_write_install(error.schema)}` installs it; --dsn and --schema choose another"
                " database or schema"
            )
        case SchemaNewer():
            return "upgrade the package tocsin on this machine"
        case SchemaOutdated():
            return f"`{_write_install(error.schema)}` brings it up to date"
        case ConnectionLost():
            return "--dsn or TOCSIN_DSN chooses the server"
    return ""


def _advise_on_message(error: MessageNotWaiting) -> str:
    match error.state:
        case "leased":
            return (
                f"wait until its worker has settled it; `tocsin message get {error.message_id}`"
                " shows the worker"
            )
        case "dead":
            return (
                f"`tocsin queue replay QUEUE {error.message_id}` delivers it again, archive-dlq or"
                " purge-dlq discards it"
            )
        case "archived":
            return "the message is finished; `tocsin enqueue` enqueues another message"
    return "another transaction has locked it; try again"


def _advise_on_state(error: StateTransitionError) -> str:
    worker = error.worker_id
    if error.code == "name_in_use":
        soon = (
            ""
            if error.retry_after is None
            else f"its process seems to have died: try again in {error.retry_after:.0f} s; or "
        )
        return f"{soon}choose another --name, or stop that worker: `tocsin worker stop {worker}`"
    if error.code == "not_stopped":
        return f"stop the worker first: `tocsin worker stop {worker}`"
    if isinstance(error, WorkerStopped):
        return "a stopped worker cannot resume; `tocsin worker run` starts another"
    if error.from_ == "suspended":
        return (
            f"`tocsin worker resume {worker}` resumes it, `tocsin worker shutdown {worker}`"
            " stops it"
        )
    if error.to == "ready":
        return "it is not suspended"
    if error.to == "stopped":
        return (
            f"first `tocsin worker suspend {worker} --drain`; or `tocsin worker stop {worker}`"
            " stops it at once"
        )
    return (
        f"its run is already ending; `tocsin worker stop {worker}` does not wait for its handlers"
    )


def _write_install(schema: str) -> str:
    return "tocsin admin install" + (
        "" if schema == "tocsin" else f" --schema {shlex.quote(schema)}"
    )


def _as_source(source: str) -> str:
    """Return the source of a setting.

    An argument of the API is shown as the option of the command line.
    """
    if source.startswith("roles."):
        return f"--{source.removeprefix('roles.')}-role"
    name = source.removeprefix("argument ")
    return f"--{name.replace('_', '-')}" if name in ("dsn", "schema") else source


def with_options(text: str, context: click.Context) -> str:
    """Replace the names of the API's arguments in a text by options.

    ``key=`` is always replaced; ``key`` is replaced if the user has typed that option.
    """
    for parameter in context.command.params:
        if isinstance(parameter, click.Option):
            typed = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
            end = r"\b=?(?! most| least)" if typed else "="  # not the "at" of "at most"
            text = re.sub(rf"(?<![-\w]){parameter.name}{end}", parameter.opts[0], text)
    return text
