"""Load handlers that the command line names: ``module:function``.

The working directory is on the import path.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import click

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
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        handler = functools.reduce(getattr, path.split("."), importlib.import_module(module_name))
    except (Exception, SystemExit) as error:  # the module's own code may raise any of these
        raise click.UsageError(
            f"cannot import {name}: {type(error).__name__}: {error}", context
        ) from error
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
