"""Jobs that are planned: they have a place in a flow, and are not submitted yet."""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen(eq=False)
class Planned:
    """A job of a flow that is not submitted yet; made by `Flow.add`.

    As an argument of another call it stands for the job's result.
    """

    name: str
    """Name of the job in its flow."""
    task: str
    """Name of the job's task."""


@attrs.frozen
class Link:
    """An argument of a call that is the result of a planned job."""

    path: tuple[str, ...]
    """Where in the arguments: a name, and an index for an item of a list."""
    parent: Planned
    """The job whose result it is."""
    takes_none: bool
    """Whether the call also takes None there."""


PLACE: Final = None
"""Stands for the result in the arguments of a call until it is known."""


def find_planned(name: str, value: object) -> list[tuple[tuple[str, ...], Planned]]:
    """Return the planned jobs in an argument, and where they are.

    An argument is a planned job, or a list with planned jobs among its items.
    """
    if isinstance(value, Planned):
        return [((name,), value)]
    if isinstance(value, list):
        return [
            ((name, str(index)), item)
            for index, item in enumerate(value)
            if isinstance(item, Planned)
        ]
    return []
