"""The benchmarks run, and report the figures that they are to report. These tests do
not check the figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.support import connect_blocking, servers

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "bench" / "recorded.json"
REPEATED = ROOT / "bench" / "recorded-quick.json"
"""Several quick runs, on two servers in turns."""
README_FIGURES = {
    "drain": " /s",
    "enqueue_batch": " /s",
    "enqueue_concurrent": " /s",
    "wakeup.produce.p50": " ms",
}
TIMEOUT = 100


def run(server: servers.Server, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m bench`` on the tests' server, as small as it gets."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "--smoke",
        "--on",
        server.admin_dsn,
        *map(str, arguments),
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def check_shape(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert list(record) == [
            "scenario",
            "value",
            "unit",
            "floor",
            "ratio",
            "range",
            "runs",
            "settings",
        ]
        assert isinstance(record["value"], int | float)
        assert {"size", "postgresql", "fsync", "synchronous_commit", "python", "cpus"} <= record[
            "settings"
        ].keys()
        assert (record["ratio"] is None) == (not record["floor"] or not record["value"]), record


@pytest.fixture
def counting_server(server: servers.Server) -> servers.Server:
    """The server, if it counts statements."""
    with connect_blocking(server.admin_dsn) as connection:
        (preloaded,) = connection.execute(
            "select current_setting('shared_preload_libraries')"
        ).fetchone() or ("",)
    if "pg_stat_statements" not in preloaded:
        pytest.skip("this server does not preload pg_stat_statements")
    return server


@pytest.mark.slow
def test_messages_between_processes(server: servers.Server, tmp_path: Path) -> None:
    saved, recorded = tmp_path / "results.json", tmp_path / "recorded.json"
    names = (
        "notify",
        "claim",
        "produce",
        "sql",
        "produce_raw",
        "sql_raw",
        "produce_trio",
        "sql_trio",
        "heard",
        "blocking",
    )
    ways = [f"wakeup.{name}.{percentile}" for name in names for percentile in ("p50", "p99")]
    version = f"{server.version_num // 10000}.{server.version_num % 10000}"
    conditions = {"size": "smoke", "postgresql": version}
    recorded.write_text(
        json.dumps([{"scenario": way, "ratio": 1e-9, "settings": conditions} for way in ways])
    )
    ended = run(
        server,
        "--only",
        "wakeup",
        "--only",
        "delayed",
        "--only",
        "metrics",
        "--json",
        saved,
        "--compare",
        recorded,
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr == ""
    worse = re.findall(
        r"^worse: ([\w.]+): ratio [\d.]+, recorded 0.00$", ended.stdout, re.MULTILINE
    )
    # of three samples there is no 99th percentile
    assert worse == [way for way in ways if way.endswith(".p50")]
    records = json.loads(saved.read_text())
    check_shape(records)
    assert [r["scenario"] for r in records] == [
        *ways,
        "delayed.p50",
        "delayed.max",
        "metrics.p50",
        "metrics.p99",
        "metrics.empty",
    ]
    assert all(r["scenario"] in ended.stdout for r in records)
    with connect_blocking(server.admin_dsn) as connection:
        assert (
            connection.execute(
                "select datname from pg_database where datname like 'tocsin\\_bench\\_%'"
            ).fetchall()
            == []
        )


@pytest.mark.slow
def test_throughput(server: servers.Server, tmp_path: Path) -> None:
    scenarios = (
        "drain",
        "enqueue",
        "enqueue_batch",
        "enqueue_concurrent",
        "steady",
        "memory",
        "flat",
    )
    saved = tmp_path / "results.json"
    ended = run(server, *(word for name in scenarios for word in ("--only", name)), "--json", saved)
    assert (ended.returncode, ended.stderr) == (0, "")
    records = {r["scenario"]: r for r in json.loads(saved.read_text())}
    check_shape(list(records.values()))
    more = {
        "drain.four",
        "enqueue_concurrent.driver",
        "enqueue_concurrent.draining",
        "flat.held",
        "flat.held_end",
        "steady.growth",
    }
    assert records.keys() >= {*scenarios, *more}
    assert all(r["value"] > 0 for r in records.values())
    assert records["steady"]["settings"]["handled"] == records["steady"]["settings"]["sent"] > 0
    figures = tmp_path / "figures"
    command = [sys.executable, "-m", "bench.plot", str(saved), str(figures)]
    drawn = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert sorted(path.name for path in figures.iterdir()) == [
        "drain.svg",
        "enqueue_concurrent.svg",
        "flat.svg",
    ], drawn.stderr
    for path in figures.iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.slow
def test_jobs(server: servers.Server, tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    ended = run(
        server, "--only", "jobs", "--only", "job_result", "--only", "blocked", "--json", saved
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    records = {r["scenario"]: r for r in json.loads(saved.read_text())}
    check_shape(list(records.values()))
    assert records.keys() >= {
        "jobs",
        "job_result.p50",
        "job_result.p99",
        "blocked",
        "blocked.handover",
    }
    assert all(r["value"] > 0 for r in records.values())


@pytest.mark.slow
def test_what_goes_back(server: servers.Server, tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    ended = run(server, "--only", "returning", "--json", saved)
    assert (ended.returncode, ended.stderr) == (0, "")
    records = json.loads(saved.read_text())
    check_shape(records)
    assert [r["scenario"] for r in records] == ["fail", "release"]


@pytest.mark.slow
def test_crowds_and_other_queues(counting_server: servers.Server, tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    ended = run(
        counting_server, "--only", "herd", "--only", "peers", "--only", "grid", "--json", saved
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    records = {r["scenario"]: r for r in json.loads(saved.read_text())}
    check_shape(list(records.values()))
    assert records["herd"]["value"] >= 1
    assert records["herd.listeners"]["floor"] > 0
    for name in ("pgqrs", "pgqueuer", "oban", "chancy", "gigq", "procrastinate"):
        assert (f"peers.{name}" in records) != (f"{name} is left out" in ended.stdout)
    assert ("grid" in records) == ("grid.2x1" in records) == ("peers.pgqrs" in records)


@pytest.mark.slow
def test_idle_is_compared_by_ratio(counting_server: servers.Server, tmp_path: Path) -> None:
    recorded, saved = tmp_path / "recorded.json", tmp_path / "results.json"
    better = {"scenario": "idle.connections", "value": 1000, "ratio": 0.5}
    worse = {"scenario": "idle.wakeups", "value": 0, "ratio": 1000}
    unknown = {"scenario": "idle.other_statements", "value": 0, "ratio": None}
    conditions = {"size": "smoke", "postgresql": str(counting_server.version_num // 10000)}
    recorded.write_text(
        json.dumps([record | {"settings": conditions} for record in (better, worse, unknown)])
    )
    ended = run(counting_server, "--only", "idle", "--json", saved, "--compare", recorded)
    assert ended.stderr == ""
    records = {r["scenario"]: r for r in json.loads(saved.read_text())}
    check_shape(list(records.values()))
    assert records["idle.connections"]["floor"] == 2
    # the LISTEN connection, and what the pool needed to begin with
    assert records["idle.connections"]["value"] in (2, 3)
    assert records["idle.other_statements"]["value"] == 0, records["idle.other_statements"][
        "settings"
    ]["ran"]
    assert [line for line in ended.stdout.splitlines() if line.startswith("worse")] == [
        f"worse: idle.connections: ratio {records['idle.connections']['ratio']:.2f}, recorded 0.50"
    ]
    assert ended.returncode == 1


@pytest.mark.slow
def test_a_run_is_compared_with_one_of_its_size(server: servers.Server, tmp_path: Path) -> None:
    ended = run(server, "--only", "idle", "--compare", RECORDED)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "recorded.json is of a run of size full, this one will be of size smoke" in ended.stderr
    ended = run(server, "--only", "idle", "--compare", tmp_path / "missing.json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "missing.json" in ended.stderr


@pytest.mark.slow
def test_several_runs_give_medians_and_ranges(server: servers.Server, tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    ended = run(server, "--only", "delayed", "--runs", "3", "--json", saved)
    assert (ended.returncode, ended.stderr) == (0, "")
    records = json.loads(saved.read_text())
    check_shape(records)
    assert [(r["scenario"], r["runs"]) for r in records] == [("delayed.p50", 3), ("delayed.max", 3)]
    for record in records:
        low, high = record["range"]
        assert low <= (record["value"] if record["ratio"] is None else record["ratio"]) <= high
    page = subprocess.run(
        [sys.executable, "-m", "bench.page", saved],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert [line.split(" | ")[0] for line in page.stdout.splitlines()[2:]] == [
        "| `delayed.p50`",
        "| `delayed.max`",
    ]


@pytest.mark.slow
def test_outages_are_survived() -> None:
    command = [sys.executable, "-m", "bench.outages", "--only", "restarted"]
    if servers.INSTALLATION is not None:
        command += ["--on", str(servers.INSTALLATION)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    heading, _, row = ended.stdout.splitlines()
    assert re.fullmatch(r"\| change \| effect \| PostgreSQL [\d.]+ \|", heading)
    assert re.fullmatch(r"\| the server is restarted \| .* \| \d+\.\d s(; .*)? \|", row)


@pytest.mark.slow
def test_an_unknown_scenario_is_refused(server: servers.Server) -> None:
    ended = run(server, "--only", "nonsense")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "wakeup" in ended.stderr


def test_the_record_is_complete_and_on_the_page() -> None:
    records = json.loads(RECORDED.read_text())
    check_shape(records)
    assert {r["settings"]["size"] for r in records} == {"full"}
    assert {r["scenario"].partition(".")[0] for r in records} >= {
        "drain",
        "enqueue",
        "enqueue_batch",
        "enqueue_concurrent",
        "peers",
        "grid",
        "wakeup",
        "steady",
        "memory",
        "flat",
        "herd",
        "idle",
        "kill",
        "commands",
        "delayed",
        "metrics",
    }
    page = (ROOT / "docs" / "performance.md").read_text()
    assert [r["scenario"] for r in records if f"`{r['scenario']}`" not in page] == []


def test_the_medians_of_several_runs_are_on_the_page_and_in_the_readme() -> None:
    records = json.loads(REPEATED.read_text())
    check_shape(records)
    assert {r["settings"]["size"] for r in records} == {"quick"}
    assert min(r["runs"] for r in records) >= 5
    by_server: dict[str, dict[str, Any]] = {}
    for record in records:
        by_server.setdefault(record["settings"]["postgresql"].partition(".")[0], {})[
            record["scenario"]
        ] = record
    assert by_server.keys() == {"18", "15"}
    assert by_server["15"].keys() >= {
        "drain",
        "fail",
        "release",
        "enqueue",
        "wakeup.produce.p50",
        "wakeup.sql.p50",
        "kill.p50",
    }
    command = [sys.executable, "-m", "bench.page", str(REPEATED)]
    table = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=True
    ).stdout
    assert table in (ROOT / "docs" / "performance.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for scenario, unit in README_FIGURES.items():
        for figures in by_server.values():
            if (record := figures.get(scenario)) is None:
                continue
            if figures is by_server["18"]:
                assert (
                    f"| {spell(record['value'])}{unit} | {spell(record['floor'])}{unit} |" in readme
                )
            low, high = record["range"]
            assert f"| {record['ratio']:.2f} ({low:.2f} to {high:.2f}) |" in readme
    for peer in ("peers.pgqrs", "peers.pgqueuer"):
        assert f"drained {spell(by_server['18'][peer]['value'])} /s" in readme
        assert f"{spell(by_server['18'][peer]['floor'])} /s (" in readme


def spell(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
