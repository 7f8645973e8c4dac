"""Ctrl-C strikes code of the program, not a task of Tocsin's own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "tocsin"
PROGRAMS = ("_cli", "_demo")
"""They handle signals themselves."""

TREES = {
    path.relative_to(SOURCES): ast.parse(path.read_text("utf-8"))
    for path in sorted(SOURCES.rglob("*.py"))
    if path.relative_to(SOURCES).parts[0] not in PROGRAMS
}


def targets() -> Iterator[tuple[Path, ast.expr]]:
    """What is started in a nursery, with the file that starts it."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("start_soon", "start")
                and ast.unparse(node.func.value).endswith("nursery")
            ):
                yield path, node.args[0]


def functions(tree: ast.AST, name: str) -> list[ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef) and node.name == name
    ]


def resolve(path: Path, target: ast.expr) -> list[ast.AsyncFunctionDef]:
    """Find the coroutine: in the file, or in the class whose name ends as that of the
    attribute does."""
    if isinstance(target, ast.Name):
        return functions(TREES[path], target.id)
    assert isinstance(target, ast.Attribute), ast.unparse(target)
    owner = ast.unparse(target.value)
    if owner == "self":
        return functions(TREES[path], target.attr)
    kind = owner.rpartition(".")[2].rpartition("_")[2]
    return [
        function
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.lower().endswith(kind)
        for function in functions(node, target.attr)
    ]


def is_protected(function: ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(d).endswith("enable_ki_protection") for d in function.decorator_list)


TASKS = list(targets())


@pytest.mark.parametrize(
    ("path", "target"), TASKS, ids=[f"{path}:{ast.unparse(target)}" for path, target in TASKS]
)
def test_each_task_is_protected_from_control_c(path: Path, target: ast.expr) -> None:
    assert len(TASKS) > 10
    found = resolve(path, target)
    assert found
    assert all(is_protected(function) for function in found)
