"""Find what a conversion to JSON and back has changed.

The receiver of a value has what `Conversion.from_json` makes of its JSON form. So the
sender compares that with the value: an instance of a subclass would come back as one of
the base class, a set that was given for a list in any order, and bytes as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final

import attrs

from tocsin.errors._jobs import Fault
from tocsin.errors._payloads import describe_path

_SCALARS: Final = (str, int, bool, float, type(None))


def find_changes(value: object, back: object, path: str = "$") -> Iterator[Fault]:
    """Yield what has changed.

    Args:
        value: What was converted.
        back: What it is after the conversion to JSON and back.
        path: Where both are, for the faults.
    """
    if type(value) in _SCALARS and type(value) is type(back) and value == back:
        return
    names = _field_names(back)
    if names is not None:
        yield from _compare_objects(value, back, names, path)
    elif isinstance(back, Mapping):
        yield from _compare_mappings(value, back, path)
    elif isinstance(back, Set):
        if not isinstance(value, Set):
            yield _wrong_type(value, back, path)
    elif isinstance(back, Sequence) and not isinstance(back, str | bytes):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            yield _wrong_type(value, back, path)
            return
        for index, (one, other) in enumerate(zip(value, back, strict=True)):
            yield from find_changes(one, other, f"{path}[{index}]")
    elif type(back) is float and type(value) is int:
        return
    elif not isinstance(value, type(back)):
        yield _wrong_type(value, back, path)
    elif not _equal(value, back):
        yield Fault(path, f"{value!r} would come back as {back!r}")


def _compare_objects(
    value: object, back: object, names: Sequence[str], path: str
) -> Iterator[Fault]:
    if type(value) is not type(back):
        yield _wrong_type(value, back, path)
        return
    for name in names:
        there, here = getattr(value, name, None), getattr(back, name, None)
        yield from find_changes(there, here, path + describe_path([name])[1:])


def _compare_mappings(value: object, back: Mapping[Any, Any], path: str) -> Iterator[Fault]:
    if not isinstance(value, Mapping) or value.keys() != back.keys():
        yield _wrong_type(value, back, path)
        return
    for key, item in value.items():
        yield from find_changes(item, back[key], path + describe_path([str(key)])[1:])


def _field_names(value: object) -> list[str] | None:
    """Return the names of the fields of an attrs or dataclass instance."""
    kind = type(value)
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind)]
    fields = getattr(kind, "__dataclass_fields__", None)
    return None if fields is None else list(fields)


def _equal(one: object, other: object) -> bool:
    return bool(one == other) or (one != one and other != other)


def _wrong_type(value: object, back: object, path: str) -> Fault:
    return Fault(path, f"must be {type(back).__name__}, not {type(value).__name__}")
