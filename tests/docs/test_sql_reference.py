"""docs/reference/sql.md shows the arguments and the result of each entry point, as in
the catalog."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import query

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sql.md"

FUNCTIONS = """
select p.proname::text, array_to_string(p.proargnames, ' '), case
    when a.named and p.proretset then 'table'
    when a.named then 'row'
    else concat(case when p.proretset then 'setof ' end, '`',
                case when t.typtype = 'c' then t.typname::text
                     else format_type(t.oid, null) end, '`')
    end
from pg_proc p
join tocsin._access() x on x.function = p.proname and x.roles is not null
join pg_type t on t.oid = p.prorettype
cross join lateral (select coalesce(p.proargmodes::text[] && '{o,t}', false)) a (named)
where p.pronamespace = 'tocsin'::regnamespace
"""
COLUMNS = """
select p.proname::text,
       string_agg(format('`%s %s`', c.name, format_type(c.type, null)), ', ' order by c.n)
from pg_proc p
join tocsin._access() x on x.function = p.proname and x.roles is not null
cross join lateral unnest(p.proargnames, p.proallargtypes, p.proargmodes)
    with ordinality c (name, type, mode, n)
where p.pronamespace = 'tocsin'::regnamespace and c.mode in ('o', 't')
group by p.oid
union all
select t.typname::text,
       string_agg(format('`%s %s`', c.attname, format_type(c.atttypid, null)),
                  ', ' order by c.attnum)
from pg_type t
join pg_attribute c on c.attrelid = t.typrelid and c.attnum > 0 and not c.attisdropped
where t.oid in (
    select p.prorettype from pg_proc p
    join tocsin._access() x on x.function = p.proname and x.roles is not null
    where p.pronamespace = 'tocsin'::regnamespace)
group by t.oid
"""


def short(text: str) -> str:
    """Spell types as the page does."""
    return text.replace("timestamp with time zone", "timestamptz").replace(
        "double precision", "float8"
    )


def shown_functions() -> dict[str, tuple[list[str], str]]:
    """The arguments and the result of each function of the page."""
    rows = re.findall(
        r"^\| `(\w+)\(([^`]*)\)` \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.M
    )
    return {name: (re.findall(r"\w+", arguments), result) for name, arguments, result in rows}


def shown_columns() -> dict[str, str]:
    """The columns of each result of the page that has columns."""
    section = PAGE.read_text(encoding="utf-8").partition("## Columns")[2]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))


async def test_each_result_is_that_of_the_catalog(store_dsn: str) -> None:
    expected = {name: short(result) for name, _, result in await query(store_dsn, FUNCTIONS)}
    assert {name: result for name, (_, result) in shown_functions().items()} == expected


async def test_each_argument_is_in_the_catalog(store_dsn: str) -> None:
    arguments = {
        name: names.split() for name, names, _ in await query(store_dsn, FUNCTIONS) if names
    }
    for name, (shown, _) in shown_functions().items():
        assert [argument for argument in shown if argument not in arguments[name]] == [], name


async def test_the_columns_are_those_of_the_catalog(store_dsn: str) -> None:
    assert shown_columns() == {
        name: short(columns) for name, columns in await query(store_dsn, COLUMNS)
    }
