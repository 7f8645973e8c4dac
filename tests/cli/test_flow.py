"""``tocsin flow``: lists, drawings and changes of flows."""

from __future__ import annotations

from typing import Any

from tests.support import connect_blocking

SUBMIT = """select tocsin.submit_flow('nightly', '[
    {"name": "a", "queue": "q", "task": "t", "payload": []},
    {"name": "b", "queue": "q", "task": "t", "payload": []},
    {"name": "c", "queue": "q", "task": "t", "payload": [],
     "parents": [{"job": 0}, {"job": 1}]}]')"""


def test_a_flow_is_listed_drawn_cancelled_and_requeued(cli: Any, store_dsn: str) -> None:
    assert cli("flow", "list").out == "no flows\n"
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute(SUBMIT)
    assert cli("flow", "list").rows[1][:3] == ["1", "nightly", "running"]
    assert cli("flow", "show", "1").out.splitlines() == [
        "nightly running",
        "  a waiting",
        "  b waiting",
        "    c waiting (also after a)",
    ]
    assert cli("flow", "show", "1", "--draw", "mermaid").out.splitlines() == [
        "flowchart TD",
        '    j1["a<br>waiting"]',
        '    j2["b<br>waiting"]',
        '    j3["c<br>waiting"]',
        "    j1 --> j3",
        "    j2 --> j3",
    ]
    assert cli("flow", "show", "1", "--draw", "svg").out.startswith("<svg ")
    assert cli("flow", "cancel", "1").out == "cancelled 3 jobs of flow 1\n"
    assert cli("flow", "show", "1", "--format", "json").json["summary"]["state"] == "cancelled"
    assert cli("flow", "requeue", "1").out == "requeued 3 jobs of flow 1\n"
