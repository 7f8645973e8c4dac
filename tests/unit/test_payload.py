"""Payloads as JSON: what is encoded, and what is refused with the path to it."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tocsin
from tests.support.json_values import json_values, same
from tocsin._queue.payload import MAX_DEPTH, decode, encode


@settings(max_examples=25, deadline=None)
@given(values=st.lists(json_values, min_size=1))
def test_a_batch_comes_back_in_order(values: list[Any]) -> None:
    assert all(same(decode(encode(v, n)), v) for n, v in enumerate(values))


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [1, {"b c": "x\0y"}]}, "$.a[1]['b c']", "NUL"),
        ({"a\0": 1}, "$['a\\x00']", "NUL"),
        ([0.5, math.nan], "$[1]", "nan"),
        ({"x": -math.inf}, "$.x", "inf"),
        ({"when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}, "$.when", "datetime"),
        ([{1, 2}], "$[0]", "set"),
        (b"bytes", "$", "bytes"),
        ({"a": {1: "one"}}, "$.a", "the key 1"),
        ("\ud800", "$", "surrogate"),
        (10**5000, "$", "digits"),
    ],
    ids=[
        "nul",
        "nul in key",
        "nan",
        "inf",
        "datetime",
        "set",
        "bytes",
        "key",
        "surrogate",
        "digits",
    ],
)
def test_what_jsonb_cannot_hold_is_refused_with_its_path(
    value: Any, path: str, reason: str
) -> None:
    with pytest.raises(tocsin.PayloadInvalid, match=reason) as refused:
        encode(value)
    assert refused.value.path == path
    assert refused.value.index is None


def test_nesting_has_a_limit_that_can_be_reached() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert same(decode(encode(deep)), deep)
    with pytest.raises(tocsin.PayloadInvalid, match="nested deeper"):
        encode([deep])
    with pytest.raises(tocsin.PayloadInvalid, match="nested deeper"):
        encode(CYCLE)


def test_tuples_become_lists_and_enums_their_values() -> None:
    assert same(decode(encode((1, (2,), tocsin.WorkerStatus.READY))), [1, [2], "ready"])
