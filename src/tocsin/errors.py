"""The errors that Tocsin raises, each with the values a program needs and a sentence
that says what to do.

The database refuses with an SQLSTATE of class ``TC``
(``sql/functions/common/errors.sql``); ``_database/error_mapping.py`` turns what psycopg
raised into these classes.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CharacterUnsupported",
    "ConfigError",
    "ConnectionLost",
    "DependentObjects",
    "KeyTaken",
    "LeaseLost",
    "MessageNotFound",
    "MessageNotWaiting",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "PendingMessages",
    "PermissionDenied",
    "QueueAlreadyExists",
    "QueueBusy",
    "QueueNotEmpty",
    "QueueNotFound",
    "RateLimited",
    "RoleNotFound",
    "SchemaBusy",
    "SchemaMissing",
    "SchemaNewer",
    "SchemaOutdated",
    "StateTransitionError",
    "Suspended",
    "TocsinError",
    "WorkerNotFound",
    "WorkerStopped",
]


class TocsinError(Exception):
    """Base of all errors that Tocsin raises on purpose. The text says what is wrong,
    and what a program can do about it."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(join_advice(problem, advice))
        self.problem = problem
        """What is wrong, without the advice: who is not a program, such as the user of
        the command line, is advised otherwise."""


def join_advice(problem: str, advice: str) -> str:
    """Return a problem with what to do about it, as one text."""
    whole_sentence = advice.endswith(".")
    return f"{problem}{'. ' if whole_sentence else '; '}{advice}" if advice else problem


class Suspended(TocsinError):
    """A consumer's run has ended because it was interrupted; the worker is suspended
    (or, after a shutdown from outside, stopped).

    Not a failure: it is how `Consumer.handle` and its siblings end.
    """

    def __init__(self, reason: str, *, handled: int, released: int, failed: int = 0) -> None:
        super().__init__(
            f"{reason}; {handled} handled, {f'{failed} failed, ' if failed else ''}{released}"
            " released"
        )
        self.reason = reason
        """Who or what ended the run, in words."""
        self.handled = handled
        """How many messages this run has archived, deleted or released. A snoozed one
        counts nowhere."""
        self.failed = failed
        """How many deliveries of this run have failed: those messages came back, or
        became dead letters."""
        self.released = released
        """How many messages went back to the queue because the run ended before they
        were settled."""


class LeaseLost(TocsinError):
    """The message is no longer this consumer's: its lease expired or was given to
    another, or it is settled already.

    Nothing was changed.
    """

    def __init__(self, message_id: int, operation: str) -> None:
        super().__init__(
            f"cannot {operation} message {message_id}: it is settled already, or its lease is gone",
            "extend leases in time or give the queue a longer visibility timeout (vt)",
        )
        self.message_id = message_id
        """Id of the message."""
        self.operation = operation
        """What was refused: archive, delete, release or extend."""


class StateTransitionError(TocsinError):
    """A worker cannot go from its state to the wanted one."""

    def __init__(
        self,
        problem: str,
        advice: str = "",
        *,
        from_: str,
        to: str,
        reason: str,
        worker_id: int,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(problem, advice)
        self.retry_after = retry_after
        """Seconds after which it may be possible, since the worker's process seems to
        have died; None: not known to be so."""
        self.from_ = from_
        """The state it is in."""
        self.to = to
        """The state that was wanted."""
        self.reason = reason
        """Why not."""
        self.worker_id = worker_id
        """Id of the worker."""


class WorkerStopped(StateTransitionError):
    """The worker is stopped: shut down, or declared dead. Register it anew."""


class ProcessDeclaredDead(TocsinError):
    """The others have declared this process dead. It registers anew by itself; this
    never reaches a user."""


class PendingMessages(TocsinError):
    """The worker holds messages, so it cannot be suspended or shut down. Settle or
    release them, or ask for release or drain."""

    def __init__(self, problem: str, advice: str = "", *, count: int, worker_id: int) -> None:
        super().__init__(problem, advice)
        self.count = count
        """How many messages it holds."""
        self.worker_id = worker_id
        """Id of the worker."""


class WorkerNotFound(TocsinError):
    """There is no worker of this id."""

    def __init__(self, problem: str, advice: str = "", *, worker_id: int) -> None:
        super().__init__(problem, advice)
        self.worker_id = worker_id
        """The id asked for."""


class QueueNotFound(TocsinError):
    """There is no queue of this name."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue {queue!r} does not exist",
            f"create it first, for example with store.queues.ensure({queue!r})",
        )
        self.queue = queue
        """The name asked for."""


class QueueAlreadyExists(TocsinError):
    """There is a queue of this name already."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue {queue!r} exists already", f"use store.queues.ensure({queue!r}) if that is fine"
        )
        self.queue = queue
        """The name asked for."""


