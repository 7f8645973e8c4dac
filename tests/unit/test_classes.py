"""The classes of the queue's core have one duty each, which shows in their size.

A class has at most 150 lines, and at most 8 attributes: fields of attrs, and what its
methods assign to ``self``. A value may have more attributes, since it only holds data.
It is a class under ``@attrs.frozen``, a ``NamedTuple`` or a ``TypedDict``, without a
coroutine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "tocsin" / "_queue"
MOST_LINES = 150
MOST_ATTRIBUTES = 8


def classes(source: str) -> Iterator[ast.ClassDef]:
    """The classes of a module, with those inside of functions and classes."""
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))


def lines(node: ast.ClassDef) -> int:
    """The number of lines from the class's name to its end."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def decorators(node: ast.ClassDef) -> list[str]:
    """The names of the class's decorators, without their arguments."""
    return [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]


def attributes(node: ast.ClassDef) -> set[str]:
    """The names of the class's own instance attributes."""
    fields = {
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    }
    return fields | {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Store)
        and isinstance(part.value, ast.Name)
        and part.value.id == "self"
    }


def is_value(node: ast.ClassDef) -> bool:
    """Whether the class only holds data."""
    bases = {ast.unparse(base) for base in node.bases}
    holds_data = "attrs.frozen" in decorators(node) or bases & {"NamedTuple", "TypedDict"}
    return bool(holds_data) and not any(
        isinstance(part, ast.AsyncFunctionDef) for part in node.body
    )


def too_large(source: str) -> list[str]:
    """The classes of a module with more than one duty, by their size."""
    return [
        f"{node.name}: {lines(node)} lines, {len(attributes(node))} attributes"
        for node in classes(source)
        if lines(node) > MOST_LINES
        or (len(attributes(node)) > MOST_ATTRIBUTES and not is_value(node))
    ]


def test_no_class_is_too_large() -> None:
    sources = {str(p.relative_to(SOURCE)): p.read_text("utf-8") for p in SOURCE.rglob("*.py")}
    assert len(sources) > 50
    assert sum(len(list(classes(source))) for source in sources.values()) > 80
    found = {name: too_large(source) for name, source in sources.items()}
    assert {name: large for name, large in found.items() if large} == {}


FIELDS = "".join(f"    a{n}: int\n" for n in range(9))
ASSIGNED = "".join(f"        self.a{n} = {n}\n" for n in range(9))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class A:\n" + "    x = 1\n" * 150, ["A: 151 lines, 0 attributes"]),
        ("class A:\n" + "    x = 1\n" * 149, []),
        (f"@attrs.frozen\nclass A:\n{FIELDS * 17}", ["A: 154 lines, 9 attributes"]),
        (f"class A:\n    def f(self):\n{ASSIGNED}", ["A: 11 lines, 9 attributes"]),
        (f"@attrs.define(eq=False)\nclass A:\n{FIELDS}", ["A: 10 lines, 9 attributes"]),
        (f"@attrs.frozen(kw_only=True)\nclass A:\n{FIELDS}    def f(self): ...\n", []),
        (
            f"@attrs.frozen\nclass A:\n{FIELDS}    async def f(self): ...\n",
            ["A: 11 lines, 9 attributes"],
        ),
        (f"class A(TypedDict, total=False):\n{FIELDS}", []),
        ("class A:\n    def f(self):\n        self.a = self.b.c = self.a + 1\n", []),
        (
            "@attrs.define\nclass A:\n    x: ClassVar[int]\n" + FIELDS.split("\n", 1)[1],
            [],
        ),
    ],
)
def test_a_class_that_is_too_large_is_found(source: str, found: list[str]) -> None:
    assert too_large(source) == found
