-- The first statement of an installation and of an upgrade; restore.sql is the last
-- statement. In an upgrade it drops the functions. So the new version may change their
-- parameters, results and defaults, and a migration may change the types that they use.
--
-- It does not drop a function on which an object outside of Tocsin depends (a view, a
-- trigger of another table), because that would drop the object, too. Such a function
-- is replaced in place, which works unless its parameters or its result have changed.
-- In that case the upgrade fails, and the error names the object.
--
-- A dropped function loses the privileges that a database administrator has granted. So
-- this statement records the privileges on all objects.
do $$
declare
    our_schema oid := (select n.oid from pg_namespace n
                       where n.nspname = (parse_ident('tocsin.contract'))[1]);
    functions oid[];
    dropped oid[];
    dependents jsonb;
    statement text;
begin
    if to_regclass('tocsin.messages') is not null then
        -- waits for the transactions that have enqueued, claimed or settled
        lock table tocsin.messages in access exclusive mode;
    end if;
    functions := array(
        select p.oid from pg_proc p
        where p.pronamespace = our_schema
          and not exists (select from pg_depend d
                          where d.classid = 'pg_proc'::regclass and d.objid = p.oid
                              and d.deptype = 'e'));
    select jsonb_object_agg(x.function, x.objects), array_agg(x.oid) into dependents, dropped
    from (
        select d.refobjid as oid, d.refobjid::regprocedure::text as function, jsonb_agg(distinct
                   case d.classid when 'pg_rewrite'::regclass
                   then (select pg_describe_object('pg_class'::regclass, r.ev_class, 0)
                         from pg_rewrite r where r.oid = d.objid)
                   else pg_describe_object(d.classid, d.objid, d.objsubid) end) as objects
        from pg_depend d
        where d.refclassid = 'pg_proc'::regclass and d.refobjid = any (functions)
          and not (d.classid = 'pg_proc'::regclass and d.objid = any (functions))
          and not exists (select from pg_trigger t join pg_class c on c.oid = t.tgrelid
                          where d.classid = 'pg_trigger'::regclass and t.oid = d.objid
                              and c.relnamespace = our_schema)
        group by d.refobjid
    ) x;
    dropped := array(select f from unnest(functions) f where f <> all (coalesce(dropped, '{}')));
    perform set_config('bell.upgrade', jsonb_build_object(
        'dependents', coalesce(dependents, '{}'),
        'kept', (select coalesce(jsonb_object_agg(p.oid::regprocedure::text, p.xmin::text), '{}')
                 from pg_proc p where p.oid = any (functions) and p.oid <> all (dropped)),
        'privileges', (
            select coalesce(jsonb_object_agg(concat_ws(' ', x.kind, x.name), x.acl), '{}')
            from (
                select 'schema', quote_ident(n.nspname), n.nspacl::text from pg_namespace n
                    where n.oid = our_schema
                union all
                select case c.relkind when 'S' then 'sequence'
                    else 'table' end, c.oid::regclass::text, c.relacl::text
                from pg_class c where c.relnamespace = our_schema
                    and c.relkind in ('r', 'p', 'v', 'S')
                union all
                select 'routine', p.oid::regprocedure::text, p.proacl::text from pg_proc p
                    where p.oid = any (functions)
            ) x (kind, name, acl)))::text, true);
    for statement in
        select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass)
        from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = our_schema and t.tgfoid = any (dropped) and not t.tgisinternal
            and t.tgparentid = 0
        union all
        select format('drop routine %s', string_agg(f::regprocedure::text, ', '))
            from unnest(dropped) f having count(*) > 0
    loop
        execute statement;
    end loop;
end
$$;
