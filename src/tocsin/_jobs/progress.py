"""The progress of a job: what its function reports, and what the row has of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, TypeAlias

import attrs
import trio

from tocsin._queue.message import Message, report_progress
from tocsin._queue.payload import decode

MOST_TEXT: Final = 1000
"""The most characters of a report's text that are kept."""

Report: TypeAlias = Callable[[dict[str, Any]], None]
"""Takes a report, as `describe_progress` returns it."""


@attrs.frozen
class Progress:
    """How far a job has come, as its function has reported."""

    done: float
    """How much is done."""
    total: float | None
    """How much there is to do; None: not reported."""
    text: str | None
    """What is being done; None: not reported."""
    at: datetime
    """When the report was written, by the server's clock."""

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None: the total is not known, or is 0."""
        return min(self.done / self.total, 1.0) if self.total else None


def describe_progress(done: float, total: float | None, text: str | None) -> dict[str, Any]:
    """Return a report as a JSON value.

    Raises:
        TypeError: A value has a wrong type.
        ValueError: A number is negative, or not finite.
    """
    report: dict[str, Any] = {"done": _check_number(done, "done")}
    if total is not None:
        report["total"] = _check_number(total, "total")
    if text is not None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        storable = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
        report["text"] = storable[:MOST_TEXT]
    return report


def _check_number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 <= value <= 2**63 or math.isnan(value):
        raise ValueError(f"{name} must be between 0 and 2**63, not {value!r}")
    return value


def read_progress(text: str | None) -> Progress | None:
    """Return the progress that a row has, as JSON text."""
    if text is None:
        return None
    report = decode(text)
    at = datetime.fromisoformat(report["at"])
    return Progress(report["done"], report.get("total"), report.get("text"), at)


class Reporter:
    """Passes on the reports of one attempt from whichever thread they come.

    Reports that come while one waits for the event loop replace it.
    """

    def __init__(self, message: Message) -> None:
        self._message = message
        self._token = trio.lowlevel.current_trio_token()
        self._latest: dict[str, Any] = {}
        self._waiting = False

    def __call__(self, report: dict[str, Any]) -> None:
        """Pass a report on, soon."""
        self._latest = report
        if not self._waiting:
            self._waiting = True
            # a function that was left alone in its thread may outlive the event loop
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._waiting = False  # before the report is read, so that no later one is lost
        report_progress(self._message, json.dumps(self._latest))
