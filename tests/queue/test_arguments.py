"""Every public call refuses an argument that is no value of its type, and changes
nothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import trio

import tocsin
from tests.support import PATIENCE, connect_blocking, open_connection, query


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ""])
async def test_what_is_no_text_is_refused_everywhere_and_changes_nothing(
    store: tocsin.Store, name: str, store_dsn: str
) -> None:
    await store.queues.create("q")

    async def consume(queue: str, worker: str | None) -> None:
        async with store.consumer(queue, name=worker):
            pass

    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.queues.create(name),
        lambda: store.queues.ensure(name),
        lambda: store.queues.get(name),
        lambda: store.queues.pause(name),
        lambda: store.queues.grant("q", name),
        lambda: store.produce(name, 1),
        lambda: consume(name, None),
        lambda: consume("q", name),
    ]
    if name:  # an empty key, payload or header is as good as any
        attempts += [
            lambda: store.produce("q", 1, key=name),
            lambda: store.produce("q", name),
            lambda: store.produce("q", {name: 1}),
            lambda: store.produce("q", 1, headers={"h": name}),
        ]
    for attempt in attempts:
        with pytest.raises((tocsin.TocsinError, ValueError)) as refused:
            await attempt()
        assert not isinstance(refused.value, UnicodeError)
    assert [q.name for q in await store.queues.list()] == ["q"]
    assert await store.workers.list() == []
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


NO_TEXT: list[Any] = ["a\0b", "\ud800", 5, b"q", ["q"]]


NO_NUMBER: list[Any] = [2**31, 2**63, 2**70, -1, -(2**63) - 1, True, "1", 1.5, math.nan]


NO_DURATION: list[Any] = [
    math.nan,
    math.inf,
    -1,
    1e300,
    -timedelta(1),
    timedelta.max,
    timedelta.min,
    "1 s",
    True,
]


NO_TIME: list[Any] = [
    datetime(2026, 1, 1),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    "now",
]


NO_JSON: list[Any] = ["a\0b", "\ud800", {"\ud800": 1}, {1: 1}, math.nan, object(), [[b""]]]


NO_LIST: list[Any] = [5, ["a\0b"], ["\ud800"], [5], [object()], [2**70]]


USUAL: dict[str, Any] = {
    "name": "q",
    "queue": "q",
    "role": "pg_monitor",
    "payload": 1,
    "payloads": [1],
    "worker_id": 1,
    "message_id": 1,
    "message": 1,
    "messages": [1],
    "older_than": 1,
    "max_age": 1,
    "seconds": 1,
    "size": 1,
    "handler": print,
    "once": True,
}
"""What is given for the arguments that a call must have, or would not end without."""


def hostile_values(hint: Any) -> list[Any]:
    """What no caller should give for an argument of this type."""
    if get_origin(hint) in (Union, UnionType):
        return [value for part in get_args(hint) for value in hostile_values(part)]
    if get_origin(hint) is Literal:
        return ["nonsense", *NO_TEXT]
    if get_origin(hint) in (Iterable, Collection):
        return NO_LIST
    known: dict[Any, list[Any]] = {
        str: NO_TEXT,
        int: NO_NUMBER,
        float: NO_DURATION,
        timedelta: NO_DURATION,
        datetime: NO_TIME,
        object: NO_JSON,
    }
    return known.get(hint, [])


def hostile_calls(
    function: Callable[..., Any], given: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments for a function, all usual or given but for one."""
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function)
    usual = given | {
        p.name: USUAL[p.name]
        for p in parameters
        if p.name in USUAL and (p.default is p.empty or p.name == "once")
    }
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from (((value,), usual) for value in hostile_values(hint))
        elif parameter.kind is parameter.VAR_KEYWORD:
            options = get_type_hints(get_args(hint)[0])
            yield from (
                ((), {**usual, name: value})
                for name, kind in options.items()
                for value in hostile_values(kind)
            )
            yield (), {**usual, "nonsense": 1}
        elif parameter.name != "self":
            yield from (((), {**usual, parameter.name: value}) for value in hostile_values(hint))


async def call_to_the_end(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with trio.fail_after(PATIENCE):
        result = function(*arguments, **options)
        if hasattr(result, "__aenter__"):
            async with result:
                pass
        elif inspect.isawaitable(result):
            await result


async def test_no_argument_of_any_public_call_has_an_error_come_out_that_is_none_of_ours(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q")
    await store.produce_many("q", range(3))
    tried, wrong = set[str](), list[str]()
    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        open_connection(store_dsn) as connection,
    ):
        (message,) = await consumer.dequeue()
        handle = await store.workers.get(producer.worker_id)
        with connect_blocking(store_dsn) as blocking:
            calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
                (tocsin.enqueue, {"connection": blocking}),
                (tocsin.enqueue_many, {"connection": blocking}),
                (tocsin.enqueue_async, {"connection": connection}),
                (tocsin.enqueue_many_async, {"connection": connection}),
            ]
            for thing in (
                store,
                store.queues,
                store.workers,
                store.messages,
                store.dead_letters,
                producer,
                consumer,
                handle,
                message,
            ):
                kind = type(thing)
                calls += [
                    (getattr(thing, n), {})
                    for n in dir(kind)
                    if n[0] != "_" and inspect.isfunction(getattr(kind, n))
                ]
            for function, given in calls:
                name = function.__qualname__
                for arguments, options in hostile_calls(function, given):
                    tried.add(name)
                    try:
                        await call_to_the_end(function, *arguments, **options)
                    except Exception as error:
                        if not isinstance(
                            error, (tocsin.TocsinError, ValueError, TypeError)
                        ) or isinstance(error, UnicodeError):
                            wrong.append(f"{name}{arguments!a}{options!a}: {error!a}")
    assert not wrong, "\n".join(wrong)
    assert len(tried) > 40
    assert [q.name for q in await store.queues.list()] == ["q"]
