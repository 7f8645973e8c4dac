"""The ticks of a schedule: expressions, intervals, zones and changes of the clocks."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice, takewhile

import pytest

import tocsin
from tocsin._jobs.ticking import find_due
from tocsin._jobs.ticks import Ticks, check_cron

VIENNA = "Europe/Vienna"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text + "Z")


def by_cron(cron: str, zone: str = VIENNA) -> Ticks:
    return Ticks(cron=cron, every=None, anchor=at("2026-01-01T00:00"), zone=zone)


def by_interval(every: timedelta, anchor: str) -> Ticks:
    return Ticks(cron=None, every=every, anchor=at(anchor), zone="UTC")


def take(ticks: Ticks, after: str, n: int) -> list[str]:
    return [f"{tick:%Y-%m-%dT%H:%M}" for tick in islice(ticks.iterate(at(after)), n)]


# Changes of the clocks: in Vienna 02:00 becomes 03:00 on 29 March 2026 (01:00 UTC), and
# 03:00 becomes 02:00 on 25 October 2026 (01:00 UTC).


def test_a_time_that_does_not_exist_ticks_at_the_first_that_does() -> None:
    assert take(by_cron("30 2 * * *"), "2026-03-28T00:00", 3) == [
        "2026-03-28T01:30",
        "2026-03-29T01:00",  # 03:00 in Vienna
        "2026-03-30T00:30",
    ]


def test_several_times_that_do_not_exist_tick_once() -> None:
    assert take(by_cron("0,30 2,3 * * *"), "2026-03-29T00:00", 3) == [
        "2026-03-29T01:00",
        "2026-03-29T01:30",
        "2026-03-30T00:00",
    ]


def test_a_time_that_comes_twice_ticks_once() -> None:
    assert take(by_cron("30 2 * * *"), "2026-10-24T12:00", 2) == [
        "2026-10-25T00:30",
        "2026-10-26T01:30",
    ]
    # also when it is computed between the two
    assert take(by_cron("30 2 * * *"), "2026-10-25T01:10", 1) == ["2026-10-26T01:30"]


def test_a_step_ticks_through_both_hours() -> None:
    assert take(by_cron("*/30 * * * *"), "2026-10-25T00:00", 4) == [
        "2026-10-25T00:30",
        "2026-10-25T01:00",
        "2026-10-25T01:30",
        "2026-10-25T02:00",
    ]
    assert take(by_cron("*/30 * * * *"), "2026-03-29T00:30", 2) == [
        "2026-03-29T01:00",
        "2026-03-29T01:30",
    ]


def test_a_daily_tick_keeps_its_time_of_day() -> None:
    assert take(by_cron("@daily"), "2026-03-28T12:00", 2) == [
        "2026-03-28T23:00",
        "2026-03-29T22:00",
    ]


def test_an_interval_is_elapsed_time() -> None:
    daily = by_interval(timedelta(days=1), "2026-03-28T02:30")
    assert take(daily, "2026-03-28T02:30", 2) == ["2026-03-29T02:30", "2026-03-30T02:30"]


# Intervals


def test_an_interval_ticks_at_its_anchor_first() -> None:
    ticks = by_interval(timedelta(minutes=20), "2026-05-01T10:00")
    assert take(ticks, "2026-01-01T00:00", 2) == ["2026-05-01T10:00", "2026-05-01T10:20"]
    assert take(ticks, "2026-05-01T10:20", 1) == ["2026-05-01T10:40"]
    assert take(ticks, "2026-05-03T00:01", 1) == ["2026-05-03T00:20"]


# The latest of many


@pytest.mark.parametrize("cron", ["* * * * *", "*/20 2 * * *", "30 2 * * *", "0 0 24 * *"])
def test_the_latest_ticks_are_the_last_of_all(cron: str) -> None:
    ticks, after, to = by_cron(cron), at("2026-10-24T05:00"), at("2026-10-25T11:11")
    every = list(takewhile(lambda tick: tick <= to, ticks.iterate(after)))
    for n in (1, 3, 100):
        assert ticks.latest(after, to, n) == every[-n:]


def test_the_latest_tick_of_a_long_outage_is_found_at_once() -> None:
    ticks = by_interval(timedelta(milliseconds=1), "2000-01-01T00:00")
    to = at("2026-01-01T00:00")
    assert ticks.latest(at("2000-01-01T00:00"), to, 2) == [to - timedelta(milliseconds=1), to]


# What was missed


@pytest.mark.parametrize(
    ("missed", "hours"), [(0, []), (1, [9]), (3, [7, 8, 9]), (100, list(range(1, 10)))]
)
def test_ticks_that_were_missed(missed: int, hours: list[int]) -> None:
    due = find_due(by_cron("@hourly"), at("2026-05-01T00:30"), at("2026-05-01T09:30"), missed)
    assert [tick.hour for tick in due] == hours


@pytest.mark.parametrize("missed", [0, 1, 5])
def test_a_tick_on_time_is_not_missed(missed: int) -> None:
    due = find_due(by_cron("@hourly"), at("2026-05-01T00:00"), at("2026-05-01T01:00"), missed)
    assert due == [at("2026-05-01T01:00")]


def test_no_tick_is_due_twice() -> None:
    assert find_due(by_cron("@hourly"), at("2026-05-01T01:00"), at("2026-05-01T01:30"), 5) == []
    # the clock was put back
    assert find_due(by_cron("@hourly"), at("2026-05-01T05:00"), at("2026-05-01T01:30"), 5) == []


# What is refused


@pytest.mark.parametrize(
    ("cron", "field"),
    [
        ("60 * * * *", "cron.minute"),
        ("0 24 * * *", "cron.hour"),
        ("0 0 0 * *", "cron.day-of-month"),
        ("0 0 * 13 *", "cron.month"),
        ("0 0 * * 8", "cron.day-of-week"),
        ("0 0 * * MON-FOO", "cron.day-of-week"),
        ("0 0 30 2 *", "cron.day-of-month"),
        ("* * * *", "cron"),
        ("0 0 0 1 1 *", "cron"),
        ("", "cron"),
        ("@dayly", "cron"),
    ],
)
def test_an_invalid_expression_is_refused_with_its_field(cron: str, field: str) -> None:
    with pytest.raises(tocsin.ScheduleInvalid) as refused:
        check_cron(cron)
    assert refused.value.field == field


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "", "../UTC", "UTC\0"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(tocsin.ScheduleInvalid) as refused:
        by_cron("@daily", zone).next(at("2026-01-01T00:00"))
    assert refused.value.field == "zone"


def test_a_word_stands_for_an_expression() -> None:
    assert check_cron(" @weekly ") == "0 0 * * 0"
    assert check_cron("0  3 * * mon") == "0 3 * * mon"
