"""Fixtures: databases with Tocsin's schema, stores, and what their server did."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import trio

import tocsin
from tests.support import connect_blocking, servers
from tocsin._queue.consuming import step_watch


@pytest.fixture(autouse=True)
def _no_step_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes any step of a handler long; a test expects that warning, or
    no warning at all."""
    monkeypatch.setattr(step_watch, "LONG_STEP", math.inf)


@pytest.fixture(scope="session")
def _store_template(server: servers.Server) -> Iterator[str]:
    name = server.create_database()

    async def install() -> None:
        async with tocsin.connect(server.dsn(name)) as store:
            await store.install()

    try:
        trio.run(install)
        yield name
    finally:
        server.drop_database(name)


@pytest.fixture
def store_dsn(server: servers.Server, _store_template: str) -> Iterator[str]:
    """Connection string of a fresh database with Tocsin's schema in it."""
    name = server.create_database(_store_template)
    yield server.dsn(name)
    server.drop_database(name)


@pytest.fixture
async def store(store_dsn: str) -> AsyncIterator[tocsin.Store]:
    """A store on a fresh database."""
    async with tocsin.connect(store_dsn) as store:
        yield store


@pytest.fixture
def dsn_of_quiet_store(store_dsn: str) -> str:
    """Like `store_dsn`, where pg_stat_statements tells what was run."""
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        try:
            connection.execute("create extension pg_stat_statements")
            connection.execute("select pg_stat_statements_reset()")
        except psycopg.Error as error:
            pytest.skip(
                f"this server does not tell what was run on it: {error.diag.message_primary}"
            )
    return store_dsn


@pytest.fixture
def plans(store_dsn: str) -> Any:
    """A function that runs a statement and returns the plans of all statements inside
    it."""
    notices: list[str] = []
    with connect_blocking(store_dsn) as connection:
        try:
            connection.execute("load 'auto_explain'")
        except Exception as error:
            pytest.skip(f"this server has no auto_explain: {error}")
        connection.execute("select tocsin.create_queue('q'), tocsin.create_queue('r')")
        connection.execute("select tocsin.register_worker('q', 'consumer', 'w', null, 'h', 1, 'v')")
        connection.execute("set client_min_messages = log")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_format": "json",
            "log_analyze": "on",
            "log_buffers": "on",
        }.items():
            connection.execute(f"set auto_explain.{name} = '{value}'".encode())
        connection.add_notice_handler(
            lambda diagnostic: notices.append(diagnostic.message_primary or "")
        )

        def run(statement: str) -> dict[str, dict[str, Any]]:
            notices.clear()
            connection.execute(statement.encode())
            found = [
                json.loads(re.sub(r"^duration: .*?plan:\s*", "", n, flags=re.S))
                for n in notices
                if "plan:" in n
            ]
            compiled = [plan["Query Text"] for plan in found if "JIT" in plan]
            assert not compiled, f"the server compiles what it runs for a millisecond: {compiled}"
            return {" ".join(plan["Query Text"].split()): plan["Plan"] for plan in found}

        yield run
