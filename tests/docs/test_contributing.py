"""The files for contributors name what is there, and the tasks do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tocsin

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs" / "contributing").glob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def nox(*arguments: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-m", "nox", "--no-color", *arguments]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def sessions() -> list[str]:
    """The sessions, as nox lists them: ``test-unit``, ``matrix-3.13(lowest, 18)``."""
    return re.findall(r"^[*-] (.*?) -> ", nox("--list"), re.M)


def test_the_pages_name_each_session_and_no_other(sessions: list[str]) -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"nox -s ([\w-]+)", text))
    listed = {re.sub(r"-3\..*", "", session) for session in sessions}
    assert named == listed - {"lint", "test"}, "`pre-commit` and `pytest` stand for these"


def test_the_matrix_has_the_pythons_that_the_package_says_it_supports(sessions: list[str]) -> None:
    tried = {found[1] for session in sessions if (found := re.match(r"matrix-(3\.\d+)", session))}
    said = {c.split(" :: ")[-1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert tried == said
    assert PROJECT["requires-python"] == f">={min(said)}"
    page = (ROOT / "docs" / "contributing" / "versioning.md").read_text("utf-8")
    assert f"| Python | {', '.join(sorted(said))} |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|sql|tests|docs)/[\w./]+)`", text):
        assert (ROOT / path.split("X.Y.Z")[0]).exists(), path


def test_the_table_of_the_tests_has_each_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = "\n".join(re.findall(r"^\| (`tests/.*?) \|", text, re.M))
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    folders |= {path.parents[1].name for path in (ROOT / "tests").glob("*/*/test_*.py")}
    assert sorted(re.findall(r"`tests/(\w+)`", rows)) == sorted(folders - {"support"})


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git for the files")
def test_a_file_of_the_source_has_at_most_400_lines() -> None:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "src", "sql"], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("no checkout: git does not list the files")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    assert len(paths) > 100
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for path in paths
        if path.exists() and path.parent.name not in ("snapshots", "catalog")  # generated
    }
    assert {name: count for name, count in lengths.items() if count > 400} == {}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the tasks about SQL read and write."""
    for folder in ("sql", "src", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "noxfile.py", tmp_path)
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path], check=True)
    return tmp_path


def contract(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "sql" / "contract.toml").read_text("utf-8"))


@pytest.mark.slow
def test_new_migration_has_the_next_number(copy: Path) -> None:
    before = sorted(path.name for path in (copy / "sql" / "migrations").iterdir())
    nox("-s", "new-migration", "--", "add_tags", folder=copy)
    after = sorted(path.name for path in (copy / "sql" / "migrations").iterdir())
    assert after == [*before, f"{len(before) + 1:04}_add_tags.sql"]


def test_the_snapshot_of_a_released_version_is_not_written_again(copy: Path) -> None:
    tag = f"v{tocsin.__version__}"
    path = copy / "sql" / "snapshots" / f"{tocsin.__version__}.sql"
    path.write_text("of the release", "utf-8")
    git = ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["add", "sql"], ["commit", "-qm", "release"], ["tag", tag]):
        subprocess.run([*git, *command], check=True)
    ended = subprocess.run(
        [sys.executable, "-m", "tools.snapshot"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"version {tocsin.__version__} is released" in ended.stderr
    assert path.read_text("utf-8") == "of the release"


@pytest.mark.slow
def test_bump_functions_raises_a_version_that_was_released(copy: Path) -> None:
    before = contract(copy)
    nox("-s", "bump-functions", folder=copy)
    assert contract(copy) == before

    source = next((copy / "sql" / "functions").rglob("*.sql"))
    source.write_text(source.read_text("utf-8") + "-- Changed.\n", "utf-8")
    nox("-s", "bump-functions", folder=copy)
    changed = contract(copy)
    assert changed == {**before, "digest": changed["digest"]} != before

    git = ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["add", "sql"], ["commit", "-qm", "release"], ["tag", "v0.1.0"]):
        subprocess.run([*git, *command], check=True)
    nox("-s", "new-migration", "--", "add_tags", folder=copy)
    for _ in range(2):  # the second time, the version is that of no release
        source.write_text(source.read_text("utf-8") + "-- Changed again.\n", "utf-8")
        nox("-s", "bump-functions", folder=copy)
        again = contract(copy)
        assert again["version"] == before["version"] + 1
        last = {str(again["version"]): len(list((copy / "sql" / "migrations").iterdir()))}
        assert again["last_migration"] == before["last_migration"] | last
