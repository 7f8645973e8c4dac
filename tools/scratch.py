"""Give a tool a temporary database on a temporary server."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from psycopg.conninfo import make_conninfo

from tocsin.driver import TrioConnection
from tocsin.embedded import serve

SQL: Final = Path(__file__).parents[1] / "sql"


@asynccontextmanager
async def database(encoding: str, installation: Path | None = None) -> AsyncIterator[str]:
    """Give the connection string of an empty database.

    Args:
        encoding: The database's encoding.
        installation: A PostgreSQL such as ``/usr/lib/postgresql/15``; None: the
            embedded one.

    """
    with _directory() as directory:
        async with serve(directory / "server", installation=installation) as server:
            async with await TrioConnection.connect(server.dsn, autocommit=True) as connection:
                create = (
                    f"create database scratch encoding '{encoding}' locale 'C' template template0"
                )
                await connection.execute(create.encode())
            yield make_conninfo(server.dsn, dbname="scratch")


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tocsin-tool-") as name:
        Path(name).chmod(0o711)  # if this user is root, the server runs as another user
        yield Path(name)
