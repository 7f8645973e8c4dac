"""Installing, verifying and removing what `sql/` defines.

The SQL files are the contract, and the only copy of it: an installed package carries them beside this module, a checkout has them at its
top. They name the schema ``tocsin``; installing under another name replaces the two spellings ``tocsin.`` and ``'tocsin'`` (see the head of
``0001_tables.sql``).

`verify` has no list of what must be there, which would have to be kept in step by hand. It installs a second copy under a scratch name in a
transaction, compares what PostgreSQL's catalogs say of the two, and rolls back.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import attrs
import psycopg
import trio
from psycopg import sql

from .errors import ConfigError, SchemaBusy, SchemaMissing, SchemaOutdated, TocsinError
from .roles import Roles

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_IDENTIFIER_BYTES = 63
# Whoever installs is as a rule a superuser or the database's owner, and others may have put functions into `public` that fit better than
# PostgreSQL's own.
_SAFE_PATH = "set local search_path = pg_catalog, pg_temp"
# PostgreSQL refuses a partitioned table in the database's own tablespace where ``default_tablespace`` names that.
_PLAIN_TABLESPACE = (
    "select set_config('default_tablespace', '', true) from pg_database d join pg_tablespace t on t.oid = d.dattablespace "
    "where d.datname = current_database() and t.spcname = current_setting('default_tablespace')"
)
_LOCK_WITHIN_MS = 250
"""Milliseconds that a change of the schema waits for a lock. Sessions that want the same table queue behind it for as long."""
_PAUSE = 0.5
"""Seconds between two attempts, in which those sessions go on."""
_ATTEMPTS = 40
"""After that many a change of the schema is refused; it has then taken about half a minute."""
_OUR_SPELLINGS = re.compile(r"\btocsin\.|'tocsin'")


def _check_name(schema: Schema, attribute: object, name: str) -> None:
    if not _IDENTIFIER.fullmatch(name):
        raise ConfigError("schema", f"{name!r} is no valid name: letters, digits and underscores, not beginning with a digit")
    if len(name) > _MAX_IDENTIFIER_BYTES:
        raise ConfigError("schema", f"{name!r} is {len(name)} bytes long, PostgreSQL allows {_MAX_IDENTIFIER_BYTES}")
    if name.startswith("pg_") or name in ("public", "information_schema"):
        raise ConfigError("schema", f"{name!r} is not Tocsin's; it needs a schema of its own")


@attrs.frozen
class Schema:
    """The schema that holds Tocsin."""

    name: str = attrs.field(validator=_check_name)
    """Its name in the database."""

    def render(self, text: str) -> str:
        """Return SQL written for the schema ``tocsin`` as SQL for this one."""
        return _OUR_SPELLINGS.sub(lambda m: f"'{self.name}'" if m[0].startswith("'") else f'"{self.name}".', text)


@attrs.frozen
class Migration:
    """One file of ``sql/migrations``."""

    number: int
    """Its place in the order."""
    name: str
    """Its file name."""
    text: str
    """Its SQL, for the schema ``tocsin``."""


@attrs.frozen
class Difference:
    """Something that is not as this version of Tocsin installs it."""

    kind: str
    """column, constraint, index, trigger, function, enum, sequence, table, partition, statistics, role, owner or privileges."""
    name: str
    """Its name within the schema."""
    expected: str | None
    """Its definition as it must be; None when there must be no such thing."""
    found: str | None
    """Its definition as it is; None when it is missing."""

    def __str__(self) -> str:
        problem = "is missing" if self.found is None else "does not belong here" if self.expected is None else "is different"
        return f"{self.kind} {self.name} {problem}"


def _directory(name: str) -> Traversable:
    packaged = resources.files(__package__) / "sql" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / name


def _read(directory: str) -> list[tuple[str, str]]:
    files = (f for f in _directory(directory).iterdir() if f.name.endswith(".sql"))
    return sorted((f.name, f.read_text(encoding="utf-8")) for f in files)


@cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations that this version of Tocsin brings, in order."""
    return tuple(Migration(int(name[:4]), name, text) for name, text in _read("migrations"))


@cache
def _load(directory: str) -> str:
    return "\n".join(text for _, text in _read(directory))


@cache
def contract() -> tuple[str, str]:
    """Return the SQL of all functions and of who may call them, and its digest."""
    text = _load("functions") + "\n" + _load("security")
    return text, hashlib.sha256(text.encode()).hexdigest()


