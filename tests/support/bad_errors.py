"""Exceptions that cannot be printed."""

from __future__ import annotations


class Unspeakable(Exception):
    """Its text and its description cannot be had."""

    def __str__(self) -> str:
        raise LookupError("from __str__")

    __repr__ = __str__


class BadSyntax(SyntaxError):
    """What `traceback` cannot format."""

    def __init__(self) -> None:
        super().__init__("bad", ("file", 1, 1, object()))  # type: ignore[arg-type]
