"""What the driver relies on in psycopg below its documented surface, and what to do
when a release changes it.

When a test here fails after an update of psycopg, read the advice and what psycopg
does now, and mend ``src/tocsin/driver``; then run the whole of ``tests/driver``,
``tests/driver/test_cancel_everywhere.py`` above all. Until that is done the version in
``pyproject.toml`` must exclude the release.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import abc, conninfo, generators, pq, waiting

from tests.driver.helpers import Connection

IN_CLASSES: list[tuple[object, str, str]] = [
    (
        psycopg.AsyncConnection,
        "wait",
        "everything passes through it; without it nothing of TrioConnection works",
    ),
    (
        psycopg.AsyncConnection,
        "_try_cancel",
        "find what stream() and copy() call to cancel, and shield that instead",
    ),
    (
        psycopg.AsyncConnection,
        "_should_cancel",
        "cancel_safe() can check `closed` and two-phase transactions itself",
    ),
    (
        psycopg.AsyncTransaction,
        "_check_enter",
        "check in TrioTransaction that a block is used only once",
    ),
    (
        psycopg.AsyncTransaction,
        "_enter_gen",
        "TrioTransaction needs another way to BEGIN or set a savepoint",
    ),
    (
        psycopg.AsyncTransaction,
        "_exit_gen",
        "TrioTransaction needs another way to end a transaction or savepoint",
    ),
    (psycopg.AsyncServerCursor, "_close_gen", "find what close() waits for, and see that through"),
    (
        psycopg.AsyncCursor,
        "_start_copy_gen",
        "find what copy() waits for first, and check the writer there",
    ),
    (psycopg.errors, "finish_pgconn", "find what psycopg's connect() gives its errors as pgconn"),
    (
        psycopg.errors,
        "_WaitTimeout",
        "raise from waiting.wait() what psycopg's notifies() catches now",
    ),
    (
        generators,
        "fetch",
        "call-off drains results with it: write one with is_busy(), consume_input(), get_result()",
    ),
    (
        generators,
        "execute",
        "run_prepared() sends and fetches with it: flush(), then fetch until there is no result",
    ),
    (
        generators,
        "send",
        (
            "run_together() sends with it: flush() until nothing is left, and consume_input()"
            " in between"
        ),
    ),
    (
        psycopg.errors,
        "error_from_result",
        (
            "run_prepared() raises what the server says with it: find what makes a class of an"
            " SQLSTATE now"
        ),
    ),
    (
        generators,
        "copy_end",
        "call-off ends a COPY FROM with it: put_copy_end(), flush(), then the results",
    ),
    (
        generators,
        "copy_from",
        "call-off drains a COPY TO with it: get_copy_data() until it is over",
    ),
    (waiting, "Wait", "what generators ask for; find the enumeration they yield now"),
    (waiting, "Ready", "what generators are sent; find the enumeration they expect now"),
    (abc, "PQGen", "only a type: spell the Generator out"),
    (conninfo, "conninfo_attempts", "split hosts into attempts in connecting.py, and sort them"),
    (
        conninfo,
        "timeout_from_conninfo",
        "read connect_timeout in connecting.py: 0 or less is none, 1 means 2",
    ),
    (pq.PGconn, "connect_start", "connect with what replaces PQconnectStart"),
    (pq.PGconn, "connect_poll", "connect with what replaces PQconnectPoll"),
    (pq.PGconn, "cancel_conn", "cancel with what replaces PQcancelCreate"),
]

IN_CONNECTIONS: list[tuple[str, object, str]] = [
    (
        "_autocommit",
        True,
        "await set_autocommit() in TrioConnection.connect, and close if that is cancelled",
    ),
    ("_adapters", None, "pass the context's adapters on in another way in TrioConnection.connect"),
    ("_closed", False, "it tells a connection that was closed from one that broke (`broken`)"),
]


@pytest.mark.parametrize(("owner", "name", "advice"), IN_CLASSES)
def test_the_name_is_there(owner: object, name: str, advice: str) -> None:
    assert hasattr(owner, name), advice


@pytest.mark.parametrize(("name", "value", "advice"), IN_CONNECTIONS)
async def test_the_attribute_is_there(
    name: str, value: object, advice: str, connection: Connection
) -> None:
    assert name in vars(connection), advice
    assert getattr(connection, name) == value, advice


async def test_transactions_know_their_level(connection: Connection) -> None:
    async with connection.transaction() as outer, connection.transaction() as inner:
        assert (outer._outer_transaction, inner._outer_transaction) == (
            True,
            False,
        ), "TrioTransaction tells COMMIT from RELEASE by it; compare savepoint names instead"
    assert outer._conn is connection


def test_the_writer_is_a_variable_of_copy() -> None:
    code = psycopg.AsyncCursor.copy.__wrapped__.__code__  # type: ignore[attr-defined]
    assert "writer" in code.co_varnames, (
        "check_writer() finds the writer there: find what it is called now"
    )


def test_every_server_side_cursor_is_closed_by_the_same_coroutine() -> None:
    assert psycopg.AsyncRawServerCursor.close is psycopg.AsyncServerCursor.close
    assert psycopg.AsyncRawServerCursor._close_gen is psycopg.AsyncServerCursor._close_gen


@pytest.mark.parametrize("name", ["wait", "connect", "cancel_safe", "_try_cancel"])
def test_overridden_with_psycopgs_parameters(name: str) -> None:
    from tocsin.driver import TrioConnection

    theirs = inspect.signature(getattr(psycopg.AsyncConnection, name)).parameters
    ours = inspect.signature(getattr(TrioConnection, name)).parameters
    assert [p for p in ours if p != "hosts"] == list(theirs), (
        "psycopg calls it with other arguments now, or documents other ones"
    )


def test_asyncio_is_used_only_where_it_is_overridden() -> None:
    """Any other use of asyncio fails on trio, perhaps only in code that no test
    reaches."""
    assert (
        _users_of_asyncio()
        == {
            "connection_async.AsyncConnection.connect": "overridden",
            "connection_async.AsyncConnection.wait": "overridden",
            "connection_async.AsyncConnection.cancel_safe": "overridden",
            "connection_async.AsyncConnection.__init__": "overridden: the lock",
            "connection_async": "the list of exceptions that the overridden wait() catches",
            "_copy_async.AsyncQueuedLibpqWriter.__init__": "a writer that is refused",
            "_copy_async.AsyncQueuedLibpqWriter.write": "a writer that is refused",
            "_copy_async.AsyncQueuedLibpqWriter.finish": "a writer that is refused",
        }.keys()
    )


def _users_of_asyncio() -> set[str]:
    suspicious = {
        "asyncio",
        "ALock",
        "AQueue",
        "aspawn",
        "agather",
        "conninfo_attempts_async",
        "wait_async",
        "wait_conn_async",
    }
    modules = (
        "connection_async",
        "cursor_async",
        "transaction",
        "_copy_async",
        "_pipeline_async",
        "_server_cursor_async",
    )
    users: set[str] = set()

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef | ast.FunctionDef):
            where = f"{where}.{node.name}"
        elif (isinstance(node, ast.Name) and node.id in suspicious) or (
            isinstance(node, ast.Attribute) and node.attr in suspicious
        ):
            users.add(where)
        # Annotations only name types.
        children: Any = (child for name, child in ast.iter_fields(node) if name != "annotation")
        for child in children:
            for each in child if isinstance(child, list) else [child]:
                if isinstance(each, ast.AST):
                    visit(each, where)

    for module in modules:
        source = Path(psycopg.__file__).with_name(f"{module}.py").read_text()
        visit(ast.parse(source), module)
    return users


async def test_host_names_are_not_resolved_where_an_address_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: object, **keywords: object) -> None:
        pytest.fail(
            "conninfo_attempts() resolves names now, and blocks trio: split the attempts in"
            " connecting.py"
        )

    monkeypatch.setattr("socket.getaddrinfo", never)
    attempts = conninfo.conninfo_attempts(
        {"host": "a.example,b.example", "hostaddr": "192.0.2.1,192.0.2.2", "port": "1,2"}
    )
    assert [attempt["hostaddr"] for attempt in attempts] == ["192.0.2.1", "192.0.2.2"]
