"""Arguments and results that are encoded, or kept outside of the database.

A task may have a codec, which compresses or encrypts, and a payload store, which keeps
what is large. The row then has one of two JSON objects: ``{"$packed": BASE64}``, or
``{"$stored": REFERENCE}``. Anything else is the value itself, so SQL can still submit
plain arguments.

Both belong to the task, so the program that submits and the worker use the same ones,
and programs without a store have them, too.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import attrs
import trio

from tocsin._arguments import check_count
from tocsin._queue.payload import decode, encode
from tocsin.errors import ValueUnreadable

__all__ = ["Codec", "Packing", "PayloadStore"]

T = TypeVar("T")

PACKED: Final = "$packed"
STORED: Final = "$stored"


@runtime_checkable
class Codec(Protocol):
    """Compresses or encrypts the arguments and results of a task."""

    def encode(self, data: bytes) -> bytes:
        """Return the encoded form of a JSON text in UTF-8."""

    def decode(self, data: bytes) -> bytes:
        """Return the JSON text of an encoded form.

        It may raise any exception.
        """


@runtime_checkable
class PayloadStore(Protocol):
    """Keeps large arguments and results of a task outside of the database.

    The methods may block: a program on an event loop calls them in a thread.
    """

    def put(self, data: bytes) -> str:
        """Keep the data, and return a reference to it."""

    def get(self, reference: str) -> bytes:
        """Return the data of a reference.

        It may raise any exception.
        """


@attrs.frozen(kw_only=True)
class Packing:
    """How the arguments and results of a task are stored; for `task`.

    Raises:
        TypeError: An argument lacks the methods of its protocol, or is no number.
        ValueError: There is neither a codec nor a payload store.
    """

    codec: Codec | None = None
    """Encodes each value; None: values are stored as JSON."""
    payload_store: PayloadStore | None = None
    """Keeps large values; None: all are in the database."""
    store_above: int = 65_536
    """The size in bytes above which a value goes to the payload store."""

    def __attrs_post_init__(self) -> None:
        """Check the arguments."""
        if self.codec is None and self.payload_store is None:
            raise ValueError("a packing has a codec, a payload store or both")
        if self.codec is not None and not isinstance(self.codec, Codec):
            raise TypeError(f"a codec has the methods encode and decode, {self.codec!r} has not")
        if self.payload_store is not None and not isinstance(self.payload_store, PayloadStore):
            raise TypeError(
                f"a payload store has the methods put and get, {self.payload_store!r} has not"
            )
        check_count(self.store_above, "store_above")

    def pack(self, text: str) -> str:
        """Return the JSON text that the database stores for that of a value."""
        data = text.encode()
        if self.codec is not None:
            data = self.codec.encode(data)
        large = len(data) > self.store_above
        if self.payload_store is not None and (
            large or (self.codec is None and _looks_packed(text))
        ):
            return encode({STORED: self.payload_store.put(data)})
        if self.codec is None:
            return text
        return encode({PACKED: base64.b64encode(data).decode("ascii")})

    def unpack(self, task: str, form: object) -> object:
        """Return a value from what the database has stored.

        Raises:
            ValueUnreadable: The payload store or the codec cannot return it.
        """
        if not isinstance(form, dict) or len(form) != 1:
            return form
        ((kind, content),) = form.items()
        if kind not in (PACKED, STORED):
            return form
        try:
            return self._read(kind, content)
        except Exception as error:  # a codec and a store raise what they like
            raise ValueUnreadable(task, f"{type(error).__name__}: {error}") from error

    def _read(self, kind: str, content: Any) -> object:
        if kind == PACKED:
            data = base64.b64decode(content, validate=True)
        elif self.payload_store is None:
            raise LookupError("the task has no payload store")
        else:
            data = self.payload_store.get(content)
        if self.codec is not None:
            data = self.codec.decode(data)
        return decode(data.decode())


def _looks_packed(text: str) -> bool:
    """Return whether the reader would take a value for a packed one."""
    return text.startswith((f'{{"{PACKED}"', f'{{"{STORED}"'))


async def run_packing(packing: Packing | None, use: Callable[..., T], *args: object) -> T:
    """Call a function that packs or unpacks; in a thread if a payload store may block.

    Cancellation:
        The function has run or not.
    """
    if packing is None or packing.payload_store is None:
        return use(*args)
    if trio.lowlevel.in_trio_run():
        return await trio.to_thread.run_sync(use, *args)
    return await asyncio.to_thread(use, *args)
