"""Have a converter take each type from its own JSON type alone.

By itself, cattrs makes a list of anything that it can iterate over, such as a text or
the keys of an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin

from cattrs import Converter
from cattrs.cols import is_any_set, is_mapping, is_namedtuple, is_sequence


def register_json_types(converter: Converter) -> None:
    """Have a converter refuse values of another JSON type."""
    _check(converter, lambda kind: is_sequence(kind) or is_any_set(kind) or _is_tuple(kind), list)
    _check(converter, is_mapping, dict)


def _check(converter: Converter, concerns: Callable[[Any], bool], json_type: type) -> None:
    """Check the JSON type before the hooks of the types that this concerns."""
    preparing: list[Any] = []

    def is_checked(kind: Any) -> bool:
        return kind not in preparing and concerns(kind)

    def make(kind: Any) -> Callable[[Any, Any], Any]:
        for argument in get_args(kind):
            if argument is not Ellipsis:  # its hook must not be made below, without checks
                converter.get_structure_hook(argument)
        preparing.append(kind)
        try:
            inner = converter.get_structure_hook(kind, cache_result=False)
        finally:
            preparing.remove(kind)

        def structure(form: Any, _: Any) -> Any:
            if type(form) is not json_type and not (json_type is list and type(form) is tuple):
                raise TypeError(f"must be {json_type.__name__}, not {type(form).__name__}")
            return inner(form, kind)

        return structure

    converter.register_structure_hook_factory(is_checked, make)


def _is_tuple(kind: Any) -> bool:
    return kind is tuple or get_origin(kind) is tuple or is_namedtuple(kind)