class QueueNotEmpty(TocsinError):
    """A queue that still has workers or unfinished messages is not deleted. Nothing was
    changed."""

    def __init__(
        self, problem: str, advice: str = "", *, queue: str, workers: int, messages: int
    ) -> None:
        super().__init__(problem, advice)
        self.queue = queue
        """Name of the queue."""
        self.workers = workers
        """How many workers it has that are not stopped."""
        self.messages = messages
        """How many unfinished messages it has: ready, delayed or leased."""


class QueueBusy(TocsinError):
    """A queue is not deleted, since transactions that use it did not end for ten
    seconds. Nothing was changed; try again."""

    def __init__(self, problem: str, advice: str = "", *, queue: str) -> None:
        super().__init__(problem, advice)
        self.queue = queue
        """Name of the queue."""


class PayloadInvalid(TocsinError, ValueError):
    """A payload (or headers) that JSONB cannot hold, or a payload that breaks a rule of
    its queue. Nothing was enqueued."""

    def __init__(self, path: str, reason: str, index: int | None = None) -> None:
        where = f"payload {index}, at {path}" if index is not None else f"payload, at {path}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        """Where in the payload, as in ``$.items[3].when``."""
        self.reason = reason
        """What is wrong there."""
        self.index = index
        """Which payload of a batch, counted from 0; None for a single one."""


class PayloadUnreadable(TocsinError, ValueError):
    """A payload, or headers, that PostgreSQL can hold and Python cannot: it was
    enqueued by SQL. The message is as it was.

    A handler that asks for the payload fails with it, and the message becomes a dead
    letter in the end.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Python cannot read this JSON: {reason}",
            "limit what is enqueued by the queue's rules, such as max_depth",
        )
        self.reason = reason
        """What Python's parser says."""


def describe_path(steps: Iterable[str | int]) -> str:
    """Return a path into a payload for people, such as ``$.items[3].when``."""
    return "$" + "".join(
        f".{s}" if isinstance(s, str) and s.isidentifier() else f"[{s!r}]" for s in steps
    )


class PayloadTooLarge(TocsinError, ValueError):
    """A payload, or headers, larger than its queue allows. Nothing was enqueued."""

    def __init__(
        self, problem: str, advice: str = "", *, actual: int, maximum: int, index: int | None
    ) -> None:
        super().__init__(problem, advice)
        self.actual = actual
        """Its size in bytes of JSON text."""
        self.maximum = maximum
        """The queue's limit in bytes."""
        self.index = index
        """Which payload of a batch, counted from 0; None for a single message, and for
        headers."""


class PermissionDenied(TocsinError):
    """The role that is logged in may not do this. Nothing was changed.

    Have it made a member of one of Tocsin's roles, or have it granted the queue
    (``store.queues.grant``).
    """

    def __init__(self, problem: str, advice: str = "", *, role: str | None) -> None:
        super().__init__(problem, advice)
        self.role = role
        """The role; None when PostgreSQL itself refused, without naming it."""


class RateLimited(TocsinError):
    """The producer has reached its rate limit. Nothing was enqueued."""

    def __init__(self, per_second: float, retry_after: float) -> None:
        super().__init__(
            f"this producer is limited to {per_second:g} messages per second",
            f"try again in {retry_after:.3f} s, or have it wait with RateLimit(..., wait=True)",
        )
        self.per_second = per_second
        """Its limit."""
        self.retry_after = retry_after
        """Seconds after which the same call is admitted, unless others of this producer
        come before it."""


class RoleNotFound(TocsinError):
    """There is no database role of this name."""

    def __init__(self, problem: str, advice: str = "", *, role: str) -> None:
        super().__init__(problem, advice)
        self.role = role
        """The name asked for."""


