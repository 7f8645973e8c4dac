"""What an import loads, and what an editor shows after ``tocsin.``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tocsin


def loaded(program: str) -> set[str]:
    """Tocsin's modules that a program loads."""
    report = "; print(*(m for m in sys.modules if m.startswith('tocsin')))"
    command = [sys.executable, "-c", f"import sys; {program}{report}"]
    return set(
        subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("import tocsin.driver", "tocsin.driver"),
        ("from tocsin import driver", "tocsin.driver"),
        ("from tocsin.driver import TrioConnection", "tocsin.driver"),
        ("import tocsin.embedded", "tocsin.embedded"),
    ],
)
def test_a_package_that_is_used_on_its_own_loads_nothing_else(program: str, package: str) -> None:
    modules = loaded(program)
    assert package in modules
    assert [
        m for m in modules if m != "tocsin" and not m.startswith((package, "tocsin._concurrency"))
    ] == []


def test_the_public_names_are_loaded_when_one_is_used() -> None:
    assert "tocsin._store" in loaded("import tocsin; tocsin.connect")
    assert "tocsin._store" in loaded("from tocsin import *; connect")


def test_what_is_public_is_shown_and_nothing_else() -> None:
    modules = {"driver", "embedded", "errors", "settings", "telemetry"}
    assert set(dir(tocsin)) == {*tocsin.__all__, *modules}
    for name in dir(tocsin):
        assert getattr(tocsin, name) is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'tocsin' has no attribute 'conect'"):
        tocsin.conect  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(tocsin, "_nothing")
