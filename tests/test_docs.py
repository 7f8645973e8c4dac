"""What README shows is what runs."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import trio
from child import running
from support import PATIENCE, connect_blocking, query

import tocsin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M)


async def test_the_program_in_the_readme(dsn: str, tmp_path: Path) -> None:
    (program,) = blocks("python")
    path = tmp_path / "program.py"
    path.write_text(program.replace("postgresql:///app", dsn), encoding="utf-8")
    async with running(str(path)) as child:
        handled = [await child.line() for _ in range(4)]
        child.process.send_signal(signal.SIGTERM)  # handled is not yet archived; the drain waits for that
        assert await child.line() == "interrupted 4 0"
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
    assert sorted(handled[:3]) == ["2 {'n': 0} 1", "3 {'n': 1} 1", "4 {'n': 2} 1"]  # ten at a time, so in any order
    assert handled[3] == "1 {'to': 'ada@example.org'} 1"
    assert await query(dsn, "select count(*)::int from tocsin.archive") == [(4,)]


async def test_the_sql_in_the_readme(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("emails")
    (statements,) = blocks("sql")
    with connect_blocking(store_dsn) as connection:
        connection.execute(statements.encode())
    assert await query(store_dsn, "select count(*)::int from tocsin.messages") == [(2,)]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [block.strip() for block in blocks("sh")]
    assert commands == ["pip install uv && uv run tocsin demo", "pip install uv && uv run pytest"]
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_files_that_the_docs_name_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
    names = re.findall(r"`([\w/]+\.(?:py|sql))`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in (".", "src/tocsin", "sql/functions")), name
