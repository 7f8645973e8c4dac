"""The reference says everything: each public name, with each of its members, is on a
page, and none is without a docstring."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from pydoc import locate

import attrs
import pytest

import tocsin
import tocsin.driver
import tocsin.embedded
import tocsin.telemetry
from tests.support.public_api import (
    CLASSES,
    FUNCTIONS,
    PUBLIC,
    WAITING,
    explained_attributes,
    members,
)

DOCS = Path(__file__).parents[2] / "docs"


@attrs.frozen
class Entry:
    """A directive of a page that shows something's docstring."""

    name: str
    options: frozenset[str]


def entries() -> dict[object, Entry]:
    """What the pages show, by the object."""
    found: dict[object, Entry] = {}
    for page in DOCS.rglob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. (?:currentmodule|module|automodule):: (\S+)", line):
                module = match[1]
            elif match := re.match(r"\.\. auto(?:class|exception|function|data):: (\S+)", line):
                name = match[1] if match[1].startswith("tocsin.") else f"{module}.{match[1]}"
                found[_key(name)] = last = Entry(name, frozenset())
            elif match := re.match(r"   :([\w-]+):(.*)", line):
                named = {f"named {match[1]}"} if match[2].strip() else set()
                found[_key(last.name)] = last = Entry(last.name, last.options | {match[1]} | named)
    return found


def _key(name: str) -> object:
    """The object, or for one that cannot tell itself from another the name."""
    thing = locate(name)
    assert thing is not None, f"there is no {name}"
    return thing if inspect.isclass(thing) or inspect.isfunction(thing) else name


TYPES = {"tocsin.embedded.StopMode"}
"""Aliases that are explained where they are used."""


def test_every_public_name_has_an_entry() -> None:
    shown = entries()
    assert sorted(name for name in PUBLIC - TYPES if _key(name) not in shown) == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_is_shown_and_explained(name: str) -> None:
    cls = locate(name)
    assert isinstance(cls, type)
    options = entries()[cls].options
    owners = dict[str, type]()
    for member, owner in members(cls):
        owners.setdefault(member, owner)
    unexplained = [
        m
        for m, owner in owners.items()
        if m not in explained_attributes(owner) and not inspect.getdoc(getattr(owner, m, None))
    ]
    assert unexplained == []
    assert "members" in options or cls not in owners.values()
    inherited = [
        m for m, owner in owners.items() if owner is not cls and not issubclass(cls, Exception)
    ]
    assert not inherited or options & {"inherited-members", "named members"}, inherited


LASTING = [
    name
    for name, f in FUNCTIONS.items()
    if any("Duration" in str(p.annotation) for p in inspect.signature(f).parameters.values())
]


@pytest.mark.parametrize("name", WAITING)
def test_what_awaits_says_what_it_raises_and_what_its_cancellation_leaves(name: str) -> None:
    assert len(WAITING) > 80
    explained = inspect.getdoc(FUNCTIONS[name]) or ""
    assert re.search(r"\b[Rr]ais(es?|ed|ing)\b", explained), explained
    assert re.search(r"\b[Cc]ancel(s|led|lation)?\b", explained), explained


@pytest.mark.parametrize("name", LASTING)
def test_what_takes_durations_says_that_they_are_seconds(name: str) -> None:
    assert len(LASTING) > 20
    assert "second" in (inspect.getdoc(FUNCTIONS[name]) or "").lower()


def test_every_error_says_what_to_do() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    errors = [
        name
        for name in tocsin.__all__
        if isinstance(e := getattr(tocsin, name), type) and issubclass(e, tocsin.TocsinError)
    ]
    assert len(errors) > 10
    for name in errors:
        match = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert match, f"{name} has no section"
        assert len(re.sub(r"```.*?```", "", match[1], flags=re.S).split()) > 5, (
            f"it is not said what to do about {name}"
        )
