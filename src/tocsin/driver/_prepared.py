"""Statements without a cursor.

psycopg's cursor parses the query's placeholders, finds a dumper for each parameter,
decides whether to prepare, describes the result's columns and makes objects of all its
rows. For a statement of a tenth of a millisecond that is as much work as all the rest
of the client's. Where the parameters are text already, little of it is needed: they go
as they are to a statement that was prepared at its first use, and the rows of the
result come in binary and become objects when they are asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg import generators, pq
from psycopg.abc import AdaptContext, PQGen
from psycopg.adapt import Transformer

__all__ = ["Prepared", "Rows", "Statement"]

Statement: TypeAlias = tuple[bytes, Sequence[bytes | None]]
"""A statement, and its parameters as text."""


class Rows:
    """The rows of a result in binary, which become tuples when they are loaded.

    Those of a small result are loaded at once, and only once.
    """

    SMALL = 3

    def __init__(self, result: pq.abc.PGresult, context: AdaptContext) -> None:
        self._transformer = Transformer(context)
        self._transformer.set_pgresult(result, format=pq.Format.BINARY)
        self._count = result.ntuples
        self._loaded = (
            self._transformer.load_rows(0, self._count, tuple)
            if self._count <= self.SMALL
            else None
        )

    def __len__(self) -> int:
        return self._count

    def load(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        """Return the rows from ``start`` up to before ``stop``."""
        return (
            self._transformer.load_rows(start, stop, tuple)
            if self._loaded is None
            else self._loaded[start:stop]
        )


def _check(parameters: Sequence[bytes | None]) -> None:
    if b"\0" in b"".join([p for p in parameters if p]):
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")


def _is_missing(result: pq.abc.PGresult) -> bool:
    return result.error_field(pq.DiagnosticField.SQLSTATE) == b"26000"


class Prepared:
    """What is prepared on one connection.

    A statement that is no longer prepared runs unprepared: a user of the connection ran
    DISCARD, or a pooler runs each transaction on another connection of its own. After
    `GIVE_UP` times nothing is prepared any more. The names belong to this connection
    alone, so that no other client of such a pooler has prepared something else under
    them.
    """

    GIVE_UP = 5

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self._names: dict[bytes, bytes] = {}
        self._prefix = f"_tocsin_{secrets.token_hex(6)}_".encode()
        self._attempts = 0
        self._missing = 0
        self.together = False
        """Whether `run_together` is under way, which leaves pipeline mode by itself."""

    def run(self, statement: bytes, parameters: Sequence[bytes | None]) -> PQGen[pq.abc.PGresult]:
        """Run a statement with text parameters, and return its result.

        Parameters are written ``$1``, ``$2`` and so on.

        Raises:
            psycopg.DataError: A parameter has the character NUL, at which libpq would
                cut.
            psycopg.Error: What the server says of the statement.
        """
        _check(parameters)
        if self._missing < self.GIVE_UP:
            name = yield from self._prepare(statement)
            self._pgconn.send_query_prepared(name, parameters, result_format=pq.Format.BINARY)
            try:
                return (yield from self._result())
            except psycopg.errors.InvalidSqlStatementName:  # the statement has had no effect
                self._names.clear()
                self._missing += 1
        self._pgconn.send_query_params(statement, parameters, result_format=pq.Format.BINARY)
        return (yield from self._result())

    def run_together(
        self, statements: Sequence[Statement], settled: int
    ) -> PQGen[list[pq.abc.PGresult]]:
        """Run statements in one request, and return their results.

        See `TrioConnection.run_together`.
        """
        for _, parameters in statements:
            _check(parameters)
        self.together = True
        try:
            results = yield from self._send_together(statements)
            if _is_missing(results[0]):  # after DISCARD; the statement has had no effect
                self._names.clear()
                results = yield from self._send_together(statements)
        finally:
            self.together = False
        for n, result in enumerate(results):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(result)
                if n <= settled:
                    raise error
                raise psycopg.errors.TransactionResolutionUnknown(
                    f"it was committed, but the next statement failed: {error}"
                ) from error
        return results

    def _send_together(self, statements: Sequence[Statement]) -> PQGen[list[pq.abc.PGresult]]:
        pgconn = self._pgconn
        named = []
        for statement, parameters in statements:
            named.append(((yield from self._prepare(statement)), parameters))
        pgconn.enter_pipeline_mode()
        for name, parameters in named:
            pgconn.send_query_prepared(name, parameters, result_format=pq.Format.BINARY)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        results: list[pq.abc.PGresult] = []
        while True:
            result = yield from generators.fetch(pgconn)
            if result is None:  # between two statements
                if pgconn.status != pq.ConnStatus.OK:
                    raise psycopg.OperationalError(
                        f"the connection was lost: {pgconn.get_error_message()}"
                    )
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            else:
                results.append(result)
        pgconn.exit_pipeline_mode()
        if pgconn.transaction_status != pq.TransactionStatus.IDLE:
            pgconn.send_query(b"rollback")
            yield from self._result()
        return results

    def _prepare(self, statement: bytes) -> PQGen[bytes]:
        name = self._names.get(statement)
        if name is None:
            # A name is used only once: after a cancelled attempt the server may have
            # the name or not.
            self._attempts += 1
            name = self._prefix + b"%d" % self._attempts
            self._pgconn.send_prepare(name, statement)
            yield from self._result()
            self._names[statement] = name
        return name

    def _result(self) -> PQGen[pq.abc.PGresult]:
        # There is more than one result if the commit failed, or the connection was
        # lost, after the rows had been sent. The last result has the error.
        result: pq.abc.PGresult = (yield from generators.execute(self._pgconn))[-1]
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(result)
        return result
