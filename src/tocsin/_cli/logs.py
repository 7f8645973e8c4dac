"""Write the log of a worker's process to standard error, as lines or JSON objects.

While a handler runs, its log records have the fields of its message, and those of a
task's function also the task: each call has its own context (``contextvars``), also in
a thread. Tocsin's own records about a message have the same fields.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from tocsin import Message, current_job

from .render import printable

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


_current: ContextVar[dict[str, object] | None] = ContextVar("tocsin_message")


@contextmanager
def concerning(work: Message | list[Message]) -> Iterator[None]:
    """Add the fields of a message to log records in the block.

    Records about a batch have only the queue, because a batch has no single message.
    """
    if isinstance(work, Message):
        fields: dict[str, object] = {
            "queue": work.queue,
            "message_id": work.id,
            "delivery": work.read_ct,
        }
    else:
        fields = {"queue": work[0].queue}
    token = _current.set(fields)
    try:
        yield
    finally:
        _current.reset(token)


def set_up(level: str, format: str) -> None:
    """Write the log of this process to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if format == "json" else _TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of the message that a record is about."""
    own = {
        name: getattr(record, name)
        for name in ("queue", "message_id", "delivery")
        if hasattr(record, name)
    }
    return own or _current.get(None) or _fields_of_job()


def _fields_of_job() -> dict[str, object]:
    try:
        job = current_job()
    except LookupError:
        return {}
    return {
        "queue": job.message.queue,
        "message_id": job.id,
        "delivery": job.attempt,
        "task": job.task,
    }


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = (
            f"{time} {record.levelname:<7} {record.name}:"
            f" {printable(record.getMessage())}{printable(fields)}"
        )
        return line + _trace(self, record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if trace := _trace(self, record):
            entry["traceback"] = trace.strip("\n")
        return json.dumps(entry, ensure_ascii=False)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return (
        "\n" + printable(formatter.formatException(record.exc_info), lines=True)
        if record.exc_info
        else ""
    )
