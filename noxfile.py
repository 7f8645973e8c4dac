"""The project's tasks, as sessions of nox.

``uv run nox --list`` shows them, and ``uv run nox -s NAME`` runs one.
All but `matrix` run in the environment of ``uv sync``.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "test-unit"]

PYTHONS = ["3.11", "3.12", "3.13"]
DEPENDENCIES = [
    nox.param("lowest-direct", id="lowest"),
    nox.param("highest", id="highest"),
]
SERVERS = [
    nox.param("embedded", id="18"),
    nox.param("/usr/lib/postgresql/15", id="15"),
]
PORTABLE = ["tests/unit", "tests/driver"]
"""What the matrix runs: these tests meet each version of Python, psycopg and trio."""
CONTRACT = Path("sql/contract.toml")
MIGRATIONS = Path("sql/migrations")


@nox.session
def test(session: nox.Session) -> None:
    """Run the suite without what is slow by nature, or the tests that are named."""
    session.run("pytest", "-q", *session.posargs)


@nox.session(name="test-unit")
def test_unit(session: nox.Session) -> None:
    """Run the tests that need no server."""
    session.run("pytest", "-q", "tests/unit", *session.posargs)


@nox.session(name="test-faults")
def test_faults(session: nox.Session) -> None:
    """Run the tests of races, outages and crashes."""
    session.run("pytest", "-q", "-m", "fault", *session.posargs)


@nox.session(python=PYTHONS, venv_backend="uv")
@nox.parametrize("server", SERVERS)
@nox.parametrize("dependencies", DEPENDENCIES)
def matrix(session: nox.Session, dependencies: str, server: str) -> None:
    """Run the unit and driver tests with the oldest or the newest dependencies."""
    if server != "embedded":
        if not Path(server).is_dir():
            session.skip(f"PostgreSQL is not installed in {server}")
        session.env["TOCSIN_TEST_INSTALLATION"] = server
    bounds = Path(session.create_tmp()) / "bounds.txt"
    resolve = ["uv", "pip", "compile", "-q", "pyproject.toml", "--extra=cli", "--extra=embedded"]
    session.run(
        *resolve,
        f"--resolution={dependencies}",
        f"--python={session.python}",
        f"--output-file={bounds}",
        external=True,
    )
    session.install("-c", str(bounds), "-e", ".[cli,embedded]", "--group=dev")
    session.run("pytest", "-q", *(session.posargs or PORTABLE))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, spelling and imports."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("codespell")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check that a type checker knows the type of each public name."""
    check = ["pyright", "--verifytypes", "tocsin", "--ignoreexternal"]
    session.run("uv", "run", "--group=types", *check, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in ``build/docs``."""
    build = ["sphinx-build", "-nWq", "docs", "build/docs"]
    session.run("uv", "run", "--group=docs", *build, external=True)


@nox.session
def manual(session: nox.Session) -> None:
    """Write ``docs/cli.md`` from the command line."""
    session.run("python", "-m", "tests.support.cli_manual")


@nox.session
def catalog(session: nox.Session) -> None:
    """Write ``sql/catalog`` from an installation."""
    session.run("python", "-m", "tools.catalog")


@nox.session(name="new-snapshot")
def new_snapshot(session: nox.Session) -> None:
    """Dump this version of the schema, with data in every state."""
    session.run("python", "-m", "tools.snapshot", *session.posargs)


@nox.session(name="bench-quick")
def bench_quick(session: nox.Session) -> None:
    """Run the quick benchmark."""
    session.run("python", "-m", "bench", "--quick", *session.posargs)


@nox.session(name="new-migration")
def new_migration(session: nox.Session) -> None:
    """Make an empty migration of the name that is given, with the next number."""
    if len(session.posargs) != 1 or not re.fullmatch(r"[a-z][a-z0-9_]*", session.posargs[0]):
        session.error("name the migration, in lower case: nox -s new-migration -- add_tags")
    path = MIGRATIONS / f"{_last_migration() + 1:04}_{session.posargs[0]}.sql"
    path.write_text("-- What this migration changes, and why.\n", encoding="utf-8")
    session.log(f"{path} is empty; fill it, then run bump-functions")


@nox.session(name="bump-functions")
def bump_functions(session: nox.Session) -> None:
    """Write the digest of the SQL, and raise the version if a release has this one.

    The last migration of the version is written, too.
    """
    text = CONTRACT.read_text(encoding="utf-8")
    told = tomllib.loads(text)
    tell = "from tocsin._database.schema import ours; print(ours().digest)"
    printed = session.run("python", "-c", tell, env={"PYTHONPATH": "src"}, silent=True)
    digest = str(printed).strip()
    if digest == told["digest"]:
        session.log("the digest is right")
        return
    released = _released_version()
    version = told["version"] + (released == told["version"])
    text = re.sub(r"^version = \d+$", f"version = {version}", text, flags=re.M)
    text = re.sub(r'^digest = "\w*"$', f'digest = "{digest}"', text, flags=re.M)
    # the table of the last migrations is the end of the file
    line = f"{version} = {_last_migration()}\n"
    text = re.sub(rf"^{version} = \d+\n|\Z", line, text, count=1, flags=re.M)
    CONTRACT.write_text(text, encoding="utf-8")
    session.log(f"version {version} of the contract has the digest {digest}")


def _last_migration() -> int:
    return max(int(path.name[:4]) for path in MIGRATIONS.glob("*.sql"))


def _released_version() -> int | None:
    """Return the version of the contract in the last release, if there is one."""
    find = ["git", "describe", "--tags", "--abbrev=0", "--match=v*"]
    found = subprocess.run(find, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return None
    show = ["git", "show", f"{found.stdout.strip()}:{CONTRACT}"]
    shown = subprocess.run(show, capture_output=True, text=True, check=True)
    return int(tomllib.loads(shown.stdout)["version"])
