"""A nursery for use inside public coroutines, whose errors come out as they went in.

Trio wraps every error that leaves a nursery in an `ExceptionGroup`, even a single one,
because a caller cannot know how many tasks ran inside. A nursery that is a detail of a
function should not show: ``except psycopg.OperationalError`` should work whether or not
the function needs a helper task. ``strict_exception_groups=False`` would do nearly
this, but trio deprecates it. So the nursery here undoes the wrapping
when there is nothing to group: one cause comes out bare, two and more stay a group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_nursery_bare"]


@asynccontextmanager
async def open_nursery_bare() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that raises a single error bare instead of in an `ExceptionGroup`.

    `trio.Cancelled` does not count: it is what happened to the other tasks because of
    the error. With several errors the group is raised as it is, and a group that the
    block or a task has raised itself stays one.

    Cancellation:
        As in `trio.open_nursery`: all tasks have ended when the block is left.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        cause = _single_cause(group)
        if cause is group:
            raise
    else:
        return
    # Raise outside the except clause and restore the context, so that the group does
    # not appear in the traceback.
    context = cause.__context__
    try:
        raise cause
    finally:
        cause.__context__ = context
        del cause, context


def _single_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    errors = [e for e in group.exceptions if not _is_cancellation(e)]
    if len(errors) == 1:
        return errors[0]  # a group that the block or a task has raised is not unpacked
    # If all errors are cancellations, one Cancelled represents all of them.
    return group if errors else _first_leaf(group)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, trio.Cancelled)


def _first_leaf(error: BaseException) -> BaseException:
    return _first_leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
