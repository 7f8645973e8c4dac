"""Settings: which source counts, and what cannot be understood. Errors name the source
and show no secret."""

from __future__ import annotations

import math
import re
import string
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict

import tocsin
from tests.support.settings_file import write_file
from tests.support.sweeps import sweep
from tocsin._database.dsn import describe_address
from tocsin.driver._connecting import parse_conninfo
from tocsin.settings import PREFIX, Settings, load

NAMES = [field.name for field in attrs.fields(Settings)]
SECRET = "tops3cret"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without settings."""
    monkeypatch.chdir(tmp_path)


async def test_the_time_for_connecting_is_the_connection_strings_or_libpqs(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")  # it never answers
    server = f"host=127.0.0.1 port={silent.socket.getsockname()[1]}"
    async with silent:
        for dsn, libpqs, seconds in (
            (server, None, 10),
            (server, "30", 30),
            (f"{server} connect_timeout=60", "30", 60),
        ):
            if libpqs:
                monkeypatch.setenv("PGCONNECT_TIMEOUT", libpqs)
            began = trio.current_time()
            with pytest.raises(tocsin.ConnectionLost, match="timeout"):
                async with tocsin.connect(dsn):
                    pass
            assert trio.current_time() - began == seconds


def test_the_nearest_file_with_a_table_of_ours_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert load() == Settings()
    write_file({"pool_size": 5}, tmp_path / "pyproject.toml")
    assert load().pool_size == 5
    (folder / "pyproject.toml").write_text("[tool.other]\npool_size = 6\n")
    assert load().pool_size == 5
    write_file({"schema": "here"}, tmp_path / "a" / "pyproject.toml")
    assert load() == Settings(schema="here")


def test_the_variable_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file({"pool_size": 5})
    named = write_file({"heartbeat": 0.5}, tmp_path / "other.toml")
    for name in (str(named), "other.toml"):
        monkeypatch.setenv("TOCSIN_CONFIG", name)
        assert load() == Settings(heartbeat=0.5)


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load() == Settings()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("", "", "variable TOCSIN_CONFIG: is empty"),
        ("none.toml", None, "variable TOCSIN_CONFIG: there is no file"),
        ("pyproject.toml/none.toml", "", "variable TOCSIN_CONFIG: there is no file"),
        (".", None, "cannot be read"),
        ("pyproject.toml", "pool_size = 3", "variable TOCSIN_CONFIG: there is no table"),
        (None, "[tool.tocsin", "pyproject.toml: is not TOML"),
        (None, b"\xff", "pyproject.toml: is not TOML"),
        (None, "[tool]\ntocsin = 3", "pyproject.toml, tool.tocsin: must be a table"),
        (None, "tool = 3\n[tocsin]", None),
    ],
)
def test_files_that_are_not_as_they_should_be(
    monkeypatch: pytest.MonkeyPatch, name: str | None, content: str | bytes | None, says: str | None
) -> None:
    if content is not None:
        Path("pyproject.toml").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    if name is not None:
        monkeypatch.setenv("TOCSIN_CONFIG", name)
    if says is None:
        assert load() == Settings()
    else:
        with pytest.raises(tocsin.ConfigError, match=re.escape(says)) as refused:
            load()
        assert "\n" not in str(refused.value)


BAD: list[tuple[str, Any, str]] = [
    # setting, value, what the error says
    ("dsn", SECRET, "not a PostgreSQL connection string"),
    ("dsn", f"postgresql://ada:{SECRET}@[x/app", "not a PostgreSQL connection string"),
    ("dsn", f"host=x nosuchkey={SECRET}", "not a PostgreSQL connection string"),
    ("dsn", "", "postgresql:// stands for"),
    ("listen_dsn", f"http://x/{SECRET}", "not a PostgreSQL connection string"),
    ("listen_dsn", " ", "is empty"),
    ("schema", "no such", "not a valid name"),
    ("schema", "", "is empty"),
    ("schema", 'x"; drop schema public; --', "not a valid name"),
    ("schema", "x" * 64, "64 bytes long"),
    ("schema", "public", "a separate schema"),
    ("schema", f"postgresql://ada:{SECRET}@host/app", "looks like a connection string"),
    ("pool_size", "many", "must be a whole number"),
    ("pool_size", "", "is empty"),
    ("pool_size", "1", "at least 2"),
    ("pool_size", "0", "at least 1"),
    ("pool_size", "-3", "at least 1"),
    ("pool_size", "2147483648", "less than 2147483648"),
    ("pool_size", f"password={SECRET}", "looks like a connection string"),
    ("heartbeat", "soon", "must be a duration such as"),
    ("heartbeat", "0", "greater than 0"),
    ("heartbeat", "-1", "must be a duration such as"),
    ("heartbeat", "99999999999w", "at most"),
]


BAD_TYPES: list[tuple[str, Any, str]] = [
    ("dsn", 3, "must be text, not int"),
    ("schema", True, "must be text, not bool"),
    ("schema", "a\0b", "NUL"),
    ("dsn", "host=a\0b", "NUL"),
    ("pool_size", 1, "at least 2"),
    ("pool_size", "8", "must be an integer, not str"),
    ("pool_size", 8.0, "must be an integer, not float"),
    ("pool_size", True, "must be an integer, not bool"),
    ("heartbeat", 0, "greater than 0"),
    ("heartbeat", -0.5, "greater than 0"),
    ("heartbeat", [1], "must be a number of seconds"),
]


def check_refused(source: str, says: str, **arguments: Any) -> None:
    with pytest.raises(tocsin.ConfigError) as refused:
        load(**arguments)
    text = str(refused.value)
    assert refused.value.source == source
    assert text.startswith(f"{source}: ")
    assert says in text
    assert SECRET not in text
    assert "\n" not in text


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_a_bad_value_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), value)
    check_refused(f"environment variable TOCSIN_{name.upper()}", says)


@pytest.mark.parametrize(
    ("name", "value", "says"), BAD_TYPES + [b for b in BAD if b[0] != "pool_size"]
)
def test_a_bad_value_in_the_file(name: str, value: Any, says: str) -> None:
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if not isinstance(value, str)
        else toml_string(value)
    )
    Path("pyproject.toml").write_text(f"[tool.tocsin]\n{name} = {text}\n")
    check_refused(f"{Path('pyproject.toml').absolute()}, tool.tocsin.{name}", says)


def toml_string(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\u0000") + '"'


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *BAD_TYPES,
        *(b for b in BAD if b[0] not in ("pool_size", "heartbeat")),
        ("heartbeat", "1.5s", "not str"),
        ("heartbeat", math.nan, "finite"),
    ],
)
async def test_a_bad_argument(name: str, value: Any, says: str) -> None:
    check_refused(f"argument {name}", says, **{name: value})
    with pytest.raises(tocsin.ConfigError, match=f"^argument {name}: "):
        async with tocsin.connect(**{name: value}):
            pass


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("poolsize", "pool_size may be meant"),
        ("dns", "dsn may be meant"),
        ("colour", "there are dsn, schema"),
        ("DSN", "dsn may be meant"),
    ],
)
def test_an_unknown_key_in_the_file(key: str, says: str) -> None:
    write_file({key: SECRET})
    check_refused(f"{Path('pyproject.toml').absolute()}, tool.tocsin.{key}", says)


@pytest.mark.parametrize(
    "name",
    [
        "TOCSIN_POOLSIZE",
        "TOCSIN_DNS",
        "TOCSIN_SCHEME",
        "TOCSIN_HEART_BEAT",
        "TOCSIN_CONFG",
        "tocsin_dsn",
    ],
)
def test_a_variable_with_a_slip_of_the_pen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    check_refused(f"environment variable {name}", "may be meant")


@pytest.mark.parametrize(
    "name",
    [
        "TOCSIN_TEST_DSN",
        "TOCSIN_TEST_IMAGE",
        "TOCSIN_DATA",
        "TOCSIN_PORT",
        "TOCSIN_SERVICE_HOST",
        "TOCSIN_PORT_5432_TCP",
        "TOCSIN_URL",
    ],
)
def test_a_variable_of_another_program(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:5432")
    assert load() == Settings()


@pytest.mark.parametrize(
    ("dsn_from", "listen_dsn_from", "applies"),
    [
        ("argument", "argument", True),
        ("argument", "variable", False),
        ("argument", "file", False),
        ("variable", "argument", True),
        ("variable", "variable", True),
        ("variable", "file", False),
        ("file", "variable", True),
        ("file", "file", True),
        ("default", "file", True),
    ],
)
def test_a_listen_dsn_from_a_weaker_source_than_the_dsn_does_not_apply(
    monkeypatch: pytest.MonkeyPatch, dsn_from: str, listen_dsn_from: str, applies: bool
) -> None:
    given: dict[str, dict[str, Any]] = {
        source: {} for source in ("argument", "variable", "file", "default")
    }
    given[dsn_from]["dsn"] = "host=here"
    given[listen_dsn_from]["listen_dsn"] = "host=line"
    for name, value in given["variable"].items():
        monkeypatch.setenv(PREFIX + name.upper(), value)
    write_file(given["file"])
    settings = load(**given["argument"])
    assert (settings.dsn, settings.listen_dsn) == (
        None if dsn_from == "default" else "host=here",
        "host=line" if applies else None,
    )


def test_settings_do_not_show_a_password() -> None:
    dsn = f"postgresql://ada:{SECRET}@host/app"
    settings = load(dsn, listen_dsn=dsn)
    assert (settings.dsn, settings.listen_dsn) == (dsn, dsn)
    assert SECRET not in repr(settings)


def test_the_documentation_names_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    assert [row[:2] for row in rows] == [[name, f"TOCSIN_{name.upper()}"] for name in NAMES]
    defaults = {row[0]: row[2] for row in rows}
    assert all(
        f.default is None or defaults[f.name] == str(f.default) for f in attrs.fields(Settings)
    )


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ada@host/app\n",
        " postgresql://ada@host/app\r\n",
        "postgresql+psycopg://ada@host/app",
        "postgresql+asyncpg://ada@host/app\n",
        "postgres+psycopg2://ada@host/app",
    ],
)
def test_a_line_break_and_the_name_of_a_driver_do_not_matter(text: str) -> None:
    chosen = load(text).dsn
    assert chosen is not None
    assert conninfo_to_dict(chosen) == {"user": "ada", "host": "host", "dbname": "app"}


def test_a_password_that_is_encoded_is_taken_as_it_is() -> None:
    password = "".join(map(chr, range(32, 127)))
    text = f"postgresql://ada:{quote(password, safe='')}@host:5433/app?application_name=a@b"
    assert conninfo_to_dict(load(text).dsn or "")["password"] == password
    assert describe_address(text) == "host:5433"


@sweep("words", [("qux", "zork", "blip"), ("77", "88", "99")], quick=1)
@sweep(
    "dsn",
    [
        "postgresql://ada:{}@dbhost:5432/app",
        "postgres://ada:{}@dbhost/app?connect_timeout=3",
        "postgresql+psycopg://ada:{}@dbhost",
        "host=dbhost user=ada password={} dbname=app",
    ],
    quick=1,
)
def test_no_piece_of_a_password_that_is_not_encoded_is_shown(
    dsn: str, words: tuple[str, str, str]
) -> None:
    for between in product([*string.punctuation, " ", "\t", "\n", "\0", "%4", "é", ""], repeat=2):
        text = dsn.format(words[0] + between[0] + words[1] + between[1] + words[2])
        shown = []
        try:
            shown.append(describe_address(load(text).dsn or ""))
        except tocsin.ConfigError as error:
            shown += [str(error), repr(error.__context__)]
        try:
            parse_conninfo(text)
        except psycopg.ProgrammingError as error:
            shown += [str(error), repr(error.__context__)]
        assert not any(word in said for said in shown for word in words), (text, shown)
