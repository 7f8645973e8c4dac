-- Define which role may call which function. secure() brings every function into the
-- state that _access() describes: it grants missing privileges and revokes surplus
-- ones. Each installation and each upgrade ends with a call of secure()
-- (sql/upgrade/restore.sql).
--
-- PUBLIC has no privileges. Without roles, only the owner of the schema can use it;
-- install_roles gives other roles access. These roles may call the *entry points*. An
-- entry point runs with its owner's privileges, because no other role may write to a
-- table. Its search_path has only schemas that no other role can write to. The
-- functions that it calls run in the same way. So an entry point that does not check
-- its caller (authorization.sql) does the same for each role that may call it as for
-- the owner.
--
-- Entry points run in this way also where there are no roles. The cost of that for an
-- enqueue is too small to measure. An owner can be attacked without roles, too: in a
-- database that comes from PostgreSQL 14, every role may create functions in `public`,
-- and PostgreSQL prefers such a function to its own if the argument types fit better.
-- The trigger on messages has no search_path of its own, which would slow down each
-- insert. Within an entry point it runs with the search_path of the entry point, and
-- only the owner inserts directly.
--
-- A function whose name begins with an underscore is internal: only functions of the
-- schema call it. Each other function is an entry point, and is listed here; a test
-- fails for one that is missing.

create or replace function tocsin._access() returns table (function name, roles text[])
language sql immutable
as $$
    select unnest('{
        enqueue, enqueue_many, enqueue_each, wait_for_flush, cancel, reschedule, reprioritise,
        register_process, unregister_process, attach_process, detach_process, process_channel,
        heartbeat,
        register_worker, unregister_worker, queue_of, worker_heartbeat, list_workers, suspend,
        resume, shutdown,
        submit, submit_flow, enqueue_jobs, list_jobs, requeue_job, edit_job, job_outcomes,
        job_attempts,
        await_jobs, leave_jobs, begin_awaiting, begin_awaiting_jobs, unannounced_outcomes, end_awaiting, await_job, leave_job,
        server_time, set_schedule, pause_schedule, resume_schedule, run_schedule, delete_schedule,
        list_schedules
    }'::name[]), '{producer, consumer, admin}'::text[]
    union all
    select unnest('{
        begin_waiting, unrung_transactions, end_waiting,
        queue_channel,
        begin_poll, complete_poll, interrupt, claim, release_others, limit_lock_wait,
        locked_messages, archive, delete, extend, cancel_reasons, release, fail, maintain,
        stop, release_messages,
        register_tasks, tick
    }'::name[]), '{consumer, admin}'
    union all
    select unnest('{
        create_queue, ensure_queue, update_queue, find_queue, list_queues, pause_queue,
        resume_queue, grant_queue, revoke_queue,
        list_messages, get_message,
        list_dead_letters, get_dead_letter, replay, archive_dead_letters, purge_dead_letters,
        archived_count, settle_rate, purge_archive,
        purge_queue, delete_queue, queue_metrics, store_stats,
        delete_worker, purge_workers, worker_stats, queue_health, reclaim,
        list_tasks, list_limits, set_limit, job_stats, task_metrics, clear_jobs,
        list_flows, list_flow_jobs, list_edges, cancel_flow, requeue_flow
    }'::name[]), '{admin}'
    union all
    -- only the owner may call these; they run with the caller's privileges
    select unnest('{secure, install_roles}'::name[]), '{}'
$$;

-- Brings attributes and privileges of all objects in the schema into the state
-- described above. Privileges that an administrator has granted to other roles stay,
-- and verify names them. The privileges of Tocsin's former roles are revoked.
create or replace function tocsin.secure(former_roles oid[] default '{}', before jsonb default null)
    returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    our_schema oid := (select c.relnamespace from pg_class c
                       where c.oid = 'tocsin.contract'::regclass);
    f record;
begin
    for f in
        select p.oid::regprocedure as signature, a.roles is not null as is_entry_point
        from pg_proc p left join tocsin._access() a on a.function = p.proname
        where p.pronamespace = our_schema and a.roles is distinct from '{}'
          and (p.prosecdef
               and coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig),
                            false)) <> (a.roles is not null)
    loop
        if f.is_entry_point then
            execute format('alter function %s security definer '
                           'set search_path = pg_catalog, pg_temp', f.signature);
        else
            execute format('alter function %s security invoker reset search_path', f.signature);
        end if;
    end loop;

    -- Delete the rows of dropped roles. PostgreSQL does not know that these tables
    -- refer to roles.
    delete from tocsin.roles r where r.role not in (select x.oid from pg_roles x);
    delete from tocsin.queue_grants g where g.role not in (select x.oid from pg_roles x);
    perform tocsin._apply_privileges(former_roles, before => before);
end
$$;

