"""Settings: each of them does something, from each of its sources; what cannot be
understood names its source and shows no secret."""

from __future__ import annotations

import math
import re
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tocsin
from tests.support import PATIENCE
from tocsin._database.client import describe_address
from tocsin._durations import parse_duration
from tocsin.driver._connecting import parse_conninfo
from tocsin.settings import PREFIX, Settings, load

NAMES = [field.name for field in attrs.fields(Settings)]
SECRET = "tops3cret"
LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without settings of anybody's."""
    monkeypatch.chdir(tmp_path)


# What each does


async def dsn_decides_the_database(store: tocsin.Store, value: str | None) -> None:
    async with store.transaction() as connection:
        cursor = await connection.execute("select current_setting('application_name')")
        assert await cursor.fetchall() == [
            ("tocsin" if value is None else conninfo_to_dict(value)["application_name"],)
        ]


async def schema_is_where_it_is_installed(store: tocsin.Store, value: str | None) -> None:
    await store.install()
    async with store.transaction() as connection:
        cursor = await connection.execute(
            "select nspname from pg_namespace where nspname like 'tocsin%'"
        )
        assert await cursor.fetchall() == [(value or "tocsin",)]


async def listen_dsn_is_for_the_line_alone(store: tocsin.Store, value: str | None) -> None:
    await store.install()
    await store.queues.ensure("q")
    async with store.consumer("q"), store.transaction() as connection:
        assert store.statistics().listening
        sessions = (
            "select distinct a.application_name from pg_stat_activity a "
            "where a.datname = current_database() and a.backend_type = 'client backend' "
            "and {} (select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory')"
        )
        lines = await (await connection.execute(sessions.format("exists").encode())).fetchall()
        others = await (await connection.execute(sessions.format("not exists").encode())).fetchall()
    assert lines == [("tocsin" if value is None else conninfo_to_dict(value)["application_name"],)]
    assert others == [("tocsin",)]


async def pool_size_limits_the_connections(store: tocsin.Store, value: int | None) -> None:
    size = value or 8
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(size):
            await stack.enter_async_context(store._database.connection())
        nursery.start_soon(store.queues.list)
        with trio.fail_after(PATIENCE):
            while not (pool := store.statistics().pool).waiting:
                await trio.lowlevel.checkpoint()
        assert (pool.size, pool.in_use) == (size, size)
        nursery.cancel_scope.cancel()


async def heartbeat_is_the_interval_in_the_registry(
    store: tocsin.Store, value: float | str | None
) -> None:
    await store.install()
    await store.queues.ensure("q")
    every = timedelta(seconds=2) if value is None else parse_duration(str(value))
    async with store.producer("q"), store.transaction() as connection:
        assert await (
            await connection.execute("select every from tocsin.processes")
        ).fetchall() == [(every,)]


Effect = Callable[[tocsin.Store, Any], Awaitable[None]]
EFFECTS: dict[str, tuple[Effect, list[Any]]] = {
    # setting: (what shows its effect, values to try); a DSN stands for one that names
    # itself so
    "dsn": (dsn_decides_the_database, ["argument", "variable", "file"]),
    "schema": (
        schema_is_where_it_is_installed,
        ["tocsin_argument", "tocsin_variable", "tocsin_file"],
    ),
    "listen_dsn": (listen_dsn_is_for_the_line_alone, ["argument", "variable", "file"]),
    "pool_size": (pool_size_limits_the_connections, [3, 4, 5]),
    "heartbeat": (heartbeat_is_the_interval_in_the_registry, [3, "250ms", "1.5s"]),
}


def test_every_setting_is_exercised() -> None:
    assert list(EFFECTS) == NAMES


def write_file(table: dict[str, Any], path: Path | None = None) -> Path:
    path = path or Path("pyproject.toml")
    lines = [
        f"{key} = {value if isinstance(value, int | float) else repr(value)}"
        for key, value in table.items()
    ]
    path.write_text("\n".join(["[project]", "name = 'mine'", "[tool.tocsin]", *lines]))
    return path.absolute()


