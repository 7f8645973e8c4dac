"""What the README and the pages of docs/ show is what runs, and nothing that users can
call is left out."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from tests.support import PATIENCE, pages, query
from tests.support.child import run_script
from tests.support.cli_manual import walk
from tests.support.sweeps import sweep
from tocsin._cli import tocsin
from tocsin.settings import Settings

ROOT = pages.ROOT
README = ROOT / "README.md"
PAGES = [README, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


LONG = {
    "cpu-work.md",
    "driver.md",
    "getting-started-with-jobs.md",
    "moving-from-gigq.md",
    "moving-from-pgqrs.md",
    "moving-from-pgqueuer.md",
    "moving-from-procrastinate.md",
    "operations.md",
    "producers.md",
    "recipes.md",
    "testing.md",
}
"""Pages whose blocks take seconds."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in LONG else (), id=named(page))
        for page in PAGES
    ],
)
async def test_the_blocks_of_a_page(
    page: Path, database_factory: Callable[[], str], tmp_path: Path
) -> None:
    await pages.run_page(page, database_factory, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_block_of_a_page_is_left_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^\s*(?:```+|~~~+)(\S*)", text, re.M)
    assert len(fences) % 2 == 0
    shown = [block for block in pages.read(page) if not block.hidden]
    assert [language for language in fences[::2] if not language.startswith("{")] == [
        block.language for block in shown
    ]


async def test_the_program_in_the_readme(dsn: str, tmp_path: Path) -> None:
    (program,) = [block.text for block in pages.read(README) if "async def main" in block.text]
    path = tmp_path / "program.py"
    path.write_text(program.replace("postgresql:///app", dsn), encoding="utf-8")
    async with run_script(str(path)) as child:
        assert await child.line() == "1 {'to': 'ada@example.org'} 1"
        # handled is not yet archived; the drain waits for that
        child.process.send_signal(signal.SIGTERM)
        assert await child.line() == "interrupted 1 0"
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
    assert await query(dsn, "select count(*)::int from tocsin.archive") == [(1,)]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [block.text.strip() for block in pages.read(README) if block.language == "sh"]
    assert commands[:2] == [
        "pip install uv && uv run tocsin demo",
        "pip install uv && uv run pytest",
    ]
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
    names = re.findall(
        r"`([\w/]+\.(?:py|sql))`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    )
    assert len(names) > 20
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in (".", "src/tocsin")), name
    for page in PAGES:
        for name in re.findall(
            r"`((?:src|sql|tests|examples)/[\w/]+\.\w+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).exists(), (page.name, name)


def test_the_page_of_the_architecture_has_the_contracts_that_are_checked() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        layers, _, private = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`tocsin.*?) \|", page, re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in rows] == [
        layer.split(" | ") for layer in layers["layers"]
    ]
    (users,) = re.findall(r"^Of the other packages, only (.*) import private", page, re.MULTILINE)
    assert ["tocsin.driver", *re.findall(r"`(.*?)`", users)] == private["allowed_importers"]


def test_the_page_of_the_architecture_names_each_module_of_the_queue() -> None:
    source = ROOT / "src" / "tocsin"
    modules = {
        str(path.relative_to(source))
        for path in (source / "_queue").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert modules - set(re.findall(r"`([\w/]+\.py)`", page)) == set()


@pytest.mark.slow
def test_the_bench_commands_of_the_pages_are_understood() -> None:
    commands = [
        shlex.split(line, comments=True)
        for page in PAGES
        for block in pages.read(page)
        for line in block.text.splitlines()
        if block.language in pages.SHELLS and "-m bench" in line
    ]
    measured = [words[words.index("bench") + 1 :] for words in commands if "bench" in words]
    assert measured
    outages = [
        words[words.index("bench.outages") + 1 :] for words in commands if "bench.outages" in words
    ]
    assert outages
    for module, shown in (("bench.__main__", measured), ("bench.outages", outages)):
        program = (
            f"import sys, json; from {module} import parse; [parse(a) for a in"
            " json.loads(sys.argv[1])]"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, json.dumps(shown)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
    assert [words[-2:] for words in commands if "bench.plot" in words] == [
        ["results.json", "docs/figures/"]
    ]


def test_the_page_of_outages_has_each_trial() -> None:
    program = (
        "import json; from bench.outages import TRIALS; print(json.dumps([trial.name for trial in"
        " TRIALS]))"
    )
    names = json.loads(
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )
    rows = [
        line
        for line in (ROOT / "docs" / "outages.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == names
    assert not [row for row in rows if "wrong" in row]


def flags(page: Path) -> set[str]:
    """The flags of commands of Tocsin's that a page names, in blocks and in the running
    text."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for block in pages.read(page)
        if block.language in pages.SHELLS
        for line in block.text.splitlines()
    ]
    calls = [
        part
        for line in lines
        for part in re.split(r"[|;]|&&|\$\(", line.partition(" #")[0])
        if re.match(r"[$(\s]*tocsin\b", part)
    ]
    spoken = [
        code for code in re.findall(r"`([^`\n]+)`", text) if re.match(r"tocsin |--[a-z]", code)
    ]
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(calls + spoken)))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_flags_of_a_page_are_options(page: Path) -> None:
    """tests/cli/test_tree.py uses each option of each command."""
    options = {
        option
        for _, command in walk(tocsin, "tocsin")
        for parameter in command.params
        for option in parameter.opts
    }
    # the last two are of `python -m bench`
    assert flags(page) - options - {"--help", "--version", "--compare", "--on"} == set()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_environment_variables_of_a_page_are_known(page: Path) -> None:
    """tests/database/test_settings.py uses each."""
    known = {f"TOCSIN_{field.name.upper()}" for field in attrs.fields(Settings)} | {
        "TOCSIN_CONFIG",
        "TOCSIN_DATA",
        "TOCSIN_TEST_DSN",
    }
    wrong = {"TOCSIN_POOLSIZE"}  # shown as such
    assert (
        set(re.findall(r"\bTOCSIN_[A-Z_]+\b", page.read_text(encoding="utf-8"))) - known - wrong
        == set()
    )


async def test_the_page_of_the_sql_contract_has_each_function_and_calls_it(store_dsn: str) -> None:
    page = ROOT / "docs" / "reference" / "sql.md"
    contract = {
        name
        for (name,) in await query(
            store_dsn, "select function from tocsin._access() where roles is not null"
        )
    }
    described = set(re.findall(r"`(\w+)\(", page.read_text(encoding="utf-8")))
    assert described == contract
    called = {
        name
        for block in pages.read(page)
        for name in re.findall(r"\btocsin\.(\w+)\(", block.text)
        if not block.hidden
    }
    assert contract - called == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "performance.md"], ids=named
)
def test_the_figures_of_a_page_were_measured(page: Path) -> None:
    """Rates, and the times in tables; docs/performance.md says how to repeat them, and
    tests/docs/test_bench.py checks its own table."""
    names = ("recorded.json", "recorded-quick.json")
    records = [
        record
        for name in names
        for record in json.loads((ROOT / "bench" / name).read_text(encoding="utf-8"))
    ]
    measured = {
        f"{number:,.{digits}f}"
        for r in records
        for number in (r["value"], r["floor"])
        if number
        for digits in (0, 2)
    }
    text = page.read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    shown = re.findall(r"([\d,.]*\d) /s", text) + re.findall(r"\| ([\d,.]*\d) ms", rows)
    assert set(shown) - measured == set()


@sweep(
    "text",
    [
        "```python\nassert False\n```",
        "```python\nawait store.queues.get('none')\n```",
        "```python\nasync def main(): 1 / 0\ntrio.run(main)\n```",
        "```sql\nselect 1 / 0;\n```",
        "```sh\nfalse | true\n```",
        "```console\n$ echo one\ntwo\n```",
        "```sh\necho one\n```\n```text\ntwo\n```",
        "```rust\nfn main() {}\n```",
        "```\nno language\n```",
        "```json\n{,}\n```",
        "<!-- meanwhile\nassert False\n-->\n```python\nawait trio.sleep_forever()\n```",
        "<!-- raises ValueError -->\n```python\nint('1')\n```",
        "<!-- raises TC001 -->\n```sql\nselect 1;\n```",
        "<!-- run by tests/docs/test_pages.py::test_that_is_not_there -->\n```python\n1\n```",
        "<!-- nonsense -->",
    ],
    quick=3,
)
async def test_a_page_that_is_wrong_fails(
    text: str, database_factory: Callable[[], str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:\d"):
        await pages.run_page(page, database_factory, tmp_path)
