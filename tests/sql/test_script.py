"""The script that `tocsin admin sql` prints for a database administrator."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import tocsin
from tests.support import open_connection, query, servers
from tests.support.commands import Call
from tests.support.newer import Folder
from tests.support.servers import PASSWORD
from tocsin._database import schema as schemas
from tocsin._database.script import write_script


def find_psql() -> str | None:
    installation = servers.INSTALLATION or Path("/usr/lib/postgresql/15")
    return shutil.which("psql", path=str(installation / "bin")) or shutil.which("psql")


async def run(dsn: str, script: str) -> None:
    """Run a script as psql does, without the commands for psql itself."""
    lines = [line for line in script.splitlines() if not line.startswith("\\")]
    async with open_connection(dsn) as connection:
        await connection.execute("\n".join(lines).encode())


@pytest.mark.parametrize("name", ["tocsin", "MixedCase", "q"])
async def test_an_installation_by_the_script_is_one(dsn: str, name: str) -> None:
    await run(dsn, write_script(schemas.Schema(name), upgrade_from=None))
    async with tocsin.connect(dsn, schema=name) as store:
        assert await store.verify() == ()
        await store.install()
        await store.queues.create("q")
        await store.produce("q", 1)
        with pytest.raises(psycopg.Error, match="holds something already"):
            await run(dsn, write_script(schemas.Schema(name), upgrade_from=None))
        assert [q.name for q in await store.queues.list()] == ["q"]


async def test_an_upgrade_by_the_script_is_one(
    dsn: str,
    tmp_path: Path,
    database_factory: Callable[[], str],
    new_role: Callable[..., str],
) -> None:
    owner = new_role("owner")
    await query(dsn, f"create schema tocsin authorization {owner}")
    async with tocsin.connect(make_conninfo(dsn, user=owner, password=PASSWORD)) as store:
        await store.install()
        await store.queues.create("q")
    version = schemas.ours().version
    folder = Folder.of_next_version(tmp_path / "sql")
    await folder.write_catalog(database_factory())
    with folder.in_use():
        script = write_script(schemas.Schema("tocsin"), upgrade_from=version)
        await run(dsn, script)
        async with tocsin.connect(dsn) as store:
            assert await store.verify() == ()
            assert (await store.stats()).version == version + 1
            await store.produce("q", 1)
        with pytest.raises(psycopg.Error, match=f"this script upgrades version {version} "):
            await run(dsn, script)
    owners = "select distinct proowner::regrole::text from pg_proc where pronamespace = "
    assert await query(dsn, f"{owners}'tocsin'::regnamespace") == [(owner,)]
    await query(dsn, f"drop owned by {owner}")


@pytest.mark.slow
async def test_an_upgrade_by_the_script_that_waits_too_long_changes_nothing(
    store_dsn: str, tmp_path: Path
) -> None:
    version = schemas.ours().version
    installed = "select version from tocsin.contract"
    with Folder.of_next_version(tmp_path / "sql").in_use():
        script = write_script(schemas.Schema("tocsin"), upgrade_from=version)
    assert "set local lock_timeout = '2s';" in script
    async with open_connection(store_dsn) as other:
        await other.execute(b"begin")
        await other.execute(b"lock table tocsin.messages")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="due to lock timeout"):
            await run(store_dsn, script)
        assert await query(store_dsn, installed) == [(version,)]
        await other.execute(b"commit")
    async with tocsin.connect(store_dsn) as store:
        assert await store.verify() == ()
    await run(store_dsn, script)
    assert await query(store_dsn, installed) == [(version + 1,)]


@pytest.mark.skipif(find_psql() is None, reason="psql is not installed")
def test_psql_runs_what_the_command_prints(call: Call, dsn: str, tmp_path: Path) -> None:
    psql = find_psql()
    assert psql is not None
    for options in ([], ["--from", str(schemas.ours().version)]):
        code, script, error = call("admin", "sql", *options)
        assert (code, error) == (0, "")
        path = tmp_path / "script.sql"
        path.write_text(script, encoding="utf-8")
        ended = subprocess.run(
            [psql, "-X", "-q", "-f", str(path), dsn], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert call("admin", "verify", "--dsn", dsn).code == 0


def test_each_version_of_the_contract_says_its_last_migration() -> None:
    assert schemas.last_migrations()[schemas.ours().version] == schemas.migrations()[-1].number
    assert sorted(schemas.last_migrations()) == list(range(1, schemas.ours().version + 1))


def test_a_version_that_the_package_does_not_know_is_refused(call: Call) -> None:
    code, _, error = call("admin", "sql", "--from", "99")
    assert code == 2
    assert "--from must be a version that this package upgrades: 1" in error
