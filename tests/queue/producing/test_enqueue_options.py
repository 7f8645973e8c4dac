"""The options of an enqueue have the same names, in the same order, wherever they are
spelled."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

import tocsin
from tests.support import query
from tocsin._queue.producing.enqueue_request import EnqueueRequest, build_request

MESSAGE = [
    "delay",
    "at",
    "priority",
    "headers",
    "key",
    "expires_in",
    "max_deliveries",
    "ordered_by",
]
BATCH = [name for name in MESSAGE if name != "key"]
JOB = ["task", "options"]


def keywords(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def test_the_options_of_python_are_the_same_everywhere() -> None:
    assert set(tocsin.MessageOptions.__annotations__) == set(MESSAGE)
    assert set(tocsin.BatchOptions.__annotations__) == set(BATCH)
    assert set(tocsin.EnqueueOptions.__annotations__) == {*MESSAGE, "connection"}
    assert keywords(tocsin.Producer.enqueue) == [*MESSAGE, "connection"]
    assert keywords(tocsin.Producer.enqueue_many) == [*BATCH, "connection"]
    assert keywords(build_request) == [*MESSAGE, "worker_id"]
    assert list(EnqueueRequest._fields) == ["payload", *MESSAGE, "worker_id", "task", "options"]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("enqueue", ["queue", "payload", *MESSAGE, "worker_id", *JOB, "ring_early"]),
        ("enqueue_many", ["queue", "payloads", *BATCH, "worker_id", "first_index"]),
    ],
)
async def test_the_sql_functions_take_the_options_in_the_order_in_which_they_are_sent(
    store_dsn: str, function: str, arguments: list[str]
) -> None:
    found = await query(
        store_dsn,
        "select proargnames from pg_proc where proname = %s"
        " and pronamespace = 'tocsin'::regnamespace",
        function,
    )
    assert found == [(arguments,)]
