"""The attributes that a program sets on a connection, and their restoration."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic

import psycopg
from psycopg import IsolationLevel
from psycopg.adapt import AdaptersMap
from psycopg.rows import AsyncRowFactory, Row

if TYPE_CHECKING:
    from ._connection import TrioConnection

__all__ = ["Attributes"]


class Attributes(Generic[Row]):
    """The attributes of a connection at one moment."""

    def __init__(self, connection: TrioConnection[Row]) -> None:
        self._autocommit = connection._autocommit
        self._isolation_level: IsolationLevel | None = connection._isolation_level
        self._read_only = connection._read_only
        self._deferrable = connection._deferrable
        self._prepare_threshold = connection.prepare_threshold
        self._prepared_max = connection.prepared_max
        self._row_factory: AsyncRowFactory[Row] = connection.row_factory
        self._cursor_factory: type[psycopg.AsyncCursor[Row]] = connection.cursor_factory
        self._server_cursor_factory: type[psycopg.AsyncServerCursor[Row]] = (
            connection.server_cursor_factory
        )
        # Use a copy, because a program registers its types in the connection's own map.
        self._adapters = _copy(connection._adapters)
        self._notice_handlers = tuple(connection._notice_handlers)
        self._notify_handlers = tuple(connection._notify_handlers)

    def put_back(self, connection: TrioConnection[Any]) -> None:
        """Give an idle connection these attributes again.

        The notifications that it has kept are dropped.
        """
        connection._autocommit = self._autocommit
        connection._isolation_level = self._isolation_level
        connection._read_only = self._read_only
        connection._deferrable = self._deferrable
        connection._begin_statement = (
            b""  # psycopg computes it from the three attributes above when it is empty
        )
        connection.prepare_threshold = self._prepare_threshold
        connection.prepared_max = self._prepared_max
        connection.row_factory = self._row_factory
        connection.cursor_factory = self._cursor_factory
        connection.server_cursor_factory = self._server_cursor_factory
        connection._adapters = _copy(self._adapters)
        connection._notice_handlers[:] = self._notice_handlers
        connection._notify_handlers[:] = self._notify_handlers
        connection._notifies_backlog = deque()


def _copy(adapters: AdaptersMap | None) -> AdaptersMap | None:
    return None if adapters is None else AdaptersMap(adapters)
