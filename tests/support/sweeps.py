"""Sweeps over parameters, of which the quick suite runs a few cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def sweep(
    names: str | tuple[str, ...],
    cases: Iterable[Any],
    *,
    quick: int | Collection[Any],
    ids: Callable[[Any], str] | Iterable[str] | None = None,
) -> pytest.MarkDecorator:
    """Run a test with each of these cases, and mark as slow those that the quick suite
    leaves out.

    Args:
        names: One parameter, or a tuple of parameters.
        cases: A value, or a tuple with a value for each parameter.
        quick: The cases that the quick suite runs, or how many of the first.
        ids: As in `pytest.mark.parametrize`.
    """
    cases = list(cases)
    chosen = cases[:quick] if isinstance(quick, int) else list(quick)
    assert chosen
    assert all(case in cases for case in chosen)

    def is_quick(index: int) -> bool:
        return index < quick if isinstance(quick, int) else cases[index] in chosen

    return pytest.mark.parametrize(
        names,
        [
            pytest.param(
                *([case] if isinstance(names, str) else case),
                marks=() if is_quick(index) else pytest.mark.slow,
            )
            for index, case in enumerate(cases)
        ],
        ids=ids,
    )
