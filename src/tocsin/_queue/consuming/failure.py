"""What a handler raised: which part of it is the handler's, what becomes of the
message, and the text that is kept.

A handler may raise anything, and its error may be as broken as the handler. So the text
of an error is made with care here, once, and neither the log nor the database sees the
error's own methods. What an error is depends on its type alone, and its attributes are
read with Python's own descriptors: a property of the error's class may raise.
"""

from __future__ import annotations

import math
import traceback
from typing import Literal, cast

import attrs
import trio

from .verdicts import Reject, Retry, Snooze, Verdict

MAX_CHARACTERS = 10_000
"""How much of an error's text and of its traceback is kept."""

MAX_NAMED = 10
"""How many errors of a group are named in its text."""


class Escaped(Exception):
    """Carries what a handler raised and what would mean something else to Python or
    trio further out."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        """What the handler raised."""


@attrs.frozen(eq=False)
class Failure:
    """A call of a handler that did not return."""

    error: BaseException
    """What it raised; of a group with one error, that error."""
    verdict: Literal["handler_failed", "rejected", "snoozed"]
    """What becomes of its messages; see ``tocsin.fail``."""
    delay: float | None
    """Seconds until the next delivery; None: as the queue says."""
    text: str | None
    """The error in one text, for people. None: there is nothing to keep."""
    trace: str | None
    """Its traceback; None: there is nothing to keep."""
    printable: bool
    """Whether Python can print the traceback."""

    @property
    def loggable(self) -> BaseException | None:
        """The error for a log record's ``exc_info``; None when it is no error, or when
        it would break the log."""
        return self.error if self.printable and self.trace is not None else None


@trio.lowlevel.enable_ki_protection
def describe_failure(raised: BaseException) -> Failure:
    """Return what this error means for the messages of the call that raised it."""
    leaves = find_leaves(raised)
    error = leaves[0] if len(leaves) == 1 else raised
    verdict = cast(Verdict, error) if issubclass(type(error), Verdict) else None
    if isinstance(verdict, Snooze):
        return Failure(error, "snoozed", verdict.seconds, None, None, printable=True)
    cause = raised if verdict is None else _find_cause(verdict)
    trace, printable = (None, True) if cause is None else _format(cause)
    if isinstance(verdict, Reject):
        return Failure(
            error, "rejected", None, _storable(_text_of(error) or "rejected"), trace, printable
        )
    text = _storable(describe(error if cause is None else cause))
    return Failure(
        error,
        "handler_failed",
        verdict.after if isinstance(verdict, Retry) else None,
        text,
        trace,
        printable,
    )


@trio.lowlevel.enable_ki_protection
def describe(error: BaseException) -> str:
    """Return an error's type and text in one line; of a group, those of the errors in
    it. Never raises."""
    leaves = find_leaves(error)
    named = [_describe_one(leaf) for leaf in leaves[:MAX_NAMED]]
    if len(leaves) == 1:
        return named[0]
    more = [f"and {len(leaves) - MAX_NAMED} more"] if len(leaves) > MAX_NAMED else []
    return f"{len(leaves)} errors: " + "; ".join(named + more)


def find_leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in a group, or the error itself when it is none."""
    leaves: list[BaseException] = []
    rest = [error]
    while rest:
        next_one = rest.pop()
        if issubclass(type(next_one), BaseExceptionGroup):
            rest += reversed(BaseExceptionGroup.exceptions.__get__(next_one))
        else:
            leaves.append(next_one)
    return leaves


def split(raised: BaseException) -> tuple[list[BaseException], list[BaseException]]:
    """Return the errors in what an async handler raised: its own, and trio's
    cancellation and `KeyboardInterrupt`, which are not.

    A `trio.Cancelled` of a scope that is not around the handler cancels nothing here,
    so it is the handler's own.
    """
    cancelled = trio.current_effective_deadline() == -math.inf
    kinds = (trio.Cancelled, KeyboardInterrupt) if cancelled else (KeyboardInterrupt,)
    leaves = find_leaves(raised)
    return [leaf for leaf in leaves if not issubclass(type(leaf), kinds)], [
        leaf for leaf in leaves if issubclass(type(leaf), kinds)
    ]


def _find_cause(verdict: Verdict) -> BaseException | None:
    """Return the error that a verdict was raised from."""
    if verdict.__cause__ is not None or verdict.__suppress_context__:
        return verdict.__cause__
    return verdict.__context__


def _describe_one(error: BaseException) -> str:
    name = type(error).__name__
    text = _text_of(error)
    if text is None:
        return f"{name} (its text cannot be had)"
    return f"{name}: {text}" if text else name


def _text_of(error: BaseException) -> str | None:
    try:
        return f"{error!s:}"
    except BaseException:  # whatever the error's own method raises, this error is to be told of
        return None


def _format(error: BaseException) -> tuple[str, bool]:
    """Return the traceback, and whether Python could print all of it."""
    try:
        return _storable("".join(traceback.format_exception(error))), True
    except BaseException:
        lines = traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error))
        return _storable("".join([*lines, describe(error), "\n"])), False


def _storable(text: str) -> str:
    """Text that PostgreSQL can store, the end of it if it is long."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[-MAX_CHARACTERS:]