async def installed(connection: psycopg.AsyncConnection[Any], schema: Schema) -> tuple[int, str]:
    """Return the number of the last migration applied and the digest of the functions loaded.

    Raises `SchemaMissing`. Cancellation leaves nothing behind.
    """
    try:
        cursor = await connection.execute(
            schema.render("select (select max(number) from tocsin.migrations), (select digest from tocsin.contract)")
        )
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(schema.name) from None
    number, digest = await cursor.fetchone() or (None, None)
    if number is None or digest is None:
        raise SchemaMissing(schema.name)
    return number, digest


async def check(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Raise `SchemaMissing` or `SchemaOutdated` unless the schema has what this version of Tocsin needs.

    Cancellation leaves nothing behind.
    """
    found, digest = await installed(connection, schema)
    needed = migrations()[-1].number
    if found < needed or (found == needed and digest != contract()[1]):
        raise SchemaOutdated(schema.name, found, needed)


async def install(connection: psycopg.AsyncConnection[Any], schema: Schema, roles: Roles | None = None) -> None:
    """Bring the schema to this version: create it if missing, apply the pending migrations, load the functions, let the roles in.

    Without ``roles``, those that were let in before stay so. Idempotent, and safe when many processes do it at once. Raises `TocsinError`
    when the schema is newer than this version, or holds something else, `SchemaBusy` and `PermissionDenied`. All happens in one
    transaction: cancelled or failed, nothing has changed.
    """
    digest = contract()[1]
    needed = migrations()[-1].number
    try:
        if await installed(connection, schema) == (needed, digest) and roles is None:
            return
    except SchemaMissing:
        pass

    async def bring() -> None:
        try:
            async with connection.transaction():
                applied, loaded = await installed(connection, schema)
        except SchemaMissing:
            applied, loaded = 0, ""
            await _create_schema(connection, schema)
        if applied > needed:
            raise TocsinError(
                f"schema {schema.name!r} is at migration {applied}, this version of Tocsin knows only {needed}: upgrade Tocsin"
            )
        async with _as_owner(connection, schema):
            await _apply(connection, schema, applied, loaded != digest)
        if roles is not None:
            await connection.execute(
                schema.render("select tocsin.install_roles(%s, %s, %s)").encode(), [roles.producer, roles.consumer, roles.admin]
            )

    await _change(connection, schema, bring)


async def _change(connection: psycopg.AsyncConnection[Any], schema: Schema, change: Callable[[], Awaitable[None]]) -> None:
    """Run a change of the schema in a transaction of its own, in which no other session installs or uninstalls.

    The change locks tables that are in use, and PostgreSQL makes later sessions wait behind a lock request that waits. So each request
    ends soon, and then the transaction is rolled back and tried again. Raises `SchemaBusy` when other transactions never let it through.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            await trio.sleep(_PAUSE)
        try:
            async with connection.transaction():
                await connection.execute(_SAFE_PATH)
                await connection.execute(_PLAIN_TABLESPACE)
                await connection.execute("set local lock_timeout = 0")  # for another installation it waits, and holds nothing meanwhile
                await connection.execute("select pg_advisory_xact_lock(hashtextextended('tocsin:install', 0))")
                await connection.execute(f"set local lock_timeout = {_LOCK_WITHIN_MS}".encode())
                await change()
        except psycopg.errors.LockNotAvailable as error:
            busy = error
        else:
            return
    raise SchemaBusy(schema.name) from busy


@asynccontextmanager
async def _as_owner(connection: psycopg.AsyncConnection[Any], schema: Schema) -> AsyncIterator[None]:
    """In a transaction: be whoever has installed Tocsin.

    Its functions run with their owner's rights. An upgrade by a superuser must not leave some of them with a superuser's.
    """
    cursor = await connection.execute(
        "select pg_get_userbyid(relowner), current_user = pg_get_userbyid(relowner), current_setting('role') from pg_class "
        "where oid = to_regclass(format('%%I.migrations', %s::text))",
        [schema.name],
    )
    owner, is_owner, role = await cursor.fetchone() or ("", True, "")
    if not is_owner:
        await connection.execute("select set_config('role', %s, true)", [owner])
    yield
    if not is_owner:
        await connection.execute("select set_config('role', %s, true)", [role])


async def _create_schema(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    cursor = await connection.execute("select oid from pg_namespace where nspname = %s", [schema.name])
    if row := await cursor.fetchone():
        cursor = await connection.execute("select count(*) from pg_class where relnamespace = %s", row)
        if (await cursor.fetchone() or (0,))[0]:
            raise TocsinError(f"schema {schema.name!r} holds something that is not Tocsin's; choose another name")
    else:
        await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema.name)))


