"""The graph of a flow: its jobs, and which of them wait for which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

import attrs

from tocsin._arguments import check_text
from tocsin._queue.payload import encode
from tocsin._queue.producing.enqueue_request import Parameters
from tocsin.errors import FlowInvalid

from .definition import Call, Definition, check_call
from .planned import Planned
from .submitting import Submission

R = TypeVar("R")

OnFailure: TypeAlias = Literal["cancel", "run", "hold"]
"""What becomes of a job when a job before it does not succeed.

``cancel`` cancels it, and so its children by their own rules. ``run`` lets it run.
``hold`` keeps it held until the other job is requeued and succeeds.
"""


@attrs.frozen
class _Parent:
    """A job before another one, by name."""

    name: str
    argument: tuple[str, ...]
    on_failure: OnFailure


@attrs.frozen
class _Node:
    """A job of the flow."""

    planned: Planned
    call: Call[Any]
    parents: tuple[_Parent, ...]


class FlowBatch:
    """The jobs of a flow, which one statement submits.

    It gives the id of the flow, and then those of the jobs.
    """

    statement: Final = "select tocsin.submit_flow(%s, %s::jsonb)"
    """What it is sent with."""
    one_statement: Final = True
    """One statement takes it all."""

    def __init__(self, name: str, jobs: Sequence[str]) -> None:
        self._parameters: Parameters = [name, f"[{','.join(jobs)}]"]

    def statements(self) -> Iterator[Parameters]:
        """Yield the parameters of the statement."""
        yield self._parameters


class FlowGraph:
    """The jobs of a flow; a `Flow` or a `BlockingFlow` submits them."""

    def __init__(self, name: str, on_failure: OnFailure) -> None:
        self.name: str = check_text(name, "name")
        """Name of the flow, for people; several flows may have it."""
        self._on_failure = _check_rule(on_failure)
        self._nodes: dict[str, _Node] = {}
        self._ids: dict[str, int] = {}
        self._id: int | None = None

    def __repr__(self) -> str:
        return f"<tocsin.{type(self).__name__} {self.name!r} of {len(self._nodes)} jobs>"

    @property
    def id(self) -> int:
        """Id of the flow.

        Raises:
            RuntimeError: The flow is not submitted yet.
        """
        if self._id is None:
            raise RuntimeError("the flow is submitted at the end of its block")
        return self._id

    def add(
        self,
        call: Call[R],
        *,
        name: str | None = None,
        after: Iterable[object] = (),
        on_failure: OnFailure | None = None,
    ) -> R:
        """Add a job, and return a placeholder for its result.

        The return value is a `Planned` job. As an argument of a later call, or as an
        item of a list there, it becomes the result of the job. So it has the type of
        the result for a type checker.

        Args:
            call: What `Task.call` returned; without the options ``key`` and
                ``schema``.
            name: Name of the job in the flow; without, it is made of the task's.
            after: Jobs that come before it and whose results it does not take: what
                `add` returned, or names, also of jobs that are added later.
            on_failure: What becomes of this job when a job before it does not succeed;
                without, as the flow says.

        Raises:
            FlowInvalid: The name is in use, or the job would run without an argument.
            ValueError: An argument is out of its range.
            TypeError: It is no call, or has an option that a flow cannot give, or
                ``after`` is a single job.
            RuntimeError: The flow is submitted already.
        """
        check_call(call)
        self._check_open()
        if isinstance(after, str | Planned):
            raise TypeError(f"after must be a list of jobs, not {after!r}")
        if refused := call.options.keys() & {"key", "schema"}:
            raise TypeError(f"a job of a flow has no option {', '.join(sorted(refused))}")
        rule = self._on_failure if on_failure is None else _check_rule(on_failure)
        task = call.definition.name
        planned = Planned(self._choose_name(task) if name is None else name, task)
        if check_text(planned.name, "name") in self._nodes:
            raise FlowInvalid(f"two jobs of flow {self.name!r} have the name {planned.name!r}")
        parents = [_Parent(self._name_of(parent), (), rule) for parent in after]
        for link in call.links:
            parent = self._nodes[self._name_of(link.parent)].call.definition
            if call.definition.packing is not None or parent.packing is not None:
                raise FlowInvalid(
                    f"job {planned.name!r} cannot take the result of {link.parent.name!r}: the"
                    " database cannot move a value that a packing has encoded; use after="
                )
            if rule == "run" and not link.takes_none:
                raise FlowInvalid(
                    f"job {planned.name!r} is to run also without the result of"
                    f" {link.parent.name!r}, so argument {link.path[0]!r} must accept None"
                )
            parents.append(_Parent(self._name_of(link.parent), link.path, rule))
        self._nodes[planned.name] = _Node(planned, call, tuple(parents))
        return cast(R, planned)

    def _find(self, planned: object) -> tuple[int, Definition[Any]]:
        """Return the id of a job that was submitted, and its task."""
        name = self._name_of(planned)
        if name not in self._ids:
            raise RuntimeError("the flow is submitted at the end of its block")
        return self._ids[name], self._nodes[name].call.definition

    def _calls(self) -> list[Call[Any]]:
        """Return the calls of the jobs, parents before children.

        Raises:
            FlowInvalid: Jobs wait for each other, or for one that is not in the flow.
            RuntimeError: The flow is submitted already.
        """
        self._check_open()
        return [self._nodes[name].call for name in self._sort()]

    def _write(self, submissions: Sequence[Submission]) -> FlowBatch:
        """Return what submits these jobs, whose calls `_calls` has returned."""
        names = self._sort()
        index = {name: n for n, name in enumerate(names)}
        return FlowBatch(
            self.name,
            [
                _write(self._nodes[name], submission, index)
                for name, submission in zip(names, submissions, strict=True)
            ],
        )

    def _note_submitted(self, ids: Sequence[int]) -> None:
        """Note the ids that the statement has given."""
        self._id, *job_ids = ids
        self._ids = dict(zip(self._sort(), job_ids, strict=True))

    def _check_open(self) -> None:
        if self._id is not None:
            raise RuntimeError(f"flow {self.name!r} is submitted already; begin another one")

    def _sort(self) -> list[str]:
        """Return the names of the jobs, parents before children.

        Raises:
            FlowInvalid: Jobs wait for each other, or for one that is not in the flow.
        """
        graph = {n.planned.name: [p.name for p in n.parents] for n in self._nodes.values()}
        if unknown := sorted({p for parents in graph.values() for p in parents} - graph.keys()):
            raise FlowInvalid(
                f"jobs of flow {self.name!r} wait for jobs that are not in it:"
                f" {', '.join(unknown)}",
                unknown=unknown,
            )
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            cycle = error.args[1]
            raise FlowInvalid(
                f"jobs of flow {self.name!r} wait for each other: {' → '.join(cycle)}",
                cycle=cycle,
            ) from None

    def _choose_name(self, task: str) -> str:
        base = task.rpartition(".")[2]
        name, n = base, 1
        while name in self._nodes:
            n += 1
            name = f"{base}-{n}"
        return name

    def _name_of(self, planned: object) -> str:
        """Return the name of a job, which may be that of one that is added later."""
        if isinstance(planned, str):
            return planned
        if not isinstance(planned, Planned):
            raise TypeError(f"a job of a flow is what Flow.add returned, not {planned!r}")
        node = self._nodes.get(planned.name)
        if node is None or node.planned is not planned:
            raise FlowInvalid(
                f"job {planned.name!r} of task {planned.task} is not in flow {self.name!r}",
                unknown=[planned.name],
            )
        return planned.name


def _check_rule(rule: object) -> OnFailure:
    if rule not in get_args(OnFailure):
        raise ValueError(
            f"on_failure must be one of {', '.join(get_args(OnFailure))}, not {rule!r}"
        )
    return cast(OnFailure, rule)


def _write(node: _Node, submission: Submission, index: dict[str, int]) -> str:
    """Return a job as ``tocsin.submit_flow`` takes it."""
    more: dict[str, Any] = {
        "name": node.planned.name,
        "queue": submission.queue,
        "parents": [
            {
                "job": index[parent.name],
                "on_failure": parent.on_failure,
                "argument": parent.argument,
            }
            for parent in node.parents
        ],
    }
    return f"{submission.request.to_json()[:-1]},{encode(more)[1:]}"
