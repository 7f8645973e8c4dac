"""Statements without a cursor.

psycopg's cursor parses the query's placeholders, finds a dumper for each parameter, decides whether to prepare, describes the
result's columns and makes objects of all its rows. For a statement of a tenth of a millisecond that is as much work as all the rest of the
client's. Where the parameters are text already, little of it is needed: they go as they are to a statement that was prepared at its first
use, and the rows of the result come in binary and become objects when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import generators, pq
from psycopg.abc import AdaptContext, PQGen
from psycopg.adapt import Transformer

__all__ = ["Prepared", "Rows"]


class Rows:
    """The rows of a result in binary, which become tuples when they are loaded."""

    def __init__(self, result: pq.abc.PGresult, context: AdaptContext) -> None:
        self._transformer = Transformer(context)
        self._transformer.set_pgresult(result, format=pq.Format.BINARY)
        self._count = result.ntuples

    def __len__(self) -> int:
        return self._count

    def load(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        """Return the rows from `start` up to before `stop`."""
        return self._transformer.load_rows(start, stop, tuple)


class Prepared:
    """What is prepared on one connection."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self._names: dict[bytes, bytes] = {}
        self._attempts = 0

    def run(self, statement: bytes, parameters: Sequence[bytes | None]) -> PQGen[pq.abc.PGresult]:
        """Run a statement whose parameters are ``$1`` and so on, as text, and return its result.

        Raises what the server says as psycopg's errors, and `psycopg.DataError` for the character NUL, at which libpq would cut.
        """
        if b"\0" in b"".join([p for p in parameters if p]):
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        name = self._names.get(statement)
        if name is None:
            # A name is never used again: after an attempt that was called off nobody knows if the server has it.
            self._attempts += 1
            name = b"_tocsin_%d" % self._attempts
            self._pgconn.send_prepare(name, statement)
            yield from self._result()
            self._names[statement] = name
        self._pgconn.send_query_prepared(name, parameters, result_format=pq.Format.BINARY)
        try:
            return (yield from self._result())
        except psycopg.errors.InvalidSqlStatementName:
            self._names.clear()  # someone to whom the connection was lent has said DISCARD or DEALLOCATE; no harm is done yet
        return (yield from self.run(statement, parameters))

    def _result(self) -> PQGen[pq.abc.PGresult]:
        result: pq.abc.PGresult
        (result,) = yield from generators.execute(self._pgconn)
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(result)
        return result
