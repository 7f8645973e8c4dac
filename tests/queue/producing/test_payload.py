"""Payloads: a queue returns any JSON value exactly as it was, and a refused payload is
not sent."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings

import tocsin
from tests.support import connect_blocking, query
from tests.support.json_values import json_values, same
from tests.support.sweeps import sweep
from tocsin._queue.payload import decode, encode


@pytest.fixture
def connection(store_dsn: str) -> Any:
    with connect_blocking(store_dsn) as connection:
        yield connection


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=json_values)
def test_payload_of_any_json_value_survives_jsonb(
    connection: psycopg.Connection[Any], value: Any
) -> None:
    row = connection.execute("select %s::jsonb::text", [encode(value)]).fetchone()
    assert row is not None
    assert same(decode(row[0]), value)


@sweep(
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
    quick=3,
    ids=lambda v: type(v).__name__,
)
async def test_payload_comes_back_exactly_through_a_queue(store: tocsin.Store, value: Any) -> None:
    await store.queues.ensure("q")
    await store.produce("q", value, headers={"same": value})
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
    assert same(message.payload, value)
    assert same(message.headers, {"same": value})


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
            attempts: list[Callable[[], Awaitable[object]]] = [
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
