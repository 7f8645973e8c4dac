"""Load what the command line names: a handler, ``module:function``, or tasks.

The working directory is on the import path.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from tocsin._jobs.definition import Call
from tocsin._jobs.task import Task
from tocsin._queue.consuming.handler_kind import is_async_handler
from tocsin._queue.consuming.handlers import check_handler

from .logs import concerning


def load(name: str) -> Callable[[Any], Any]:
    """Return the handler of this name, with its message in its log records.

    Raises:
        click.UsageError: There is no such handler; the text says why.
    """
    context = click.get_current_context()
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise click.UsageError(f"{name!r} is not a handler; expected module:function", context)
    handler = _import(name)
    if not callable(handler):
        raise click.UsageError(
            f"{name} is a {type(handler).__name__}, not a function of one argument", context
        )
    try:
        check_handler(handler)
    except TypeError as error:
        raise click.UsageError(str(error), context) from None
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        raise click.UsageError(
            f"{name} is not a function of one argument, the message", context
        ) from None
    except ValueError:  # some builtins have no signature
        pass
    return _logging(handler)


def load_tasks(names: Sequence[str]) -> list[Task[..., Any]]:
    """Return the tasks of these names: ``module`` for all of a module, ``module:task``.

    Raises:
        click.UsageError: There is no such task; the text says why.
    """
    tasks: list[Task[..., Any]] = []
    for name in names:
        found = _import(name)
        if ":" not in name:
            of_module = [value for value in vars(found).values() if isinstance(value, Task)]
            if not of_module:
                raise click.UsageError(f"module {name} has no tasks", click.get_current_context())
            tasks += of_module
        elif isinstance(found, Task):
            tasks.append(found)
        else:
            raise click.UsageError(
                f"{name} is not a task; put @tocsin.task before it", click.get_current_context()
            )
    return list(dict.fromkeys(tasks))


def make_call(
    tasks: Sequence[str], name: str, arguments: Any, options: Mapping[str, Any]
) -> Call[Any]:
    """Return a call of the task of this name, with arguments that are a JSON value.

    Args:
        tasks: Where to look for the task, as for `load_tasks`.

    Raises:
        click.UsageError: There is no such task; the text says why.
        ArgumentsInvalid: The function does not take these arguments.
    """
    loaded = {task.name: task for task in load_tasks(tasks)}
    if name not in loaded:
        raise click.UsageError(
            f"there is no task {name!r} in {', '.join(sorted(loaded))}", click.get_current_context()
        )
    values = loaded[name].definition.signature.read_arguments(arguments)
    return loaded[name].using(**options).call(**values)


def _import(name: str) -> Any:
    """Return the module, or what is named in it after a colon."""
    module_name, _, path = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
        return functools.reduce(getattr, path.split("."), module) if path else module
    except (Exception, SystemExit) as error:  # the module's own code may raise any of these
        raise click.UsageError(
            f"cannot import {name}: {type(error).__name__}: {error}", click.get_current_context()
        ) from error


def _logging(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if is_async_handler(handler):

        @functools.wraps(handler)
        async def call(work: Any) -> object:
            with concerning(work):
                return await handler(work)

    else:

        @functools.wraps(handler)
        def call(work: Any) -> object:
            with concerning(work):
                return handler(work)  # a coroutine that is returned here has not run

    return call
