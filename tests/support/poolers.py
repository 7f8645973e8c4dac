"""PgBouncer in transaction mode, before the tests' server.

``TOCSIN_TEST_PGBOUNCER`` names another binary than the one in the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support import PATIENCE, servers

SESSIONS = 3
"""How many sessions of the server a pool has, which take turns."""


def binary() -> str | None:
    """Where PgBouncer is; None: it is not installed."""
    return os.environ.get("TOCSIN_TEST_PGBOUNCER") or shutil.which(
        "pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin"
    )


def keeps_prepared_statements() -> bool:
    """Whether this PgBouncer has the setting ``max_prepared_statements``."""
    version = subprocess.run(
        [str(binary()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", version)
    assert found is not None, version
    return (int(found[1]), int(found[2])) >= (1, 21)


NEEDED = pytest.mark.skipif(
    binary() is None, reason="not installed: pgbouncer (the Debian package of this name)"
)


@asynccontextmanager
async def pgbouncer(
    server: servers.Server, max_prepared_statements: int = 0, mode: str = "transaction"
) -> AsyncIterator[str]:
    """Run PgBouncer for as long as the block lasts; gives a connection string without a
    database."""
    with servers.directory() as base:
        settings = base / "pgbouncer.ini"
        settings.write_text(_settings(server, base, max_prepared_statements, mode))
        base.chmod(0o777)  # it makes its socket there, as another user
        async with trio.open_nursery() as nursery:
            command = [str(binary()), str(settings)]
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            try:
                with trio.fail_after(PATIENCE):
                    await nursery.start(_read_log, process)
                yield make_conninfo(host=str(base), port=6432, user="whoever")
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()


def _settings(server: servers.Server, base: Path, max_prepared_statements: int, mode: str) -> str:
    given = conninfo_to_dict(server.admin_dsn)
    target = make_conninfo(
        host=server.host or str(given.get("host", "/var/run/postgresql")),
        port=server.port or given.get("port", 5432),
        user=given.get("user", "postgres"),
        **({"password": str(given["password"])} if "password" in given else {}),
    )
    lines = [
        "[databases]",
        f"* = {target}",
        "[pgbouncer]",
        "listen_port = 6432",
        f"unix_socket_dir = {base}",
        "auth_type = any",
        f"pool_mode = {mode}",
        f"default_pool_size = {SESSIONS}",
        f"min_pool_size = {SESSIONS}",
        "server_round_robin = 1",
        "log_connections = 0",
        "log_disconnections = 0",
        "max_client_conn = 200",
    ]
    if max_prepared_statements:
        lines.append(f"max_prepared_statements = {max_prepared_statements}")
    elif keeps_prepared_statements():
        lines.append("max_prepared_statements = 0")
    if os.geteuid() == 0:
        lines.append("user = nobody")
    return "\n".join([*lines, ""])


async def _read_log(process: trio.Process, task_status: trio.TaskStatus[None]) -> None:
    assert process.stderr is not None
    log = b""
    async with process.stderr:
        async for chunk in process.stderr:
            log += chunk
            if b"process up" in log:
                task_status.started()
                break
        else:
            raise RuntimeError(f"PgBouncer did not start: {log.decode(errors='replace')}")
        async for _ in process.stderr:  # a full pipe would stop it
            pass
