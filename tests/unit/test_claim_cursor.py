"""Where a consumer claims next: at the start of its queue, or where it claimed last."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from tocsin._queue.consuming.claim_cursor import CHEAP, SCAN_EVERY, SHARE, ClaimCursor

DUE = datetime(2026, 1, 1, tzinfo=UTC)


def row(priority: int, due: datetime) -> Any:
    return ("message", 1, 1, priority, 1, due, due, due, due, None, None, None, "1", None)


def test_it_scans_in_full_first_then_resumes_for_a_time_that_depends_on_that_scan() -> None:
    cursor = ClaimCursor()
    assert cursor.next_position(0) is None
    cursor.claimed(row(3, DUE))
    cursor.scanned(10, 10.001, math.inf)
    assert cursor.next_position(10.001 + 0.9 * SHARE * 0.001) == (3, DUE, 1)
    assert cursor.next_position(10.001 + 1.1 * SHARE * 0.001) is None
    cursor.scanned(20, 25, math.inf)
    assert cursor.next_position(25 + 0.9 * SCAN_EVERY) == (3, DUE, 1)
    assert cursor.next_position(25 + 1.1 * SCAN_EVERY) is None


def test_it_scans_in_full_when_something_is_due() -> None:
    cursor = ClaimCursor()
    cursor.claimed(row(0, DUE))
    cursor.scanned(10, 11, 11.5)
    assert cursor.next_position(11.4) == (0, DUE, 1)
    assert cursor.next_position(11.5) is None


def test_after_a_resumed_scan_in_vain_it_scans_in_full_at_once_unless_that_is_expensive() -> None:
    cursor = ClaimCursor()
    cursor.claimed(row(0, DUE))
    cursor.scanned(10, 10 + CHEAP / 2, math.inf)
    assert cursor.resumed_in_vain() == -math.inf
    assert cursor.next_position(10 + CHEAP / 2) is None
    cursor.scanned(20, 20 + 2 * CHEAP, math.inf)
    again_at = cursor.resumed_in_vain()
    assert again_at == pytest.approx(20 + 2 * CHEAP + SHARE * 2 * CHEAP)
    assert cursor.next_position(again_at - 0.001) == (0, DUE, 1)
    assert cursor.next_position(again_at) is None
