"""A task's parameters and result, and their conversion to JSON and back.

The payload of a job is a JSON object with the arguments by name, so that an argument
can be read, searched for and edited while the job waits. A job that SQL submits may
give an array instead, with the arguments by position. Parameters that cannot be named
(``*args``, positional-only ones) are therefore refused where the task is defined.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

from tocsin.errors import ArgumentsInvalid
from tocsin.errors._jobs import Fault, ResultInvalid
from tocsin.errors._payloads import describe_path

from .conversion import Conversion, Unconvertible, write_json
from .planned import PLACE, Link, Planned, find_planned

_UNNAMED: Final[Mapping[inspect._ParameterKind, str]] = {
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only",
    inspect.Parameter.VAR_POSITIONAL: "takes any number of positional arguments",
}


class Signature:
    """The parameters and the result of a task's function."""

    def __init__(self, task: str, function: Callable[..., object]) -> None:
        """Read the signature.

        Args:
            task: The task's name, for errors.
            function: The task's function.

        Raises:
            TypeError: The function has a parameter that cannot be given by name, or of
                a type without a JSON form.
        """
        self._task = task
        self._function = function
        self._signature = inspect.signature(function)
        self._parameters = frozenset(
            name
            for name, parameter in self._signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        )
        self._required = frozenset(
            name
            for name in self._parameters
            if self._signature.parameters[name].default is inspect.Parameter.empty
        )
        for parameter in self._signature.parameters.values():
            if problem := _UNNAMED.get(parameter.kind):
                raise TypeError(
                    f"parameter {parameter} of task {task} {problem}; the arguments of a job are"
                    " kept by name, so each parameter needs one"
                )
        # A type without a JSON form is refused where the task is defined, unless the
        # module defines the type further down.
        with suppress(NameError):
            self.prepare()

    def prepare(self) -> None:
        """Read the annotations.

        Raises:
            TypeError: A parameter or the result is of a type without a JSON form.
            NameError: An annotation names what does not exist.
        """
        _ = self._conversions

    @cached_property
    def _conversions(self) -> Mapping[str, Conversion]:
        """The conversion of each parameter, by name; that of the result: ``return``."""
        hints = typing.get_type_hints(self._function)
        found: dict[str, Conversion] = {}
        for name in [*self._signature.parameters, "return"]:
            try:
                found[name] = Conversion(hints.get(name, inspect.Parameter.empty))
            except TypeError as error:
                what = "the result" if name == "return" else f"parameter {name}"
                raise TypeError(f"{what} of task {self._task}: {error}") from None
        return found

    # Arguments

    def write_arguments(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[str, tuple[Link, ...]]:
        """Return the JSON text of a call's arguments, and those that are planned.

        Raises:
            ArgumentsInvalid: The function does not take them.
        """
        faults: list[Fault] = []
        forms: dict[str, object] = {}
        links: list[Link] = []
        for name, value in self._bind(args, kwargs).items():
            conversion = self._conversion(name)
            try:
                if planned := find_planned(name, value):
                    forms[name], takes_none = _write_planned(conversion, value)
                    links += [Link(path, parent, takes_none) for path, parent in planned]
                else:
                    forms[name] = conversion.to_json(value)
            except Unconvertible as error:
                faults += _under(name, error.faults)
        if faults:
            raise ArgumentsInvalid(self._task, faults)
        try:
            return write_json(forms), tuple(links)
        except Unconvertible as error:
            raise ArgumentsInvalid(self._task, error.faults) from None

    def read_arguments(self, payload: object) -> dict[str, Any]:
        """Return the arguments of a job by name.

        Args:
            payload: The job's: an object, with the arguments by name, or an array, by
                position.

        Raises:
            ArgumentsInvalid: The function does not take them.
        """
        if isinstance(payload, dict):
            forms = self._bind((), payload)
        elif isinstance(payload, list):
            forms = self._bind(tuple(payload), {})
        else:
            raise ArgumentsInvalid(
                self._task, [Fault("$", "neither an object nor an array of arguments")]
            )
        faults: list[Fault] = []
        values: dict[str, Any] = {}
        for name, form in forms.items():
            try:
                values[name] = self._conversion(name).from_json(form)
            except Unconvertible as error:
                faults += _under(name, error.faults)
        if faults:
            raise ArgumentsInvalid(self._task, faults)
        return values

    def _bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return arguments by name, those of ``**kwargs`` among them."""
        if not args and self._required <= kwargs.keys() <= self._parameters:
            return dict(kwargs)
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsInvalid(self._task, [Fault("$", str(error))]) from None
        arguments = dict(bound.arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        return arguments

    def _conversion(self, name: str) -> Conversion:
        if name in self._signature.parameters:
            return self._conversions[name]
        *_, rest = self._signature.parameters.values()  # ``**kwargs`` comes last
        return self._conversions[rest.name]

    # The keys of limits

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, without ``**kwargs``."""
        return tuple(
            name
            for name, parameter in self._signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        )

    def write_key(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> str | None:
        """Return an argument of a call as the key of a limit; None: it is None.

        Raises:
            ArgumentsInvalid: The function does not take these arguments.
        """
        arguments = self._bind(args, kwargs)
        return self._write_key(name, arguments.get(name, self._signature.parameters[name].default))

    def _write_key(self, name: str, value: object) -> str | None:
        if find_planned(name, value):
            fault = Fault(describe_path([name]), "the key of a limit cannot be a planned result")
            raise ArgumentsInvalid(self._task, [fault])
        form = self._conversion(name).to_json(value)
        return form if form is None or isinstance(form, str) else write_json(form)

    def describe_parameter(self, name: str) -> dict[str, object]:
        """Return where the arguments of a job have a parameter, and its default."""
        place: dict[str, object] = {"parameter": name, "position": self.names.index(name)}
        default = self._signature.parameters[name].default
        if default is not inspect.Parameter.empty:
            place["default"] = self._write_key(name, default)
        return place

    # The result

    def write_result(self, value: object) -> str:
        """Return the JSON text of a result.

        Raises:
            ResultInvalid: It is not what the return annotation says, or JSON cannot
                hold it.
        """
        try:
            return write_json(self._conversions["return"].to_json(value))
        except Unconvertible as error:
            raise ResultInvalid(self._task, error.faults) from error

    def read_result(self, form: object) -> Any:
        """Return a result that was stored.

        Raises:
            ResultInvalid: It is not what the return annotation says.
        """
        try:
            return self._conversions["return"].from_json(form)
        except Unconvertible as error:
            raise ResultInvalid(self._task, error.faults) from error


def _write_planned(conversion: Conversion, value: object) -> tuple[object, bool]:
    """Return the form of an argument with planned jobs, and whether None fits there.

    Raises:
        Unconvertible: The rest of the value does not fit.
    """
    if not isinstance(value, list):
        return PLACE, _takes(conversion, PLACE)
    rest = conversion.to_json([item for item in value if not isinstance(item, Planned)])
    forms = iter(rest if isinstance(rest, list) else [rest])
    form = [PLACE if isinstance(item, Planned) else next(forms) for item in value]
    return form, _takes(conversion, form)


def _takes(conversion: Conversion, form: object) -> bool:
    try:
        conversion.from_json(form)
    except Unconvertible:
        return False
    return True


def _under(name: str, faults: list[Fault]) -> list[Fault]:
    """Return faults of an argument as faults of the object of arguments."""
    return [Fault(describe_path([name]) + fault.path[1:], fault.reason) for fault in faults]
