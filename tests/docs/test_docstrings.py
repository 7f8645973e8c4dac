"""Docstrings of public coroutines have a section that says what a cancellation leaves."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.support.public_api import FUNCTIONS, WAITING

COROUTINES = list(WAITING)


@pytest.mark.parametrize("name", COROUTINES)
def test_a_public_coroutine_has_a_section_about_its_cancellation(name: str) -> None:
    assert len(COROUTINES) > 70
    explained = inspect.getdoc(FUNCTIONS[name]) or ""
    assert re.search(r"^Cancellation:\n {4}\S", explained, re.M), explained
