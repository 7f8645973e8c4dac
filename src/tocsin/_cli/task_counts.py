"""The numbers of jobs by task, as tables show them."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from tocsin import JobCount


@attrs.define
class TaskCounts:
    """The jobs of a task in numbers."""

    task: str
    """Name of the task."""
    by_state: dict[str, int] = attrs.Factory(dict)
    """The number of jobs in each state."""
    exact: bool = True
    """Whether all of these numbers were counted."""


def count_by_task(counts: Iterable[JobCount]) -> list[TaskCounts]:
    """Return the counts with all states of a task together, by task."""
    found: dict[str, TaskCounts] = {}
    for count in counts:
        task = found.setdefault(count.task, TaskCounts(count.task))
        task.by_state[count.state] = count.count
        task.exact = task.exact and count.exact
    return [found[name] for name in sorted(found)]
