"""How a worker calls the functions of its tasks: in a trio task, a thread or a process.

The numbers of threads and processes are limited. A thread that a timeout leaves behind
does not count, since it may never end.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from tocsin._queue.consuming.handlers import make_caller
from tocsin._queue.payload import encode

from .current import CurrentJob
from .executor import Executor
from .process_function import run_in_process
from .task import Task

FunctionCaller: TypeAlias = Callable[[CurrentJob, object, dict[str, Any]], Awaitable[object]]
"""Calls a task's function for a job, with its payload and with the arguments in it."""


class FunctionCallers:
    """Returns the callers of the functions of one worker."""

    def __init__(self, threads: int, processes: int, executor: Executor | None) -> None:
        self._executor = executor
        self._limiters = {
            "thread": trio.CapacityLimiter(threads),
            "process": trio.CapacityLimiter(processes),
        }

    def limiter_for(self, task: Task[..., Any]) -> trio.CapacityLimiter | None:
        """Return what limits the calls of a task's function; None: nothing does."""
        return self._limiters.get(task.options.runs)

    def caller_for(self, task: Task[..., Any]) -> FunctionCaller:
        """Return the caller of a task's function."""
        if task.options.runs == "process":
            assert self._executor is not None
            return _make_process_caller(task, self._executor)
        return _make_task_caller(task) if task.is_async else _make_thread_caller(task)


def _make_task_caller(task: Task[..., Any]) -> FunctionCaller:
    function: Any = task.function

    def call(current: CurrentJob, payload: object, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = function(**arguments)
        return called

    return call


def _make_thread_caller(task: Task[..., Any]) -> FunctionCaller:
    function = task.function

    @functools.wraps(function)
    def call_with(arguments: dict[str, Any]) -> object:
        return function(**arguments)

    call_in_thread = make_caller(call_with)

    def call(current: CurrentJob, payload: object, arguments: dict[str, Any]) -> Awaitable[object]:
        return call_in_thread(arguments)

    return call


def _make_process_caller(task: Task[..., Any], executor: Executor) -> FunctionCaller:
    def call(current: CurrentJob, payload: object, arguments: dict[str, Any]) -> Awaitable[object]:
        return run_in_process(executor, task, current.message, encode(payload), current.timeout)

    return call
