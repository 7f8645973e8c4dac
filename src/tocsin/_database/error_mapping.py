"""PostgreSQL's errors as Tocsin's.

Some are an outage, some say that a statement had no effect, and some are a refusal of
Tocsin's own functions.
"""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg

from tocsin.errors import (
    CharacterUnsupported,
    ConfigError,
    ConnectionLost,
    DependentObjects,
    FlowNotFound,
    KeyConflict,
    KeyTaken,
    LimitNotFound,
    MessageNotFound,
    MessageNotWaiting,
    PayloadInvalid,
    PayloadTooLarge,
    PendingMessages,
    PermissionDenied,
    QueueAlreadyExists,
    QueueBusy,
    QueueNotEmpty,
    QueueNotFound,
    RoleNotFound,
    ScheduleNotFound,
    SchemaNewer,
    SchemaOutdated,
    StateTransitionError,
    TaskUnknown,
    WorkerNotFound,
    WorkerStopped,
)
from tocsin.errors._base import join_advice
from tocsin.errors._payloads import describe_path
from tocsin.errors._workers import ProcessDeclaredDead

TRANSIENT = (ConnectionLost, psycopg.OperationalError, psycopg.InternalError)
"""What passes by itself, so that a loop tries again: no connection, a deadlock, a
cancelled statement, a lack of resources, a session whose caches are wrong."""


def is_refusal(error: psycopg.Error) -> bool:
    """Return whether the database refuses certain rows, and will again.

    A constraint or a trigger refuses them, or they are too large for an index.
    """
    refusals = (
        psycopg.DataError,
        psycopg.IntegrityError,
        psycopg.errors.ProgramLimitExceeded,
        psycopg.errors.RaiseException,
    )
    return isinstance(error, refusals)


def translate(error: psycopg.Error, address: str, *, own: bool = True) -> Exception:
    """Return the error of Tocsin's that a psycopg error means.

    It is the psycopg error itself where that means none of Tocsin's.

    Args:
        error: The error of a statement.
        address: The server's address, for a `ConnectionLost`.
        own: Whether the statement and its transaction were Tocsin's. What those of the
            user meet is psycopg's error while the session goes on.
    """
    code = error.sqlstate or ""
    if code.startswith("TC"):
        return _refusal(
            code,
            error.diag.message_primary or "",
            error.diag.message_hint or "",
            json.loads(error.diag.message_detail or "{}"),
        )
    if code == "08P01" and _STATEMENT_POOLING in (error.diag.message_primary or str(error)):
        return ConfigError(
            "dsn",
            "the pooler gives each statement another session of the server; set pool_mode of"
            " PgBouncer to transaction or session",
        )
    if is_connection_loss(error) or (own and is_outage(error)):
        return ConnectionLost(address, _one_line(error))
    # Without a context, the error comes from the statement itself; otherwise the error
    # comes from inside the statement, such as a trigger.
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not error.diag.context:
        return PermissionDenied(
            _one_line(error),
            "use the role of Tocsin's owner, which can also give other roles access",
            role=None,
        )
    if isinstance(error, psycopg.errors.UntranslatableCharacter) and (
        found := _untranslatable(error.diag.message_primary or "")
    ):
        return CharacterUnsupported(*found)
    return error


_READ_ONLY = "25006"
_STATEMENT_POOLING = "statement pooling mode"
"""PgBouncer's words, which it does not translate, where it refuses a transaction."""


def is_connection_loss(error: psycopg.Error) -> bool:
    """Return whether the server could not be reached, or has ended the session."""
    code = error.sqlstate
    if code is None:  # raised by libpq or psycopg, not by the server
        return isinstance(error, psycopg.OperationalError)
    # Class 08: connection exceptions. 28: authentication. 25P03, 25P04, 57P05: the
    # session's timeouts. 57P01 to 57P04: shut down, crashed, starting up, database
    # dropped. 3D000: no such database. 53300: no more connections.
    return code[:2] in ("08", "28") or code in (
        "25P03",
        "25P04",
        "57P01",
        "57P02",
        "57P03",
        "57P04",
        "57P05",
        "3D000",
        "53300",
    )


def is_outage(error: psycopg.Error) -> bool:
    """Return whether the server cannot run a statement of Tocsin's at present.

    It may be able to later.
    """
    # Class 40: rolled back, or the outcome is unknown. 53: no memory, disk or
    # connections. 57: ended by an administrator or a timeout. 55P03: lock timeout.
    code = error.sqlstate or ""
    return (
        is_connection_loss(error)
        or code[:2] in ("40", "53", "57")
        or code in (_READ_ONLY, "55P03")
        or is_undone(error)
    )


def is_lock_timeout(error: ConnectionLost | psycopg.Error) -> bool:
    """Return whether a statement has waited in vain for another transaction's lock.

    The function ``tocsin.limit_lock_wait`` sets the limit.
    """
    return isinstance(error, psycopg.errors.LockNotAvailable) or isinstance(
        error.__cause__, psycopg.errors.LockNotAvailable
    )


def is_undone(error: psycopg.Error) -> bool:
    """Return whether a transaction of one statement has had no effect.

    It may succeed at once when it is sent again.
    """
    # Class 40: a deadlock, or a conflict at a stricter isolation level. 40003, which a
    # proxy may send, says that the outcome is unknown. The last two cases share a code
    # with other errors.
    code, source = error.sqlstate or "", error.diag.source_function
    return (
        (code[:2] == "40" and code != "40003")
        or is_notify_queue_full(error)
        or source == "RevalidateCachedQuery"
    )


