"""A sweep runs each case, and few of them in the quick suite."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sweeps import sweep


def slow(mark: pytest.MarkDecorator) -> dict[Any, bool]:
    """Whether each case has the mark `slow`."""
    return {case.values: [m.name for m in case.marks] == ["slow"] for case in mark.args[1]}


def test_each_case_is_there_and_the_first_are_quick() -> None:
    assert slow(sweep("x", ["a", "b", "c"], quick=2)) == {
        ("a",): False,
        ("b",): False,
        ("c",): True,
    }
    assert slow(sweep(("x", "y"), [(1, 2), (3, 4)], quick=1)) == {(1, 2): False, (3, 4): True}


def test_the_quick_cases_can_be_named() -> None:
    assert slow(sweep("x", ["a", "b"], quick=["b"])) == {("a",): True, ("b",): False}
    with pytest.raises(AssertionError):
        sweep("x", ["a", "b"], quick=["c"])
    with pytest.raises(AssertionError):
        sweep("x", [], quick=1)
