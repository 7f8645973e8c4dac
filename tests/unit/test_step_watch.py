"""The instrument that times the steps of handlers."""

from __future__ import annotations

import logging

import pytest
import trio

from tocsin._queue.consuming import step_watch


async def test_a_logging_filter_that_fails_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """trio removes an instrument that raises, and no further call would be noticed that
    waits."""
    monkeypatch.setattr(step_watch, "LONG_STEP", 0.0)
    waits: list[None] = []

    def fail(record: logging.LogRecord) -> bool:
        raise ValueError(record.getMessage())

    step_watch.logger.addFilter(fail)
    try:
        watch = step_watch.StepWatch()
        with watch.watching(lambda messages: "handler", lambda: waits.append(None)) as watched:
            for _ in range(3):
                watched.calling = True
                await trio.lowlevel.checkpoint()
    finally:
        step_watch.logger.removeFilter(fail)
    assert len(waits) == 3