def is_replaced(error: psycopg.Error, schema: str) -> bool:
    """Return whether an upgrade has replaced a function that was called.

    The function waited for the upgrade, and then called one that no longer exists. The
    call had no effect, and the next one finds the new functions.

    Args:
        error: The error of the call.
        schema: The schema of the functions.
    """
    missing = (error.diag.message_primary or "").replace('"', "")
    return (
        isinstance(error, psycopg.errors.UndefinedFunction)
        and error.diag.context is not None
        and f" {schema}." in f" {missing}"
    )


def is_notify_queue_full(error: psycopg.Error) -> bool:
    """Return whether PostgreSQL's queue of notifications is full.

    The transaction was not committed because of it.
    """
    return isinstance(error, psycopg.errors.ProgramLimitExceeded) and (
        error.diag.source_file or ""
    ).endswith("async.c")


def is_useless(error: psycopg.Error) -> bool:
    """Return whether the session is of no use after this error.

    A new one may be: on another server, or with other caches.
    """
    code = error.sqlstate or ""
    return (
        code == _READ_ONLY
        or code[:2] == "XX"
        or is_connection_loss(error)
        or error.diag.source_function == "RevalidateCachedQuery"
    )


def is_read_only(error: psycopg.Error, connection: psycopg.BaseConnection[Any]) -> bool:
    """Return whether the server makes each transaction read-only.

    A transaction that the user of this connection has made read-only does not count.

    Args:
        error: The error of the transaction.
        connection: The connection that it came from.
    """
    names = (b"in_hot_standby", b"default_transaction_read_only")
    return error.sqlstate == _READ_ONLY and any(
        connection.pgconn.parameter_status(name) == b"on" for name in names
    )


def _untranslatable(problem: str) -> tuple[str, str] | None:
    """Return a character and the encoding that does not have it.

    PostgreSQL's text has both in any language: the bytes of the character, the encoding
    that has it, and the one that does not.
    """
    found = re.fullmatch(r'[^"]*?((?:0x[0-9a-f]{2} ?)+)[^"]*"UTF8"[^"]*"(\w+)"[^"]*', problem)
    return found and (bytes.fromhex(found[1].replace("0x", "")).decode(errors="replace"), found[2])


def _refusal(code: str, problem: str, hint: str, detail: dict[str, Any]) -> Exception:
    match code:
        case "TC001":
            return QueueNotFound(detail["queue"])
        case "TC002":
            return QueueAlreadyExists(detail["queue"])
        case "TC003":
            return PayloadTooLarge(
                problem,
                hint,
                actual=detail["actual"],
                maximum=detail["maximum"],
                index=detail["index"],
            )
        case "TC004":
            return WorkerNotFound(problem, hint, worker_id=detail["worker_id"])
        case "TC005" | "TC006":
            kind = StateTransitionError if code == "TC005" else WorkerStopped
            return kind(
                problem,
                hint,
                from_=detail["from"],
                to=detail["to"],
                code=detail["code"],
                reason=detail["reason"],
                worker_id=detail["worker_id"],
                retry_after=detail.get("retry_after"),
            )
        case "TC007":
            return PendingMessages(
                problem, hint, count=detail["count"], worker_id=detail["worker_id"]
            )
        case "TC008":
            return ProcessDeclaredDead(problem)
        case "TC009":
            return PayloadInvalid(describe_path(detail["path"]), detail["reason"], detail["index"])
        case "TC010":
            return QueueNotEmpty(
                problem,
                hint,
                queue=detail["queue"],
                workers=detail["workers"],
                messages=detail["messages"],
            )
        case "TC011":
            return QueueBusy(problem, hint, queue=detail["queue"])
        case "TC012":
            return DependentObjects(problem, hint, objects=tuple(detail["objects"]))
        case "TC014":
            return KeyTaken(problem, hint, ids=tuple(detail["ids"]))
        case "TC015":
            return MessageNotWaiting(
                problem, hint, message_id=detail["message_id"], state=detail["state"]
            )
        case "TC016":
            return MessageNotFound(
                problem, hint, message_id=detail["message_id"], key=detail["key"]
            )
        case "TC017":
            schema, found, known = detail["schema"], detail["found"], detail["known"]
            if known > found:
                return SchemaOutdated(schema, found, known)
            return SchemaNewer(schema, found, known, detail["serves"])
        case "TC022":
            return ValueError(join_advice(problem, hint))
        case "TC023":
            return RoleNotFound(problem, hint, role=detail["role"])
        case "TC030":
            return PermissionDenied(problem, hint, role=detail["role"])
        case "TC040":
            return KeyConflict(
                problem,
                hint,
                key=detail["key"],
                message_id=detail["message_id"],
                task=detail["task"],
            )
        case "TC041":
            return TaskUnknown(detail["task"])
        case "TC043":
            return FlowNotFound(detail["flow_id"])
        case "TC046":
            return ScheduleNotFound(detail["schedule"])
        case "TC047":
            return LimitNotFound(detail["limit"])
    raise AssertionError(f"the schema refused with an unknown code {code}: {problem}")


def _one_line(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error)
    return " ".join(text.split()) or type(error).__name__
