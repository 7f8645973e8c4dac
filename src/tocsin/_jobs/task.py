"""Tasks: functions whose calls can be submitted as jobs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import attrs

from tocsin._arguments import check_count, check_priority, check_text
from tocsin._durations import Duration, to_seconds
from tocsin._queue.message import TICK
from tocsin.errors import ArgumentsInvalid

from .connections import BlockingTarget, check_target
from .definition import Call, Definition, SubmitOptions, TaskOptions, make_call
from .job import Job
from .limits import Limiting, check_keys, read_limits
from .packing import Packing
from .retrying import Retrying, exponential, make_policy
from .session_job import BlockingJob
from .signature import Signature
from .submitting import check_options
from .targets import (
    Target,
    find_job,
    find_job_blocking,
    submit,
    submit_blocking,
    submit_many,
    submit_many_blocking,
)
from .task_function import check_function, check_place, find_description, find_name

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_QUEUE: Final = "default"
DEFAULT_RETRY: Final = exponential(1.0, cap=3600.0)


class Task(Generic[P, R]):
    """A function whose calls can be submitted as jobs; made by `task`.

    It can still be called.
    """

    def __init__(
        self,
        function: Callable[P, object],
        name: str | None,
        options: TaskOptions,
        packing: Packing | None,
    ) -> None:
        name = find_name(function) if name is None else check_text(name, "name")
        if name == TICK:
            raise ValueError(f"{TICK} is the task of schedules; give another name")
        signature = Signature(name, function)
        check_keys(options.limits, signature)
        self.definition: Definition[R] = Definition(name, options, signature, packing)
        """The task without its function."""
        self.function: Callable[P, object] = function
        """The function as it was written."""
        self.is_async: bool = inspect.iscoroutinefunction(function)
        """Whether the function is async; a plain one runs in a thread or a process."""
        functools.update_wrapper(cast(Callable[..., object], self), function)

    @property
    def name(self) -> str:
        """Name of the task in the database."""
        return self.definition.name

    @property
    def options(self) -> TaskOptions:
        """How its jobs are run."""
        return self.definition.options

    def __repr__(self) -> str:
        return f"<tocsin.Task {self.name} of queue {self.options.queue!r}>"

    async def submit(self, target: Target, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Submit a job that calls the function with these arguments.

        Args:
            target: A store, or an async connection in whose transaction the job is
                submitted: see the guide.
            args: Arguments of the function.
            kwargs: Arguments of the function.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
            TocsinError: What `Jobs.submit` raises.
            TypeError: The target is neither a store nor an async connection.

        Cancellation:
            The job is submitted or not.
        """
        return await submit(target, _call_for(target, self.call, *args, **kwargs))

    async def submit_many(self, target: Target, calls: Iterable[Call[R]], /) -> list[Job[R]]:
        """Submit all calls of this task or, on any refusal, none.

        Args:
            target: A store, or an async connection, as for `submit`.
            calls: What `call` returned, with options of their own (`using`).

        Raises:
            TocsinError: What `Jobs.submit_many` raises.
            TypeError: A call is of another task, or the target is neither a store nor
                an async connection.

        Cancellation:
            The jobs are submitted or not.
        """
        return await submit_many(target, self._check_calls(calls))

    def submit_blocking(
        self, target: BlockingTarget, /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingJob[R]:
        """Submit a job as `submit` does, on a blocking connection, without trio.

        Args:
            target: A `psycopg.Connection`, or a connection or session of SQLAlchemy
                with one; the job is submitted in its transaction.
            args: Arguments of the function.
            kwargs: Arguments of the function.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
            TocsinError: What `tocsin.enqueue` raises.
            TypeError: The target has no such connection.
        """
        return submit_blocking(target, _call_for(target, self.call, *args, **kwargs))

    def submit_many_blocking(
        self, target: BlockingTarget, calls: Iterable[Call[R]], /
    ) -> list[BlockingJob[R]]:
        """Submit all calls of this task or, on any refusal, none, without trio.

        Args:
            target: As for `submit_blocking`.
            calls: What `call` returned.

        Raises:
            TocsinError: What `tocsin.enqueue_many` raises.
            TypeError: A call is of another task, or the target has no such connection.
        """
        return submit_many_blocking(target, self._check_calls(calls))

    def job(self, target: Target, job_id: int, *, schema: str = "tocsin") -> Job[R]:
        """Return a job of this task by its id, without asking the database.

        Args:
            target: A store, or an async connection, as for `submit`.
            job_id: Id of the job.
            schema: Where Tocsin is installed, for a connection as target.
        """
        return find_job(target, self.definition, job_id, schema)

    def job_blocking(
        self, target: BlockingTarget, job_id: int, *, schema: str = "tocsin"
    ) -> BlockingJob[R]:
        """Return a job of this task by its id, without asking the database.

        Args:
            target: As for `submit_blocking`.
            job_id: Id of the job.
            schema: Where Tocsin is installed.
        """
        return find_job_blocking(target, self.definition, job_id, schema)

    def _check_calls(self, calls: Iterable[Call[R]]) -> list[Call[R]]:
        calls = list(calls)
        for call in calls:
            if not isinstance(call, Call) or call.definition is not self.definition:
                raise TypeError(
                    f"{call!r} is no call of task {self.name}; store.jobs.submit_many takes calls"
                    " of any tasks"
                )
        return calls

    def using(self, **options: Unpack[SubmitOptions]) -> Choice[P, R]:
        """Return the task with options for one call, or several.

        Args:
            options: Those of `SubmitOptions`. Any number of calls may share them.

        Raises:
            ValueError: An option is out of its range.
            TypeError: An option has a wrong type, or does not exist.
        """
        return Choice(self, check_options(options))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a call of the task, to be submitted.

        An argument, or an item of a list, may be what `Flow.add` returned.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
        """
        return make_call(self.definition, args, kwargs)


class AsyncTask(Task[P, R]):
    """A task whose function is async."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function here and now."""
        return cast(Coroutine[Any, Any, R], self.function(*args, **kwargs))


class PlainTask(Task[P, R]):
    """A task whose function is a plain one."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now."""
        return cast(R, self.function(*args, **kwargs))


@attrs.frozen
class Choice(Generic[P, R]):
    """A task with options for its calls; made by `Task.using`."""

    task: Task[P, R]
    """The task."""
    options: SubmitOptions
    """The options."""

    async def submit(self, target: Target, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Submit a job: see `Task.submit`.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
            TocsinError: What `Jobs.submit` raises.

        Cancellation:
            The job is submitted or not.
        """
        return await submit(target, _call_for(target, self.call, *args, **kwargs))

    def submit_blocking(
        self, target: BlockingTarget, /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingJob[R]:
        """Submit a job: see `Task.submit_blocking`.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
            TocsinError: What `tocsin.enqueue` raises.
        """
        return submit_blocking(target, _call_for(target, self.call, *args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a call of the task with these options, to be submitted.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
        """
        return attrs.evolve(self.task.call(*args, **kwargs), options=self.options)


def _call_for(
    target: object, call: Callable[P, Call[R]], /, *args: P.args, **kwargs: P.kwargs
) -> Call[R]:
    """Return a call for a target.

    If the target was left out, the first argument is in its place.
    """
    try:
        return call(*args, **kwargs)
    except ArgumentsInvalid:
        check_target(target)
        raise


class _Decorator(Protocol):
    """Makes a task of a function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> PlainTask[P, R]: ...


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> PlainTask[P, R]: ...
@overload
def task(
    *,
    queue: str = DEFAULT_QUEUE,
    max_attempts: int = 3,
    timeout: Duration | None = 300,
    retry: Retrying = DEFAULT_RETRY,
    priority: int = 0,
    limits: Iterable[Limiting] = (),
    packing: Packing | None = None,
    description: str | None = None,
    name: str | None = None,
    runs: Literal["thread", "process"] = "thread",
) -> _Decorator: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    queue: str = DEFAULT_QUEUE,
    max_attempts: int = 3,
    timeout: Duration | None = 300,
    retry: Retrying = DEFAULT_RETRY,
    priority: int = 0,
    limits: Iterable[Limiting] = (),
    packing: Packing | None = None,
    description: str | None = None,
    name: str | None = None,
    runs: Literal["thread", "process"] = "thread",
) -> Any:
    """Make a task of a function, which stays callable.

    Args:
        queue: The queue of its jobs.
        max_attempts: After how many attempts a job that fails becomes a dead letter.
        timeout: Seconds that an attempt may take; None: any number.
        retry: When a job that has failed is tried again: a policy such as
            `exponential`, a delay, a list of delays, or a function of the attempt and
            its error. Without, the delay begins with a second and doubles.
        priority: Smaller numbers are run first.
        limits: Each `Limit` says how many jobs run at a time, and each `Rate` how many
            become due in an interval.
        packing: How its arguments and results are encoded, or kept outside of the
            database.
        description: What the task does, for people; else the first line of the
            function's docstring.
        name: Name of the task in the database; else the function's module and name,
            by which another process imports it. A function that is defined in another
            function needs one; it runs only where a worker is given this task.
        runs: Where a plain function runs. A process suits a function that computes: it
            is killed when its time is over, and needs ``tocsin[processes]``.

    Raises:
        TypeError: The function cannot be a task, or an option has a wrong type.
        ValueError: An option is out of its range.
    """

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        if isinstance(function, Task):
            raise TypeError(f"{function.name} is a task already; leave one @task out")
        check_function(function, named=name is not None)
        options = TaskOptions(
            queue=check_text(queue, "queue"),
            max_attempts=check_count(max_attempts, "max_attempts"),
            timeout=None if timeout is None else to_seconds(timeout, "timeout"),
            retry=make_policy(retry),
            priority=check_priority(priority),
            limits=read_limits(limits),
            description=find_description(function)
            if description is None
            else check_text(description, "description"),
            runs=check_place(function, runs),
        )
        kind = AsyncTask if inspect.iscoroutinefunction(function) else PlainTask
        return kind(function, name, options, packing)

    return decorate if function is None else decorate(function)
