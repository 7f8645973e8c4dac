"""The text that is kept of a handler's error."""

from __future__ import annotations

from typing import Any

import pytest

import tocsin
from tests.support.bad_errors import BadSyntax, Unspeakable
from tocsin._queue.consuming.failure import MAX_CHARACTERS, describe, describe_failure


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("v"), "ValueError: v"),
        (ValueError(), "ValueError"),
        (ExceptionGroup("g", [ExceptionGroup("h", [ValueError("v")])]), "ValueError: v"),
        (
            ExceptionGroup("g", [ValueError("v"), KeyError("k")]),
            "2 errors: ValueError: v; KeyError: 'k'",
        ),
        (Unspeakable(), "Unspeakable (its text cannot be had)"),
        (
            ExceptionGroup("g", [ValueError(str(n)) for n in range(12)]),
            "12 errors: ValueError: 0; ",
        ),
    ],
)
def test_the_text_names_the_cause(error: BaseException, text: str) -> None:
    assert describe(error).startswith(text)


def test_a_text_that_ends_the_process_ends_nothing() -> None:
    class Deadly(Exception):
        def __str__(self) -> str:
            raise SystemExit

    failure = describe_failure(Deadly())
    assert failure.text == "Deadly (its text cannot be had)"


def test_an_error_that_python_cannot_print_has_a_traceback_all_the_same() -> None:
    failure = describe_failure(BadSyntax())
    assert failure.loggable is None
    assert failure.trace == "BadSyntax: bad (file, line 1)\n"
    assert len(describe_failure(ValueError("x" * 3 * MAX_CHARACTERS)).text or "") == MAX_CHARACTERS


@pytest.mark.parametrize("make", [tocsin.Retry, tocsin.Snooze])
def test_a_verdict_takes_a_duration(make: Any) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        make(-1)
    with pytest.raises(TypeError):
        make("soon")
