"""The names of the loggers are public: the guide lists those that the code uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tocsin

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_the_guide_lists_the_loggers_of_the_code() -> None:
    used = {
        name
        for path in SOURCES
        for name in re.findall(r"getLogger\((.*?)\)", path.read_text("utf-8"))
    }
    guide = (ROOT / "docs" / "guides" / "operations.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(tocsin\.\w+)` \|", guide, re.M))
    assert used == {f'"{name}"' for name in listed}


async def test_a_failed_delivery_is_a_record_of_the_handlers_logger(
    store: tocsin.Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await store.produce("q", 1)

    async def fail(message: tocsin.Message) -> None:
        raise ValueError("no good")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(fail, once=True)
    (record,) = [r for r in caplog.records if "no good" in r.getMessage()]
    assert record.name == "tocsin.handler"
    fields = [getattr(record, name) for name in ("queue", "message_id", "delivery")]
    assert fields == ["q", 1, 1]
