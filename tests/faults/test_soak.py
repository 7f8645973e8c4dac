"""The soak test, briefly: nothing is lost or done twice while processes, sessions and
the server are struck.

``bench/soak.py`` does it at length, and says what is checked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support import servers

pytestmark = [pytest.mark.fault, pytest.mark.soak]


@pytest.mark.timeout(300)
async def test_nothing_is_lost_under_chaos() -> None:
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.25", "--seed", "7"]
    if servers.INSTALLATION is not None:
        command += ["--installation", str(servers.INSTALLATION)]
    ended = await trio.run_process(
        command,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    report = ended.stdout.decode()
    assert "no violations" in report, report
    assert ended.returncode == 0
    counts = {
        what: int(number)
        for number, what in (
            line.strip().split(" ", 1) for line in report.splitlines() if line.startswith("  ")
        )
    }
    assert counts["archived"] > 0
    assert counts["dead letters"] > 0
    assert counts["session terminated"] > 0
