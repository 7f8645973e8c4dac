"""Convert between Python values and JSON values, by annotation.

cattrs does the work, strictly: it converts between a class and its JSON form, and never
between two JSON types, such as the text ``"5"`` and the number 5. An annotation that
says nothing (`Any`, `object`, none at all) takes any JSON value as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, cast
from uuid import UUID

import cattrs
from cattrs.errors import StructureHandlerNotFoundError
from cattrs.preconf.json import JsonConverter, make_converter

from tocsin._queue.payload import encode
from tocsin.errors import PayloadInvalid
from tocsin.errors._jobs import Fault

from .fidelity import find_changes
from .json_types import register_json_types
from .mapping_keys import register_mapping_keys


class Unconvertible(Exception):
    """A value that does not have the form of its annotation, or no JSON form."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__()
        self.faults = faults
        """All that is wrong."""


class Conversion:
    """Converts the values of one annotation."""

    def __init__(self, annotation: Any) -> None:
        """Prepare the conversion.

        Args:
            annotation: A type as in source; `inspect.Parameter.empty` stands for none.

        Raises:
            TypeError: Values of this type have no JSON form that is known.
        """
        self._type = Any if annotation in (inspect.Parameter.empty, object) else annotation
        self._trusting = self._type is Any
        if not self._trusting:
            try:
                _CONVERTER.get_structure_hook(self._type)
            except StructureHandlerNotFoundError:
                raise TypeError(
                    f"values of type {_name(annotation)} have no JSON form; take JSON values, attrs"
                    " classes, dataclasses or the types that docs/guides/jobs.md lists"
                ) from None

    def to_json(self, value: object) -> object:
        """Return the JSON form of a value, which `from_json` accepts.

        Raises:
            Unconvertible: The value is not of this type, or would not come back as it
                is.
        """
        if self._trusting:
            return value  # JSON, or refused when it is written
        try:
            form = _CONVERTER.unstructure(value, self._type)
        except Exception as error:  # a hook meets a value of any other type
            raise Unconvertible(
                [Fault("$", f"{_article(value)} is not a {_name(self._type)}")]
            ) from error
        if changes := list(find_changes(value, self.from_json(form))):
            raise Unconvertible(changes)
        return cast(object, form)

    def from_json(self, form: object) -> Any:
        """Return the value of a JSON form.

        Raises:
            Unconvertible: This is not the form of such a value.
        """
        if self._trusting:
            return form
        try:
            return _CONVERTER.structure(form, self._type)
        except Exception as error:  # cattrs raises groups, and what hooks raise
            raise Unconvertible(_faults(error)) from error


def write_json(value: object) -> str:
    """Return the JSON text of a value in JSON form.

    Raises:
        Unconvertible: JSON cannot hold it.
    """
    try:
        return encode(value)
    except PayloadInvalid as error:
        raise Unconvertible([Fault(error.path, error.reason)]) from error


def _faults(error: Exception) -> list[Fault]:
    faults: list[Fault] = []
    for text in cattrs.transform_error(error, path="$", format_exception=_reason):
        reason, _, path = text.rpartition(" @ ")
        faults.append(Fault(path, reason))
    return faults


def _reason(error: BaseException, expected: type | None) -> str:
    """Say what is wrong with a value, for people."""
    if isinstance(error, KeyError):
        return "required field missing"
    if isinstance(error, cattrs.errors.ForbiddenExtraKeysError):
        return f"unknown fields: {', '.join(sorted(error.extra_fields))}"
    text = str(error)
    return text or f"not a {_name(expected)}"


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _article(value: object) -> str:
    return f"a value of type {type(value).__name__}"


# The converter


def _exactly(*types: type) -> Callable[[Any, Any], Any]:
    """Return a hook that accepts values of these types alone.

    It accepts none of a subclass: a bool is no number. cattrs calls it for subclasses
    of these types, too, such as an ``IntEnum``, and may not have written their values
    as plain ones.
    """

    def check(value: Any, kind: Any) -> Any:
        if type(value) is kind:
            return value
        if type(value) not in types:
            raise TypeError(f"must be {types[0].__name__}, not {type(value).__name__}")
        return value if kind in types or not isinstance(kind, type) else kind(value)

    return check


def _from_text(kind: type, parse: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not str:
            raise TypeError(f"must be the text of a {kind.__name__}, not {type(value).__name__}")
        try:
            return parse(value)
        except (ValueError, InvalidOperation):
            raise ValueError(f"must be the text of a {kind.__name__}, not {value!r}") from None

    return structure


def _to_float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"must be a number, not {type(value).__name__}")
    return float(value)


def _to_timedelta(value: Any, _: Any) -> timedelta:
    return timedelta(seconds=_to_float(value, None))


def _make_converter() -> JsonConverter:
    converter = make_converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _exactly(int))
    converter.register_structure_hook(str, _exactly(str))
    converter.register_structure_hook(bool, _exactly(bool))
    converter.register_structure_hook(NoneType, _exactly(NoneType))
    converter.register_structure_hook(float, _to_float)
    converter.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    converter.register_structure_hook(timedelta, _to_timedelta)
    converter.register_unstructure_hook(timedelta, timedelta.total_seconds)
    for kind, parse in (
        (UUID, UUID),
        (Decimal, Decimal),
        (time, time.fromisoformat),
        (Path, Path),
        (PurePath, PurePath),
    ):
        converter.register_structure_hook(kind, _from_text(kind, parse))
        converter.register_unstructure_hook(kind, str)
    converter.register_unstructure_hook_func(_is_enum, lambda member: member.value)
    register_json_types(converter)
    register_mapping_keys(converter)
    converter.register_structure_hook_func(_is_pydantic, _from_pydantic)
    converter.register_unstructure_hook_func(_is_pydantic, _to_pydantic)
    return converter


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__")


def _from_pydantic(value: Any, kind: Any) -> Any:
    return kind.model_validate_json(encode(value), strict=True)


def _to_pydantic(value: Any) -> Any:
    return value.model_dump(mode="json")


_CONVERTER = _make_converter()
