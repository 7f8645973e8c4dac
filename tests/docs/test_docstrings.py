"""Docstrings have sections that say what is raised, and what a cancellation leaves."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from tests.support.public_api import FUNCTIONS, WAITING

COROUTINES = list(WAITING)


@pytest.mark.parametrize("name", COROUTINES)
def test_a_public_coroutine_has_a_section_about_its_cancellation(name: str) -> None:
    assert len(COROUTINES) > 70
    explained = inspect.getdoc(FUNCTIONS[name]) or ""
    assert re.search(r"^Cancellation:\n {4}\S", explained, re.M), explained


ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
FILES = sorted(
    path for folder in ("src", "bench", "tools") for path in (ROOT / folder).rglob("*.py")
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
IN_PROSE = re.compile(r"\b(Raises\s|raises? `\w*(Error|Exception)`|Cancelled, )")
"""Errors and cancellation told in running text. They have sections of their own."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_errors_and_cancellation_stand_in_sections(path: Path) -> None:
    assert len(FILES) > 100
    texts = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, DOCUMENTED)
    ]
    assert [text for text in texts if IN_PROSE.search(text)] == []


@pytest.mark.parametrize(
    "text", ["Close it. Raises OSError.", "Read; raises `ValueError`.", "Cancelled, it is closed."]
)
def test_errors_in_running_text_are_found(text: str) -> None:
    assert IN_PROSE.search(text)
