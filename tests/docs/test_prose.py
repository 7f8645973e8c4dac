"""The project's prose says which thing of the system acts, in the field's terms."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path

import attrs
import pytest

from tests.support.sweeps import sweep

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())

OWN = Path(__file__)
"""This file, which has to name the words."""

VAGUE_AGENTS = re.compile(
    r"\b(who|whom|whoever|somebody|someone|nobody|no"
    r" one|anybody|anyone|everybody|everyone|others)\b(?!')",
    re.I,
)
"""Subjects that do not say what acts: a producer, a consumer, a session, a reader."""
AT_MOST = 0.3
"""Vague agents per 1,000 words of an area."""

RETIRED = re.compile(
    r"\b(anew|besides?|meanwhile|for ever|as a rule|so many|as"
    r" ever|lapsed?|bury|buries|buried|burial|beds?|parcels?|nudges?|deaf|unguarded|glances?"
    r"|asleep|sleepers?|lies? down|falls? asleep|gives? back|gave back|given back|the disk has)\b",
    re.I,
)
"""Words for which the glossary, or plain English, has another: again, while, requeue,
expired, declared dead, idle."""

AMERICAN = re.compile(
    r"\b(?!(?:\w+_|re|over|pool|page)?s[i]z|seiz|priz|(?:un)?authoriz|materializ|serializ(?:able|ation)\b"
    r"|tokeniz|unrecognized configuration)\w+iz(?:e[ds]?|ing|ations?|able)\b"
    r"|\b(?:behavior|color|favor|honor|neighbor|center|gray|fulfill)(?:s|ed|ing)?\b",
    re.I,
)
"""American spellings: the prose has British ones, as `reprioritise` has.

Words of PostgreSQL and Python keep theirs, such as a serialization failure.
"""


def words(text: str) -> int:
    """Count the words of a text."""
    return len(re.findall(r"[^\W\d_][\w'-]*", text))


def found(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return each match of the pattern with some text round it."""
    flat = re.sub(r"\s+", " ", text)
    return [flat[max(0, m.start() - 40) : m.end() + 40] for m in pattern.finditer(flat)]


def prose_of_markdown(path: Path) -> str:
    """The page without its code, links' targets and comments."""
    text = re.sub(
        r"^```.*?^```$|<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", text)


def prose_of_python(path: Path) -> str:
    """The docstrings, the comments, and every other text of two words or more."""
    source = path.read_text(encoding="utf-8")
    comments = [
        token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and words(node.value) > 1
    ]
    return re.sub(r"``.*?``|`[^`]*`", " ", "\n".join([*comments, *texts]))


def prose_of_promela(path: Path) -> str:
    """The comments."""
    return " ".join(re.findall(r"/\*(.*?)\*/", path.read_text(encoding="utf-8"), re.S))


def prose_of_sql(path: Path) -> str:
    """The comments, and every quoted text of two words or more."""
    source = path.read_text(encoding="utf-8")
    comments = re.findall(r"--(.*)", source)
    texts = re.findall(r"'((?:[^']|'')+)'", re.sub(r"--.*", "", source))
    return "\n".join([*comments, *(text for text in texts if words(text) > 1)])


PROSE: dict[str, Callable[[Path], str]] = {
    ".md": prose_of_markdown,
    ".pml": prose_of_promela,
    ".py": prose_of_python,
    ".sql": prose_of_sql,
}


@cache
def prose(path: Path) -> str:
    """The prose of a file, which several tests read."""
    return PROSE[path.suffix](path)


@attrs.frozen
class Area:
    """Files that are held to the rule together."""

    name: str
    """What they are."""
    files: tuple[Path, ...]
    """Where they are."""

    def texts(self) -> Iterator[tuple[Path, str]]:
        """The prose of each file."""
        for path in self.files:
            yield path, prose(path)


def area(name: str, *patterns: str) -> Area:
    """The area of all files that match the patterns, which are relative to the root."""
    files = {path for pattern in patterns for path in ROOT.glob(pattern)} - {OWN}
    return Area(name, tuple(sorted(p for p in files if p.suffix in PROSE)))