class MessageNotFound(TocsinError):
    """There is no message of this id, or none in the state that was asked for, or no
    unfinished one of this key."""

    def __init__(
        self,
        problem: str,
        advice: str = "",
        *,
        message_id: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(
            problem, advice or "it may have been deleted, purged or replayed since it was listed"
        )
        self.message_id = message_id
        """The id asked for; None where a key was."""
        self.key = key
        """The key asked for; None where an id was."""


class MessageNotWaiting(TocsinError):
    """A message that cannot be changed, since a worker holds it or it is finished.
    Nothing was changed."""

    def __init__(self, problem: str, advice: str = "", *, message_id: int, state: str) -> None:
        super().__init__(problem, advice)
        self.message_id = message_id
        """The message's id."""
        self.state = state
        """Its state: ``"leased"``, ``"dead"`` or ``"archived"``; ``"ready"`` or
        ``"delayed"`` when it changed at the same moment."""


class KeyTaken(TocsinError):
    """Dead letters that cannot be replayed, since other unfinished messages have their
    keys by now. None was replayed."""

    def __init__(self, problem: str, advice: str = "", *, ids: tuple[int, ...]) -> None:
        super().__init__(problem, advice)
        self.ids = ids
        """Ids of the dead letters whose keys are taken."""


class SchemaMissing(TocsinError):
    """Tocsin is not installed in this schema of this database."""

    def __init__(self, schema: str) -> None:
        super().__init__(
            f"Tocsin is not installed in schema {schema!r} of this database",
            "run `tocsin admin install` or await store.install()",
        )
        self.schema = schema
        """Name of the schema."""


class SchemaOutdated(TocsinError):
    """What is installed is older than this version of Tocsin needs."""

    def __init__(self, schema: str, found: int, needed: int) -> None:
        lag = f"has version {found} of the SQL contract, this package needs {needed}"
        if found == needed:
            lag = f"has another state of version {found} of the SQL contract than this package"
        super().__init__(
            f"schema {schema!r} {lag}", "run `tocsin admin install` or await store.install()"
        )
        self.schema = schema
        """Name of the schema."""
        self.found = found
        """Version of the SQL contract that is installed."""
        self.needed = needed
        """Version that this package brings."""


class SchemaNewer(TocsinError):
    """What is installed is newer than this version of Tocsin, and does not serve it, or
    was to be changed by it.

    `Store.install`, `Store.verify` and the registration of producers and consumers
    raise it.
    """

    def __init__(self, schema: str, found: int, known: int, serves: int) -> None:
        super().__init__(
            f"schema {schema!r} has version {found} of the SQL contract; this package is older and"
            f" has version {known}, and the schema serves packages from version {serves} on",
            "upgrade the package tocsin here; the schema is left as it is",
        )
        self.schema = schema
        """Name of the schema."""
        self.found = found
        """Version of the SQL contract that is installed."""
        self.known = known
        """Version that this package brings."""
        self.serves = serves
        """Oldest version of packages that the schema serves."""


class SchemaBusy(TocsinError):
    """The schema is not installed, upgraded or removed: transactions kept its tables
    locked for half a minute. Nothing was changed."""

    def __init__(self, schema: str) -> None:
        super().__init__(
            f"schema {schema!r} is in use by transactions that do not end",
            "try again when they have ended; pg_stat_activity shows which sessions have been in a"
            " transaction for long",
        )
        self.schema = schema
        """Name of the schema."""


DEPENDENTS_ADVICE = "Drop what depends on it, upgrade, and create it again."


class DependentObjects(TocsinError):
    """The schema is not upgraded: objects outside of it depend on functions or types
    that the new version changes.

    Nothing was changed.
    """

    def __init__(self, problem: str, advice: str = "", *, objects: tuple[str, ...]) -> None:
        super().__init__(problem, advice)
        self.objects = objects
        """The objects as PostgreSQL describes them, such as ``view public.backlog``;
        empty when only the text names them."""


class ConnectionLost(TocsinError):
    """The database cannot be reached, cannot work at present, or went away while a
    statement was under way.

    It cannot work while it is read-only, full, or without connections to give, and when
    it ends a statement or a session by a timeout or a command. A statement that was
    under way may or may not have taken effect. Try again: Tocsin has dropped what is of
    no use.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"PostgreSQL at {address} is not available: {reason}")
        self.address = address
        """Host and port, or socket, that was tried."""
        self.reason = reason
        """What the server or the system said, in one line, without secrets."""


class CharacterUnsupported(TocsinError, ValueError):
    """A text has a character that the database's encoding does not have. Nothing was
    changed."""

    def __init__(self, character: str, encoding: str) -> None:
        super().__init__(
            f"the database's encoding {encoding} has no character {character!a}",
            "leave it out, or use a database whose encoding is UTF8",
        )
        self.character = character
        """The character."""
        self.encoding = encoding
        """PostgreSQL's name of the encoding."""


class ConfigError(TocsinError, ValueError):
    """A setting that cannot be understood."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        """Where the value came from, such as an argument's name."""
        self.reason = reason
        """What is wrong with it."""
