"""Tasks: what can be one, what its options are, and that it stays callable."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import trio

from tocsin import Call
from tocsin._jobs.retrying import fixed
from tocsin._jobs.task import AsyncTask, PlainTask, task


@task
async def send(to: str, subject: str = "Hello") -> str:
    """Send a letter.

    It takes a while.
    """
    await trio.lowlevel.checkpoint()
    return f"{subject}, {to}"


@task
def double(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@task(
    queue="mail",
    max_attempts=5,
    timeout=timedelta(minutes=1),
    retry=7,
    priority=-1,
    description="Sends letters",
    name="mail.send",
)
async def tuned(to: str) -> None:
    await trio.lowlevel.checkpoint()


# The decorator


def test_a_task_can_still_be_called() -> None:
    assert double(4) == 8
    assert double(number=4) == 8
    assert trio.run(send, "Ada") == "Hello, Ada"
    with pytest.raises(ValueError, match="negative"):
        double(-1)


def test_a_task_looks_like_its_function() -> None:
    assert isinstance(send, AsyncTask)
    assert isinstance(double, PlainTask)
    as_function: Any = send
    assert as_function.__name__ == "send"
    assert as_function.__doc__ == send.function.__doc__
    assert inspect.signature(send) == inspect.signature(send.function)
    assert as_function.__wrapped__ is send.function
    assert repr(send) == "<tocsin.Task tests.unit.test_task.send of queue 'default'>"


def test_a_task_has_sensible_options_without_any() -> None:
    options = double.options
    assert (options.queue, options.max_attempts, options.timeout) == ("default", 3, 300)
    assert (options.priority, options.description) == (0, "")
    assert double.name == "tests.unit.test_task.double"
    assert 0.8 <= (options.retry.delay(1, OSError()) or 0) <= 1.2


def test_its_first_line_describes_a_task() -> None:
    assert send.options.description == "Send a letter."


def test_options_are_those_that_were_given() -> None:
    options = tuned.options
    assert (options.queue, options.max_attempts, options.timeout) == ("mail", 5, 60)
    assert (options.priority, options.description) == (-1, "Sends letters")
    assert tuned.name == "mail.send"
    assert options.retry.delay(1, OSError()) == 7


def test_empty_parentheses_mean_no_options() -> None:
    @task(name="empty")
    def empty() -> None: ...

    assert task()(double.function).options.queue == "default"
    assert empty.name == "empty"


def test_a_timeout_can_be_left_out() -> None:
    assert task(timeout=None)(double.function).options.timeout is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts must be at least 1"),
        ({"max_attempts": "3"}, TypeError, "max_attempts must be an integer"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"timeout": "1m"}, TypeError, "timeout must be a number of seconds"),
        ({"priority": 2**40}, ValueError, "priority must fit into 32 bits"),
        ({"queue": None}, TypeError, "queue must be text"),
        ({"name": "a\0"}, ValueError, "name must not contain the character NUL"),
        ({"description": 1}, TypeError, "description must be text"),
        ({"retry": -1}, ValueError, "retry must be at least 0"),
        ({"retry": []}, ValueError, "retry must have at least one delay"),
        ({"retry": [1, "2"]}, TypeError, r"retry\[1\] must be a number of seconds"),
        ({"attempts": 3}, TypeError, "attempts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_option_out_of_its_range_is_refused_where_the_task_is_defined(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        task(**options)(double.function)


# What cannot be a task


class Mailer:
    def send(self, to: str) -> None: ...

    @staticmethod
    def post(to: str) -> None: ...

    def __call__(self, to: str) -> None: ...


def generate(n: int) -> Iterator[int]:
    yield n


async def generate_async(n: int) -> AsyncIterator[int]:
    yield n


def make_closure() -> Callable[[], str]:
    host = "example.org"

    def closure() -> str:
        return host

    return closure


def make_local() -> Callable[[], None]:
    def local() -> None: ...

    return local


def take_any(*to: str) -> None: ...


def take_positional(to: str, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda to: to, "a lambda has no name"),
        (generate, "generate is a generator function"),
        (generate_async, "generate_async is a generator function"),
        (make_closure(), "closure is a closure over host"),
        (make_local(), "local is defined in another function"),
        (Mailer.send, "Mailer.send is defined in a class"),
        (Mailer.post, "Mailer.post is defined in a class"),
        (Mailer().send, "a task is a function that is defined with def"),
        (Mailer(), "a task is a function that is defined with def"),
        (Mailer, "a task is a function that is defined with def"),
        (print, "a task is a function that is defined with def"),
        (functools.partial(double.function, 1), "a task is a function"),
        ("double", "a task is a function"),
        (double, "double is a task already"),
        (take_any, "takes any number of positional arguments"),
        (take_positional, "is positional-only"),
    ],
    ids=[
        "lambda",
        "generator",
        "async generator",
        "closure",
        "local",
        "method",
        "static method",
        "bound method",
        "object",
        "class",
        "builtin",
        "partial",
        "text",
        "task",
        "*args",
        "positional-only",
    ],
)
def test_what_no_worker_could_call_is_refused(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        task(function)


def test_a_function_within_another_can_be_a_task_under_a_name() -> None:
    assert task(name="local")(make_local()).name == "local"
    assert task(name="closure")(make_closure())() == "example.org"


def test_the_main_module_has_the_name_that_a_worker_imports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def main() -> None: ...

    main.__module__, main.__qualname__ = "__main__", "main"
    module = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    module.__file__ = str(tmp_path / "letters.py")
    assert task(main).name == "letters.main"
    module.__spec__ = type("Spec", (), {"name": "shop.letters.__main__"})()
    assert task(main).name == "shop.letters.main"


# Calls


def test_a_call_has_the_arguments_by_name() -> None:
    call = send.call("Ada", subject="Dear")
    assert isinstance(call, Call)
    assert (call.definition, call.arguments) == (send.definition, '{"to":"Ada","subject":"Dear"}')


def test_a_default_is_left_to_the_worker() -> None:
    assert send.call("Ada").arguments == '{"to":"Ada"}'


def test_the_retry_policy_may_be_one_of_ones_own() -> None:
    class Never:
        def delay(self, attempt: int, error: BaseException) -> float | None:
            return None

    never = Never()
    assert task(retry=never)(double.function).options.retry is never
    assert isinstance(fixed(1), type(task(retry=1)(double.function).options.retry))
