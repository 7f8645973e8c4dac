"""The function of a task: whether it can be one, where it runs, and its name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Literal


def check_function(function: object, *, named: bool) -> None:
    """Refuse what a worker could not call by its name."""
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"a task is a function that is defined with def or async def, not {function!r}"
        )
    where, _, _ = function.__qualname__.rpartition(".")
    label = f"{function.__module__}.{function.__qualname__}"
    if function.__name__ == "<lambda>":
        raise TypeError("a lambda has no name by which a worker finds it; define a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{label} is a generator function: a call runs none of its code; a task must not yield"
        )
    if function.__closure__ and not named:
        names = ", ".join(function.__code__.co_freevars)
        raise TypeError(
            f"{label} is a closure over {names}, which a worker does not have; pass them as"
            " arguments of the job, define the function at the top of its module, or give a name"
        )
    if where and not where.endswith("<locals>"):
        raise TypeError(
            f"{label} is defined in a class; a job has no instance to call it on. Define a function"
            " at the top of its module"
        )
    if where and not named:
        raise TypeError(
            f"{label} is defined in another function, so a worker cannot import it; define it at"
            " the top of its module, or give a name"
        )


def check_place(
    function: Callable[..., object], runs: Literal["thread", "process"]
) -> Literal["task", "thread", "process"]:
    """Return where a function runs, if it can."""
    if runs not in ("thread", "process"):
        raise ValueError(f"runs must be 'thread' or 'process', not {runs!r}")
    label = f"{function.__module__}.{function.__qualname__}"
    if inspect.iscoroutinefunction(function):
        if runs == "process":
            raise TypeError(f"{label} is async; a function that runs in a process is a plain one")
        return "task"
    if runs == "process" and "<locals>" in function.__qualname__:
        raise TypeError(
            f"{label} is defined in another function, so another process cannot import it; define"
            " it at the top of its module"
        )
    return runs


def find_name(function: Callable[..., object]) -> str:
    """Return the module and name of a function, as other processes import it."""
    module = function.__module__
    if module in ("__main__", "__mp_main__"):  # the second one in another process
        main = sys.modules[module]
        spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif path is not None:
            module = Path(path).stem
    return f"{module}.{function.__qualname__}"


def find_description(function: Callable[..., object]) -> str:
    text = inspect.getdoc(function)
    return text.splitlines()[0] if text else ""
