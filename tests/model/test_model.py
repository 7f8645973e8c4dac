"""Spin searches the models of three protocols exhaustively, those of the bell, of
outcomes and of limits, and finds a fault when a part of a protocol is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BELL = Path(__file__).parent / "bell.pml"
OUTCOMES = Path(__file__).parent / "outcomes.pml"
LIMITS = Path(__file__).parent / "limits.pml"
MISSING = [command for command in ("spin", "gcc") if shutil.which(command) is None]
NEEDED = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian packages of these names)"
)
pytestmark = [pytest.mark.slow, NEEDED]


def search(directory: Path, model: Path, *without: str) -> str:
    """Search all states of a model, and return the report of Spin.

    A model with a missing part fails early, so it is compiled fast and searched slowly.
    """
    for command in (
        ["spin", "-a", *(f"-D{name}" for name in without), str(model)],
        [
            "gcc",
            "-w",
            "-O0" if without else "-O2",
            "-DSAFETY",
            "-DVECTORSZ=1024",
            "-o",
            "pan",
            "pan.c",
        ],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return subprocess.run(
        ["./pan", "-m100000", "-w24"], cwd=directory, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("model", [BELL, OUTCOMES, LIMITS], ids=lambda model: model.stem)
def test_no_state_of_a_model_breaks_its_promise(tmp_path: Path, model: Path) -> None:
    found = search(tmp_path, model)
    assert "errors: 0" in found
    assert "max search depth too small" not in found
    assert "Search not completed" not in found


@pytest.mark.parametrize(
    "missing",
    [
        "NO_UNRUNG_LOCK",
        "NO_SECOND_TEST",
        "NO_UNRUNG_TEST",
        "NO_LAST_CLAIM",
        "LAST_CLAIM_BEFORE_TEST",
        "LISTEN_LAST",
        "LOCKS_BEFORE_ROWS",
        "RING_IN_LAST_CLAIM_IGNORED",
    ],
)
def test_the_model_fails_without_each_part(tmp_path: Path, missing: str) -> None:
    assert "assertion violated" in search(tmp_path, BELL, missing)


@pytest.mark.parametrize(
    "missing",
    [
        "NO_UNANNOUNCED",
        "UNANNOUNCED_LAST",
        "NO_TEST",
        "TEST_FIRST",
        "NO_LAST_LOOK",
        "UNCOMMITTED_ROW",
        "LOCKS_BEFORE_ROWS",
    ],
)
def test_the_model_of_outcomes_fails_without_each_part(tmp_path: Path, missing: str) -> None:
    """A process that waits without end is an invalid end state."""
    assert "invalid end state (at depth" in search(tmp_path, OUTCOMES, missing)


@pytest.mark.parametrize(
    "missing",
    [
        "NO_CHECK_OF_T1",
        "NO_CHECK_OF_T2",
        "ONE_QUEUE",
        "NO_SHARE",
        "LOCKED_IGNORED",
        "LOOK_FIRST",
        "NO_SINCE",
        "SAME_SCAN",
        "SINCE_LAST",
        "NO_RING",
    ],
)
def test_the_model_of_limits_fails_without_each_part(tmp_path: Path, missing: str) -> None:
    """A message is stranded, or a slot has two holders."""
    assert "assertion violated" in search(tmp_path, LIMITS, missing)
