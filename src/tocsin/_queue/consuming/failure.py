"""The failure of a handler's call: its errors, its verdict, and the text that is kept.

A handler may raise anything, and its error may be as broken as the handler. So the text
of an error is made here, once, and neither the log nor the database calls the error's
own methods. The kind of an error depends on its type alone, and its attributes are read
with Python's own descriptors: a property of the error's class may raise.
"""

from __future__ import annotations

import math
import traceback
from typing import Literal, cast

import attrs
import trio

from .verdicts import AttemptFailed, FailedInProcess, Reject, Retry, Snooze, Verdict

MAX_CHARACTERS = 10_000
"""The most characters that are kept of an error's text, and of its traceback."""

MAX_NAMED = 10
"""The most errors of a group that its text names."""


class Escaped(Exception):
    """A wrapper for a handler's error on which Python or trio would act."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        """The error that the handler raised."""


@attrs.frozen(eq=False)
class Failure:
    """A call of a handler that did not return."""

    error: BaseException
    """The error that it raised; of a group with one error, that error."""
    verdict: Literal["handler_failed", "timed_out", "rejected", "snoozed"]
    """The code of what is done with its messages; see ``tocsin.fail``."""
    delay: float | None
    """Seconds until the next delivery; None: by the queue's backoff."""
    text: str | None
    """The error in one text, for people. None: there is nothing to keep."""
    trace: str | None
    """Its traceback; None: there is nothing to keep."""
    printable: bool
    """Whether Python can print the traceback."""

    @property
    def loggable(self) -> BaseException | None:
        """The error for a log record's ``exc_info``.

        None when it is not an error, or when it would break the log.
        """
        return self.error if self.printable and self.trace is not None else None


@trio.lowlevel.enable_ki_protection
def describe_failure(raised: BaseException) -> Failure:
    """Return the failure of a call that raised this error."""
    leaves = find_leaves(raised)
    error = leaves[0] if len(leaves) == 1 else raised
    verdict = cast(Verdict, error) if issubclass(type(error), Verdict) else None
    if isinstance(verdict, FailedInProcess):
        outcome, delay, trace = verdict.outcome, verdict.delay, verdict.trace
        return Failure(error, outcome, delay, verdict.text, trace, printable=True)
    if isinstance(verdict, Snooze):
        return Failure(error, "snoozed", verdict.seconds, None, None, printable=True)
    cause = raised if verdict is None else _find_cause(verdict)
    trace, printable = (None, True) if cause is None else _format(cause)
    if isinstance(verdict, Reject):
        return Failure(
            error, "rejected", None, _storable(_text_of(error) or "rejected"), trace, printable
        )
    text = _storable(describe(error if cause is None else cause))
    if isinstance(verdict, AttemptFailed):
        assert cause is not None
        return Failure(cause, verdict.outcome, verdict.delay, text, trace, printable)
    delay = verdict.after if isinstance(verdict, Retry) else None
    return Failure(error, "handler_failed", delay, text, trace, printable)


@trio.lowlevel.enable_ki_protection
def describe(error: BaseException) -> str:
    """Return an error's type and text in one line; for a group, those of its errors.

    Never raises.
    """
    leaves = find_leaves(error)
    named = [_describe_one(leaf) for leaf in leaves[:MAX_NAMED]]
    if len(leaves) == 1:
        return named[0]
    more = [f"and {len(leaves) - MAX_NAMED} more"] if len(leaves) > MAX_NAMED else []
    return f"{len(leaves)} errors: " + "; ".join(named + more)


def find_leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, or the error itself when it is not a group."""
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
    """Return the errors that an async handler raised: its own, and those from outside.

    A cancellation by trio and `KeyboardInterrupt` come from outside. A `trio.Cancelled`
    of a scope that is not around the handler cancels nothing here, so it is the
    handler's own.
    """
    cancelled = trio.current_effective_deadline() == -math.inf
    kinds = (trio.Cancelled, KeyboardInterrupt) if cancelled else (KeyboardInterrupt,)
    leaves = find_leaves(raised)
    return [leaf for leaf in leaves if not issubclass(type(leaf), kinds)], [
        leaf for leaf in leaves if issubclass(type(leaf), kinds)
    ]


def _find_cause(verdict: Verdict) -> BaseException | None:
    """Return the error that a verdict was raised from; None without one."""
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
    except (
        BaseException
    ):  # the error's own method may raise anything, and this error must be reported
        return None


def _format(error: BaseException) -> tuple[str, bool]:
    """Return the traceback, and whether Python can print all of it."""
    try:
        return _storable("".join(traceback.format_exception(error))), True
    except BaseException:
        lines = traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error))
        return _storable("".join([*lines, describe(error), "\n"])), False


def _storable(text: str) -> str:
    """Return text that PostgreSQL can store; of a long text, the end."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[-MAX_CHARACTERS:]
