"""The statements of an installation or an upgrade, in one transaction.

`install` runs them; ``tocsin admin sql`` prints them, for a database administrator to
run with psql.
"""

from __future__ import annotations

from .schema import Schema, functions, last_migrations, load, migrations, ours

SAFE_PATH = "set local search_path = pg_catalog, pg_temp"
"""A superuser or the database's owner installs, and `public` may hold functions that
fit better than PostgreSQL's own."""
PLAIN_TABLESPACE = (
    "select set_config('default_tablespace', '', true) from pg_database d "
    "join pg_tablespace t on t.oid = d.dattablespace "
    "where d.datname = current_database() and t.spcname = current_setting('default_tablespace')"
)
"""PostgreSQL refuses a partitioned table in the database's own tablespace where
``default_tablespace`` names that."""


def unload(schema: Schema) -> str:
    """Return the first statement of an installation or upgrade.

    It notes the privileges, and drops the functions that are loaded afterwards.
    """
    return schema.render(load("upgrade/unload.sql"))


def reload(schema: Schema, *, after: int) -> list[str]:
    """Return the statements after `unload`.

    They apply the migrations behind number ``after``, load the functions, and grant the
    rights to them.
    """
    statements: list[str] = []
    for migration in migrations():
        if migration.number > after:
            statements += migration.text, _NOTE_MIGRATION.format(migration)
    # Functions of one file call functions of later files.
    statements += "set local check_function_bodies = off", functions()
    statements += load("upgrade/restore.sql"), _NOTE_CONTRACT.format(ours())
    return [schema.render(statement) for statement in statements]


_NOTE_MIGRATION = "insert into tocsin.migrations (number, name) values ({0.number}, '{0.name}')"
_NOTE_CONTRACT = (
    "insert into tocsin.contract (version, serves, digest) "
    "values ({0.version}, {0.serves}, '{0.digest}') on conflict (only_row) do update "
    "set version = excluded.version, serves = excluded.serves, digest = excluded.digest"
)


def known_versions() -> tuple[int, ...]:
    """Return the versions of the contract that this package can upgrade."""
    return tuple(sorted(last_migrations()))


def write_script(schema: Schema, *, upgrade_from: int | None) -> str:
    """Return all of it as one script, which psql runs in one transaction.

    Args:
        schema: Where Tocsin is, or is to be installed.
        upgrade_from: The version that is installed, one of `known_versions`; None for
            an installation.
    """
    if upgrade_from is None:
        title = f"Installs version {ours().version} of Tocsin's SQL contract"
        guard, statements = _IS_ABSENT, [_CREATE_SCHEMA, *reload(schema, after=0)]
    else:
        title = f"Upgrades Tocsin's SQL contract from version {upgrade_from} to {ours().version}"
        guard = _HAS_VERSION.format(upgrade_from) + _BE_OWNER
        statements = reload(schema, after=last_migrations()[upgrade_from])
    steps = [SAFE_PATH, PLAIN_TABLESPACE, _LOCK, guard, unload(schema), *statements]
    text = "".join(f"{schema.render(step).rstrip().rstrip(';')};\n\n" for step in steps)
    return f"{_HEAD.format(title, schema.name)}begin;\n\n{text}commit;\n"


_HEAD = r"""-- {0}, in schema "{1}".
-- It is one transaction. When it ends with "canceling statement due to lock timeout",
-- nothing has changed: run it again when the transactions that use Tocsin have ended.
\set ON_ERROR_STOP on

"""
INSTALL_LOCK = "select pg_advisory_xact_lock(hashtextextended('tocsin:install', 0))"
"""Taken by each session that installs, upgrades or removes."""
_LOCK = f"{INSTALL_LOCK};\nset local lock_timeout = '2s'"
_IS_ABSENT = """do $$
begin
    if exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = (parse_ident('tocsin.contract'))[1]) then
        raise exception 'the schema holds something already';
    end if;
end
$$"""
_CREATE_SCHEMA = """do $$
declare
    name text := (parse_ident('tocsin.contract'))[1];
begin
    if not exists (select from pg_namespace n where n.nspname = name) then
        execute format('create schema %I', name);
    end if;
end
$$"""
_HAS_VERSION = """do $$
begin
    if (select c.version from tocsin.contract c) <> {0} then
        raise exception 'this script upgrades version {0} of the SQL contract, '
            'and another one is installed';
    end if;
end
$$;

"""
# After an upgrade by a superuser, the schema's owner still owns the functions.
_BE_OWNER = (
    "select set_config('role', pg_get_userbyid(c.relowner), true) "
    "from pg_class c where c.oid = 'tocsin.migrations'::regclass"
)
