"""Durations as text and as numbers of seconds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tocsin._durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("7d", 7 * 86400),
            ("30m", 1800),
            ("1.5s", 1.5),
            ("250ms", 0.25),
            ("2h", 7200),
            ("1w", 604800),
        ),
        *(("12", 12), ("0", 0), ("0.5", 0.5), (" 3 s ", 3)),
    ],
)
def test_durations_as_text(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1s",
        "+1s",
        "1e3",
        "7D",
        "1.s",
        ".5s",
        "1,5s",
        "1h30m",
        "inf",
        "nan",
        "7 days",
        "٣s",
        "1_0s",
        "9" * 400,
        "1\n2",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)
