"""Arguments and results of tasks: bound to the signature, and converted to JSON and
back without any other change."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path, PurePath
from typing import Any, Literal, NewType, TypedDict
from uuid import UUID

import attrs
import pydantic
import pytest

from tocsin._jobs.signature import Signature
from tocsin.errors import ArgumentsInvalid, Fault, ResultInvalid

UserId = NewType("UserId", int)


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    LARGE = "large"


class Label(str, Enum):  # noqa: UP042 - as before Python 3.11
    NEW = "new"


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Tree:
    name: str
    branches: list[Tree] = dataclasses.field(default_factory=list)


@attrs.frozen
class Address:
    street: str
    zip: int


@attrs.frozen
class Order:
    id: int
    to: Address
    items: list[str] = attrs.Factory(list)


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Options(TypedDict):
    fast: bool


class Model(pydantic.BaseModel):
    id: int
    when: datetime


def signature(annotation: Any) -> Signature:
    def function(value: Any) -> Any: ...

    function.__annotations__ = {"value": annotation, "return": annotation}
    return Signature("mail.send", function)


# Binding


def send(to: str, subject: str = "Hello", *, urgent: bool = False, **headers: str) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "written"),
    [
        (("Ada",), {}, {"to": "Ada"}),
        (("Ada", "Dear"), {"urgent": True}, {"to": "Ada", "subject": "Dear", "urgent": True}),
        ((), {"to": "Ada", "x": "1"}, {"to": "Ada", "x": "1"}),
    ],
    ids=["positional", "keyword-only", "of **kwargs"],
)
def test_arguments_are_kept_by_name(
    args: tuple[Any, ...], kwargs: dict[str, Any], written: dict[str, Any]
) -> None:
    bound = Signature("mail.send", send)
    text, _ = bound.write_arguments(args, kwargs)
    assert json.loads(text) == written
    assert bound.read_arguments(written) == written


def test_sql_may_give_arguments_by_position() -> None:
    assert Signature("mail.send", send).read_arguments(["Ada", "Dear"]) == {
        "to": "Ada",
        "subject": "Dear",
    }


@pytest.mark.parametrize(
    ("args", "kwargs", "path", "said"),
    [
        ((), {}, "$", "missing a required argument: 'to'"),
        (("a", "b", "c"), {}, "$", "too many positional arguments"),
        (("a",), {"to": "b"}, "$", "multiple values for argument 'to'"),
        ((1,), {}, "$.to", "must be str, not int"),
        (("a",), {"urgent": 1}, "$.urgent", "must be bool, not int"),
        (("a",), {"x": 1}, "$.x", "must be str, not int"),
        (("a\0",), {}, "$.to", "NUL"),
    ],
    ids=["missing", "too many", "twice", "type", "a bool is no number", "**kwargs", "NUL"],
)
def test_arguments_that_the_function_does_not_take_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: str, said: str
) -> None:
    with pytest.raises(ArgumentsInvalid, match=r"task mail\.send does not take") as refused:
        Signature("mail.send", send).write_arguments(args, kwargs)
    assert (refused.value.task, refused.value.path) == ("mail.send", path)
    assert said in refused.value.reason


@pytest.mark.parametrize("payload", ["Ada", 1, None])
def test_a_payload_that_has_no_arguments_is_refused(payload: Any) -> None:
    with pytest.raises(ArgumentsInvalid, match="neither an object nor an array"):
        Signature("mail.send", send).read_arguments(payload)


def test_all_faults_are_named() -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        Signature("mail.send", send).write_arguments((1,), {"urgent": "yes"})
    assert refused.value.faults == (
        Fault("$.to", "must be str, not int"),
        Fault("$.urgent", "must be bool, not str"),
    )


# Conversion


@pytest.mark.parametrize(
    ("annotation", "value", "form"),
    [
        (int, 5, 5),
        (float, 5, 5),
        (str, "5", "5"),
        (str | None, None, None),
        (list[int], [1, 2], [1, 2]),
        (dict[str, list[int]], {"a": [1]}, {"a": [1]}),
        (dict[int, str], {1: "a", -20: "b"}, {"1": "a", "-20": "b"}),
        (Mapping[UserId, list[Point]], {UserId(1): [Point(1, 2)]}, None),
        (dict[UUID, int], {UUID(int=5): 1}, {"00000000-0000-0000-0000-000000000005": 1}),
        (dict[Colour, int], {Colour.RED: 1}, {"red": 1}),
        (dict[date, int], {date(2026, 1, 2): 1}, {"2026-01-02": 1}),
        (tuple[int, ...], (1, 2), [1, 2]),
        (list[Any], [1, {"a": None}], [1, {"a": None}]),
        (PurePath, PurePath("a/b"), "a/b"),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (set[str], {"a"}, ["a"]),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (object, [1, "a"], [1, "a"]),
        (Order, Order(1, Address("High St", 5)), None),
        (list[Order], [Order(1, Address("High St", 5), ["pen"])], None),
        (Order | None, Order(1, Address("High St", 5)), None),
        (Point, Point(1.5, 2), {"x": 1.5, "y": 2}),
        (Options, {"fast": True}, {"fast": True}),
        (Colour, Colour.RED, "red"),
        (Size | None, Size.LARGE, "large"),
        (dict[Size, list[Label]], {Size.LARGE: [Label.NEW]}, {"large": ["new"]}),
        (list[Level], [Level.HIGH], [3]),
        (Tree, Tree("a", [Tree("b", [Tree("c")])]), None),
        (Literal["a", "b"], "a", "a"),
        (UserId, 5, 5),
        (datetime, datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (date, date(2026, 1, 2), "2026-01-02"),
        (time, time(12, 30), "12:30:00"),
        (timedelta, timedelta(seconds=1.5), 1.5),
        (UUID, UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Decimal, Decimal("1.50"), "1.50"),
        (Path, Path("a/b"), "a/b"),
        (bytes, b"\0x", None),
        (Model, Model(id=1, when=datetime(2026, 1, 2, tzinfo=UTC)), None),
    ],
    ids=str,
)
def test_a_value_comes_back_as_it_was(annotation: Any, value: Any, form: Any) -> None:
    bound = signature(annotation)
    written = json.loads(bound.write_arguments((value,), {})[0])
    assert (form is None and value is not None) or written == {"value": form}
    assert bound.read_arguments(written) == {"value": value}
    assert bound.read_result(json.loads(bound.write_result(value))) == value


@pytest.mark.parametrize(
    ("annotation", "form", "path", "said"),
    [
        (int, "5", "$.value", "must be int, not str"),
        (int, True, "$.value", "must be int, not bool"),
        (int, 5.0, "$.value", "must be int, not float"),
        (str, 5, "$.value", "must be str, not int"),
        (float, "1.5", "$.value", "must be a number, not str"),
        (list[int], [1, "2"], "$.value[1]", ""),
        (Order, {"id": 1, "to": {"street": "High St", "zip": "5"}}, "$.value.to.zip", ""),
        (Order, {"id": 1}, "$.value.to", "required field missing"),
        (Point, {"x": 1, "y": 2, "z": 3}, "$.value", "z"),
        (Colour, "blue", "$.value", "blue"),
        (Size, "blue", "$.value", "blue"),
        (Label, "blue", "$.value", "blue"),
        (Level, 4, "$.value", "4 is not a valid Level"),
        (list[str], "ab", "$.value", "must be list, not str"),
        (list[str] | None, {"a": 1}, "$.value", "must be list, not dict"),
        (list, "ab", "$.value", "must be list, not str"),
        (tuple[str, ...], "ab", "$.value", "must be list, not str"),
        (tuple[str, str], "ab", "$.value", "must be list, not str"),
        (set[str], {"a": 1}, "$.value", "must be list, not dict"),
        (Sequence[list[str]], ["ab"], "$.value[0]", "must be list, not str"),
        (dict[str, int], [["a", 1]], "$.value", "must be dict, not list"),
        (
            list[Tree],
            [{"name": "a", "branches": [{"name": "b", "branches": "c"}]}],
            "$.value[0].branches[0].branches",
            "must be list, not str",
        ),
        (UUID, "5", "$.value", "must be the text of a UUID, not '5'"),
        (Decimal, 1.5, "$.value", "must be the text of a Decimal, not float"),
        (Model, {"id": "1", "when": "2026-01-02T00:00:00Z"}, "$.value", "id"),
    ],
    ids=str,
)
def test_no_json_type_is_taken_for_another(
    annotation: Any, form: Any, path: str, said: str
) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        signature(annotation).read_arguments({"value": form})
    assert refused.value.path == path
    assert said in refused.value.reason


@attrs.frozen
class SpecialOrder(Order):
    note: str = ""


@attrs.frozen
class LikeOrder:
    id: int
    to: Address
    items: list[str] = attrs.Factory(list)


@attrs.define
class Counter:
    start: int
    now: int = attrs.field(init=False, default=0)


class SpecialModel(Model):
    note: str = ""


class Text(str):
    pass


COUNTED = Counter(1)
COUNTED.now = 7
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
TO = Address("High St", 5)


@pytest.mark.parametrize(
    ("annotation", "value", "path", "said"),
    [
        (Order, SpecialOrder(1, TO, note="x"), "$.value", "must be Order, not SpecialOrder"),
        (Order, LikeOrder(1, TO), "$.value", "must be Order, not LikeOrder"),
        (list[Order], [SpecialOrder(1, TO)], "$.value[0]", "must be Order, not SpecialOrder"),
        (Order | None, SpecialOrder(1, TO), "$.value", "must be Order, not SpecialOrder"),
        (dict[str, Order], {"a": LikeOrder(1, TO)}, "$.value.a", "must be Order, not LikeOrder"),
        (Counter, COUNTED, "$.value.now", "7 would come back as 0"),
        (Model, SpecialModel(id=1, when=WHEN, note="x"), "$.value", "would come back as"),
        (set[int], [1, 1], "$.value", "must be set, not list"),
        (list[int], {1, 2}, "$.value", "must be list, not set"),
        (list[Any], [b"x"], "$.value[0]", "must be str, not bytes"),
        (list[Any], [Point(1, 2)], "$.value[0]", "must be dict, not Point"),
        (UUID, "00000000-0000-0000-0000-000000000005", "$.value", "must be UUID, not str"),
        (date, datetime(2026, 1, 2), "$.value", ""),
        (str, Text("a"), "$.value", "must be str, not Text"),
        (dict[int, str], {"1": "a"}, "$.value", ""),
        (dict[int, str], {True: "a"}, "$.value", ""),
        (Any, b"x", "$.value", ""),
        (Any, {"a": {1, 2}}, "$.value.a", ""),
    ],
    ids=str,
)
def test_what_would_not_come_back_as_it_is_is_refused_where_it_is_submitted(
    annotation: Any, value: Any, path: str, said: str
) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        signature(annotation).write_arguments((value,), {})
    assert refused.value.path == path
    assert said in refused.value.reason


@pytest.mark.parametrize("form", ["01", "+1", "1.0", "a", " 1"])
def test_a_key_that_is_not_the_digits_of_an_int_is_refused(form: str) -> None:
    with pytest.raises(ArgumentsInvalid, match="must be the digits of an int"):
        signature(dict[int, str]).read_arguments({"value": {form: "a"}})


@pytest.mark.parametrize(
    "annotation", [dict[float, str], dict[tuple[int, int], str], list[dict[Point, int]]], ids=str
)
def test_a_mapping_whose_keys_are_no_texts_is_refused_where_the_task_is_defined(
    annotation: Any,
) -> None:
    with pytest.raises(TypeError, match="have no text as their JSON form"):
        signature(annotation)


def test_a_cyclic_value_is_refused() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for annotation in (list[Any], Any):
        with pytest.raises(ArgumentsInvalid):
            signature(annotation).write_arguments((cyclic,), {})


@pytest.mark.parametrize("value", ["text", 5, None, Point(1, 2)], ids=str)
def test_a_value_of_another_class_is_refused_where_the_job_is_submitted(value: Any) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        signature(Order).write_arguments((value,), {})
    assert refused.value.path.startswith("$.value")


def test_a_type_without_a_json_form_is_refused_where_the_task_is_defined() -> None:
    with pytest.raises(
        TypeError, match=r"parameter value of task mail\.send: values of type socket"
    ):
        signature(socket.socket)


def test_a_class_may_be_defined_further_down() -> None:
    def function(value: Later) -> None: ...

    bound = Signature("mail.send", function)
    assert bound.write_arguments((Later(1),), {}) == ('{"value":{"id":1}}', ())


@attrs.frozen
class Later:
    id: int


# Results


@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [(int, "5", "$"), (Any, {"a": object()}, "$.a"), (Any, float("nan"), "$"), (Order, 5, "$")],
    ids=["annotation", "no JSON", "nan", "class"],
)
def test_a_result_that_cannot_be_kept_is_refused(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(ResultInvalid, match=r"the result of task mail\.send") as refused:
        signature(annotation).write_result(value)
    assert refused.value.path == path


def test_a_stored_result_has_to_fit_the_annotation() -> None:
    with pytest.raises(ResultInvalid) as refused:
        signature(Order).read_result({"id": 1})
    assert refused.value.path == "$.to"
