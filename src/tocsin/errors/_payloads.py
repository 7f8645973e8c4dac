"""Errors of payloads and of text."""

from __future__ import annotations

from collections.abc import Iterable

from ._base import TocsinError

__all__ = [
    "CharacterUnsupported",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "describe_path",
]


class PayloadInvalid(TocsinError, ValueError):
    """A payload that JSONB cannot hold or that breaks a rule of its queue.

    Headers that JSONB cannot hold raise it, too. Nothing was enqueued.
    """

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
    """A payload, or headers, that PostgreSQL can hold and Python cannot.

    It was enqueued by SQL, and the message is as it was. A handler that asks for the
    payload fails with this error, and the message becomes a dead letter in the end.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Python cannot read this JSON: {reason}",
            "limit payloads with the queue's rules, such as max_depth",
        )
        self.reason = reason
        """What Python's parser says."""


class PayloadTooLarge(TocsinError, ValueError):
    """A payload, or headers, larger than its queue allows.

    Nothing was enqueued.
    """

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


class CharacterUnsupported(TocsinError, ValueError):
    """A text with a character that the database's encoding does not have.

    Nothing was changed.
    """

    def __init__(self, character: str, encoding: str) -> None:
        super().__init__(
            f"the database's encoding {encoding} has no character {character!a}",
            "leave it out, or use a database whose encoding is UTF8",
        )
        self.character = character
        """The character."""
        self.encoding = encoding
        """PostgreSQL's name of the encoding."""


def describe_path(steps: Iterable[str | int]) -> str:
    """Return a path into a payload for people, such as ``$.items[3].when``."""
    return "$" + "".join(
        f".{s}" if isinstance(s, str) and s.isidentifier() else f"[{s!r}]" for s in steps
    )
