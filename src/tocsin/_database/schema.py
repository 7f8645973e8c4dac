"""The schema that holds Tocsin: its name, and the SQL that defines it.

The SQL files are the contract, and the only copy of it: an installed package carries
them in its folder ``sql``, a checkout has them at its top. They write ``tocsin.``
before each name of their own, and nowhere else; for another schema this one spelling is
replaced (see the head of ``0001_messages.sql``).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import attrs

from tocsin.errors import ConfigError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_IDENTIFIER_BYTES = 63
_SPELLING = re.compile(r"\btocsin\.")


def _check_name(schema: Schema, attribute: object, name: str) -> None:
    if not _IDENTIFIER.fullmatch(name):
        raise ConfigError(
            "schema",
            f"{name!r} is not a valid name: letters, digits and underscores, not beginning with a"
            " digit",
        )
    if len(name) > _MAX_IDENTIFIER_BYTES:
        raise ConfigError(
            "schema",
            f"{name!r} is {len(name)} bytes long, PostgreSQL allows {_MAX_IDENTIFIER_BYTES}",
        )
    if name.startswith("pg_") or name in ("public", "information_schema"):
        raise ConfigError("schema", f"{name!r} is not for Tocsin, which needs a separate schema")


@attrs.frozen
class Schema:
    """The schema that holds Tocsin."""

    name: str = attrs.field(validator=_check_name)
    """Its name in the database."""

    def render(self, text: str) -> str:
        """Return SQL written for the schema ``tocsin`` as SQL for this one."""
        prefix = f'"{self.name}".'
        return _SPELLING.sub(lambda _: prefix, text)


@attrs.frozen
class Migration:
    """One file of ``sql/migrations``."""

    number: int
    """Its number; migrations run in this order."""
    name: str
    """Its file name."""
    text: str
    """Its SQL, for the schema ``tocsin``."""


def _directory() -> Traversable:
    packaged = resources.files("tocsin") / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql"


def _read(directory: str) -> list[tuple[str, str]]:
    return sorted((f.name, f.read_text(encoding="utf-8")) for f in _files(_directory() / directory))


def _files(directory: Traversable) -> Iterator[Traversable]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        elif entry.name.endswith(".sql"):
            yield entry


@cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations that this version of Tocsin brings, in order."""
    return tuple(Migration(int(name[:4]), name, text) for name, text in _read("migrations"))


@cache
def load(name: str) -> str:
    """Return the text of a file, or the SQL of all files of a directory."""
    if "." in name:
        return (_directory() / name).read_text(encoding="utf-8")
    return "\n".join(text for _, text in _read(name))


@cache
def functions() -> str:
    """Return the SQL of all functions and of the rights to call them."""
    return load("functions") + "\n" + load("security")


READ_CONTRACT = "select version, serves, digest from tocsin.contract"
"""Reads the `Contract` of the installed schema."""


@attrs.frozen
class Contract:
    """A version of the SQL contract: tables, functions, and the rights to them."""

    version: int
    """Its number; later contracts have larger ones."""
    serves: int
    """The oldest version whose clients it serves."""
    digest: str
    """Digest of its SQL, which tells two states of one version apart while it is
    developed."""

    def serves_us(self) -> bool:
        """Return whether this package can go on with it as it is."""
        return self == ours() or self.version > ours().version >= self.serves


@cache
def ours() -> Contract:
    """Return the contract that this package brings."""
    stated = _contract()
    sql = "\n".join([*(m.text for m in migrations()), functions()])
    return Contract(stated["version"], stated["serves"], hashlib.sha256(sql.encode()).hexdigest())


def last_migrations() -> dict[int, int]:
    """Return the number of the last migration of each version up to ours."""
    return {int(version): number for version, number in _contract()["last_migration"].items()}


def _contract() -> dict[str, Any]:
    return tomllib.loads((_directory() / "contract.toml").read_text(encoding="utf-8"))
