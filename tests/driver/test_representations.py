"""What ``repr`` shows of the driver: states and addresses, and no password."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tocsin.driver import TrioConnection, open_pool


async def test_a_connection_shows_its_state_and_its_database_without_a_password(dsn: str) -> None:
    database = conninfo_to_dict(dsn)["dbname"]
    password = conninfo_to_dict(dsn).get("password") or "hunter2"
    async with await TrioConnection.connect(make_conninfo(dsn, password=password)) as connection:
        idle = repr(connection)
        await connection.execute("select 1")
        busy = repr(connection)
    assert "[IDLE]" in idle
    assert f"database={database}" in idle
    assert "[INTRANS]" in busy
    assert "[BAD]" in repr(connection)
    assert not [text for text in (idle, busy, repr(connection)) if str(password) in text]


async def test_a_pool_shows_its_connections(dsn: str) -> None:
    async with open_pool(lambda: TrioConnection.connect(dsn), max_size=3) as pool:
        async with pool.connection():
            checked_out = repr(pool)
        back = repr(pool)
    of_pool = "<tocsin.driver.Pool: 1 of at most 3 connections"
    assert checked_out == f"{of_pool}, 0 idle, 0 waiting>"
    assert back == f"{of_pool}, 1 idle, 0 waiting>"
    assert repr(pool) == "<tocsin.driver.Pool: closed>"
