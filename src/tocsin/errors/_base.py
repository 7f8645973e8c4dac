"""The base of the errors, and what a caller has set wrong."""

from __future__ import annotations

__all__ = ["ConfigError", "TocsinError", "join_advice"]


class TocsinError(Exception):
    """The base of all errors that Tocsin raises on purpose.

    The text says what is wrong, and what a program can do about it.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(join_advice(problem, advice))
        self.problem = problem
        """The problem without the advice. The command line adds advice of its own."""


def join_advice(problem: str, advice: str) -> str:
    """Return a problem with what to do about it, as one text."""
    whole_sentence = advice.endswith(".")
    return f"{problem}{'. ' if whole_sentence else '; '}{advice}" if advice else problem


class ConfigError(TocsinError, ValueError):
    """A setting that cannot be understood."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        """Where the value came from, such as an argument's name."""
        self.reason = reason
        """What is wrong with it."""
