"""Settings: where a store is, and how this process behaves there.

A setting is taken from the first of these that has it: the argument; the environment
variable ``TOCSIN_`` and its name in capitals; the table ``[tool.tocsin]`` of a TOML
file; the default. The file is the one that ``TOCSIN_CONFIG`` names, else the nearest
``pyproject.toml`` that has such a table, in the working directory or above it.

A value that cannot be understood is an error that names its source. So is an unknown
key in the table, and a variable whose name is nearly the name of a setting. Other
variables that begin with ``TOCSIN_`` are ignored, because they may belong to other
programs: Kubernetes makes ``TOCSIN_PORT`` and ``TOCSIN_SERVICE_HOST`` of a service
called tocsin. Of several sources only the one that counts is read.

``listen_dsn`` belongs to a ``dsn``: one from a weaker source than the ``dsn`` that
counts does not apply. So a program with another database as an argument does not listen
at the one that the environment names.

An empty value is an error everywhere. A secret that came out empty must not lead to
whatever database libpq finds by itself; ``postgresql://`` says that this is meant.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs

from tocsin._database.dsn import clean_dsn, describe_address
from tocsin._database.schema import Schema

from ._arguments import check_count
from ._durations import Duration, parse_duration, to_seconds
from .errors import ConfigError

PREFIX = "TOCSIN_"
"""What the names of our environment variables begin with."""
CONFIG = "TOCSIN_CONFIG"
"""The environment variable that names the TOML file."""
HEARTBEAT = 2.0
"""Seconds between two heartbeats of a process."""

_OTHER_VARIABLES = (CONFIG, "TOCSIN_DATA")


@attrs.frozen
class Settings:
    """The settings of a store and of this process in it, made by `load`."""

    dsn: str | None = attrs.field(default=None, repr=False)
    """PostgreSQL connection string; None: libpq's environment (``PGHOST`` and so on)
    says where the server is."""
    schema: str = "tocsin"
    """The schema that Tocsin is in, or is to be installed in."""
    listen_dsn: str | None = attrs.field(default=None, repr=False)
    """Connection string of the LISTEN connection, when ``dsn`` leads through a pooler;
    None: the same as ``dsn``."""
    pool_size: int = 8
    """The most connections of the pool; at least 2. The LISTEN connection does not
    count, nor do those that are open for a moment while a statement has no answer."""
    heartbeat: float = HEARTBEAT
    """Seconds between two heartbeats of the process; other processes notice a dead one
    within about one and a half of it."""


def load(
    dsn: str | None = None,
    *,
    schema: str | None = None,
    listen_dsn: str | None = None,
    pool_size: int | None = None,
    heartbeat: Duration | None = None,
) -> Settings:
    """Return the settings that count here and now.

    The call reads a small file, and waits for nothing else. An argument that is None
    counts as not given; the others are those of `Settings`.

    Raises:
        ConfigError: A setting cannot be understood. No error contains a connection
            string.
    """
    arguments = {
        "dsn": dsn,
        "schema": schema,
        "listen_dsn": listen_dsn,
        "pool_size": pool_size,
        "heartbeat": heartbeat,
    }
    _check_variables(os.environ)
    path, table = _read_table()
    sources: list[dict[str, Any]] = [
        {name: a for name, a in arguments.items() if a is not None},
        _read_variables(),
        table,
    ]
    ranks = {
        name: next((rank for rank, source in enumerate(sources) if name in source), len(sources))
        for name in arguments
    }
    if ranks["listen_dsn"] > ranks["dsn"]:
        ranks["listen_dsn"] = len(sources)
    values = {}
    for name, rank in ranks.items():
        match rank:
            case 0:
                values[name] = _check(name, arguments[name], f"argument {name}")
            case 1:
                values[name] = _check(
                    name,
                    os.environ[_variable(name)],
                    f"environment variable {_variable(name)}",
                    as_text=True,
                )
            case 2:
                values[name] = _check(
                    name, table[name], f"{path}, tool.tocsin.{name}", as_text=name in _DURATIONS
                )
    return Settings(**values)


# Values


def _check_dsn(value: object) -> str:
    text = clean_dsn(_check_text(value))
    try:
        describe_address(text)
    except ConfigError as error:
        raise ValueError(error.reason) from None
    return text


def _check_schema(value: object) -> str:
    try:
        return Schema(_check_text(value)).name
    except ConfigError as error:
        raise ValueError(error.reason) from None


def _check_pool_size(value: int) -> int:
    if check_count(value, "pool_size") < 2:
        raise ValueError(
            "pool_size must be at least 2: one for a transaction, and one for other statements"
        )
    return value


def _check_heartbeat(value: Duration) -> float:
    seconds = to_seconds(value, "heartbeat")
    if seconds > 3600:  # other processes wait that long before they declare one dead
        raise ValueError("heartbeat must be at most an hour")
    return seconds


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


_CHECKS: dict[str, Callable[[Any], object]] = {
    "dsn": _check_dsn,
    "schema": _check_schema,
    "listen_dsn": _check_dsn,
    "pool_size": _check_pool_size,
    "heartbeat": _check_heartbeat,
}
"""What checks the value of a setting."""
_DURATIONS = {"heartbeat"}
"""Settings that may be text such as ``1.5s`` in TOML, too."""


def _parse_count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, not {text!r}") from None


_PARSERS: dict[str, Callable[[str], object]] = {
    "pool_size": _parse_count,
    "heartbeat": parse_duration,
}
"""What reads a setting that is not text itself from text."""


def _check(name: str, value: Any, source: str, *, as_text: bool = False) -> Any:
    is_text = isinstance(value, str)
    if is_text and not value.strip():
        hint = "; postgresql:// stands for libpq's environment" if name == "dsn" else ""
        raise ConfigError(source, f"is empty; leave it out, or give it a value{hint}")
    if is_text and _CHECKS[name] is not _check_dsn and ("://" in value or "=" in value):
        # and is not to be shown
        raise ConfigError(source, "looks like a connection string, which does not belong there")
    try:
        return _CHECKS[name](
            _PARSERS[name](value) if as_text and is_text and name in _PARSERS else value
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(source, str(error)) from None


# The environment


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _read_variables() -> dict[str, str]:
    return {name: os.environ[_variable(name)] for name in _CHECKS if _variable(name) in os.environ}


def _check_variables(names: Iterable[str]) -> None:
    known = [*map(_variable, _CHECKS), *_OTHER_VARIABLES]
    for name in sorted(names):
        if (
            name.upper().startswith(PREFIX)
            and name not in known
            and (meant := _nearest(name.upper(), known, PREFIX))
        ):
            raise ConfigError(
                f"environment variable {name}", f"is not a setting; {meant} may be meant"
            )


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str | None:
    """Return the known name that this one is a misspelling of, if it is one."""
    rests = {other.removeprefix(prefix): other for other in known}
    rest = name.removeprefix(prefix)
    # "DNS" for "DSN" is too short for the similarity test.
    swapped = [other for other in rests if sorted(other) == sorted(rest)]
    close = swapped or difflib.get_close_matches(rest, rests, 1, 0.8)
    return rests[close[0]] if close else None


# The file


def _read_table() -> tuple[Path, dict[str, Any]]:
    """Return the file that counts, and its table of ours."""
    named = os.environ.get(CONFIG)
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the file has been removed
        here = Path("/")
    if named is None:
        for folder in (here, *here.parents):
            path = folder / "pyproject.toml"
            try:
                table = _read_file(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if table is not None:
                return path, table
        return here, {}
    if not named:
        raise ConfigError(
            f"environment variable {CONFIG}", "is empty; leave it out, or name a file"
        )
    path = here / named
    try:
        table = _read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"environment variable {CONFIG}", f"there is no file {path}") from None
    if table is None:
        raise ConfigError(
            f"environment variable {CONFIG}", f"there is no table [tool.tocsin] in {path}"
        )
    return path, table


def _read_file(path: Path) -> dict[str, Any] | None:
    """Return Tocsin's table in a TOML file, or None if there is none.

    Raises:
        FileNotFoundError: The file does not exist.
        NotADirectoryError: The path leads through something that is not a directory.
        ConfigError: The file or the table cannot be read, or has an unknown key.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ConfigError(
            str(path), f"cannot be read: {error.strerror}; {CONFIG} may name another file"
        ) from None
    except ValueError as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None
    tools = content.get("tool")
    table = tools.get("tocsin") if isinstance(tools, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}, tool.tocsin", "must be a table")
    for key in table:
        if key not in _CHECKS:
            meant = _nearest(key.lower(), _CHECKS)
            hint = f"{meant} may be meant" if meant else f"there are {', '.join(_CHECKS)}"
            raise ConfigError(f"{path}, tool.tocsin.{key}", f"is not a setting; {hint}")
    return table
