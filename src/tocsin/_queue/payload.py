"""Conversion of payloads, which are JSON values, to JSONB and back without a change.

JSONB parses its input, and returns the parsed value. So the standard library's encoder
is not enough:

- A float that Python writes with an exponent and without a point (``1e+23``) would come
  back as an integer of 24 digits. It is written out with a fraction
  (``100000000000000000000000.0``), which JSONB's numeric type keeps.
- A dict key that is not a string would silently become one. It is refused, as are
  values that JSON does not know.
- What JSONB cannot hold (the character NUL, a lone surrogate, NaN, an infinity,
  nestings without end) is refused before anything is sent, with the path to it.

Tuples are written as arrays and come back as lists. The sign of ``-0.0`` is lost, which
no comparison can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

from tocsin.errors import PayloadInvalid, PayloadUnreadable
from tocsin.errors._payloads import describe_path

MAX_DEPTH = 256
"""The most levels of a payload.

The parsers of Python and PostgreSQL take as many, however deep the stack is already.
"""

_decode: Callable[[str], Any] = json.JSONDecoder().decode


def decode(text: str) -> Any:
    """Return the value of a JSON text from the database.

    Raises:
        PayloadUnreadable: Python cannot hold the value.
    """
    try:
        return _decode(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise PayloadUnreadable(reason)


def encode(value: object, index: int | None = None) -> str:
    """Return the JSON text of a value.

    Args:
        value: A JSON value.
        index: Its place in a batch, for the error.

    Raises:
        PayloadInvalid: JSONB cannot hold the value; the error has the path to the part.
    """
    out: list[str] = []
    try:
        _write(value, out.append, MAX_DEPTH)
    except _Unfit as unfit:
        raise PayloadInvalid(describe_path(reversed(unfit.steps)), unfit.reason, index) from None
    return "".join(out)


class _Unfit(Exception):
    """A part of a payload that JSONB cannot hold.

    It collects the path to the part on its way up, so a valid payload pays nothing for
    paths.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str | int] = []


def _write(value: object, put: Callable[[str], None], depth: int) -> None:
    if isinstance(value, str):
        put(_text(value))
    elif value is None:
        put("null")
    elif value is True:
        put("true")
    elif value is False:
        put("false")
    elif isinstance(value, int):
        try:
            put(int.__repr__(value))
        except ValueError:
            raise _Unfit(
                "an integer of more digits than Python converts (sys.set_int_max_str_digits)"
            ) from None
    elif isinstance(value, float):
        put(_number(value))
    elif isinstance(value, dict):
        _check_depth(depth)
        separator = "{"
        for key, item in value.items():
            if not isinstance(key, str):
                raise _Unfit(f"the key {key!r} is not a string")
            try:
                put(separator)
                put(_text(key))
                put(":")
                _write(item, put, depth - 1)
            except _Unfit as unfit:
                unfit.steps.append(key)
                raise
            separator = ","
        put("}" if value else "{}")
    elif isinstance(value, (list, tuple)):
        _check_depth(depth)
        separator = "["
        for n, item in enumerate(value):
            try:
                put(separator)
                _write(item, put, depth - 1)
            except _Unfit as unfit:
                unfit.steps.append(n)
                raise
            separator = ","
        put("]" if value else "[]")
    else:
        raise _Unfit(f"a {type(value).__name__} is not a JSON value")


def _check_depth(depth: int) -> None:
    if depth == 0:
        raise _Unfit(f"nested deeper than {MAX_DEPTH} levels")


def _text(value: str) -> str:
    if "\0" in value:
        raise _Unfit("PostgreSQL cannot store the character NUL")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Unfit("a surrogate without its partner is not a character") from None
    return encode_basestring(value)


def _number(value: float) -> str:
    if not isfinite(value):
        raise _Unfit(f"{float.__repr__(value)} is not a JSON number")
    text = float.__repr__(value)
    if "e+" in text:
        return format(Decimal(text), "f") + ".0"
    return text
