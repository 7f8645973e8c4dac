"""TLS, for statements and for cancel requests."""

from __future__ import annotations

import ssl
from pathlib import Path

import psycopg
import pytest
import trio
import trustme

from bench import proxy
from tests.driver.helpers import SAFETY_NET, Connection, is_idle, until_running, value
from tocsin.driver import TrioConnection


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    return authority


def context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_statements_and_cancellation(
    dsn: str, observer: Connection, authority: trustme.CA, tmp_path: Path
) -> None:
    async with proxy.running(dsn, tls=context(authority, "db.example")) as server:
        secured = server.dsn(
            host="db.example",
            hostaddr="127.0.0.1",
            sslmode="verify-full",
            sslrootcert=str(tmp_path / "root.pem"),
        )
        async with await TrioConnection.connect(secured, autocommit=True) as connection:
            assert connection.pgconn.ssl_in_use
            # More than TLS puts into one record, in both directions.
            assert await value(connection, "select %s::text", ("x" * 1_000_000,)) == "x" * 1_000_000
            with trio.fail_after(SAFETY_NET), trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.execute, "select pg_sleep(60)")
                    await until_running(observer, "pg_sleep")
                    scope.cancel()
            assert server.accepted == 2
            assert await is_idle(connection)


async def test_a_certificate_for_another_name(
    dsn: str, authority: trustme.CA, tmp_path: Path
) -> None:
    async with proxy.running(dsn, tls=context(authority, "other.example")) as server:
        with pytest.raises(psycopg.OperationalError, match=r"other\.example"):
            await TrioConnection.connect(
                server.dsn(
                    host="db.example",
                    hostaddr="127.0.0.1",
                    sslmode="verify-full",
                    sslrootcert=str(tmp_path / "root.pem"),
                )
            )