async def _apply(connection: psycopg.AsyncConnection[Any], schema: Schema, applied: int, load: bool) -> None:
    for migration in migrations():
        if migration.number > applied:
            await connection.execute(schema.render(migration.text).encode())
            await connection.execute(
                schema.render("insert into tocsin.migrations (number, name) values (%s, %s)").encode(),
                [migration.number, migration.name],
            )
    if load:
        before = await _functions(connection, schema)
        # Functions call each other, whatever the order of their files.
        await connection.execute("set local check_function_bodies = off")
        await connection.execute(schema.render(_load("functions")).encode())
        # A function that is not there any more, or takes other parameters now, would be left behind, and calls of it be ambiguous.
        for signature in before & await _functions(connection, schema):
            await connection.execute(f"drop function {signature[0]}".encode())
        await connection.execute(schema.render(_load("security")).encode())
        await connection.execute(
            schema.render(
                "insert into tocsin.contract (digest) values (%s) on conflict (only_row) do update set digest = excluded.digest"
            ).encode(),
            [contract()[1]],
        )


async def _functions(connection: psycopg.AsyncConnection[Any], schema: Schema) -> set[tuple[str, str]]:
    """The functions there are, each with a mark that changes when it is replaced."""
    cursor = await connection.execute(
        "select oid::regprocedure::text, xmin::text from pg_proc where pronamespace = to_regnamespace(quote_ident(%s))", [schema.name]
    )
    return set(await cursor.fetchall())


