-- List each object of a schema that holds Tocsin, by kind and name, with its definition
-- in PostgreSQL's catalogs. sql/catalog contains this list for a new installation. The
-- parameter is the schema's name.
--
-- The result does not depend on that name, on the server's version or on the session's
-- settings. The schema is in the search path, so PostgreSQL omits its name from
-- expressions. Function bodies spell the name in one way, and this query replaces that
-- spelling.

with ours as (select oid, format('"%%s".', nspname) as prefix from pg_namespace
              where nspname = %(schema)s),
classes as (
    -- Without the partitions of the archive that maintenance creates and drops
    -- (functions/queue/maintenance.sql), and without their indexes.
    select c.* from pg_class c where c.relnamespace = (select oid from ours)
        and not (c.relispartition and c.relname ~ '^archive_[0-9]+h_')
),
functions as (
    select p.*,
        format('%%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as signature
    from pg_proc p where p.pronamespace = (select oid from ours)
),
installer as (select c.relowner as owner from pg_class c
              where c.relnamespace = (select oid from ours) and c.relname = 'migrations'),
things (name, owner, acl) as (
    select 'schema', n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
    from pg_namespace n where n.oid = (select oid from ours)
    union all
    select c.relname::text, c.relowner,
        coalesce(c.relacl,
                 acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner))
    from pg_class c where c.relnamespace = (select oid from ours)
        and c.relkind in ('r', 'p', 'v', 'S')
    union all
    select c.relname || '.' || a.attname, (select owner from installer), a.attacl
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        and not a.attisdropped
    where c.relnamespace = (select oid from ours) and c.relkind in ('r', 'p', 'v')
    union all
    select p.signature, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)) from functions p
),
tables as (
    select c.*,
        concat_ws(' ', c.relpersistence, c.reloptions::text,
                  'replica identity ' || c.relreplident::text,
                          case when c.relrowsecurity then 'row level security' end,
                          case when c.relforcerowsecurity
                              then 'also for the owner' end) as attributes
    from pg_class c where c.relnamespace = (select oid from ours) and c.relkind in ('r', 'p', 'v')
)
select 'table', c.relname::text,
    concat_ws(' ', c.relkind, c.attributes, pg_get_partkeydef(c.oid),
              pg_get_expr(c.relpartbound, c.oid, true))
from tables c join classes using (oid)
union all
select 'partition', c.relname::text, c.attributes from tables c
    where c.relkind = 'r' and c.relispartition
union all
select 'sequence', c.relname::text, format_type(s.seqtypid, null) || ' ' || s.seqincrement
from classes c join pg_sequence s on s.seqrelid = c.oid
union all
select 'column', c.relname || '.' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull
                 then 'not null' end, pg_get_expr(d.adbin, d.adrelid, true),
                 'identity ' || nullif(a.attidentity::text, ''),
                 'generated ' || nullif(a.attgenerated::text, ''))
from classes c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relkind in ('r', 'p', 'v', 'c')
union all
select 'constraint', c.relname || '.' || x.conname, pg_get_constraintdef(x.oid, true)
from classes c join pg_constraint x on x.conrelid = c.oid
where x.contype <> 'n'  -- PostgreSQL 18 repeats each not-null column as a constraint
union all
select 'index', c.relname::text, pg_get_indexdef(c.oid, 0, true) from classes c
    where c.relkind in ('i', 'I')
union all
select 'statistics', s.stxname::text,
    concat_ws(' ', s.stxkind::text, pg_get_statisticsobjdef_columns(s.oid), 'from', c.relname)
from pg_statistic_ext s join pg_class c on c.oid = s.stxrelid
where s.stxnamespace = (select oid from ours)
union all
select 'trigger', c.relname || '.' || t.tgname,
       replace(pg_get_triggerdef(t.oid, true), (select prefix from ours), 'tocsin.') || ' '
           || t.tgenabled::text
from classes c join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
union all
select 'function', p.signature, concat_ws(' ',
           p.prokind, 'arguments', pg_get_function_arguments(p.oid), 'returns',
           coalesce(pg_get_function_result(p.oid), 'nothing'),
           'language', l.lanname, 'volatility', p.provolatile, 'parallel', p.proparallel, 'cost',
           p.procost, 'rows', p.prorows,
           case when p.proisstrict then 'strict' end, case when p.proleakproof then 'leakproof' end,
           case when p.prosecdef then 'security definer' end, 'settings ' || p.proconfig::text,
           'body', encode(sha256(convert_to(replace(p.prosrc, (select prefix from ours), 'tocsin.'),
                                            'UTF8')), 'hex'))
from functions p join pg_language l on l.oid = p.prolang
union all
select 'enum', t.typname::text, string_agg(e.enumlabel, ', ' order by e.enumsortorder)
from pg_type t join pg_enum e on e.enumtypid = t.oid where t.typnamespace = (select oid from ours)
    group by t.typname
union all
select 'owner', t.name, t.owner::regrole::text from things t
    where t.name <> 'schema' and t.owner <> (select owner from installer)
union all
select 'privilege', t.name,
    concat_ws(' ', e.privilege_type, 'to', case e.grantee when 0 then 'PUBLIC'
              else e.grantee::regrole::text end,
                                      case when e.is_grantable then 'with grant option' end)
from things t cross join lateral aclexplode(t.acl) e
where e.grantee <> t.owner and e.grantee <> (select owner from installer)
