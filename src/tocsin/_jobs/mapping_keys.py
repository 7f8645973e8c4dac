"""The keys of mappings: JSON has text alone.

An integer key becomes its digits, and comes back from these alone. A key of another
type is one whose JSON form is a text. Any other mapping is refused where a task is
defined.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, Literal, NewType, get_args, get_origin
from uuid import UUID

from cattrs import Converter
from cattrs.cols import mapping_unstructure_factory

_TEXTUAL: Final = (str, UUID, date, datetime, time, Decimal, PurePath)


def register_mapping_keys(converter: Converter) -> None:
    """Have a converter read and write the keys of mappings."""

    def make_structure(kind: Any) -> Callable[[Any, Any], Any]:
        by_text: Any = types.GenericAlias(dict, (str, get_args(kind)[1]))
        inner = converter.get_structure_hook(by_text)

        def structure(form: Any, _: Any) -> dict[int, Any]:
            values: dict[str, Any] = inner(form, by_text)
            return {_to_int(key): value for key, value in values.items()}

        return structure

    def make_unstructure(kind: Any) -> Callable[[Any], Any]:
        return mapping_unstructure_factory(
            kind, converter, unstructure_to=dict, key_handler=_from_int
        )

    def refuse(kind: Any) -> Callable[[Any, Any], Any]:
        raise TypeError(f"the keys of {kind} have no text as their JSON form; take str or int")

    converter.register_structure_hook_factory(_has_int_keys, make_structure)
    converter.register_unstructure_hook_factory(_has_int_keys, make_unstructure)
    converter.register_structure_hook_factory(_has_other_keys, refuse)


def _key_of(kind: Any) -> Any:
    """Return the annotation of a mapping's keys; None: this is no such mapping."""
    origin, arguments = get_origin(kind), get_args(kind)
    if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2):
        return None
    key = arguments[0]
    while isinstance(key, NewType):
        key = key.__supertype__
    return key


def _has_int_keys(kind: Any) -> bool:
    return _key_of(kind) is int


def _has_other_keys(kind: Any) -> bool:
    key = _key_of(kind)
    if key is None or key is Any or isinstance(key, typing.TypeVar) or _has_int_keys(kind):
        return False
    if get_origin(key) is Literal:
        return not all(isinstance(each, str) for each in get_args(key))
    if isinstance(key, type) and issubclass(key, Enum):
        return not all(isinstance(member.value, str) for member in key)
    return not (isinstance(key, type) and issubclass(key, _TEXTUAL))


def _from_int(key: Any, _: object = None) -> str:
    if type(key) is not int:
        raise TypeError(f"must be int, not {type(key).__name__}")
    return str(key)


def _to_int(key: str) -> int:
    try:
        number = int(key)
    except ValueError:
        raise ValueError(f"must be the digits of an int, not {key!r}") from None
    if str(number) != key:
        raise ValueError(f"must be the digits of an int, not {key!r}")
    return number
