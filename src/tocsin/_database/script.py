"""The statements of an installation or an upgrade, in one transaction.

`install` runs them; ``tocsin admin sql`` prints them, for a database administrator to
run with psql.
"""

from __future__ import annotations

from .schema import Schema, functions, load, migrations, ours

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
    """Return the statement that comes first: it notes the privileges, and drops what it
    will load."""
    return schema.render(load("upgrade/unload.sql"))


def reload(schema: Schema, *, after: int) -> list[str]:
    """Return what follows: the migrations behind number ``after``, the functions, and
    the rights to them."""
    statements: list[str] = []
    for migration in migrations():
        if migration.number > after:
            statements += migration.text, _NOTE_MIGRATION.format(migration)
    # Functions call each other, whatever the order of their files.
    statements += "set local check_function_bodies = off", functions()
    statements += load("upgrade/restore.sql"), _NOTE_CONTRACT.format(ours())
    return [schema.render(statement) for statement in statements]


_NOTE_MIGRATION = "insert into tocsin.migrations (number, name) values ({0.number}, '{0.name}')"
_NOTE_CONTRACT = (
    "insert into tocsin.contract (version, serves, digest) "
    "values ({0.version}, {0.serves}, '{0.digest}') on conflict (only_row) do update "
    "set version = excluded.version, serves = excluded.serves, digest = excluded.digest"
)
