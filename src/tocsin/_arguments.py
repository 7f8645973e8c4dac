"""Checks of what callers pass: texts, names, keys, ids, counts.

PostgreSQL's text has neither the character NUL nor a lone surrogate.
"""

from __future__ import annotations

from .errors import QueueNotFound

MAX_KEY = 1024
"""Most bytes of a unique key; an index takes somewhat more."""


def check_text(value: str, name: str) -> str:
    """Return a text that PostgreSQL can hold.

    Args:
        name: The argument that an error names.

    Raises:
        TypeError: The value is not a string.
        ValueError: The text has a character that PostgreSQL's text has not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}")
    if not _is_storable(value):
        raise ValueError(
            f"{name} must not contain the character NUL or a lone surrogate, which no text in"
            f" PostgreSQL has: {value!a}"
        )
    return value


def check_worker_name(name: str | None) -> str | None:
    """Return the name of a worker; None: it has none of its own.

    Raises:
        TypeError: The name is not a string.
        ValueError: The name is empty, or PostgreSQL's text cannot hold it.
    """
    if name == "":
        raise ValueError("name must not be empty")
    return None if name is None else check_text(name, "name")


def check_queue(queue: str) -> str:
    """Return the name of a queue that may exist.

    Raises:
        TypeError: The name is not a string.
        QueueNotFound: No queue can have this name.
    """
    if not isinstance(queue, str):
        raise TypeError(f"queue must be the name of a queue, not {type(queue).__name__}")
    if not _is_storable(queue):
        raise QueueNotFound(queue)
    return queue


def check_priority(value: int) -> int:
    """Return a priority.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The number does not fit into 32 bits.
    """
    _check_integer(value, "priority")
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"priority must fit into 32 bits, not {value}")
    return value


def check_key(value: str | None) -> str | None:
    """Return a unique key; None stays None.

    Raises:
        TypeError: The key is not a string.
        ValueError: The key is too long for an index, or PostgreSQL's text cannot hold
            it.
    """
    if value is not None and len(check_text(value, "key").encode()) > MAX_KEY:
        raise ValueError(
            f"key must be at most {MAX_KEY} bytes, not {len(value.encode())}; use a digest of"
            " a longer key"
        )
    return value


def check_order(value: str) -> str:
    """Return a text by which messages are ordered.

    Raises:
        TypeError: The value is not a string.
        ValueError: The text is too long, or PostgreSQL's text cannot hold it.
    """
    if len(check_text(value, "ordered_by").encode()) > MAX_KEY:
        raise ValueError(f"ordered_by must be at most {MAX_KEY} bytes")
    return value


def check_id(value: int, name: str) -> int:
    """Return an id.

    Args:
        name: The argument that an error names.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The number does not fit into 64 bits.
    """
    _check_integer(value, name)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, not {value}")
    return value


def check_count(value: int, name: str) -> int:
    """Return a positive number that fits into 32 bits.

    Args:
        name: The argument that an error names.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The number is less than 1, or does not fit into 32 bits.
    """
    _check_integer(value, name)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    if value >= 2**31:
        raise ValueError(f"{name} must be less than {2**31}, not {value}")
    return value


def _check_integer(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")


def _is_storable(value: str) -> bool:
    if "\0" in value:
        return False
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True
