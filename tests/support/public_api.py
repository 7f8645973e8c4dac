"""The public names, and what they consist of."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from pydoc import locate

import tocsin
import tocsin.driver
import tocsin.embedded
import tocsin.telemetry

NO_ENTRIES = {"__version__"}

PUBLIC = {
    f"{m.__name__}.{name}"
    for m in (tocsin, tocsin.driver, tocsin.embedded, tocsin.telemetry)
    for name in m.__all__
    if name not in NO_ENTRIES
}
OPTIONS = {"tocsin.BatchOptions", "tocsin.EnqueueOptions", "tocsin.MessageOptions"}
"""The options of a call, which its docstring explains."""
CLASSES = sorted(name for name in PUBLIC - OPTIONS if inspect.isclass(locate(name)))


def members(cls: type) -> Iterator[tuple[str, type]]:
    """The public members of a class that are Tocsin's, each with its class."""
    for owner in inspect.getmro(cls):
        if owner.__module__.startswith("tocsin"):
            for name in {
                **owner.__dict__,
                **inspect.get_annotations(owner),
                **dict.fromkeys(explained_attributes(owner)),
            }:
                if not name.startswith("_"):
                    yield name, owner


@cache
def explained_attributes(cls: type) -> frozenset[str]:
    """The attributes that have a docstring below them, in the class or in its
    ``__init__``."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    (body,) = (
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    bodies = [
        body,
        *(n.body for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"),
    ]
    found: set[str] = set()
    for statements in bodies:
        for statement, after in pairwise(statements):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                targets: Sequence[ast.expr | None] = (
                    statement.targets
                    if isinstance(statement, ast.Assign)
                    else [getattr(statement, "target", None)]
                )
                found |= {
                    getattr(t, "id", "") or getattr(t, "attr", "") for t in targets if t is not None
                }
    return frozenset(name for name in found if not name.startswith("_"))


def functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """The public functions, and the methods that are Tocsin's."""
    for name in sorted(PUBLIC):
        thing = locate(name)
        if inspect.isclass(thing):
            for member, owner in members(thing):
                method = inspect.getattr_static(owner, member, None)
                if inspect.isfunction(method := getattr(method, "__func__", method)):
                    yield f"{owner.__module__}.{owner.__qualname__}.{member}", method
        elif inspect.isfunction(thing):
            yield name, thing


FUNCTIONS = dict(functions())
WAITING = [
    name
    for name, function in FUNCTIONS.items()
    if inspect.iscoroutinefunction(inspect.unwrap(function))
    or inspect.isasyncgenfunction(inspect.unwrap(function))
    or "AsyncContextManager" in str(inspect.signature(function).return_annotation)
]