@asynccontextmanager
async def connected(
    monkeypatch: pytest.MonkeyPatch,
    dsn: str,
    arguments: dict[str, Any],
    variables: dict[str, Any],
    table: dict[str, Any],
) -> AsyncIterator[tocsin.Store]:
    """A store whose settings come from these sources; where they do not say so, libpq's
    environment says where the server is."""
    for name, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv(LIBPQ[name], str(value))
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name.upper(), str(value))
    write_file(table)
    async with tocsin.connect(**arguments) as store:
        yield store


@pytest.mark.parametrize("source", ["argument", "variable", "file", "default"])
@pytest.mark.parametrize("name", NAMES)
async def test_setting_from_each_source(
    monkeypatch: pytest.MonkeyPatch, dsn: str, name: str, source: str
) -> None:
    """The nearest counts; what is behind it may be wrong."""
    effect, values = EFFECTS[name]
    if name.endswith("dsn"):
        values = [make_conninfo(dsn, application_name=value) for value in values]
    sources = ["argument", "variable", "file"]
    given = [{name: value} if s == source else {} for s, value in zip(sources, values, strict=True)]
    if source != "default":
        for further in given[sources.index(source) + 1 :]:
            further[name] = "=" if name.endswith("dsn") else "no such value"
    async with connected(monkeypatch, dsn, *given) as store:
        await effect(store, None if source == "default" else values[sources.index(source)])


async def test_what_is_not_known_of_a_connection_string_is_libpqs_affair(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    async with connected(monkeypatch, dsn, {"dsn": "application_name=mine"}, {}, {}) as store:
        await dsn_decides_the_database(store, "application_name=mine")
    async with connected(
        monkeypatch, dsn, {"dsn": "postgresql://"}, {"dsn": "host=/nowhere"}, {}
    ) as store:
        await dsn_decides_the_database(store, None)


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


# The file


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


# What cannot be understood

BAD: list[tuple[str, Any, str]] = [
    # setting, value, what the error says
    ("dsn", SECRET, "not a PostgreSQL connection string"),
    ("dsn", f"postgresql://ada:{SECRET}@[x/app", "not a PostgreSQL connection string"),
    ("dsn", f"host=x nosuchkey={SECRET}", "not a PostgreSQL connection string"),
    ("dsn", "", "postgresql:// stands for"),
    ("listen_dsn", f"http://x/{SECRET}", "not a PostgreSQL connection string"),
    ("listen_dsn", " ", "is empty"),
    ("schema", "no such", "no valid name"),
    ("schema", "", "is empty"),
    ("schema", 'x"; drop schema public; --', "no valid name"),
    ("schema", "x" * 64, "64 bytes long"),
    ("schema", "public", "a schema of its own"),
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
def test_a_variable_of_somebody_elses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
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


# Durations as text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("7d", 7 * 86400),
            ("30m", 1800),
            ("1.5s", 1.5),
            ("250ms", 0.25),
            ("2h", 7200),
            ("1w", 604800),
        ),
        *(("12", 12), ("0", 0), ("0.5", 0.5), (" 3 s ", 3)),
    ],
)
def test_durations_as_text(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1s",
        "+1s",
        "1e3",
        "7D",
        "1.s",
        ".5s",
        "1,5s",
        "1h30m",
        "inf",
        "nan",
        "7 days",
        "٣s",
        "1_0s",
        "9" * 400,
        "1\n2",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


# The documentation


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


# Connection strings as other programs write them


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


@pytest.mark.parametrize("words", [("qux", "zork", "blip"), ("77", "88", "99")])
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ada:{}@dbhost:5432/app",
        "postgres://ada:{}@dbhost/app?connect_timeout=3",
        "postgresql+psycopg://ada:{}@dbhost",
        "host=dbhost user=ada password={} dbname=app",
    ],
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
