"""The rules that a queue may have for payloads: what they refuse, for every producer,
and what the refusal tells."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tocsin
from tests.support import PATIENCE, connect_blocking, open_connection, query
from tests.support.enqueue_calls import Calls, closed_gate
from tests.support.sweeps import sweep
from tocsin._queue.payload import encode
from tocsin.errors._payloads import describe_path

RULES: dict[str, dict[str, Any]] = {
    "string": {"max_string": 3},
    "depth": {"max_depth": 2},
    "required": {"required_keys": ["id", "a b"]},
    "forbidden": {"forbidden_keys": ["__proto__", "a b"]},
    "all": {
        "max_string": 9,
        "max_depth": 3,
        "required_keys": ["id"],
        "forbidden_keys": ["__proto__"],
    },
}
FITTING: list[tuple[str, Any]] = [
    ("string", "abc"),
    ("string", "äöü"),
    ("string", "😀😀😀"),
    ("string", {"abc": ["abc", 123456, None, True]}),
    ("depth", 1),
    ("depth", "[[["),
    ("depth", [[]]),
    ("depth", [[1], {"a": 2}]),
    ("required", {"id": None, "a b": 0, "more": 1}),
    ("forbidden", ["__proto__", {"proto": {"A b": 1}}]),
    ("forbidden", None),
    ("all", {"id": {"b": [1, "123456789"]}}),
]
BREAKING: list[tuple[str, Any, str, str]] = [
    ("string", "abcd", "$", "a string of 4 characters, the limit is 3"),
    ("string", "ä" * 4, "$", "4 characters"),
    ("string", {"a": [0, {"b": "four"}]}, "$.a[1].b", "4 characters"),
    ("string", [1, {"long-key": 1}], "$[1]", "a key of 8 characters, the limit is 3"),
    ("depth", [[[]]], "$[0][0]", "nested deeper than 2 levels"),
    ("depth", {"items": [0, 1, 2, {"when": 1}]}, "$.items[3]", "nested deeper than 2 levels"),
    ("required", {"id": 1}, "$", 'the key "a b" is missing'),
    ("required", {"inner": {"id": 1, "a b": 2}}, "$", 'the key "a b" is missing'),
    (
        "required",
        [{"id": 1, "a b": 2}],
        "$",
        'not an object, which must have the keys ["a b","id"]',
    ),
    ("required", None, "$", "not an object"),
    ("forbidden", {"__proto__": 1}, "$.__proto__", 'the key "__proto__" is forbidden'),
    (
        "forbidden",
        {"items": [{}, {"3": {"a b": None}}]},
        "$.items[1]['3']['a b']",
        'the key "a b" is forbidden',
    ),
    ("all", {"id": [[["x"]]]}, "$.id[0][0]", "nested deeper than 3 levels"),
]


@pytest.fixture
async def ruled(store: tocsin.Store) -> tocsin.Store:
    for name, rules in RULES.items():
        await store.queues.create(name, **rules)
    return store


@pytest.mark.parametrize(("queue", "payload"), FITTING)
async def test_what_keeps_the_rules_is_enqueued(
    ruled: tocsin.Store, store_dsn: str, queue: str, payload: Any
) -> None:
    await ruled.produce(queue, payload)
    async with ruled.producer(queue) as producer:
        await producer.enqueue_many([payload, payload])
    await query(
        store_dsn,
        "select tocsin.enqueue_each(%s, %s::jsonb)",
        queue,
        f'[{{"payload": {encode(payload)}}}]',
    )
    async with ruled.consumer(queue) as consumer:
        assert [m.payload for m in await consumer.dequeue(9)] == [payload] * 4


@pytest.mark.parametrize(("queue", "payload", "path", "reason"), BREAKING)
async def test_validation(
    ruled: tocsin.Store, store_dsn: str, queue: str, payload: Any, path: str, reason: str
) -> None:
    """By whatever way it comes, it is refused with the path and the reason, and nothing
    is enqueued."""
    good = next(p for q, p in FITTING if q == queue)
    async with ruled.producer(queue) as producer:
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await producer.enqueue(payload)
        assert (refused.value.path, refused.value.index) == (path, None)
        assert reason in refused.value.reason
        assert path in str(refused.value)
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await producer.enqueue(payload, key="k", delay=60)
        assert refused.value.path == path
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await producer.enqueue_many([good, good, payload, good])
        assert (refused.value.path, refused.value.index) == (path, 2)
        assert reason in refused.value.reason
    assert await query(
        store_dsn,
        "select tocsin.enqueue_each(%s, jsonb_build_array(jsonb_build_object('payload',"
        " %s::jsonb)))",
        queue,
        encode(payload),
    ) == [([None],)]
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_the_size_limit_is_on_by_default_the_other_limits_off(
    store: tocsin.Store, store_dsn: str
) -> None:
    queue = await store.queues.create("q")
    assert (queue.max_string, queue.max_depth, queue.required_keys, queue.forbidden_keys) == (
        0,
        0,
        (),
        (),
    )
    assert await query(store_dsn, "select ruled from tocsin.queues") == [(False,)]
    await store.produce("q", {"__proto__": [[[[[["x" * 5000]]]]]]})
    with pytest.raises(tocsin.PayloadTooLarge):
        await store.produce("q", "x" * 2**20)


async def test_rules_change_live(store: tocsin.Store) -> None:
    await store.queues.create("q")
    async with store.producer("q") as producer:
        await producer.enqueue("long")
        await store.queues.update("q", max_string=3)
        with pytest.raises(tocsin.PayloadInvalid):
            await producer.enqueue("long")
        await store.queues.update("q", max_string=0)
        await producer.enqueue("long")
        await store.queues.update("q", required_keys=["a"])
        with pytest.raises(tocsin.PayloadInvalid):
            await producer.enqueue("long")
        await store.queues.update("q", required_keys=[])
        await producer.enqueue("long")


async def test_a_bad_element_of_a_large_batch_refuses_all_of_it_and_is_named(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", max_depth=1)
    async with store.producer("q") as producer:
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await producer.enqueue_many([n] if n != 4711 else [[n]] for n in range(5000))
    assert (refused.value.index, refused.value.path) == (4711, "$[0]")
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_callers_that_share_a_statement_get_each_their_own_refusal(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.create("q", max_string=3)
    async with trio.open_nursery() as nursery, closed_gate(store_dsn) as gate:
        calls = Calls(nursery)
        await calls.produce(store, "1st")
        await gate.wait_for("enqueue")
        await calls.produce(store, "too long", "2nd", "also too long", "3rd")
        gate.open()
        results = await calls.wait_for("1st", "too long", "2nd", "also too long", "3rd")
    refused = [r for r in results if isinstance(r, tocsin.PayloadInvalid)]
    assert [(r.reason, r.index) for r in refused] == [
        ("a string of 8 characters, the limit is 3", None),
        ("a string of 13 characters, the limit is 3", None),
    ]
    assert await query(store_dsn, "select payload from tocsin.messages order by id") == [
        ("1st",),
        ("2nd",),
        ("3rd",),
    ]


async def test_in_a_callers_transaction(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q", max_depth=1)
    with pytest.raises(tocsin.PayloadInvalid):
        async with store.transaction() as connection:
            await store.produce("q", [1], connection=connection)
            await store.produce("q", [[1]], connection=connection)
    assert await query(store_dsn, "select count(*) from tocsin.messages") == [(0,)]


async def test_plain_sql_is_told_the_path(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.create("q", max_string=5)
    async with open_connection(store_dsn) as connection:
        with pytest.raises(
            psycopg.Error, match=r"payload, at \$.items\[3\].when: a string of 6 characters"
        ) as refused:
            await connection.execute(
                """select tocsin.enqueue('q', '{"items": [0, 1, 2, {"when": "now!!!"}]}')"""
            )
        assert refused.value.sqlstate == "TC009"
        assert json.loads(refused.value.diag.message_detail or "")["path"] == ["items", 3, "when"]
        with pytest.raises(psycopg.Error, match=r'payload 1, at \$\["a b"\]') as refused:
            await connection.execute(
                """select tocsin.enqueue_many('q', '[1, {"a b": "now!!!"}]')"""
            )
        assert refused.value.sqlstate == "TC009"
        with pytest.raises(psycopg.errors.NotNullViolation):
            await connection.execute("select tocsin.enqueue('q', null)")


@sweep(
    "key", ["a'b", 'a"b', "a;--", "{a,b}", "\\", "", "ключ", "😀", "x" * 300, "%s", "NULL"], quick=2
)
async def test_hostile_keys(store: tocsin.Store, key: str) -> None:
    queue = await store.queues.create("q", forbidden_keys=[key])
    assert queue.forbidden_keys == (key,)
    with pytest.raises(tocsin.PayloadInvalid) as refused:
        await store.produce("q", [{"fine": {key: 1}}])
    assert refused.value.path == describe_path([0, "fine", key])
    await store.queues.update("q", forbidden_keys=[], required_keys=[key, key])
    await store.produce("q", {key: 1})
    with pytest.raises(tocsin.PayloadInvalid):
        await store.produce("q", {key + "x": 1})


async def test_bad_rules_name_the_argument(store: tocsin.Store) -> None:
    for name, value in {
        "max_string": -1,
        "max_depth": -1,
        "required_keys": ["a\0b"],
        "forbidden_keys": ["\0"],
    }.items():
        with pytest.raises(ValueError, match=name):
            await store.queues.create("q", **{name: value})  # type: ignore[arg-type]
    for name, wrong in {
        "max_string": True,
        "max_depth": 1.5,
        "required_keys": "abc",
        "forbidden_keys": [1],
    }.items():
        with pytest.raises(TypeError, match=name):
            await store.queues.create("q", **{name: wrong})  # type: ignore[arg-type]


@pytest.mark.slow
async def test_deep_and_large_payloads_are_walked(store: tocsin.Store) -> None:
    """The cost is that of the payload's levels, and nothing of it is kept: a copy of
    all levels at once would be 200 MB."""
    await store.queues.create("q", max_string=1_000_000, max_payload=2**24)
    payload: Any = ["x" * 1_000_000]
    for _ in range(200):
        payload = [payload]
    with trio.fail_after(PATIENCE):
        await store.produce("q", payload)
        payload[0][0][0] = "x" * 1_000_001
        with pytest.raises(tocsin.PayloadInvalid) as refused:
            await store.produce("q", payload)
        assert refused.value.path == "$[0][0][0]"
        await store.produce("q", list(range(100_000)))


texts = st.text(st.sampled_from("ab'\"\\{}[]é😀 "), max_size=4)
json_values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "rule", ["max_string => 1000", "max_depth => 100000", "forbidden_keys => '{x}'"]
)
def test_what_is_walked_over_has_at_most_256_levels(
    connection: psycopg.Connection[Any], rule: str
) -> None:
    """Each level is copied, so that without a limit ten thousand of them in a megabyte
    would be ten gigabytes."""
    connection.execute(f"select tocsin.update_queue('q', {rule})".encode())
    connection.execute("select tocsin.enqueue('q', %s::jsonb)", ["[" * 256 + "]" * 256])
    with pytest.raises(psycopg.Error, match="nested deeper than 256 levels") as refused:
        connection.execute("select tocsin.enqueue('q', %s::jsonb)", ["[" * 257 + "]" * 257])
    assert refused.value.sqlstate == "TC009"
    connection.execute(
        "select tocsin.update_queue('q', max_string => 0, max_depth => 0, forbidden_keys => '{}',"
        " required_keys => '{x}')"
    )
    connection.execute("select tocsin.enqueue('q', %s::jsonb)", ['{"x":' * 257 + "1" + "}" * 257])


def faults(
    payload: Any, max_string: int, max_depth: int, required: list[str], forbidden: list[str]
) -> set[tuple[Any, ...]]:
    """The paths of all that breaks a rule."""
    found: set[tuple[Any, ...]] = set()
    if required and not (isinstance(payload, dict) and payload.keys() >= set(required)):
        found.add(())

    def walk(value: Any, path: tuple[Any, ...], depth: int) -> None:
        if isinstance(value, str) and max_string and len(value) > max_string:
            found.add(path)
        if isinstance(value, (list, dict)) and max_depth and depth >= max_depth:
            found.add(path)
        if isinstance(value, dict):
            for key, item in value.items():
                if key in forbidden:
                    found.add((*path, key))
                if max_string and len(key) > max_string:
                    found.add(path)
                walk(item, (*path, key), depth + 1)
        if isinstance(value, list):
            for n, item in enumerate(value):
                walk(item, (*path, n), depth + 1)

    walk(payload, (), 0)
    return found


@pytest.fixture
def connection(store_dsn: str) -> Any:
    with connect_blocking(store_dsn) as connection:
        connection.execute("select tocsin.create_queue('q')")
        yield connection


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    payloads=st.lists(json_values, max_size=3),
    max_string=st.integers(0, 3),
    max_depth=st.integers(0, 3),
    required=st.lists(texts, max_size=2),
    forbidden=st.lists(texts, max_size=2),
)
@example(payloads=[{"a": {"b": "aaaa"}}], max_string=3, max_depth=0, required=[], forbidden=[])
def test_a_fault_is_found_when_there_is_one_and_where_it_is(
    connection: psycopg.Connection[Any],
    payloads: list[Any],
    max_string: int,
    max_depth: int,
    required: list[str],
    forbidden: list[str],
) -> None:
    connection.execute(
        "select tocsin.update_queue('q', max_string => %s, max_depth => %s, required_keys => %s,"
        " forbidden_keys => %s)",
        [max_string, max_depth, required, forbidden],
    )
    row = connection.execute(
        "select tocsin._find_violation(%s::jsonb, q) from tocsin.queues q", [encode(payloads)]
    ).fetchone()
    assert row is not None
    (fault,) = row
    expected = {
        (n, *path)
        for n, payload in enumerate(payloads)
        for path in faults(payload, max_string, max_depth, required, forbidden)
    }
    if fault is None:
        assert not expected
    else:
        assert tuple(fault["path"]) in expected
