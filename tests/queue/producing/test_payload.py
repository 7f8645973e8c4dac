"""Payloads: any JSON value comes back exactly as it was; what JSONB cannot hold is
refused with the path to it."""

from __future__ import annotations

import datetime
import math
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tocsin
from tests.support import connect_blocking, query
from tocsin._queue.payload import MAX_DEPTH, decode, encode

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=30
)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of the same types all the way down (so that 1,
    1.0 and True differ)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture
def connection(store_dsn: str) -> Any:
    with connect_blocking(store_dsn) as connection:
        yield connection


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=json_values)
def test_payload_of_any_json_value_survives_jsonb(
    connection: psycopg.Connection[Any], value: Any
) -> None:
    (text,) = connection.execute("select %s::jsonb::text", [encode(value)]).fetchone() or ()
    assert same(decode(text), value)


@pytest.mark.parametrize(
    "value",
    [
        1e22,
        1e23,
        -1e300,
        1.7976931348623157e308,
        5e-324,
        0.1 + 0.2,
        2**200,
        -(10**4000),
        "\x7f\u2028😀",
        {"": {"": []}},
        [[]],
        "\\u0000",
    ],
    ids=lambda v: type(v).__name__,
)
async def test_payload_comes_back_exactly_through_a_queue(store: tocsin.Store, value: Any) -> None:
    await store.queues.ensure("q")
    await store.produce("q", value, headers={"same": value})
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
    assert same(message.payload, value)
    assert same(message.headers, {"same": value})


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


async def test_refusal_names_the_element_and_nothing_is_sent(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await producer.enqueue_many([1, 2, {"n": math.nan}, 4])
        assert (refused.value.index, refused.value.path) == (2, "$.n")
        with pytest.raises(tocsin.PayloadInvalid):
            await producer.enqueue(1, headers={"a": {1}})
        assert await consumer.dequeue() == []


async def test_too_large_names_sizes_and_index(store: tocsin.Store) -> None:
    await store.queues.ensure("q", max_payload=100)
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        with pytest.raises(tocsin.PayloadTooLarge) as refused:
            await producer.enqueue_many(["small", "x" * 99])
        assert (refused.value.actual, refused.value.maximum, refused.value.index) == (101, 100, 1)
        with pytest.raises(tocsin.PayloadTooLarge, match="payload of 101 bytes") as refused:
            await producer.enqueue("x" * 99)
        assert refused.value.index is None
        await producer.enqueue("x" * 98)
        assert [m.payload for m in await consumer.dequeue(9)] == ["x" * 98]


async def test_default_limit_is_one_mebibyte(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.produce("q", "x" * (1024 * 1024 - 2))
    with pytest.raises(tocsin.PayloadTooLarge):
        await store.produce("q", "x" * (1024 * 1024 - 1))


async def test_headers_may_be_as_large_as_a_payload(store: tocsin.Store, store_dsn: str) -> None:
    large = "h" * 99
    await store.queues.ensure("q", max_payload=100)
    async with store.producer("q") as producer:
        await producer.enqueue("x" * 98, headers="h" * 98)

        async with store.transaction() as connection:
            attempts = [
                lambda: producer.enqueue(1, headers=large),
                lambda: producer.enqueue_many([1, 2], headers=large),
                lambda: store.produce("q", 1, headers=large, key="k"),
                lambda: producer.enqueue_many([1, 2], headers=large, connection=connection),
            ]
            for attempt in attempts:
                with pytest.raises(
                    tocsin.PayloadTooLarge, match="headers of 101 bytes exceed the limit"
                ) as refused:
                    await attempt()
                assert (refused.value.actual, refused.value.maximum, refused.value.index) == (
                    101,
                    100,
                    None,
                )
    assert await query(
        store_dsn, "select payload from tocsin.messages where headers is not null"
    ) == [("x" * 98,)]
    shared = f'[{{"payload": 1, "headers": "{large}"}}, {{"payload": 2}}]'
    (((refused_id, admitted_id),),) = await query(
        store_dsn, "select tocsin.enqueue_each('q', %s::jsonb)", shared
    )
    assert refused_id is None
    assert admitted_id is not None
