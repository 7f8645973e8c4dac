"""Connections for the driver's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.driver.helpers import Connection
from tocsin.driver import TrioConnection


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    """The connection under test, in autocommit mode."""
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def observer(dsn: str) -> AsyncIterator[Connection]:
    """Another connection to the same database, which observes and interferes."""
    async with await TrioConnection.connect(dsn, autocommit=True) as connection:
        yield connection
