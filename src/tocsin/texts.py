"""Text towards the database: PostgreSQL's has neither the character NUL nor a surrogate without its partner."""

from __future__ import annotations

from .errors import QueueNotFound


def check_text(value: str, name: str) -> str:
    """Return a text that PostgreSQL can hold; raises `TypeError` or `ValueError` naming the argument for what is none."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}")
    if not _is_storable(value):
        raise ValueError(f"{name} must not contain the character NUL or a lone surrogate, which no text in PostgreSQL has: {value!a}")
    return value


def check_queue(queue: str) -> str:
    """Return the name of a queue that may exist; raises `QueueNotFound` for what no queue can be called, `TypeError` for no text."""
    if not isinstance(queue, str):
        raise TypeError(f"queue must be the name of a queue, not {type(queue).__name__}")
    if not _is_storable(queue):
        raise QueueNotFound(queue)
    return queue


def _is_storable(value: str) -> bool:
    if "\0" in value:
        return False
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True
