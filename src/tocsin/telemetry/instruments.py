"""Instruments: context managers that run round each handler call and each enqueue.

An instrument is for tracing, error reporting and context variables. It cannot change
what happens: an error of its own is logged and otherwise ignored, and it cannot
suppress an exception of the handler's. The only thing that it may change is the headers
of what is enqueued.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from .events import Events

if TYPE_CHECKING:
    from tocsin._queue.message import Message

_logger = logging.getLogger("tocsin.telemetry")


@attrs.define
class EnqueueCall:
    """A call that enqueues messages, as an instrument sees it."""

    queue: str
    """Name of the queue."""
    payloads: Sequence[object] | None
    """The payloads; None for an iterable that is read as it is sent."""
    headers: Any
    """The headers of each message. An instrument may replace them before the messages
    are sent."""
    worker_id: int | None
    """Id of the producer; None for `tocsin.Store.produce`."""
    ids: Sequence[int] | None = None
    """Ids of the messages, when the call has succeeded; None before."""


class Instrument(Protocol):
    """What `tocsin.connect` takes as ``instruments``."""

    def handling(self, messages: Sequence[Message]) -> AbstractContextManager[object]:
        """Return a context manager for one call of a handler with these messages.

        It is entered and left in the handler's own context: a context variable that it
        sets is seen by the handler, in a thread for a handler that is a plain function.
        It gets the handler's exception, which includes `tocsin.Reject`, `tocsin.Retry`,
        `tocsin.Snooze` and `trio.Cancelled`.
        """

    def enqueueing(self, call: EnqueueCall) -> AbstractContextManager[object]:
        """Return a context manager for one call that enqueues.

        The call is one of `tocsin.Producer.enqueue`, `tocsin.Producer.enqueue_many`,
        `tocsin.Store.produce` and `tocsin.Store.produce_many`.
        """


class Instruments:
    """The instruments of a store; false when there are none."""

    def __init__(self, instruments: Sequence[Instrument] = ()) -> None:
        self._instruments = tuple(instruments)
        for instrument in self._instruments:
            for name in ("handling", "enqueueing"):
                if not callable(getattr(instrument, name, None)):
                    raise TypeError(
                        f"an instrument has the methods handling and enqueueing, {instrument!r} has"
                        f" no {name}"
                    )

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._instruments)

    def handling(self, messages: Sequence[Message]) -> AbstractContextManager[None]:
        """Return a context manager that runs all of them round a handler call."""
        return _Round([instrument.handling for instrument in self._instruments], messages)

    def enqueueing(self, call: EnqueueCall) -> AbstractContextManager[None]:
        """Return a context manager that runs all of them round an enqueue."""
        return _Round([instrument.enqueueing for instrument in self._instruments], call)


@attrs.frozen
class Telemetry:
    """Where the parts of a store report to."""

    events: Events = attrs.field(factory=Events)
    """The event channel."""
    instruments: Instruments = attrs.field(factory=Instruments)
    """The instruments."""


class _Round(AbstractContextManager[None]):
    """Context managers that are entered in order and left in reverse order."""

    def __init__(
        self, makers: Sequence[Callable[[Any], AbstractContextManager[object]]], subject: object
    ) -> None:
        self._makers = makers
        self._subject = subject
        self._entered: list[AbstractContextManager[object]] = []

    def __enter__(self) -> None:
        for make in self._makers:
            try:
                manager = make(self._subject)
                manager.__enter__()
            except Exception:
                _logger.exception("an instrument failed before a call, which continues without it")
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
            else:
                self._entered.append(manager)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._entered:
            try:
                self._entered.pop().__exit__(kind, error, traceback)
            except BaseException as raised:
                if raised is not error:
                    if not isinstance(raised, Exception):
                        raise
                    _logger.exception(
                        "an instrument failed after a call, whose outcome does not change"
                    )
