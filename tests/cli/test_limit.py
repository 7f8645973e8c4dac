"""``tocsin limit``: lists of limits, and changes of their numbers."""

from __future__ import annotations

from typing import Any

from tests.support import connect_blocking

REGISTER = """select tocsin.register_tasks('[
    {"name": "t", "queue": "q", "max_deliveries": 3, "priority": 0, "timeout": 60,
     "description": "", "limits": [
         {"name": "smtp", "n": 2}, {"name": "api", "n": 5, "per": 60},
         {"name": "host", "n": 1, "parameter": "host", "position": 0}]}]')"""


def test_limits_are_listed_set_and_reset(cli: Any, store_dsn: str) -> None:
    assert cli("limit", "list").out == "no limits\n"
    cli("queue", "create", "q")
    with connect_blocking(store_dsn) as connection:
        connection.execute(REGISTER)
        connection.execute("""select tocsin.submit('t', '["a"]')""")
    assert cli("limit", "list").rows == [
        ["NAME", "KEY", "N", "PER", "ORDERED", "HOLDERS", "WAITING"],
        ["api", "-", "5", "1m", "-", "0", "1"],
        ["host", "a", "1", "-", "-", "0", "0"],
        ["smtp", "-", "2", "-", "-", "0", "0"],
    ]
    assert cli("limit", "set", "smtp", "8").out == "limit smtp is 8\n"
    assert cli("limit", "list", "smtp", "--format", "json").json[0]["n"] == 8
    assert cli("limit", "reset", "smtp").out == "limit smtp is 2, as its tasks say\n"
    refused = cli("limit", "list", "other")
    assert "`tocsin limit list` shows the limits that exist" in refused.error
