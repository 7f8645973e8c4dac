"""Steps of a cleanup that send a statement."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tocsin._concurrency.grace import Grace
from tocsin.errors import TocsinError

from .error_mapping import TRANSIENT


@contextmanager
def warning_of_failure(
    grace: Grace,
    logger: logging.Logger,
    text: str,
    *args: object,
    errors: tuple[type[Exception], ...] = (TocsinError, *TRANSIENT),
) -> Iterator[None]:
    """Run the block within the grace of a cleanup, and log a warning if it fails.

    Args:
        grace: the grace of the cleanup.
        logger: the logger of the warning.
        text: the warning; its last argument is the error, or that there was no answer.
        args: its other arguments.
        errors: the errors that become a warning.
    """
    problem: object = None
    with grace.scope() as patience:
        try:
            yield
        except errors as error:
            problem = error
    if patience.cancelled_caught:
        problem = "no answer"
    if problem is not None:
        logger.warning(text, *args, problem)