-- Grants and revokes privileges on all objects or on one new table, as a part of
-- secure().
--
-- A new object begins with the default privileges. So other roles lose their privileges
-- on a new table, and on all objects if `before` is given. `before` has the access
-- lists from before an upgrade (sql/upgrade), by kind and name. Other roles keep or
-- regain the privileges that these lists contain.
create or replace function tocsin._apply_privileges(former_roles oid[] default '{}',
                                                    only_table regclass default null,
                                                    before jsonb default null)
returns void
language plpgsql
as $$
declare
    our_schema oid := (select c.relnamespace from pg_class c
                       where c.oid = 'tocsin.contract'::regclass);
    statement text;
begin
    for statement in
        with things (kind, name, owner, acl, privilege, roles) as (
            select 'schema', quote_ident(n.nspname), n.nspowner,
                coalesce(n.nspacl, acldefault('n', n.nspowner)), 'USAGE',
                   '{producer, consumer, admin}'::text[]
            from pg_namespace n where n.oid = our_schema and only_table is null
            union all  -- any client may read the version
            select 'table', c.oid::regclass::text, c.relowner,
                coalesce(c.relacl, acldefault('r', c.relowner)), 'SELECT',
                   case when c.relname in ('migrations', 'contract')
                       then '{producer, consumer, admin}'::text[] else '{admin}' end
            from pg_class c where c.relnamespace = our_schema and c.relkind in ('r', 'p', 'v')
              and (only_table is null or c.oid = only_table)
            union all
            select 'sequence', c.oid::regclass::text, c.relowner,
                coalesce(c.relacl, acldefault('s', c.relowner)), 'USAGE', '{}'
            from pg_class c where c.relnamespace = our_schema and c.relkind = 'S'
                and only_table is null
            union all
            select 'routine', p.oid::regprocedure::text, p.proowner,
                coalesce(p.proacl, acldefault('f', p.proowner)), 'EXECUTE', a.roles
            from pg_proc p left join tocsin._access() a on a.function = p.proname
            where p.pronamespace = our_schema and only_table is null
        ), kept (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, e.privilege_type, e.grantee, e.is_grantable
            from things t
            cross join aclexplode((before ->> concat_ws(' ', t.kind, t.name))::aclitem[]) e
            where e.grantee <> t.owner and e.grantee <> 0
                and e.grantee not in (select r.role from tocsin.roles r)
        ), wanted (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, t.privilege, r.role::oid, false from things t
                join tocsin.roles r on r.kind = any (t.roles) and r.role <> t.owner
            union all
            select * from kept
        ), found (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, e.privilege_type, e.grantee, e.is_grantable
            from things t cross join aclexplode(t.acl) e
            where e.grantee <> t.owner
              and (e.grantee = 0 or e.grantee = any (former_roles)
                   or e.grantee in (select r.role from tocsin.roles r)
                   or only_table is not null or before is not null)
              and (e.grantee = 0 or e.grantee in (select x.oid from pg_roles x))
        )
        select format('revoke %s on %s %s from %s cascade', x.privilege, x.kind, x.name,
                      case x.role when 0 then 'public' else x.role::regrole::text end)
        from (select * from found except select * from wanted) x
        union all
        select format('grant %s on %s %s to %s%s', x.privilege, x.kind, x.name, x.role::regrole,
                      case when x.grantable then ' with grant option' end)
        from (select * from wanted except select * from found) x
        order by 1 desc  -- revocations first
    loop
        execute statement;
    end loop;
end
$$;

-- Grants these roles their privileges. A null leaves a role out. A role that does not
-- exist is created, which requires CREATEROLE; an existing role is not changed. A role
-- that had access before and is not named now loses the privileges that Tocsin has
-- granted. A second call changes nothing except privileges that were changed by hand,
-- which it repairs.
create or replace function tocsin.install_roles(producer text, consumer text, admin text)
    returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    former_roles oid[] := (select array_agg(r.role) from tocsin.roles r);
    r record;
begin
    for r in select x.kind, x.name
        from (values ('producer', producer), ('consumer', consumer), ('admin', admin)) x (kind,
            name) loop
        if r.name is null then
            delete from tocsin.roles x where x.kind = r.kind;
            continue;
        elsif not exists (select from pg_roles x where x.rolname = r.name) then
            begin
                execute format('create role %I nologin', r.name);
            exception
                -- another session has created the role, perhaps in another database
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    perform tocsin._refuse_caller(format('create role "%s"', r.name),
                        format('Creating a role requires CREATEROLE. Have a database '
                               'administrator run: %s. Then install again.', (
                            select string_agg(format('create role %I nologin', n), '; ' order by o)
                            from unnest(array[producer, consumer, admin]) with ordinality w (n, o)
                            where n is not null
                                and not exists (select from pg_roles x where x.rolname = n))));
            end;
        end if;
        insert into tocsin.roles as x (kind, role) values (r.kind, tocsin._find_role(r.name))
        on conflict (kind) do update set role = excluded.role where x.role <> excluded.role;
    end loop;
    perform tocsin.secure(coalesce(former_roles, '{}'));
end
$$;