async def uninstall(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Drop the schema with all queues and messages.

    Raises `SchemaMissing`, `SchemaBusy`. One transaction: cancelled or failed, nothing has changed.
    """

    async def drop() -> None:
        await installed(connection, schema)
        await connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema.name)))

    await _change(connection, schema, drop)


async def verify(connection: psycopg.AsyncConnection[Any], schema: Schema) -> tuple[Difference, ...]:
    """Compare what is installed with what this version of Tocsin installs, and return each difference; none when all is well.

    Raises `SchemaMissing`, `SchemaOutdated`. Needs the right to create a schema. Changes nothing, cancelled or not.
    """
    await check(connection, schema)
    async with connection.transaction(force_rollback=True):
        await connection.execute(_SAFE_PATH)
        await connection.execute(_PLAIN_TABLESPACE)
        await connection.execute("set local client_min_messages = warning")
        scratch = await _invent_name(connection, schema)
        await _create_schema(connection, scratch)
        await _apply(connection, scratch, 0, True)
        cursor = await connection.execute(schema.render("select kind, role::oid from tocsin.roles").encode())
        roles = await cursor.fetchall()
        for role in roles:
            await connection.execute(scratch.render("insert into tocsin.roles (kind, role) values (%s, %s::oid)").encode(), role)
        await connection.execute(scratch.render("select tocsin.secure()").encode())
        # Only the copy's name is replaced, which occurs nowhere else; the schema's own may be that of a table, an alias or a function.
        expected = {key: text.replace(scratch.name, schema.name) for key, text in (await _describe(connection, scratch)).items()}
        found = await _describe(connection, schema)
    # Roles that were dropped since are gone from the copy.
    expected |= {("role", kind): "a role of this server" for kind, _ in roles}
    # The partitions that come and go (functions/maintain.sql) are made like the one that stays, and secured like it.
    model = {kind: expected[kind, "archive_rest"] for kind in ("partition", "privileges") if (kind, "archive_rest") in expected}
    for _, name in filter(_is_passing_partition, found):
        expected |= {(kind, name): text for kind, text in model.items()}
    return tuple(
        Difference(kind, name, expected.get((kind, name)), found.get((kind, name)))
        for kind, name in sorted(expected.keys() | found.keys())
        if expected.get((kind, name)) != found.get((kind, name))
    )


def _is_passing_partition(thing: tuple[str, str]) -> bool:
    kind, name = thing
    return kind == "partition" and re.fullmatch("archive_[0-9]+h_[0-9]{10}", name) is not None


async def _invent_name(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Schema:
    """Return a name for a copy of the schema, which PostgreSQL quotes where it quotes the schema's own."""
    cursor = await connection.execute("select quote_ident(%s) = %s", [schema.name, schema.name])
    (plain,) = await cursor.fetchone() or (True,)
    return Schema(f"{'tocsin' if plain else 'Tocsin'}_verify_{secrets.token_hex(6)}")


async def _describe(connection: psycopg.AsyncConnection[Any], schema: Schema) -> dict[tuple[str, str], str]:
    """Return the definition of each thing in the schema, by kind and name."""
    cursor = await connection.execute(_DESCRIBE, {"schema": schema.name})
    things = {(kind, name): definition async for kind, name, definition in cursor}
    cursor = await connection.execute(
        schema.render("select kind from tocsin.roles where exists (select from pg_catalog.pg_roles where oid = role)").encode()
    )
    return things | {("role", kind): "a role of this server" for (kind,) in await cursor.fetchall()}


_DESCRIBE = """
with ours as (select oid from pg_namespace where nspname = %(schema)s),
classes as (
    -- without the partitions of the archive that come and go (functions/maintain.sql), and their indexes
    select c.* from pg_class c where c.relnamespace = (select oid from ours) and not (c.relispartition and c.relname ~ '^archive_[0-9]+h_')
),
functions as (
    select p.*, concat(p.proname, '(', replace(a.arguments, quote_ident(%(schema)s) || '.', ''), ')') as signature
    from pg_proc p cross join lateral pg_get_function_identity_arguments(p.oid) a (arguments)
    where p.pronamespace = (select oid from ours)
),
installer as (select c.relowner as owner from pg_class c where c.relnamespace = (select oid from ours) and c.relname = 'migrations'),
things (name, owner, acl) as (
    select 'schema', n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
    from pg_namespace n where n.oid = (select oid from ours)
    union all
    select c.relname::text, c.relowner, coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner))
    from pg_class c where c.relnamespace = (select oid from ours) and c.relkind in ('r', 'p', 'v', 'S')
    union all
    select c.relname || '.' || a.attname, (select owner from installer), a.attacl
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = (select oid from ours) and c.relkind in ('r', 'p', 'v')
    union all
    select p.signature, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)) from functions p
)
select 'table', c.relname::text, concat_ws(' ', c.relkind, c.relpersistence, c.reloptions::text, pg_get_partkeydef(c.oid),
                                           pg_get_expr(c.relpartbound, c.oid), 'replica identity ' || c.relreplident::text,
                                           case when c.relrowsecurity then 'row level security' end,
      case when c.relforcerowsecurity then 'also for the owner' end)
from classes c where c.relkind in ('r', 'p', 'v')
union all
select 'partition', c.relname::text, concat_ws(' ', c.relpersistence, c.reloptions::text, 'replica identity ' || c.relreplident::text,
                                               case when c.relrowsecurity then 'row level security' end,
      case when c.relforcerowsecurity then 'also for the owner' end)
from pg_class c where c.relnamespace = (select oid from ours) and c.relkind = 'r' and c.relispartition
union all
select 'sequence', c.relname::text, format_type(s.seqtypid, null) || ' ' || s.seqincrement
from classes c join pg_sequence s on s.seqrelid = c.oid
union all
select 'column', c.relname || '.' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end, pg_get_expr(d.adbin, d.adrelid),
                 nullif(a.attidentity, ''), nullif(a.attgenerated, ''))
from classes c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relkind in ('r', 'p', 'c')
union all
select 'constraint', c.relname || '.' || x.conname, pg_get_constraintdef(x.oid)
from classes c join pg_constraint x on x.conrelid = c.oid
union all
select 'index', c.relname::text, pg_get_indexdef(c.oid) from classes c where c.relkind in ('i', 'I')
union all
select 'statistics', s.stxname::text, pg_get_statisticsobjdef(s.oid) from pg_statistic_ext s where s.stxnamespace = (select oid from ours)
union all
select 'trigger', c.relname || '.' || t.tgname, pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
from classes c join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
union all
select 'function', p.signature, pg_get_functiondef(p.oid) from functions p
union all
select 'enum', t.typname::text, string_agg(e.enumlabel, ', ' order by e.enumsortorder)
from pg_type t join pg_enum e on e.enumtypid = t.oid where t.typnamespace = (select oid from ours) group by t.typname
union all
select 'owner', t.name, t.owner::regrole::text from things t where t.name <> 'schema' and t.owner <> (select owner from installer)
union all
select 'privileges', t.name, g.granted
from things t
cross join lateral (
    select string_agg(concat_ws(' ', e.privilege_type, 'to', case e.grantee when 0 then 'PUBLIC' else e.grantee::regrole::text end,
                                case when e.is_grantable then 'with grant option' end), ', ' order by e.privilege_type, e.grantee)
    from aclexplode(t.acl) e where e.grantee <> t.owner and e.grantee <> (select owner from installer)) g (granted)
where g.granted is not null
"""