SOURCE = "src/tocsin"
AREAS = [
    area("pages", "[ACRS]*.md", "docs/*.md", "docs/*/**/*.md", "examples/*.md"),
    area("examples", "examples/*.py"),
    area("tools", "tools/*.py", "docs/*.py", "noxfile.py"),
    area("top", f"{SOURCE}/*.py", f"{SOURCE}/errors/*.py"),
    area("command line", f"{SOURCE}/_cli/*.py"),
    area("demo", f"{SOURCE}/_demo/*.py"),
    area("embedded", f"{SOURCE}/embedded/*.py"),
    area("telemetry", f"{SOURCE}/telemetry/*.py"),
    area("concurrency", f"{SOURCE}/_concurrency/*.py"),
    area("database", f"{SOURCE}/_database/*.py"),
    area("queue", f"{SOURCE}/_queue/*.py"),
    area("admin", f"{SOURCE}/_queue/admin/*.py"),
    area("workers", f"{SOURCE}/_queue/workers/*.py"),
    area("producing", f"{SOURCE}/_queue/producing/*.py"),
    area("process", f"{SOURCE}/_queue/process/*.py"),
    area("consuming", f"{SOURCE}/_queue/consuming/*.py"),
    area("driver", f"{SOURCE}/driver/*.py"),
    area("SQL of all parts", "sql/functions/common/*.sql", "sql/security/*.sql"),
    area("SQL of workers", "sql/functions/workers/*.sql"),
    area("SQL of queues", "sql/functions/queue/*.sql"),
    area("tables", "sql/migrations/*.sql"),
    area("SQL of installations", "sql/*.sql", "sql/upgrade/*.sql"),
    area("bench", "bench/**/*.py"),
    area("tests", "tests/**/*.py", "tests/**/*.pml"),
]
every_area = sweep(
    "each",
    AREAS,
    quick=[each for each in AREAS if each.name != "tests"],
    ids=attrgetter("name"),
)
PAGES = [path for each in AREAS for path in each.files if path.suffix == ".md"]


@every_area
def test_what_acts_has_a_name(each: Area) -> None:
    hits = {str(path): found(VAGUE_AGENTS, text) for path, text in each.texts()}
    total = sum(words(text) for _, text in each.texts())
    assert total > 100
    rate = 1000 * sum(map(len, hits.values())) / total
    assert rate <= AT_MOST, (rate, {path: hit for path, hit in hits.items() if hit})


@every_area
def test_no_word_is_used_that_has_been_replaced(each: Area) -> None:
    hits = {str(path): found(RETIRED, text) for path, text in each.texts()}
    assert {path: hit for path, hit in hits.items() if hit} == {}


@every_area
def test_the_spelling_is_british(each: Area) -> None:
    hits = {str(path): found(AMERICAN, text) for path, text in each.texts()}
    assert {path: hit for path, hit in hits.items() if hit} == {}


def test_an_american_spelling_is_found() -> None:
    text = "The lock serializes calls; the size of an authorization is colored; it honors."
    text += " Summarizing a serialization failure, the server is unrecognizable."
    assert [m[0] for m in AMERICAN.finditer(text)] == [
        "serializes",
        "colored",
        "honors",
        "Summarizing",
        "unrecognizable",
    ]


def test_names_of_tests_and_helpers_are_held_to_both_rules() -> None:
    names = [
        name.replace("_", " ")
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^ *(?:async def|def|class) (\w+)", path.read_text("utf-8"), re.M)
    ]
    assert names
    assert [n for n in names if VAGUE_AGENTS.search(n) or RETIRED.search(n)] == []


def paragraphs(path: Path) -> Iterator[list[str]]:
    """The lines of each paragraph and list item of a page, without tables, headings and
    code."""
    text = re.sub(
        r"^```.*?^```$|^<!--.*?-->$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        begins = re.match(r"\s*(?:[-*] |\d+\. )", line)
        if lines and (begins or not line.strip() or line.startswith(("|", "#", "    "))):
            yield lines
            lines = []
        if line.strip() and not line.startswith(("|", "#", "    ", "[", "!")):
            lines.append(line.strip())


LEAD = re.compile(r"^(?:[-*] |\d+\. )?(?:\*\*[^*]+\*\* )?")
"""The mark of a list's item, and a heading in bold within the line."""
ENDS = re.compile(r"[.!?:;…][\"')*_\]`]*$")
TWO = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?][\"')*_\]]*\s+[\"'(*_\[`]*[A-Z]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_line_of_a_page_is_a_sentence(page: Path) -> None:
    wrong = []
    for lines in paragraphs(page):
        plain = [re.sub(r"`[^`]*`", "X", line) for line in lines]
        wrong += [line for line in plain[:-1] if not ENDS.search(line)]
        wrong += [line for line in plain if TWO.search(LEAD.sub("", line))]
    assert wrong == []


@pytest.mark.parametrize(
    ("suffix", "source", "count"),
    [
        (".md", "Somebody waits.\n\n```python\nnobody\n```\n`who`", 1),
        (
            ".py",
            '"""Who wakes."""\nx = "a message for everybody here"  # and others\ny = "who"\n',
            3,
        ),
        (".pml", "/* whoever\n * claims */ bit nobody;", 1),
        (".sql", "-- whoever claims\nselect 'nobody may do that', 'anyone';", 2),
    ],
)
def test_a_vague_agent_is_found(tmp_path: Path, suffix: str, source: str, count: int) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text(source, encoding="utf-8")
    assert len(found(VAGUE_AGENTS, PROSE[suffix](path))) == count
