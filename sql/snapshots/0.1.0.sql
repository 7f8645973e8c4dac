-- migrations aae72469d71ba84c82fc99bcbc4949a3cb77f38c45f3a2e8f81d3eb1420fd43a



SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;


CREATE SCHEMA tocsin;



CREATE TYPE tocsin.dead_letter_info AS (
	id bigint,
	queue text,
	queue_id integer,
	payload text,
	headers text,
	priority integer,
	key text,
	enqueued_at timestamp with time zone,
	dequeued_at timestamp with time zone,
	read_ct integer,
	max_deliveries integer,
	producer_worker_id bigint,
	consumer_worker_id bigint,
	history text,
	died_at timestamp with time zone,
	reason text,
	error text,
	traceback text
);



COMMENT ON TYPE tocsin.dead_letter_info IS 'A dead letter as dead_letters.sql shows it. JSON values are given as text.';



CREATE TYPE tocsin.message_info AS (
	id bigint,
	queue text,
	queue_id integer,
	payload text,
	headers text,
	priority integer,
	key text,
	enqueued_at timestamp with time zone,
	dequeued_at timestamp with time zone,
	read_ct integer,
	max_deliveries integer,
	producer_worker_id bigint,
	consumer_worker_id bigint,
	history text,
	state text,
	due timestamp with time zone,
	vt timestamp with time zone,
	expires_at timestamp with time zone,
	archived_at timestamp with time zone,
	died_at timestamp with time zone,
	reason text,
	last_error text
);



COMMENT ON TYPE tocsin.message_info IS 'A message as messages.sql shows it, from any of the tables. JSON values are given as text.';



CREATE TYPE tocsin.message_state AS ENUM (
    'held',
    'ready',
    'delayed',
    'leased'
);



CREATE FUNCTION tocsin._access() RETURNS TABLE(function name, roles text[])
    LANGUAGE sql IMMUTABLE
    AS $$
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



CREATE FUNCTION tocsin._acts_for(role name) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$ select role = "tocsin"._caller() or "tocsin"._is_admin() $$;



CREATE FUNCTION tocsin._add_delivery(history jsonb, delivery jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case
        when delivery is null then history
        when history is null then jsonb_build_array(delivery)
        when jsonb_array_length(history) < 20 then history || delivery
        else (history - 0) || delivery
    end
$$;



CREATE FUNCTION tocsin._add_order(options jsonb, ordered_by text) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case when ordered_by is null then options
        else coalesce(options, '{}') || jsonb_build_object('limits',
            coalesce(options -> 'limits', '[]')
            || jsonb_build_object('key', ordered_by, 'ordered', true)) end
$$;



CREATE FUNCTION tocsin._add_partition(span integer, starts_at timestamp with time zone) RETURNS text
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    AS $$
declare
    name text := format('archive_%sh_%s', span, to_char(starts_at, 'YYYYMMDDHH24'));
begin
    -- The partition is created on its own and then attached. Neither step waits for a
    -- reader or writer of the archive, and no reader or writer waits for it.
    execute format('create table "tocsin".%I (like "tocsin".archive including indexes)', name);
    execute format('alter table "tocsin".%I replica identity full', name);
    perform "tocsin"._apply_privileges(only_table => format('"tocsin".%I', name)::regclass);
    execute format('alter table "tocsin".archive attach partition "tocsin".%I '
                   'for values from (%s, %L) to (%s, %L)',
                   name, span, starts_at, span, starts_at + make_interval(hours => span));
    return null;
exception
    when lock_not_available or duplicate_table then return '';
    when others then return sqlerrm;
end
$$;



CREATE FUNCTION tocsin._add_partitions(OUT added integer, OUT problem text) RETURNS record
    LANGUAGE plpgsql
    AS $$
declare
    missing record;
    refusal text;
begin
    added := 0;
    for missing in
        select w.span, w.starts_at from "tocsin"._wanted_partitions() w
        except select p.span, p.starts_at from "tocsin"._archive_partitions() p
        order by 1, 2
    loop
        refusal := "tocsin"._add_partition(missing.span, missing.starts_at);
        added := added + (refusal is null)::integer;
        problem := coalesce(problem, nullif(refusal, ''));
    end loop;
end
$$;



CREATE FUNCTION tocsin._add_queue(queue text) RETURNS integer
    LANGUAGE sql
    AS $$
    with added as (
        insert into "tocsin".queues (name, created_at, channel)
            values (queue, "tocsin"._clock(), "tocsin".queue_channel(queue))
        on conflict (name) do nothing
        returning id, retention
    ), noted as (
        insert into "tocsin".archive_policies (queue_id, retention) select a.id, a.retention
            from added a
    )
    select a.id from added a
$$;



CREATE FUNCTION tocsin._admit(ids bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    admitted bigint[];
    queues integer[];
begin
    with free as (
        select m.id from "tocsin".messages m
        where m.id = any (ids) and m.state is not distinct from 'held'
            and coalesce(m.waits_for, 0) = 0
        order by m.id for update
    ), changed as (
        update "tocsin".messages m
        set state = (case when m.due > t then 'delayed' when m.options ? 'limits' then 'held'
                     else 'ready' end)::"tocsin".message_state,
            waits_for = null
        from free f
        where m.id = any (ids) and m.id = f.id
        returning m.id, m.queue_id
    )
    select array_agg(c.id order by c.id), array_agg(distinct c.queue_id order by c.queue_id)
    into admitted, queues
    from changed c;
    perform "tocsin"._line_up(m) from "tocsin".messages m
    where m.id = any (admitted) and m.state is not distinct from 'held';
    perform "tocsin"._ring(q) from unnest(queues) q;
    return coalesce(admitted, '{}');
end
$$;



CREATE FUNCTION tocsin._admit_children(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    update "tocsin".messages m
    set waits_for = null, payload = "tocsin"._fill_arguments(m.id, m.payload)
    where m.id = any (ids) and m.state is not distinct from 'held';
    perform "tocsin"._admit(ids);
end
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;


CREATE TABLE tocsin.slots (
    message_id bigint NOT NULL,
    limit_id bigint NOT NULL,
    key text NOT NULL,
    queue_id integer NOT NULL,
    line integer NOT NULL,
    stage integer NOT NULL,
    priority integer NOT NULL,
    due timestamp with time zone NOT NULL,
    slot integer,
    paid boolean DEFAULT false NOT NULL,
    waits boolean DEFAULT false NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');



COMMENT ON TABLE tocsin.slots IS 'The limits of each held, ready or leased message: the slot that it has, or its line.';



COMMENT ON COLUMN tocsin.slots.key IS 'The key; empty: the limit has no keys.';



COMMENT ON COLUMN tocsin.slots.line IS 'The line that the row waits in: that of its queue, or 0, that of all queues (ordered).';



COMMENT ON COLUMN tocsin.slots.stage IS 'In which order a message takes what it needs: 0 rates, 1 ordered limits, 2 limits with a key, 3 limits without.';



COMMENT ON COLUMN tocsin.slots.slot IS 'The slot that the message holds; null: none.';



COMMENT ON COLUMN tocsin.slots.paid IS 'Of a rate: the message has its due time.';



COMMENT ON COLUMN tocsin.slots.waits IS 'Whether the message waits in the line of this key.';



CREATE FUNCTION tocsin._advance(from_line tocsin.slots) RETURNS text
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    l "tocsin".limits;
    s "tocsin".slots;
    slot_limits bigint[] := '{}';
    slot_numbers integer[] := '{}';
begin
    for s in select x.* from "tocsin".slots x
        where x.message_id = from_line.message_id and x.slot is null and not x.paid
        order by x.stage, x.limit_id
    loop
        l := "tocsin"._limit_of(s);
        if s.stage >= 2 and "tocsin"._free_slots(l, s.key) > 0 then
            slot_limits := slot_limits || s.limit_id;
            slot_numbers := slot_numbers || "tocsin"._lowest_free(s.limit_id, s.key);
            continue;
        end if;
        update "tocsin".slots x set waits = x.limit_id = s.limit_id
        where x.message_id = s.message_id and x.waits is distinct from (x.limit_id = s.limit_id);
        -- the line may not be known yet (_is_known), or its slot may be free by now
        insert into "tocsin".limit_checks (queue_id, limit_id, key)
        values (s.queue_id, s.limit_id, s.key);
        if (s.stage, s.limit_id) >= (from_line.stage, from_line.limit_id) then
            return 'later';
        end if;
        -- the lines behind may have reserved a slot for this message
        perform "tocsin"._note_free(x.limit_id, x.key) from "tocsin".slots x
        where x.message_id = s.message_id and x.stage >= 2 and x.limit_id <> s.limit_id;
        return 'earlier';
    end loop;
    update "tocsin".slots x set slot = n.slot, waits = false
    from unnest(slot_limits, slot_numbers) n (limit_id, slot)
    where x.message_id = from_line.message_id and x.limit_id = n.limit_id;
    update "tocsin".messages m set state = 'ready' where m.id = from_line.message_id;
    return 'ready';
end
$$;



CREATE FUNCTION tocsin._announce(queue_id integer, ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    perform pg_advisory_xact_lock_shared("tocsin"._lock_key('unannounced', queue_id));
    if "tocsin"._shared_elsewhere("tocsin"._lock_key('awaited', queue_id)) then
        perform pg_notify("tocsin".process_channel(a.process_id), 'job ' || a.job_id)
        from "tocsin".awaited a
        where a.job_id = any (ids) and pg_notification_queue_usage() < 0.9;
    end if;
end
$$;



CREATE FUNCTION tocsin._apply_privileges(former_roles oid[] DEFAULT '{}'::oid[], only_table regclass DEFAULT NULL::regclass, before jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    our_schema oid := (select c.relnamespace from pg_class c
                       where c.oid = '"tocsin".contract'::regclass);
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
            from pg_proc p left join "tocsin"._access() a on a.function = p.proname
            where p.pronamespace = our_schema and only_table is null
        ), kept (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, e.privilege_type, e.grantee, e.is_grantable
            from things t
            cross join aclexplode((before ->> concat_ws(' ', t.kind, t.name))::aclitem[]) e
            where e.grantee <> t.owner and e.grantee <> 0
                and e.grantee not in (select r.role from "tocsin".roles r)
        ), wanted (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, t.privilege, r.role::oid, false from things t
                join "tocsin".roles r on r.kind = any (t.roles) and r.role <> t.owner
            union all
            select * from kept
        ), found (kind, name, privilege, role, grantable) as (
            select t.kind, t.name, e.privilege_type, e.grantee, e.is_grantable
            from things t cross join aclexplode(t.acl) e
            where e.grantee <> t.owner
              and (e.grantee = 0 or e.grantee = any (former_roles)
                   or e.grantee in (select r.role from "tocsin".roles r)
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



CREATE FUNCTION tocsin._archive(ids bigint[], leases bigint[], results jsonb DEFAULT NULL::jsonb, outcome text DEFAULT 'succeeded'::text, unless_cancelled boolean DEFAULT false) RETURNS boolean[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    queue integer;
    until timestamptz;
    hours integer;  -- null: not kept
    seen integer[] := '{}';
    batch bigint[];
    jobs bigint[];
    in_flows bigint;
    succeeded jsonb;  -- jobs of flows, with their results
    stopped jsonb;  -- jobs of flows that were cancelled
    settled bigint[] := '{}';
begin
    -- One queue after the other. Usually there is only one.
    loop
        select a.queue_id, k.until, "tocsin"._partition_span_for(a, k.until)
        into queue, until, hours
        from "tocsin".archive_policies a
        cross join lateral (select "tocsin"._keep_until(a.retention, t)) k (until)
        where a.queue_id = (select m.queue_id from "tocsin".messages m
                            where m.id = any (ids) and m.queue_id <> all (seen) limit 1);
        exit when not found;
        with finished as (
            delete from "tocsin".messages m
                using (select x.id, x.lease, x.n
                       from unnest(ids, leases) with ordinality as x (id, lease, n)
                       order by x.id) g
            where m.id = any (ids) and m.id = g.id and m.lease = g.lease and m.state is not distinct
                from 'leased' and m.queue_id = queue
                and not (unless_cancelled and m.cancel_reason is not null)
            returning m.id, m.queue_id, m.priority, m.read_ct, m.enqueued_at, m.dequeued_at,
                m.producer_worker_id, m.consumer_worker_id,
                      m.key, m.payload, m.headers, coalesce(m.cancel_reason, m.last_error)
                          as last_error,
                      case when m.cancel_reason is null then m.history
                          else "tocsin"._add_delivery(m.history,
                              "tocsin"._describe_delivery(m, t, 'cancelled', null)) end as history,
                      m.task, m.options,
                      case when m.task is null then null when m.cancel_reason is null then outcome
                          else 'cancelled' end as outcome,
                      m.flow_id, g.n
        ), stored as (
            insert into "tocsin".archive (id, queue_id, priority, read_ct, span, enqueued_at,
                                        dequeued_at, archived_at, keep_until,
                                        producer_worker_id, consumer_worker_id, key, payload,
                                        headers, last_error, history, task, options, outcome,
                                        result)
            select f.id, f.queue_id, f.priority, f.read_ct,
                   case when f.flow_id is null then hours else 0 end,
                   f.enqueued_at, f.dequeued_at, t,
                   case when f.flow_id is null then until else '9999-01-01+00' end,
                   f.producer_worker_id, f.consumer_worker_id, f.key, f.payload, f.headers,
                   f.last_error, f.history, f.task, f.options, f.outcome,
                   case when f.outcome = 'succeeded' then results -> (f.n - 1)::integer end
            from finished f where hours is not null or f.flow_id is not null
        )
        select array_agg(f.id), array_agg(f.id) filter (where f.task is not null),
               count(*) filter (where f.flow_id is not null),
               jsonb_object_agg(f.id, results -> (f.n - 1)::integer)
                   filter (where f.flow_id is not null and f.outcome = 'succeeded'),
               jsonb_object_agg(f.id, null)
                   filter (where f.flow_id is not null and f.outcome <> 'succeeded')
        into batch, jobs, in_flows, succeeded, stopped
        from finished f;
        if jobs is not null then
            perform "tocsin"._announce(queue, jobs);
        end if;
        if in_flows > 0 then
            -- The results of a flow are kept until the flow has ended: see flows.sql.
            insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
                values (queue, 0, '9999-01-01+00', t, in_flows);
            perform "tocsin"._end_parents(succeeded, succeeded => true) where succeeded is not null;
            perform "tocsin"._end_parents(stopped, succeeded => false) where stopped is not null;
        end if;
        if cardinality(batch) > in_flows then
            insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
                values (queue, hours, until, t, cardinality(batch) - in_flows);
        end if;
        settled := settled || batch;
        exit when cardinality(settled) = cardinality(ids);
        seen := seen || queue;
    end loop;
    return "tocsin"._outcomes(ids, settled);
end
$$;



CREATE FUNCTION tocsin._archive_partitions() RETURNS TABLE(name text, span integer, starts_at timestamp with time zone, ends_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $_$
    select p.relname, p.span, p.starts_at, p.starts_at + make_interval(hours => p.span)
    from (select c.relname::text, n[1]::integer as span,
                 make_timestamptz(n[2]::integer, n[3]::integer, n[4]::integer, n[5]::integer, 0, 0,
                                  'UTC') as starts_at
          from pg_catalog.pg_inherits i
          join pg_catalog.pg_class c on c.oid = i.inhrelid
          cross join lateral regexp_match(
              c.relname, '^archive_([0-9]+)h_([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})$') n
          where i.inhparent = '"tocsin".archive'::regclass and n is not null) p
$_$;



CREATE FUNCTION tocsin._archive_slot(span integer, keep_until timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case when span > 0
        then date_bin(make_interval(hours => span), keep_until, timestamptz '1970-01-01+00')
            else '1970-01-01+00' end
$$;



CREATE FUNCTION tocsin._archive_span(retention interval) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case when retention < '2 days' then 1
                when retention < '60 days' then 24
                when retention < '5 years' then 30 * 24
                when retention < '1000 years' then 360 * 24
                else 0 end
$$;



CREATE FUNCTION tocsin._archived_in_all(first_id integer, last_id integer) RETURNS TABLE(queue_id integer, n bigint)
    LANGUAGE sql STABLE
    AS $$
    select x.queue_id, sum(x.n)::bigint
    from (select c.queue_id, c.n from "tocsin".archived_counts c
          where c.queue_id between first_id and last_id
          union all
          select y.queue_id, y.n from "tocsin".archive_count_deltas y
              where y.queue_id between first_id and last_id and y.span is not null) x
    join "tocsin".queues q on q.id = x.queue_id
    group by x.queue_id
$$;



CREATE TABLE tocsin.queues (
    id integer NOT NULL,
    name text NOT NULL,
    vt interval DEFAULT '00:00:30'::interval NOT NULL,
    max_deliveries integer DEFAULT 5 NOT NULL,
    retry_base interval DEFAULT '00:00:01'::interval NOT NULL,
    retry_factor double precision DEFAULT 2 NOT NULL,
    retry_max interval DEFAULT '01:00:00'::interval NOT NULL,
    retry_jitter double precision DEFAULT 0.2 NOT NULL,
    max_payload integer DEFAULT 1048576 NOT NULL,
    max_string integer DEFAULT 0 NOT NULL,
    max_depth integer DEFAULT 0 NOT NULL,
    required_keys text[] DEFAULT '{}'::text[] NOT NULL,
    forbidden_keys text[] DEFAULT '{}'::text[] NOT NULL,
    ruled boolean GENERATED ALWAYS AS (((max_string > 0) OR (max_depth > 0) OR (required_keys <> '{}'::text[]) OR (forbidden_keys <> '{}'::text[]))) STORED NOT NULL,
    retention interval DEFAULT '30 days'::interval NOT NULL,
    dead_letter_retention interval DEFAULT '1000 years'::interval NOT NULL,
    notify text DEFAULT 'on_demand'::text NOT NULL,
    paused_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    channel text NOT NULL,
    CONSTRAINT queues_dead_letter_retention_check CHECK ((dead_letter_retention > '00:00:00'::interval)),
    CONSTRAINT queues_max_deliveries_check CHECK ((max_deliveries > 0)),
    CONSTRAINT queues_max_depth_check CHECK ((max_depth >= 0)),
    CONSTRAINT queues_max_payload_check CHECK ((max_payload > 0)),
    CONSTRAINT queues_max_string_check CHECK ((max_string >= 0)),
    CONSTRAINT queues_name_check CHECK (((name <> ''::text) AND (octet_length(name) <= 255))),
    CONSTRAINT queues_notify_check CHECK ((notify = ANY (ARRAY['on_demand'::text, 'always'::text]))),
    CONSTRAINT queues_retention_check CHECK ((retention >= '00:00:00'::interval)),
    CONSTRAINT queues_retry_base_check CHECK (((retry_base >= '00:00:00'::interval) AND (retry_base <= '1000 years'::interval))),
    CONSTRAINT queues_retry_factor_check CHECK ((retry_factor >= (1)::double precision)),
    CONSTRAINT queues_retry_jitter_check CHECK (((retry_jitter >= (0)::double precision) AND (retry_jitter <= (1)::double precision))),
    CONSTRAINT queues_retry_max_check CHECK (((retry_max >= '00:00:00'::interval) AND (retry_max <= '1000 years'::interval))),
    CONSTRAINT queues_vt_check CHECK (((vt > '00:00:00'::interval) AND (vt <= '1000 years'::interval)))
);



COMMENT ON COLUMN tocsin.queues.vt IS 'Visibility timeout: how long a lease lasts unless it is extended.';



COMMENT ON COLUMN tocsin.queues.max_deliveries IS 'The number of deliveries after which a failed message becomes a dead letter.';



COMMENT ON COLUMN tocsin.queues.retry_base IS 'Delay after the first failure. After the n-th failure the delay is least(retry_max, retry_base * retry_factor^(n-1)), plus or minus a random fraction of up to retry_jitter.';



COMMENT ON COLUMN tocsin.queues.max_payload IS 'Maximum size of a payload, in bytes of its JSON text. The same maximum applies to headers.';



COMMENT ON COLUMN tocsin.queues.max_string IS 'Maximum number of characters in a string or key of a payload; 0: no limit.';



COMMENT ON COLUMN tocsin.queues.max_depth IS 'Maximum nesting depth of arrays and objects in a payload. A larger value than 256 counts as 256; 0: no limit, or 256 if keys or strings have rules.';



COMMENT ON COLUMN tocsin.queues.required_keys IS 'Keys that each payload must have, as an object.';



COMMENT ON COLUMN tocsin.queues.forbidden_keys IS 'Keys that no object in a payload may have.';



COMMENT ON COLUMN tocsin.queues.ruled IS 'Whether the queue has any rule for payloads; see payload_rules.sql.';



COMMENT ON COLUMN tocsin.queues.retention IS 'How long archived messages are kept; 0: not at all. A thousand years mean forever.';



COMMENT ON COLUMN tocsin.queues.dead_letter_retention IS 'How long dead letters are kept. A thousand years mean forever.';



COMMENT ON COLUMN tocsin.queues.notify IS 'When an insert notifies the channel: on_demand, while a consumer of Tocsin waits; always, for programs that LISTEN themselves. See ring.sql.';



COMMENT ON COLUMN tocsin.queues.channel IS 'Notification channel of the queue, for LISTEN.';



CREATE FUNCTION tocsin._backoff(queue tocsin.queues, deliveries integer) RETURNS interval
    LANGUAGE sql
    AS $$
    select make_interval(secs =>
        least(extract(epoch from queue.retry_max)::float8,
              extract(epoch from queue.retry_base)::float8
              -- the cap of the exponent keeps the power in the range of float8
              * power(queue.retry_factor,
                      least(greatest(deliveries - 1, 0),
                            300 / greatest(log(queue.retry_factor), 1e-9))))
        * (1 + queue.retry_jitter * (2 * random() - 1)))
$$;



CREATE FUNCTION tocsin._beyond(counted bigint, cap integer, relation text, queue_id integer, state text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE sql
    AS $$
    select case when counted <= cap then counted
                else greatest(counted,
                              "tocsin"._estimate(format('select from %s x where x.queue_id = %s',
                                                      relation, queue_id)
                                                       || case when state is not null
                                                           then format(' and x.state = %L', state)
                                                               else '' end)) end
$$;



CREATE FUNCTION tocsin._caller() RETURNS name
    LANGUAGE sql STABLE
    AS $$ select case current_setting('role') when 'none' then session_user
    else current_setting('role')::name end $$;



CREATE FUNCTION tocsin._cancel_held(ids bigint[], ended bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    cancelled bigint[];
    leases bigint[];
begin
    with changed as (
        update "tocsin".messages m
        set state = 'leased', lease = coalesce(m.lease, 0) + 1,
            last_error = (select format('cancelled: job %s before it has not succeeded',
                                        min(e.parent))
                          from "tocsin".edges e where e.child = m.id and e.parent = any (ended))
        where m.id = any (ids) and m.state is not distinct from 'held'
        returning m.id, m.lease
    )
    select array_agg(c.id order by c.id), array_agg(c.lease order by c.id) into cancelled, leases
    from changed c;
    perform "tocsin"._archive(cancelled, leases, outcome => 'cancelled') where cancelled is not null;
end
$$;



CREATE FUNCTION tocsin._change_queue(queue_id integer, vt interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, retry_base interval DEFAULT NULL::interval, retry_factor double precision DEFAULT NULL::double precision, retry_max interval DEFAULT NULL::interval, retry_jitter double precision DEFAULT NULL::double precision, max_payload integer DEFAULT NULL::integer, max_string integer DEFAULT NULL::integer, max_depth integer DEFAULT NULL::integer, required_keys text[] DEFAULT NULL::text[], forbidden_keys text[] DEFAULT NULL::text[], retention interval DEFAULT NULL::interval, dead_letter_retention interval DEFAULT NULL::interval, notify text DEFAULT NULL::text) RETURNS tocsin.queues
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    changed "tocsin".queues;
begin
    update "tocsin".queues q set vt = coalesce(_change_queue.vt, q.vt), max_deliveries = coalesce(_change_queue.max_deliveries, q.max_deliveries), retry_base = coalesce(_change_queue.retry_base, q.retry_base), retry_factor = coalesce(_change_queue.retry_factor, q.retry_factor), retry_max = coalesce(_change_queue.retry_max, q.retry_max), retry_jitter = coalesce(_change_queue.retry_jitter, q.retry_jitter), max_payload = coalesce(_change_queue.max_payload, q.max_payload), max_string = coalesce(_change_queue.max_string, q.max_string), max_depth = coalesce(_change_queue.max_depth, q.max_depth), required_keys = coalesce(_change_queue.required_keys, q.required_keys), forbidden_keys = coalesce(_change_queue.forbidden_keys, q.forbidden_keys), retention = coalesce(_change_queue.retention, q.retention), dead_letter_retention = coalesce(_change_queue.dead_letter_retention, q.dead_letter_retention), notify = coalesce(_change_queue.notify, q.notify) where q.id = queue_id returning q.* into changed;
    update "tocsin".archive_policies a set retention = changed.retention
        where a.queue_id = changed.id and a.retention <> changed.retention;
    return changed;
end
$$;



CREATE FUNCTION tocsin._channel(path text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case when octet_length(c) <= 63 then c
        else 'tocsin_' || left(encode(sha256(convert_to(c, 'UTF8')), 'hex'), 32) end
    from (select (parse_ident('"tocsin".channel'))[1] || path) as full_name (c)
$$;



CREATE TABLE tocsin.workers (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    grace interval,
    status_before_death text,
    ended text,
    registration bigint NOT NULL,
    role name DEFAULT CURRENT_USER NOT NULL,
    process_id bigint,
    hostname text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    heartbeat_at timestamp with time zone NOT NULL,
    shutdown_at timestamp with time zone,
    tasks text[],
    CONSTRAINT workers_ended_check CHECK ((ended = ANY (ARRAY['left'::text, 'stopped'::text, 'shut_down'::text, 'died'::text]))),
    CONSTRAINT workers_kind_check CHECK ((kind = ANY (ARRAY['producer'::text, 'consumer'::text]))),
    CONSTRAINT workers_name_check CHECK ((name <> ''::text)),
    CONSTRAINT workers_status_check CHECK ((status = ANY (ARRAY['ready'::text, 'polling'::text, 'interrupted'::text, 'suspended'::text, 'stopped'::text])))
);



COMMENT ON COLUMN tocsin.workers.grace IS 'How long the handlers of an interrupted worker may still run; null: until they end.';



COMMENT ON COLUMN tocsin.workers.status_before_death IS 'Status of the worker when its process was declared dead.';



COMMENT ON COLUMN tocsin.workers.ended IS 'How a stopped worker ended: its own process left, stop or shutdown was called, or its process died.';



COMMENT ON COLUMN tocsin.workers.registration IS 'Token of the current registration; earlier registrations of the name cannot act for it.';



COMMENT ON COLUMN tocsin.workers.role IS 'The role that registered the worker and may act for it.';



COMMENT ON COLUMN tocsin.workers.tasks IS 'The tasks whose jobs a consumer runs; null: it handles every message of its queue.';



CREATE FUNCTION tocsin._check_active(worker_id bigint, doing text) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
declare
    w "tocsin".workers := "tocsin"._find_own_worker(worker_id);
begin
    if w.status not in ('ready', 'polling') then
        perform "tocsin"._refuse_transition(w, 'polling', 'not_active',
                                          'only a ready or polling worker may ' || doing);
    end if;
    return w;
end
$$;



CREATE FUNCTION tocsin._check_any_grant() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if not ("tocsin"._is_admin()
            or exists (select from "tocsin".queue_grants g
                       where pg_has_role("tocsin"._caller(), g.role, 'usage'))) then
        perform "tocsin"._refuse_caller('submit jobs', 'Grant a queue to the role with grant_queue.');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_arguments(arguments jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if coalesce(jsonb_typeof(arguments), '') not in ('array', 'object') then
        perform "tocsin"._raise_error('TC022',
            'arguments must be a JSON array or object, with the arguments by position or name',
            '{"argument": "arguments"}');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_change(queue_id integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if not "tocsin"._may_enqueue(queue_id, null) then
        perform "tocsin"._refuse_caller(format('change messages of queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.')
        from "tocsin".queues q where q.id = _check_change.queue_id;
    end if;
end
$$;



CREATE FUNCTION tocsin._check_claim(worker_id bigint, registration bigint) RETURNS tocsin.queues
    LANGUAGE plpgsql
    AS $$
declare
    q "tocsin".queues;
begin
    select x.* into q
    from "tocsin".workers w join "tocsin".queues x on x.id = w.queue_id
    where w.id = worker_id and w.registration = _check_claim.registration
        and w.status in ('ready', 'polling') and "tocsin"._acts_for(w.role);
    if not found then
        perform "tocsin"._refuse_ended("tocsin"._check_active(worker_id, 'claim'));
    end if;
    return q;
end
$$;



CREATE FUNCTION tocsin._check_contents(q tocsin.queues, payloads jsonb, first_index integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    fault jsonb;
    index integer;
    path jsonb;
begin
    fault := "tocsin"._find_violation(payloads, q);
    if fault is not null then
        index := first_index + (fault -> 'path' ->> 0)::integer;
        path := (fault -> 'path') - 0;
        perform "tocsin"._raise_error('TC009',
            format('%s, at %s: %s', concat_ws(' ', 'payload', index), "tocsin"._describe_path(path),
                   fault ->> 'reason'),
            jsonb_build_object('path', path, 'reason', fault ->> 'reason', 'index', index),
            format('Queue "%s" has rules for payloads: max_string, max_depth, required_keys, '
                   'forbidden_keys.', q.name));
    end if;
end
$$;



CREATE FUNCTION tocsin._check_due(delay interval, at timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if delay not between '0 s' and '1000 years' then
        perform "tocsin"._raise_error('TC022',
                                    'delay must not be negative, nor longer than a thousand years',
                                    '{"argument": "delay"}');
    elsif delay is not null and at is not null then
        perform "tocsin"._raise_error('TC022', 'give delay or at, not both', '{"argument": "at"}');
    -- a client could not decode such a time, and could not claim messages behind it
    elsif at < '0002-01-01 UTC' or at > '9999-12-30 UTC' then
        perform "tocsin"._raise_error('TC022', 'at must be within the years 2 to 9999',
                                    '{"argument": "at"}');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_enqueue(q tocsin.queues, worker_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if "tocsin"._may_enqueue(q.id, worker_id) then
        return;
    elsif not "tocsin"._may_enqueue(q.id, null) then
        perform "tocsin"._refuse_caller(format('enqueue to queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.');
    end if;
    perform "tocsin"._refuse_caller(format('enqueue as worker %s', worker_id),
                                  'This role has not registered that worker.');
end
$$;



CREATE FUNCTION tocsin._check_enqueue_options(queue text, delay interval, at timestamp with time zone, expires_in interval, max_deliveries integer, worker_id bigint) RETURNS tocsin.queues
    LANGUAGE plpgsql
    AS $$
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
begin
    if not "tocsin"._is_owner() then
        perform "tocsin"._check_enqueue(q, worker_id);
    end if;
    if worker_id is not null then
        perform "tocsin"._check_active(worker_id, 'enqueue');
    end if;
    perform "tocsin"._check_due(delay, at);
    if expires_in <= '0 s' or expires_in > '1000 years' then
        perform "tocsin"._raise_error('TC022',
                                    'expires_in must be positive, and at most a thousand years',
                                    '{"argument": "expires_in"}');
    elsif max_deliveries <= 0 then
        perform "tocsin"._raise_error('TC022', 'max_deliveries must be positive',
                                    '{"argument": "max_deliveries"}');
    end if;
    return q;
end
$$;



CREATE FUNCTION tocsin._check_headers(q tocsin.queues, headers jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if octet_length(headers::text) > q.max_payload then
        perform "tocsin"._refuse_large(q, 'headers of %s bytes exceed', octet_length(headers::text),
                                     null);
    end if;
end
$$;



CREATE FUNCTION tocsin._check_job(task text, options jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $_$
declare
    timeout jsonb := options -> 'timeout';
begin
    if task = '' or octet_length(task) > 1024 then
        perform "tocsin"._raise_error('TC022',
                                    'the name of a task must have between 1 and 1,024 bytes',
                                    '{"argument": "task"}');
    elsif task = '$tick' then
        perform "tocsin"._raise_error('TC022', 'only schedules enqueue the task "$tick"',
                                    '{"argument": "task"}');
    elsif jsonb_typeof(options) <> 'object' or options - '{timeout,limits}'::text[] <> '{}'
        or jsonb_typeof(timeout) <> 'number' then
        perform "tocsin"._raise_error('TC022',
                                    'options must be an object with a timeout in seconds, '
                                    'and limits',
                                    '{"argument": "options"}');
    elsif timeout::numeric not between 0.000001 and 31536000000 then
        perform "tocsin"._raise_error('TC022',
                                    'timeout must be positive, and at most a thousand years',
                                    '{"argument": "timeout"}');
    elsif options ? 'limits' then
        perform "tocsin"._check_limits(options -> 'limits');
    end if;
end
$_$;



CREATE FUNCTION tocsin._check_key_holder(message_id bigint, key text, task text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    holder text;
begin
    select m.task into holder from "tocsin".messages m where m.id = message_id;
    if found and holder is distinct from _check_key_holder.task then
        perform "tocsin"._raise_error('TC040',
            format('%s %s, which is not finished, has the key "%s"',
                   case when holder is null then 'message'
                       else format('a job of task "%s",', holder) end, message_id,
                   _check_key_holder.key),
            jsonb_build_object('key', _check_key_holder.key, 'message_id', message_id,
                               'task', holder),
            'Choose keys that begin with the name of the task.');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_limit(name text) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
begin
    if not exists (select from "tocsin".limits x where x.name = _check_limit.name) then
        perform "tocsin"._raise_error('TC047', format('there is no limit "%s"', _check_limit.name),
                                    jsonb_build_object('limit', _check_limit.name),
                                    'A limit exists from the first worker whose tasks name it, '
                                    'or the first claim of a message that names it.');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_limits(limits jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $_$
#variable_conflict use_column
declare
    fault text;
begin
    if jsonb_typeof(limits) <> 'array' then
        fault := 'limits must be an array';
    else
        select case
            when jsonb_typeof(x.l) <> 'object' then 'a limit must be an object'
            when x.l - '{name,n,per,burst,key,ordered}'::text[] <> '{}'
                then 'a limit must be an object with name, n, per, burst, key and ordered'
            when x.l ->> 'name' = '' or octet_length(x.l ->> 'name') > 255
                then 'the name of a limit must have between 1 and 255 bytes'
            when x.l ->> 'name' is null and x.l -> 'ordered' is distinct from 'true'
                then 'a limit must have a name'
            when octet_length(x.l ->> 'key') > 1024 then 'a key must have at most 1,024 bytes'
            when jsonb_typeof(x.l -> 'n') <> 'number' or jsonb_typeof(x.l -> 'burst') <> 'number'
                or x.l ->> 'n' !~ '^[0-9]{1,7}$' or x.l ->> 'burst' !~ '^[0-9]{1,7}$'
                or (x.l ->> 'n')::numeric not between 1 and 1000000
                or (x.l ->> 'burst')::numeric not between 1 and 1000000
                then 'the n and the burst of a limit must be integers from 1 to a million'
            when jsonb_typeof(x.l -> 'per') <> 'number'
                or (x.l ->> 'per')::numeric not between 0.000001 and 31536000000
                then 'the interval of a rate must be positive, and at most a thousand years'
            when jsonb_typeof(x.l -> 'ordered') <> 'boolean'
                then 'ordered must be true or false'
            when (x.l ->> 'ordered')::boolean
                and (x.l ->> 'n' <> '1' or x.l ? 'per' or x.l ? 'burst')
                then 'an ordered limit has n = 1, and no interval'
            when count(*) over (partition by x.l ->> 'name') > 1
                then format('limit "%s" is named twice', x.l ->> 'name')
            else "tocsin"._find_other_kind("tocsin"._describe_limit(x.l, null))
            end into fault
        from jsonb_array_elements(limits) x (l)
        order by 1 limit 1;
    end if;
    if fault is not null then
        perform "tocsin"._raise_error('TC022', fault, '{"argument": "limits"}');
    end if;
end
$_$;



CREATE FUNCTION tocsin._check_own(w tocsin.workers) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
begin
    if not "tocsin"._acts_for(w.role) then
        perform "tocsin"._refuse_caller(format('act for worker %s', w.id),
                                      'Only its own role and administrators may act for it.');
    end if;
    return w;
end
$$;



CREATE FUNCTION tocsin._check_payloads(q tocsin.queues, payloads jsonb, first_index integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    large record;
begin
    -- The text of the whole array is longer than that of any of its elements.
    if octet_length(payloads::text) > q.max_payload then
        select first_index + p.n - 1 as index, octet_length(p.payload::text) as actual into large
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        where octet_length(p.payload::text) > q.max_payload
        order by p.n limit 1;
        if found then
            perform "tocsin"._refuse_large(
                q, concat_ws(' ', 'payload', large.index, 'of %s bytes exceeds'), large.actual,
                large.index);
        end if;
    end if;
    if q.ruled then
        perform "tocsin"._check_contents(q, payloads, first_index);
    end if;
end
$$;



CREATE FUNCTION tocsin._check_register(q tocsin.queues, kind text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if kind = 'producer' then
        perform "tocsin"._check_enqueue(q, null);
    elsif not "tocsin"._may_consume() then
        perform "tocsin"._refuse_caller('consume',
                                      'Make the role a member of the role for consumers.');
    end if;
end
$$;



CREATE FUNCTION tocsin._check_requeue(queue_id integer, job_id bigint, parent bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._check_change(queue_id);
    if parent is not null then
        perform "tocsin"._raise_error('TC022',
            format('job %s waits for job %s of its flow, which has not succeeded', job_id, parent),
            '{"argument": "job_id"}', 'Requeue the flow.');
    end if;
end
$$;



CREATE TABLE tocsin.schedules (
    id bigint NOT NULL,
    name text NOT NULL,
    generation bigint DEFAULT 1 NOT NULL,
    queue_id integer NOT NULL,
    task text NOT NULL,
    arguments jsonb NOT NULL,
    headers jsonb,
    priority integer,
    max_attempts integer,
    timeout double precision,
    expires_in interval,
    cron text,
    every interval,
    start timestamp with time zone,
    zone text NOT NULL,
    missed integer NOT NULL,
    overlap text NOT NULL,
    anchor timestamp with time zone NOT NULL,
    handled_to timestamp with time zone NOT NULL,
    next_tick timestamp with time zone,
    last_tick timestamp with time zone,
    last_job_id bigint,
    paused_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT schedules_check CHECK (((cron IS NULL) <> (every IS NULL))),
    CONSTRAINT schedules_every_check CHECK ((every > '00:00:00'::interval)),
    CONSTRAINT schedules_expires_in_check CHECK ((expires_in > '00:00:00'::interval)),
    CONSTRAINT schedules_max_attempts_check CHECK ((max_attempts > 0)),
    CONSTRAINT schedules_missed_check CHECK ((missed >= 0)),
    CONSTRAINT schedules_name_check CHECK (((name <> ''::text) AND (octet_length(name) <= 255))),
    CONSTRAINT schedules_overlap_check CHECK ((overlap = ANY (ARRAY['allow'::text, 'skip'::text]))),
    CONSTRAINT schedules_timeout_check CHECK ((timeout > (0)::double precision))
)
WITH (fillfactor='70');



COMMENT ON TABLE tocsin.schedules IS 'The schedules: at each tick a job of the task is submitted; see sql/functions/jobs/schedules.sql.';



COMMENT ON COLUMN tocsin.schedules.generation IS 'Grows with each change of the schedule. A tick message of another generation has no effect.';



COMMENT ON COLUMN tocsin.schedules.start IS 'The first tick of an interval as the caller has given it; null: not given.';



COMMENT ON COLUMN tocsin.schedules.missed IS 'How many missed ticks are made up for, the latest ones; 0: none.';



COMMENT ON COLUMN tocsin.schedules.overlap IS 'Whether a tick submits a job while the job of an earlier tick is unfinished.';



COMMENT ON COLUMN tocsin.schedules.anchor IS 'The ticks of an interval are the anchor and each time that is a multiple of it later.';



COMMENT ON COLUMN tocsin.schedules.handled_to IS 'Ticks up to this time, inclusive, have been handled or do not count.';



COMMENT ON COLUMN tocsin.schedules.next_tick IS 'When its tick message is due; null: the schedule is paused, or a worker has yet to compute it.';



COMMENT ON COLUMN tocsin.schedules.last_tick IS 'The last tick that has submitted a job.';



COMMENT ON COLUMN tocsin.schedules.last_job_id IS 'The last job that was submitted.';



CREATE FUNCTION tocsin._check_schedule(s tocsin.schedules) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    argument text := case
        when coalesce(s.name, '') = '' or octet_length(s.name) > 255 then 'name'
        when (s.cron is null) = (s.every is null) then 'every'
        when s.every not between '1 ms' and '1000 years' then 'every'
        when s.cron not like '@%' and cardinality(regexp_split_to_array(btrim(s.cron), '[[:space:]]+')) <> 5
            then 'cron'
        when s.start is not null and s.every is null then 'start'
        when s.missed is null or s.missed < 0 then 'missed'
        when s.overlap is null or s.overlap not in ('allow', 'skip') then 'overlap'
        when s.max_attempts <= 0 then 'max_attempts'
        when s.timeout not between 0.000001 and 31536000000 then 'timeout'
        when s.expires_in not between '1 us' and '1000 years' then 'expires_in'
        when coalesce(jsonb_typeof(s.arguments), '') not in ('array', 'object') then 'arguments'
        when s.zone is null then 'zone' end;
    problem text := case argument
        when 'name' then 'the name of a schedule must have between 1 and 255 bytes'
        when 'every' then 'give cron or every, not both; every is at least a millisecond'
        when 'cron' then 'cron must have five fields: minute, hour, day, month, weekday'
        when 'start' then 'start is the first tick of every'
        when 'missed' then 'missed is the number of missed ticks to make up for'
        when 'overlap' then 'overlap must be allow or skip'
        when 'arguments' then
            'arguments must be a JSON array or object, with the arguments by position or name'
        else argument || ' must be positive, and at most a thousand years' end;
begin
    if argument is null then
        begin
            perform s.anchor at time zone s.zone;
            return;
        exception when invalid_parameter_value then
            argument := 'zone';
            problem := format('there is no time zone "%s"', s.zone);
        end;
    end if;
    perform "tocsin"._raise_error('TC022', problem, jsonb_build_object('argument', argument));
end
$$;



CREATE FUNCTION tocsin._check_time(at timestamp with time zone, argument text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    if at not between '0002-01-01 UTC' and '9999-12-30 UTC' then
        perform "tocsin"._raise_error('TC022',
                                    format('%s must be within the years 2 to 9999', argument),
                                    jsonb_build_object('argument', argument));
    end if;
end
$$;



CREATE FUNCTION tocsin._clock() RETURNS timestamp with time zone
    LANGUAGE sql PARALLEL SAFE
    AS $$ select pg_catalog.clock_timestamp() $$;



CREATE FUNCTION tocsin._close_edges(parents bigint[], results jsonb, rule text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    children bigint[];
    closed integer[];
    free bigint[];
begin
    with changed as (
        update "tocsin".edges e
        set done = true,
            value = case when e.argument <> '{}' then results -> e.parent::text end
        where e.parent = any (parents) and not e.done
            and (rule is null or e.on_failure = rule)
        returning e.child
    ), counted as (
        select c.child, count(*)::integer as n from changed c group by c.child
    )
    select array_agg(c.child order by c.child), array_agg(c.n order by c.child)
    into children, closed
    from counted c;
    if children is null then
        return;
    end if;
    with locked as (
        select m.id, g.n
        from unnest(children, closed) g (child, n)
        join "tocsin".messages m on m.id = any (children) and m.id = g.child
            and m.state is not distinct from 'held'
        order by m.id for update of m
    ), lowered as (
        update "tocsin".messages m set waits_for = m.waits_for - l.n
        from locked l
        where m.id = any (children) and m.id = l.id
        returning m.id, m.waits_for
    )
    select array_agg(l.id) into free from lowered l where l.waits_for <= 0;
    perform "tocsin"._admit_children(free) where free is not null;
end
$$;



CREATE FUNCTION tocsin._close_queue(q tocsin.queues, deadline timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    SET lock_timeout TO '250ms'
    AS $$
begin
    perform pg_advisory_xact_lock_shared("tocsin"._lock_key('waiting', q.id));
    while "tocsin"._shared_elsewhere("tocsin"._lock_key('unrung', q.id)) loop
        if "tocsin"._clock() > deadline then
            raise lock_not_available;
        end if;
        -- Poll instead of waiting for the lock. A waiting session would make a test of
        -- the lock say that no session shares it.
        perform pg_sleep(0.01);
    end loop;
    perform pg_advisory_xact_lock("tocsin"._lock_key('rung', q.id));
end
$$;



CREATE FUNCTION tocsin._correct_future_times() RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    -- leaves out a row that is being written at this moment
    beyond timestamptz := t + interval '1 s';
    found_some boolean := false;
begin
    update "tocsin".workers w
    set heartbeat_at = least(w.heartbeat_at, t), shutdown_at = least(w.shutdown_at, t),
        started_at = least(w.started_at, t)
    from (select x.id from "tocsin".workers x where x.heartbeat_at > beyond or x.shutdown_at > beyond
          for update skip locked) ahead
    where w.id = ahead.id;
    found_some := found;
    if exists (select from "tocsin".processes p where p.heartbeat_at > beyond) then
        perform "tocsin"._correct_heartbeats(t);
        found_some := true;
    end if;
    update "tocsin".maintenance m set clock_was_ahead = false,
        due_at = least(m.due_at, t + interval '1 minute')
    where m.clock_was_ahead or found_some or m.due_at > t + interval '2 minutes';
    if not found then
        return;
    end if;
    update "tocsin".messages m
    set enqueued_at = least(m.enqueued_at, t),
        dequeued_at = least(m.dequeued_at, t),
        due = case when m.state not in ('delayed', 'held') then least(m.due, t)
                   when m.due > t and ahead.since > t then "tocsin"._later(m.due, t - ahead.since)
                   else m.due end,  -- a due time in the past is the place in the queue
        vt = case when m.state = 'ready' then least(m.vt, t)
                  when m.state = 'leased' and m.dequeued_at > t
                      then "tocsin"._later(m.vt, t - m.dequeued_at)
                  when m.state in ('delayed', 'held') and ahead.since > t
                      then "tocsin"._later(m.vt, t - ahead.since)
                  else m.vt end,
        expires_at = case when m.enqueued_at > t then "tocsin"._later(m.expires_at, t - m.enqueued_at)
            else m.expires_at end,
        history = "tocsin"._correct_history(m.history, t)
    from (select x.id, greatest(x.enqueued_at, x.dequeued_at, l.ended_at) as since
          from "tocsin".messages x
          cross join lateral (select (x.history -> -1 ->> 'ended_at')::timestamptz) l (ended_at)
          where x.enqueued_at > beyond or x.dequeued_at > beyond or l.ended_at > beyond
              or x.state = 'ready' and x.due > beyond
          order by x.id for update of x skip locked) ahead
    where m.id = ahead.id;
    perform "tocsin"._correct_ticks(t);
    update "tocsin".dead_letters d set died_at = t where d.died_at > beyond;
    update "tocsin".archive_count_deltas y set archived_at = t where y.archived_at > beyond;
    perform "tocsin"._ring(q.id) from "tocsin".queues q;
end
$$;



CREATE FUNCTION tocsin._correct_heartbeats(t timestamp with time zone) RETURNS void
    LANGUAGE sql
    AS $$
    update "tocsin".processes p set heartbeat_at = t
    from (select x.id from "tocsin".processes x where x.heartbeat_at > t + interval '1 s'
          for update skip locked) ahead
    where p.id = ahead.id
$$;



CREATE FUNCTION tocsin._correct_history(history jsonb, t timestamp with time zone) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    select jsonb_agg(
        d || case when (d ->> 'ended_at')::timestamptz > t
                  then jsonb_build_object('dequeued_at',
                                          least((d ->> 'dequeued_at')::timestamptz, t), 'ended_at',
                                          t)
                  else '{}' end
        order by n)
    from jsonb_array_elements(history) with ordinality h (d, n)
$$;



CREATE FUNCTION tocsin._correct_ticks(t timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    s "tocsin".schedules;
begin
    for s in select x.* from "tocsin".schedules x where x.handled_to > t + interval '1 minute'
        for update skip locked
    loop
        s.handled_to := t;
        s.anchor := least(s.anchor, coalesce(s.start, t));
        perform "tocsin"._replace_tick(s, null);
    end loop;
end
$$;



CREATE FUNCTION tocsin._count_held(w tocsin.workers) RETURNS bigint
    LANGUAGE sql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
    select count(*) from "tocsin".messages m
    where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
$$;



CREATE FUNCTION tocsin._count_queues(first_id integer, last_id integer, t timestamp with time zone, cap integer DEFAULT 100000) RETURNS TABLE(queue_id integer, ready bigint, delayed bigint, held bigint, leased bigint, dead bigint, exact boolean)
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
    return query
        select s.id, s.ready + s.due + s.lapsed, greatest(s.delayed - s.due, 0),
            s.held, greatest(s.leased - s.lapsed, 0), s.dead,
               c.ready <= cap and c.due <= cap and c.lapsed <= cap and c.delayed <= cap
                   and c.held <= cap and c.leased <= cap and c.dead <= cap
        from "tocsin".queues q
        cross join lateral (
            select (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'ready' limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'delayed' and m.vt <= t
                                          limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'leased' and m.vt <= t
                                          limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'delayed' limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'held' limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".messages m
                          where m.queue_id = q.id and m.state = 'leased' limit cap + 1) x),
                   (select count(*)
                    from (select from "tocsin".dead_letters d where d.queue_id = q.id
                          limit cap + 1) x)
            offset 0
        ) c (ready, due, lapsed, delayed, held, leased, dead)
        cross join lateral (
            select q.id, "tocsin"._beyond(c.ready, cap, '"tocsin".messages', q.id, 'ready'), c.due,
                c.lapsed,
                   "tocsin"._beyond(c.delayed, cap, '"tocsin".messages', q.id, 'delayed'),
                   "tocsin"._beyond(c.held, cap, '"tocsin".messages', q.id, 'held'),
                   "tocsin"._beyond(c.leased, cap, '"tocsin".messages', q.id, 'leased'),
                   "tocsin"._beyond(c.dead, cap, '"tocsin".dead_letters', q.id)
        ) s (id, ready, due, lapsed, delayed, held, leased, dead)
        where q.id between first_id and last_id;
end
$$;



CREATE FUNCTION tocsin._count_unfinished(queue_id integer) RETURNS bigint
    LANGUAGE sql STABLE
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
    select (select count(*) from "tocsin".messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'ready')
         + (select count(*) from "tocsin".messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'delayed')
         + (select count(*) from "tocsin".messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'held')
         + (select count(*) from "tocsin".messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'leased')
$$;



CREATE FUNCTION tocsin._cutoff(older_than interval) RETURNS timestamp with time zone
    LANGUAGE plpgsql
    AS $$
begin
    if older_than < '0 s' then
        perform "tocsin"._raise_error('TC022', 'older_than must not be negative',
                                    '{"argument": "older_than"}');
    end if;
    return case when older_than is not null
        then "tocsin"._later("tocsin"._clock(), -least(older_than, interval '5000 years')) end;
end
$$;



CREATE FUNCTION tocsin._decide_to_ring(queue_id integer, notify text) RETURNS boolean
    LANGUAGE sql
    AS $$
    select case
        when notify = 'always' then true
        when "tocsin"._shared_elsewhere("tocsin"._lock_key('waiting', queue_id)) then true
        when not pg_try_advisory_xact_lock_shared("tocsin"._lock_key('unrung', queue_id)) then true
        else "tocsin"._shared_elsewhere("tocsin"._lock_key('waiting', queue_id))
    end
$$;



CREATE FUNCTION tocsin._declare_limits(tasks jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    declared "tocsin".limits[];
    uses "tocsin".limit_queues[];
begin
    select array_agg(distinct x.l), array_agg(distinct row(
               (x.l).id, x.queue_id, pg_current_xact_id(), null)::"tocsin".limit_queues)
    into declared, uses
    from (select first_value(l) over (partition by l.id order by t.name desc) as l, q.id as queue_id
          from jsonb_to_recordset(tasks) t (name text, queue text, limits jsonb)
          cross join lateral (select ("tocsin".find_queue(t.queue)).id) q
          cross join lateral jsonb_array_elements(t.limits) s (spec)
          cross join lateral "tocsin"._describe_limit(s.spec, q.id) l) x;
    if declared is null then
        return;
    elsif (select count(distinct d.name) from unnest(declared) d) < cardinality(declared) then
        perform "tocsin"._raise_error('TC022',
            format('limit "%s" is of two kinds: a limit, a rate or an ordered limit', d.name),
            '{"argument": "tasks"}')
        from unnest(declared) d group by d.name having count(*) > 1;
    end if;
    perform "tocsin"._update_limits(declared);
    if not exists (select from unnest(uses) u
                   left join "tocsin".limit_queues x using (limit_id, queue_id)
                   where x.limit_id is null) then
        return;
    end if;
    perform pg_advisory_xact_lock("tocsin"._lock_key('grant', 0));
    insert into "tocsin".limits select d.* from unnest(declared) d on conflict (id) do nothing;
    insert into "tocsin".limit_queues select u.* from unnest(uses) u on conflict do nothing;
    perform "tocsin"._update_limits(declared);  -- those that a scan has created since
end
$$;



CREATE FUNCTION tocsin._delete_expired(most integer) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    expired tid[];
    gone bigint;
begin
    select array_agg(x.ctid) into expired
    from (select r.ctid from "tocsin".archive_rest r
          where r.keep_until < '9999-01-01+00' and r.keep_until <= t
          order by r.keep_until limit most for update skip locked) x;
    with deleted as (
        delete from "tocsin".archive_rest r where r.ctid = any (expired) returning r.queue_id
    ), counted as (
        insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select d.queue_id, 0, t, t, -count(*) from deleted d group by d.queue_id
    )
    select count(*) into gone from deleted;
    return gone;
end
$$;



CREATE FUNCTION tocsin._describe_dead_letters(ids bigint[], queue_id integer, reason text, error text, died_before timestamp with time zone, max_letters integer, after bigint) RETURNS SETOF tocsin.dead_letter_info
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_variable
begin
    return query
        select d.id, q.name, d.queue_id, d.payload::text, d.headers::text, d.priority, d.key,
            d.enqueued_at, d.dequeued_at, d.read_ct,
               d.max_deliveries, d.producer_worker_id, d.consumer_worker_id, d.history::text,
               d.died_at, d.reason, d.error, d.traceback
        from "tocsin".dead_letters d
        join "tocsin".queues q on q.id = d.queue_id
        where "tocsin"._matches_filter(d, ids, queue_id, reason, error, died_before)
            and (after is null or d.id > after)
        order by d.id limit max_letters;
end
$$;



CREATE TABLE tocsin.messages (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    state tocsin.message_state DEFAULT 'ready'::tocsin.message_state NOT NULL,
    read_ct integer DEFAULT 0 NOT NULL,
    due timestamp with time zone NOT NULL,
    vt timestamp with time zone NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    expires_at timestamp with time zone,
    lease bigint,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    max_deliveries integer,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    cancel_reason text,
    task text,
    options jsonb,
    waits_for integer,
    flow_id bigint,
    progress jsonb
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');



COMMENT ON COLUMN tocsin.messages.priority IS 'Messages with smaller numbers are claimed first.';



COMMENT ON COLUMN tocsin.messages.read_ct IS 'Number of deliveries so far.';



COMMENT ON COLUMN tocsin.messages.due IS 'Place in the queue among equal priorities; never in the future for a ready message.';



COMMENT ON COLUMN tocsin.messages.vt IS 'When the message can be claimed: usually its due time, or the end of its lease.';



COMMENT ON COLUMN tocsin.messages.lease IS 'Lease token of the current delivery, or of the last one when the message is not leased.';



COMMENT ON COLUMN tocsin.messages.history IS 'The last twenty deliveries that ended without success, as "tocsin"._requeue writes them; null: none.';



COMMENT ON COLUMN tocsin.messages.cancel_reason IS 'Of a job that was cancelled while a worker holds it: the reason. The end of the lease archives the job as cancelled; see waiting_messages.sql.';



COMMENT ON COLUMN tocsin.messages.task IS 'Of a job: the task whose function a worker calls; null: a plain message.';



COMMENT ON COLUMN tocsin.messages.options IS 'Of a job: what the call has chosen apart from the task''s options, such as timeout (seconds).';



COMMENT ON COLUMN tocsin.messages.waits_for IS 'Of a held message: how many unfinished messages it waits for; null: none.';



COMMENT ON COLUMN tocsin.messages.flow_id IS 'Of a job: the flow that it belongs to; null: none.';



COMMENT ON COLUMN tocsin.messages.progress IS 'Of a job: what an attempt has reported, with the lease token of the attempt, which no other attempt has.';



CREATE FUNCTION tocsin._describe_delivery(m tocsin.messages, ended_at timestamp with time zone, outcome text, error text) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    select jsonb_build_object('delivery', m.read_ct, 'worker_id', m.consumer_worker_id,
                              'worker',
                              (select w.name from "tocsin".workers w
                                   where w.id = m.consumer_worker_id),
                              'dequeued_at', m.dequeued_at, 'ended_at', ended_at, 'outcome',
                              outcome, 'error', left(error, 1000))
$$;



CREATE TABLE tocsin.limits (
    id bigint NOT NULL,
    name text NOT NULL,
    n integer NOT NULL,
    set_n integer,
    per interval,
    burst integer DEFAULT 1 NOT NULL,
    ordered boolean DEFAULT false NOT NULL,
    CONSTRAINT limits_burst_check CHECK ((burst > 0)),
    CONSTRAINT limits_check CHECK (((NOT ordered) OR (per IS NULL))),
    CONSTRAINT limits_n_check CHECK ((n > 0)),
    CONSTRAINT limits_name_check CHECK ((name <> ''::text)),
    CONSTRAINT limits_per_check CHECK ((per > '00:00:00'::interval)),
    CONSTRAINT limits_set_n_check CHECK ((set_n > 0))
);



COMMENT ON TABLE tocsin.limits IS 'Limits (at most n messages of a key at a time) and rates (n messages of a key per interval).';



COMMENT ON COLUMN tocsin.limits.id IS 'A digest of the name and the kind.';



COMMENT ON COLUMN tocsin.limits.n IS 'What the tasks say; see set_n.';



COMMENT ON COLUMN tocsin.limits.set_n IS 'What an operator has set instead of n; null: nothing.';



COMMENT ON COLUMN tocsin.limits.per IS 'Of a rate: its interval; null: a limit.';



COMMENT ON COLUMN tocsin.limits.burst IS 'Of a rate: how many messages may come at once after a pause.';



COMMENT ON COLUMN tocsin.limits.ordered IS 'Whether a key has one message at a time, in the order of enqueueing.';



CREATE FUNCTION tocsin._describe_limit(spec jsonb, queue_id integer) RETURNS tocsin.limits
    LANGUAGE plpgsql STABLE
    AS $$
declare
    l "tocsin".limits;
begin
    l.name := coalesce(spec ->> 'name',
                       (select 'queue ' || q.name from "tocsin".queues q where q.id = queue_id));
    l.n := coalesce((spec ->> 'n')::integer, 1);
    l.per := make_interval(secs => (spec ->> 'per')::float8);
    l.burst := coalesce((spec ->> 'burst')::integer, 1);
    l.ordered := coalesce((spec ->> 'ordered')::boolean, false);
    l.id := ('x' || left(encode(sha256(convert_to(
        case when l.per is not null then 'rate ' when l.ordered then 'ordered ' else 'limit ' end
        || l.name, 'UTF8')), 'hex'), 16))::bit(64)::bigint;
    return l;
end
$$;



CREATE FUNCTION tocsin._describe_messages(ids bigint[], queues integer[], t timestamp with time zone) RETURNS SETOF tocsin.message_info
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return query
        select x.id, q.name, x.queue_id, x.payload::text, x.headers::text, x.priority, x.key,
            x.enqueued_at, x.dequeued_at, x.read_ct,
               x.max_deliveries, x.producer_worker_id, x.consumer_worker_id, x.history::text,
               x.state, x.due, x.vt, x.expires_at,
               x.archived_at, x.died_at, x.reason, x.last_error
        from (
            select m.id, m.queue_id, m.payload, m.headers, m.priority, m.key, m.enqueued_at,
                m.dequeued_at, m.read_ct, m.max_deliveries,
                   m.producer_worker_id, m.consumer_worker_id, m.history,
                   case when m.state = 'held' then 'held'
                       when m.state = 'ready' or m.vt <= t then 'ready' when m.state = 'delayed'
                       then 'delayed' else 'leased' end as state,
                   m.due, m.vt, m.expires_at,
                   null::timestamptz as archived_at, null::timestamptz as died_at,
                   null::text as reason, m.last_error
            from "tocsin".messages m
            where m.id = any (ids)
            union all
            select d.id, d.queue_id, d.payload, d.headers, d.priority, d.key, d.enqueued_at,
                d.dequeued_at, d.read_ct, d.max_deliveries,
                   d.producer_worker_id, d.consumer_worker_id, d.history, 'dead', null, null, null,
                   null, d.died_at, d.reason, d.error
            from "tocsin".dead_letters d
            where d.id = any (ids)
            union all
            select a.id, a.queue_id, a.payload, a.headers, a.priority, a.key, a.enqueued_at,
                a.dequeued_at, a.read_ct, null,
                   a.producer_worker_id, a.consumer_worker_id, a.history, 'archived', null, null,
                   null, a.archived_at, null, null,
                   a.last_error
            from "tocsin".archive a
            where a.queue_id = any (queues) and a.id = any (ids)
        ) x
        join "tocsin".queues q on q.id = x.queue_id
        order by x.id;
end
$$;



CREATE FUNCTION tocsin._describe_path(path jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
    select '$'
        || coalesce(string_agg(case when s.name ~ '^[[:alpha:]_][[:alnum:]_]*$' then '.' || s.name
                               else format('[%s]', s.step) end, ''
                                      order by s.n), '')
    from (select e.step, e.step #>> '{}', e.n
          from jsonb_array_elements(path) with ordinality e (step, n)) s (step, name, n)
$_$;



CREATE FUNCTION tocsin._drop_expired_partitions(most integer, OUT dropped integer, OUT problem text) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $$
declare
    -- a transaction may have chosen its partition earlier, and write to it now
    over_at timestamptz := "tocsin"._clock() - interval '1 minute';
    expired record;
begin
    dropped := 0;
    if not exists (select from "tocsin"._archive_partitions() p where p.ends_at <= over_at) then
        return;
    end if;
    begin
        -- from here on no session uses the archive or counts its rows
        lock table only "tocsin".archive in access exclusive mode;
    exception when lock_not_available then
        return;
    end;
    for expired in select p.* from "tocsin"._archive_partitions() p where p.ends_at <= over_at
        order by p.ends_at limit most loop
        begin
            -- vacuum may be processing the partition
            execute format('lock table "tocsin".%I in access exclusive mode nowait', expired.name);
            execute format('drop table "tocsin".%I', expired.name);
            delete from "tocsin".archived_counts c
                where c.span = expired.span and c.starts_at = expired.starts_at;
            delete from "tocsin".archive_count_deltas y
            where y.span = expired.span
                and "tocsin"._archive_slot(y.span, y.keep_until) = expired.starts_at;
            dropped := dropped + 1;
        exception
            when lock_not_available then null;
            when others then problem := coalesce(problem, sqlerrm);
        end;
    end loop;
end
$$;



CREATE FUNCTION tocsin._elect_maintainer(process_id bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
declare
    t timestamptz := "tocsin"._clock();
begin
    perform from "tocsin".maintenance m where m.due_at <= t or m.due_at > t + interval '2 minutes'
        for update skip locked;
    if not found then
        return false;
    end if;
    update "tocsin".maintenance m
    set due_at = t + interval '1 minute', clock_was_ahead = m.clock_was_ahead
        or m.due_at > t + interval '2 minutes'
    where exists (select from "tocsin".workers w
                  where w.process_id = _elect_maintainer.process_id and w.kind = 'consumer');
    return found;
end
$$;



CREATE FUNCTION tocsin._end_expired_lease(m tocsin.messages) RETURNS tocsin.messages
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    if m.read_ct >= coalesce(m.max_deliveries,
                             (select q.max_deliveries from "tocsin".queues q
                              where q.id = m.queue_id)) then
        m.history := "tocsin"._add_delivery(m.history,
                                          "tocsin"._describe_delivery(m, "tocsin"._clock(),
                                              'lease_expired', null));
        return m;
    end if;
    perform "tocsin"._requeue(array[m.id], array[m.lease], '0 s', true, 'lease_expired');
    select x.* into m from "tocsin".messages x where x.id = m.id;
    return m;
end
$$;



CREATE FUNCTION tocsin._end_flows(most integer) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    parts float8 := ceil((select count(*) from "tocsin".flows f where f.ended_at is null)::float8
                         / most);
    over bigint[];
begin
    over := array(select f.id
                  from (select x.id from "tocsin".flows x where x.ended_at is null order by x.id
                        offset most * floor(random() * parts) limit most) f
                  where not "tocsin"._is_unfinished(f.id));
    over := array(select f.id from "tocsin".flows f
                  where f.id = any (over) and f.ended_at is null
                  order by f.id for update skip locked);
    with ended as (
        update "tocsin".flows f
        set ended_at = t,
            keep_until = coalesce((select max("tocsin"._keep_until(p.retention, t))
                                   from "tocsin".flow_jobs j
                                   join "tocsin".archive_policies p on p.queue_id = j.queue_id
                                   where j.flow_id = f.id), t)
        -- a job may have been requeued since the statement above began
        where f.id = any (over) and not "tocsin"._is_unfinished(f.id)
        returning f.id
    )
    select array_agg(e.id) into over from ended e;
    update "tocsin".archive_rest a
    set keep_until = "tocsin"._keep_until(p.retention, a.archived_at)
    from "tocsin".flow_jobs j
    join "tocsin".archive_policies p on p.queue_id = j.queue_id
    where j.flow_id = any (over) and a.queue_id = j.queue_id and a.id = j.job_id;
    over := array(select f.id from "tocsin".flows f where f.keep_until <= t
                  order by f.keep_until limit most for update skip locked);
    with kept as (
        update "tocsin".flows f set keep_until = t + interval '24 hours'
        where f.id = any (over) and exists (
            select from "tocsin".flow_jobs j join "tocsin".dead_letters d on d.id = j.job_id
            where j.flow_id = f.id)
        returning f.id
    )
    select array_agg(x.id) into over
    from unnest(over) x (id) where x.id not in (select k.id from kept k);
    delete from "tocsin".edges e where e.flow_id = any (over);
    delete from "tocsin".flow_jobs j where j.flow_id = any (over);
    delete from "tocsin".flows f where f.id = any (over);
end
$$;



CREATE FUNCTION tocsin._end_parents(parents jsonb, succeeded boolean, gone boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    ended bigint[] := array(select k::bigint from jsonb_object_keys(parents) k);
    doomed bigint[];
begin
    if succeeded then
        perform "tocsin"._close_edges(ended, parents, null);
        return;
    end if;
    with recursive reached (id) as (
        select e.child from "tocsin".edges e
        where e.parent = any (ended) and not e.done
            and (e.on_failure = 'cancel' or gone and e.on_failure = 'hold')
        union
        select e.child from reached r join "tocsin".edges e on e.parent = r.id
        where e.on_failure = 'cancel' and not e.done
    )
    select array_agg(r.id) into doomed from reached r;
    -- the rows that are changed below, in the order of ids
    perform from "tocsin".messages m
    where m.state is not distinct from 'held' and m.id = any (doomed || array(
        select e.child from "tocsin".edges e
        where e.parent = any (ended || doomed) and e.on_failure = 'run' and not e.done))
    order by m.id for update;
    perform "tocsin"._cancel_held(doomed, ended || doomed) where doomed is not null;
    perform "tocsin"._close_edges(ended, null, 'run');
end
$$;



CREATE FUNCTION tocsin._end_process(process_id bigint, died boolean) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    w "tocsin".workers;
    last_heartbeat timestamptz;
begin
    -- Delete the process first: the DELETE waits for a registration of a worker that is
    -- in progress, and a later registration finds no process.
    delete from "tocsin".processes p where p.id = process_id
        returning p.heartbeat_at into last_heartbeat;
    delete from "tocsin".awaited a where a.process_id = _end_process.process_id;
    for w in select x.* from "tocsin".workers x where x.process_id = _end_process.process_id
        order by x.id loop
        perform pg_advisory_xact_lock("tocsin"._lock_key('worker', w.id));
        update "tocsin".workers x
        set status = 'stopped',
            ended = coalesce(x.ended, case when died then 'died' else 'left' end), grace = null,
            status_before_death = case when died
                then x.status end, shutdown_at = "tocsin"._clock(), process_id = null,
            heartbeat_at = least(greatest(x.heartbeat_at, last_heartbeat), "tocsin"._clock())
        where x.id = w.id and x.registration = w.registration;
        if found then
            perform "tocsin"._release_held(w, died, 'worker_died');
        end if;
    end loop;
end
$$;



CREATE FUNCTION tocsin._enqueue_rate(queue_id integer, t timestamp with time zone, unfinished bigint) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    size constant integer := 2000;
    since timestamptz := t - interval '1 minute';
    reached timestamptz;
    times timestamptz[];
    kept timestamptz[];
begin
    if unfinished <= size then
        select array_agg(s.enqueued_at) into times
        from ((select m.enqueued_at from "tocsin".messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'ready' limit size)
              union all
              (select m.enqueued_at from "tocsin".messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'delayed' limit size)
              union all
              (select m.enqueued_at from "tocsin".messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'held' limit size)
              union all
              (select m.enqueued_at from "tocsin".messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'leased' limit size)) s;
    else
        select array_agg(s.enqueued_at) filter (where s.queue_id = _enqueue_rate.queue_id),
            min(s.enqueued_at) into times, reached
        from (select m.queue_id, m.enqueued_at from "tocsin".messages m order by m.id desc
              limit size) s;
        since := greatest(since, reached);
    end if;
    -- Without a count delta of the last minute, no message was archived in that minute,
    -- so no archived message was enqueued in it.
    select array_agg(s.enqueued_at), min(s.enqueued_at) into kept, reached
    from (select a.enqueued_at from "tocsin".archive a where a.queue_id = _enqueue_rate.queue_id
          order by a.id desc limit size) s
    where exists (select from "tocsin".archive_count_deltas y
                  where y.queue_id = _enqueue_rate.queue_id
                      and y.archived_at >= t - interval '1 minute' and y.n > 0);
    if cardinality(kept) = size then
        since := greatest(since, reached);
    end if;
    return (select count(*) from unnest(times || kept) e
            where e >= since) / greatest(extract(epoch from t - since)::float8, 0.01);
end
$$;



CREATE FUNCTION tocsin._enqueue_tick(s tocsin.schedules) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
declare
    t timestamptz := "tocsin"._clock();
    due_at timestamptz := coalesce(s.next_tick, t);
begin
    insert into "tocsin".messages (queue_id, priority, state, due, vt, enqueued_at, max_deliveries,
                                 key, payload, task)
    values (s.queue_id, -2147483648,
            case when due_at > t then 'delayed'::"tocsin".message_state else 'ready' end,
            due_at, due_at, t, 2147483647, "tocsin"._tick_key(s.id),
            jsonb_build_object('schedule', s.id, 'name', s.name, 'generation', s.generation,
                               'handled_to', s.handled_to, 'cron', s.cron,
                               'every', extract(epoch from s.every)::float8, 'anchor', s.anchor,
                               'zone', s.zone, 'missed', s.missed),
            '$tick')
    on conflict (queue_id, key) where key is not null do nothing;
end
$_$;



CREATE FUNCTION tocsin._estimate(query text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    plan json;
begin
    execute 'explain (format json) ' || query into plan;
    return plan -> 0 -> 'Plan' ->> 'Plan Rows';
end
$$;



CREATE TABLE tocsin.processes (
    id bigint NOT NULL,
    hostname text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    role name DEFAULT CURRENT_USER NOT NULL,
    every interval NOT NULL,
    lifeline bigint,
    detached boolean DEFAULT false NOT NULL,
    started_at timestamp with time zone NOT NULL,
    heartbeat_at timestamp with time zone NOT NULL,
    CONSTRAINT processes_every_check CHECK (((every > '00:00:00'::interval) AND (every <= '01:00:00'::interval)))
)
WITH (fillfactor='50');



COMMENT ON COLUMN tocsin.processes.role IS 'The role that registered the process and may act for it; see sql/functions/common/authorization.sql.';



COMMENT ON COLUMN tocsin.processes.every IS 'Interval between its heartbeats.';



COMMENT ON COLUMN tocsin.processes.lifeline IS 'Number of the advisory lock that the LISTEN connection of the process holds while it is open; null: the process has no such connection.';



COMMENT ON COLUMN tocsin.processes.detached IS 'The process works without a lifeline, because its LISTEN connection cannot be opened or does not work.';



CREATE FUNCTION tocsin._examine(p tocsin.processes, t timestamp with time zone, up_since timestamp with time zone, OUT seems_alive boolean, OUT dead_at timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    AS $$
declare
    beat timestamptz := least(p.heartbeat_at, t);
    silent boolean := beat < up_since;  -- since the server came up
    soon timestamptz := "tocsin"._later(beat, p.every * 1.25);
    settled timestamptz := up_since + interval '10 s';
begin
    if p.lifeline is not null then
        seems_alive := not pg_try_advisory_xact_lock_shared("tocsin"._lock_key('lifeline',
            p.lifeline));
        dead_at := greatest(soon, settled);
    elsif not p.detached
        and exists (select from "tocsin".workers w
                    where w.process_id = p.id and w.kind = 'consumer') then
        seems_alive := false;  -- unknown: it is about to take a lifeline or to detach
        dead_at := greatest("tocsin"._later(beat, p.every * 3), settled);
    elsif silent then
        seems_alive := false;
        dead_at := greatest(soon, "tocsin"._later(settled, p.every * 1.25));
    else
        seems_alive := soon > t;
        dead_at := greatest("tocsin"._later(beat, p.every * 15), settled);
    end if;
end
$$;



CREATE FUNCTION tocsin._fill_arguments(job_id bigint, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    e record;
    filled jsonb := arguments;
begin
    for e in select x.argument, x.value from "tocsin".edges x
        where x.child = job_id and x.argument <> '{}'
    loop
        filled := jsonb_set(filled, e.argument, coalesce(e.value, 'null'));
    end loop;
    return filled;
end
$$;



CREATE FUNCTION tocsin._find_key(queue_id integer, key text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return (select m.id from "tocsin".messages m
            where m.queue_id = _find_key.queue_id and m.key = _find_key.key);
end
$$;



CREATE FUNCTION tocsin._find_other_kind(l tocsin.limits) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select format('limit "%s" is %s', l.name,
                  case when x.per is not null then 'a rate' when x.ordered then 'ordered'
                  else 'neither a rate nor ordered' end)
    from "tocsin".limits x
    where x.name = l.name and x.id <> l.id
        and not exists (select from "tocsin".limits y where y.id = l.id)
    limit 1
$$;



CREATE FUNCTION tocsin._find_own_worker(worker_id bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
declare
    w "tocsin".workers;
begin
    select x.* into w from "tocsin".workers x where x.id = worker_id;
    if not found then
        perform "tocsin"._raise_error('TC006',
                                    format('worker %s is not registered: it has been purged, '
                                           'or its queue deleted', worker_id),
            jsonb_build_object('worker_id', worker_id, 'from', 'stopped', 'to', 'polling', 'code',
                               'registration_ended', 'reason',
                               'it has been purged, or its queue deleted'),
            'Register it again, under its name or another.');
    end if;
    return "tocsin"._check_own(w);
end
$$;



CREATE FUNCTION tocsin._find_role(role text) RETURNS regrole
    LANGUAGE plpgsql STABLE
    AS $$
declare
    found_role regrole := (select r.oid from pg_roles r where r.rolname = role);
begin
    if found_role is null then
        perform "tocsin"._raise_error('TC023', format('role "%s" does not exist', role),
                                    jsonb_build_object('role', role),
                              'Create the role first, with create role.');
    end if;
    return found_role;
end
$$;



CREATE FUNCTION tocsin._find_violation(payloads jsonb, q tocsin.queues) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$
#variable_conflict use_column
declare
    fault jsonb;
    level jsonb[] := array[payloads];
    paths jsonb[] := array['[]'::jsonb];
    depth integer := 0;  -- number of arrays and objects around a member of this level
    deepest integer := least(nullif(q.max_depth, 0), 256);
begin
    if q.required_keys <> '{}' then
        select jsonb_build_object('path', jsonb_build_array(p.n - 1), 'reason', case
                   when jsonb_typeof(p.payload) <> 'object'
                   then format('not an object, which must have the keys %s',
                               to_json(q.required_keys))
                   else (select format('the key %s is missing', to_json(k))
                         from unnest(q.required_keys) k where not p.payload ? k limit 1)
               end)
        into fault
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        where jsonb_typeof(p.payload) <> 'object' or not p.payload ?& q.required_keys
        order by p.n limit 1;
    end if;
    while fault is null and level is not null
        and (q.max_string > 0 or q.max_depth > 0 or q.forbidden_keys <> '{}') loop
        with members as (
            select l.path, m.step, m.value, jsonb_typeof(m.value) as kind, m.key
            from unnest(level, paths) as l (value, path)
            cross join lateral (
                select o.key, to_jsonb(o.key), o.value
                from jsonb_each(case jsonb_typeof(l.value) when 'object' then l.value
                                else '{}' end) o
                union all
                select null, to_jsonb(a.n - 1), a.value
                from jsonb_array_elements(case jsonb_typeof(l.value) when 'array' then l.value
                                          else '[]' end) with ordinality a (value, n)
            ) m (key, step, value)
        ), judged as (
            select m.*, case
                when m.key = any (q.forbidden_keys)
                    then format('the key %s is forbidden', to_json(m.key))
                when q.max_string > 0 and length(m.key) > q.max_string
                    then format('a key of %s characters, the limit is %s', length(m.key),
                                q.max_string)
                when q.max_string > 0 and m.kind = 'string'
                    and length(m.value #>> '{}') > q.max_string
                    then format('a string of %s characters, the limit is %s',
                                length(m.value #>> '{}'), q.max_string)
                when m.kind in ('array', 'object') and depth >= deepest
                    then format('nested deeper than %s levels', deepest)
            end as reason
            from members m
        )
        -- a key that is too long is not part of the path
        select (select jsonb_build_object('reason', j.reason, 'path',
                                          case when q.max_string > 0
                                              and length(j.key) > q.max_string then j.path
                                                  else j.path || j.step end)
                from judged j where j.reason is not null limit 1),
               array_agg(j.value) filter (where j.kind in ('array', 'object')),
               array_agg(j.path || j.step) filter (where j.kind in ('array', 'object'))
        into fault, level, paths
        from judged j;
        depth := depth + 1;
    end loop;
    return fault;
end
$$;



CREATE FUNCTION tocsin._find_worker(worker_id bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
declare
    w "tocsin".workers;
begin
    select x.* into w from "tocsin".workers x where x.id = worker_id;
    if not found then
        perform "tocsin"._raise_error('TC004', format('worker %s does not exist', worker_id),
                                    jsonb_build_object('worker_id', worker_id),
                              'It may have been purged. List the workers.');
    end if;
    return w;
end
$$;



CREATE FUNCTION tocsin._follow_limited() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
declare
    m "tocsin".messages := new;
begin
    if tg_op = 'DELETE' then
        perform "tocsin"._free(old.id);
        return null;
    elsif tg_op = 'INSERT' then
        if m.state = 'held' and m.waits_for is null then
            perform "tocsin"._line_up(m);
        end if;
        return null;
    end if;
    if m.waits_for is not null or m.state = 'leased' or m.state = 'ready' and old.state = 'ready'
    then
        return null;
    end if;
    if old.state in ('ready', 'leased') then
        perform "tocsin"._free(m.id, keep_ordered => true);
    end if;
    if m.state in ('ready', 'held') then
        m.state := (case when m.due > "tocsin"._clock() then 'delayed' else 'held' end);
        update "tocsin".messages x set state = m.state
        where x.id = m.id and x.state is distinct from m.state;
    end if;
    if m.state = 'held' then
        -- behind it may be a message of another queue, which is now the first of the line
        perform "tocsin"._note_free(s.limit_id, s.key) from "tocsin".slots s
        where old.state = 'held' and s.message_id = m.id and s.line = 0 and s.waits;
        perform "tocsin"._line_up(m);
    elsif old.state = 'held' then
        perform "tocsin"._free(m.id, keep_ordered => true, keep_paid => true);
    end if;
    return null;
end
$$;



CREATE FUNCTION tocsin._forget_ended_sessions() RETURNS void
    LANGUAGE sql
    AS $$
    delete from "tocsin".awaited a
    where a.process_id < 0
            and pg_try_advisory_xact_lock_shared("tocsin"._lock_key('lifeline', -a.process_id))
        or a.process_id > 0
            and not exists (select from "tocsin".processes p where p.id = a.process_id)
$$;



CREATE FUNCTION tocsin._free(message_id bigint, keep_ordered boolean DEFAULT false, keep_paid boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    g "tocsin".slots;
begin
    for g in
        delete from "tocsin".slots s
        where s.message_id = _free.message_id
            and not (keep_ordered and s.stage = 1 and s.slot is not null)
            and not (keep_paid and s.paid)
        returning s.*
    loop
        if g.stage > 0 then
            perform "tocsin"._note_free(g.limit_id, g.key);
        end if;
    end loop;
end
$$;



CREATE FUNCTION tocsin._free_slots(l tocsin.limits, key text) RETURNS integer
    LANGUAGE sql STABLE
    AS $$
    select coalesce(l.set_n, l.n) - count(*)::integer from "tocsin".slots s
    where s.limit_id = l.id and s.key = _free_slots.key and s.slot is not null
$$;



CREATE FUNCTION tocsin._give_up(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    perform "tocsin"._end_parents(p.parents, succeeded => false, gone => true)
    from (select jsonb_object_agg(j.job_id, null) as parents from "tocsin".flow_jobs j
          where j.job_id = any (ids)) p
    where p.parents is not null;
end
$$;



CREATE FUNCTION tocsin._grant_line(queue_id integer, limit_id bigint, key text) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    l "tocsin".limits;
    here integer := queue_id;  -- the line of the queue, or of all queues
    free integer := 100;  -- of a rate: how many messages to look at
    size integer;
    wanted bigint[] := '{}';
    candidate bigint;
    place "tocsin".slots;
    granted integer := 0;
    known boolean;  -- whether all open transactions know the queue; before the look
    locked boolean := false;  -- whether it has skipped a message that it could grant
begin
    select x.* into l from "tocsin".limits x where x.id = limit_id;
    if not found then
        select s.* into place
        from "tocsin".slots s join "tocsin".messages m on m.id = s.message_id
        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key and s.waits limit 1;
        if not found then
            return null;
        end if;
        l := "tocsin"._limit_of(place);
    end if;
    known := "tocsin"._is_known(limit_id, queue_id);
    if l.per is null then
        free := "tocsin"._free_slots(l, key);
    end if;
    size := least(free, 100);
    if free > 0 and l.ordered then
        here := 0;
        select s.message_id into candidate from "tocsin".slots s
        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key and s.line = 0
            and s.waits
        order by s.priority, s.due, s.message_id limit 1;
        size := 1;
        wanted := array(select m.id from "tocsin".messages m
                        where m.id = candidate and m.queue_id = _grant_line.queue_id
                        for update skip locked);
        locked := cardinality(wanted) = 0
            and exists (select from "tocsin".slots s
                        where s.message_id = candidate and s.limit_id = _grant_line.limit_id
                            and s.queue_id = _grant_line.queue_id);
    elsif free > 0 then
        wanted := array(select m.id
                        from "tocsin".slots s join "tocsin".messages m on m.id = s.message_id
                        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key
                            and s.line = _grant_line.queue_id and s.waits
                        order by s.priority, s.due, s.message_id limit size
                        for update of m skip locked);
    end if;
    foreach candidate in array wanted loop
        select s.* into place from "tocsin".slots s
        where s.message_id = candidate and s.limit_id = _grant_line.limit_id and s.waits;
        continue when not found;
        if l.per is not null then
            continue when not "tocsin"._spend(l, place);
        elsif l.ordered then
            update "tocsin".slots s set slot = 1, waits = false
            where s.message_id = candidate and s.limit_id = _grant_line.limit_id;
        end if;
        case "tocsin"._advance(place)
            when 'ready' then granted := granted + 1; free := free - 1;
            when 'later' then free := free - 1;
            else null;
        end case;
    end loop;
    if granted > 1 then
        perform "tocsin"._ring(queue_id);  -- the claim may take one of them
    end if;
    if not exists (select from "tocsin".slots s
                   where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key
                       and s.line = here and s.waits
                       and s.queue_id = _grant_line.queue_id) then
        return null;
    end if;
    return case
        when free > 0 and cardinality(wanted) = size then 0
        when locked or free > 0 and not l.ordered  -- another transaction has locked the rest
            -- or a transaction may not know that this queue has messages in the line
            or not known then 0.25
    end;
end
$$;



CREATE FUNCTION tocsin._grant_slots(queue_id integer) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    batch constant integer := 50;
    stop_at timestamptz := "tocsin"._clock() + interval '20 ms';
    locked boolean := false;  -- whether it has looked at the rows that are locked
    pause float8;
    again float8;
    keys "tocsin".limit_checks[];
    kept "tocsin".limit_checks[] := '{}';  -- for the next scan
    c "tocsin".limit_checks;
begin
    if not exists (select from "tocsin".limit_checks x where x.queue_id = _grant_slots.queue_id) then
        return null;
    elsif current_setting('transaction_isolation') <> 'read committed' then
        return 0.25;  -- its snapshot may be older than the rows that it would delete
    elsif not pg_try_advisory_xact_lock("tocsin"._lock_key('grant', 0)) then
        return 0.01;
    end if;
    loop
        with gone as (
            delete from "tocsin".limit_checks x where x.ctid = any (array(
                select y.ctid from "tocsin".limit_checks y
                where y.queue_id = _grant_slots.queue_id limit batch for update skip locked))
            returning x.queue_id, x.limit_id, x.key
        )
        select array_agg(distinct row(g.queue_id, g.limit_id, g.key)::"tocsin".limit_checks)
        into keys from gone g;
        if keys is null then
            exit when locked;
            locked := true;
            select array_agg(distinct z.x) into keys
            from (select x from "tocsin".limit_checks x
                  where x.queue_id = _grant_slots.queue_id order by random() limit batch) z;
            if cardinality(keys) = batch then
                again := 0.01;  -- for the rest; each has its turn by chance
            end if;
        end if;
        foreach c in array coalesce(keys, '{}') loop
            pause := "tocsin"._grant_line(queue_id, c.limit_id, c.key);
            again := least(again, nullif(pause, 0));
            if pause = 0 then
                insert into "tocsin".limit_checks select c.*;  -- for the next round
            elsif pause > 0 then
                kept := kept || c;
            end if;
        end loop;
        if "tocsin"._clock() >= stop_at then
            again := least(again, 0.01);
            exit;
        end if;
    end loop;
    insert into "tocsin".limit_checks select distinct k.* from unnest(kept) k;
    return again;
end
$$;



CREATE FUNCTION tocsin._hold_limited() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if new.state = 'ready' then
        new.state := 'held';
    end if;
    return new;
end
$$;



CREATE FUNCTION tocsin._holders(queue_id integer, until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone) RETURNS TABLE(worker_id bigint, held bigint, message_id bigint, since timestamp with time zone)
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
    -- The smallest pair of time and id is the message held for longest; min() needs no
    -- sort.
    return query
        select m.consumer_worker_id, count(*),
            (min(array[extract(epoch from m.dequeued_at), m.id]))[2]::bigint, min(m.dequeued_at)
        from "tocsin".messages m
        where m.queue_id = _holders.queue_id and m.state = 'leased' and m.vt > until
        group by m.consumer_worker_id;
end
$$;



CREATE FUNCTION tocsin._holds_lock(key bigint) RETURNS boolean
    LANGUAGE sql
    AS $$
    select exists (select from pg_locks l
                   where l.locktype = 'advisory' and l.pid = pg_backend_pid()
                     and l.database = (select d.oid from pg_database d
                                       where d.datname = current_database())
                     and l.classid::bigint = (key >> 32) & 4294967295
                     and l.objid::bigint = key & 4294967295
                     and l.objsubid = 1 and l.granted)
$$;



CREATE FUNCTION tocsin._is_active(worker_id bigint) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
begin
    return exists (select from "tocsin".workers w
                   where w.id = worker_id and w.status in ('ready', 'polling'));
end
$$;



CREATE FUNCTION tocsin._is_admin() RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
begin
    return "tocsin"._is_owner()
        or exists (select from "tocsin".roles r
                   where r.kind = 'admin' and pg_has_role("tocsin"._caller(), r.role, 'usage'));
end
$$;



CREATE FUNCTION tocsin._is_known(limit_id bigint, queue_id integer) RETURNS boolean
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    x "tocsin".limit_queues;
begin
    select y.* into x from "tocsin".limit_queues y
    where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
    if x.since is not null then
        return x.since <= pg_snapshot_xmin(pg_current_snapshot());
    elsif x.added is null then
        insert into "tocsin".limit_queues (limit_id, queue_id, added)
        values (limit_id, queue_id, pg_current_xact_id());
    elsif x.added <> pg_current_xact_id() then  -- else no other transaction sees the row
        -- An older transaction may have a later id than this one. So take a new id, for a
        -- subtransaction. Its end moves the end of the next snapshot past it.
        begin
            update "tocsin".limit_queues y set since = null
            where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
            raise triggered_action_exception;
        exception when triggered_action_exception then null;
        end;
        update "tocsin".limit_queues y set since = pg_snapshot_xmax(pg_current_snapshot())
        where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
    end if;
    return false;
end
$$;



CREATE FUNCTION tocsin._is_owner() RETURNS boolean
    LANGUAGE sql STABLE
    AS $$ select pg_has_role("tocsin"._caller(), current_user, 'usage') $$;



CREATE FUNCTION tocsin._is_unfinished(flow_id bigint) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
begin
    return exists (select from "tocsin".flow_jobs j join "tocsin".messages m on m.id = j.job_id
                   where j.flow_id = _is_unfinished.flow_id);
end
$$;



CREATE FUNCTION tocsin._is_valid(payload jsonb, max_payload integer, delay interval, at timestamp with time zone, expires_in interval, max_deliveries integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select (octet_length(payload::text) > max_payload) is not true
       and (delay not between '0 s' and '1000 years' or delay is not null and at is not null
            or at < '0002-01-01 UTC' or at > '9999-12-30 UTC'
            or expires_in <= '0 s' or expires_in > '1000 years' or max_deliveries <= 0) is not true
$$;



CREATE FUNCTION tocsin._job_shelves(only_task text, state text) RETURNS TABLE(task text, outcome text)
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
begin
    if state in ('waiting', 'running') then
        return;
    end if;
    return query
        with recursive shelves (task, outcome) as (
            (select a.task, a.outcome from "tocsin".archive a
             where a.task is not null order by a.task, a.outcome limit 1)
            union all
            select n.task, n.outcome
            from shelves s
            cross join lateral (
                select a.task, a.outcome from "tocsin".archive a
                where a.task is not null and (a.task, a.outcome) > (s.task, s.outcome)
                order by a.task, a.outcome limit 1) n
        )
        select s.task, s.outcome from shelves s
        where s.task <> '$tick' and (only_task is null or s.task = only_task)
            and (_job_shelves.state is null or s.outcome = _job_shelves.state);
    if coalesce(state, 'failed') = 'failed' then
        return query
            with recursive letters (task) as (
                (select d.task from "tocsin".dead_letters d
                 where d.task is not null order by d.task limit 1)
                union all
                select n.task
                from letters l
                cross join lateral (select d.task from "tocsin".dead_letters d
                                    where d.task is not null and d.task > l.task
                                    order by d.task limit 1) n
            )
            select l.task, null::text from letters l
            where l.task <> '$tick' and (only_task is null or l.task = only_task);
    end if;
end
$_$;



CREATE FUNCTION tocsin._keep_until(retention interval, at timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select case when retention < '1000 years' then "tocsin"._later(at, retention)
    else '9999-01-01+00' end $$;



CREATE FUNCTION tocsin._later(moment timestamp with time zone, length interval) RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select moment + make_interval(secs => extract(epoch from length)::float8) $$;



CREATE FUNCTION tocsin._limit_of(place tocsin.slots) RETURNS tocsin.limits
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    l "tocsin".limits;
begin
    select x.* into l from "tocsin".limits x where x.id = place.limit_id;
    if not found then
        insert into "tocsin".limits
        select d.* from "tocsin".messages m
        cross join lateral jsonb_array_elements(m.options -> 'limits') x (spec)
        cross join lateral "tocsin"._describe_limit(x.spec, m.queue_id) d
        where m.id = place.message_id and d.id = place.limit_id
        returning * into l;
    end if;
    return l;
end
$$;



CREATE TABLE tocsin.tasks (
    name text NOT NULL,
    queue_id integer NOT NULL,
    max_deliveries integer NOT NULL,
    priority integer NOT NULL,
    timeout double precision,
    limits jsonb DEFAULT '[]'::jsonb NOT NULL,
    description text NOT NULL,
    registered_at timestamp with time zone NOT NULL,
    CONSTRAINT tasks_max_deliveries_check CHECK ((max_deliveries > 0)),
    CONSTRAINT tasks_name_check CHECK ((name <> ''::text)),
    CONSTRAINT tasks_timeout_check CHECK ((timeout > (0)::double precision))
);



COMMENT ON TABLE tocsin.tasks IS 'The tasks that workers have registered: where a job goes that SQL submits.';



COMMENT ON COLUMN tocsin.tasks.timeout IS 'Seconds that an attempt may take; null: any number.';



COMMENT ON COLUMN tocsin.tasks.limits IS 'The limits of its jobs. A key has the name and the position of a parameter, and its default.';



CREATE FUNCTION tocsin._limits_of(t tocsin.tasks, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
declare
    computed text;
    limits jsonb;
begin
    select x.l ->> 'name' into computed from jsonb_array_elements(t.limits) x (l)
    where x.l ? 'computed' limit 1;
    if computed is not null then
        perform "tocsin"._raise_error('TC022',
            format('the key of limit "%s" is computed by the task''s program', computed),
            '{"argument": "task"}',
            'Submit the job from Python, or make the key a parameter of the task.');
    end if;
    select coalesce(jsonb_agg(k.l - '{parameter,position,default}'::text[]
                              || case when k.l ? 'parameter' then jsonb_build_object('key', k.key)
                                 else '{}' end), '[]')
    into limits
    from (select x.l, case
                     when not x.l ? 'parameter' then null
                     when jsonb_typeof(arguments) = 'object' and arguments ? (x.l ->> 'parameter')
                         then arguments ->> (x.l ->> 'parameter')
                     when jsonb_typeof(arguments) = 'array'
                         and jsonb_array_length(arguments) > (x.l ->> 'position')::integer
                         then arguments ->> (x.l ->> 'position')::integer
                     else x.l ->> 'default' end as key
          from jsonb_array_elements(t.limits) x (l)) k
    where k.key is not null or not k.l ? 'parameter';
    return limits;
end
$$;



CREATE FUNCTION tocsin._line_up(m tocsin.messages) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    first "tocsin".slots;
begin
    insert into "tocsin".slots (message_id, limit_id, key, queue_id, line, stage, priority, due)
    select m.id, l.id, coalesce(x.spec ->> 'key', ''), m.queue_id,
           case when l.ordered then 0 else m.queue_id end,
           case when l.per is not null then 0 when l.ordered then 1
           when x.spec ->> 'key' <> '' then 2 else 3 end,
           case when l.ordered then 0 else m.priority end, m.due
    from jsonb_array_elements(m.options -> 'limits') x (spec)
    cross join lateral "tocsin"._describe_limit(x.spec, m.queue_id) l
    on conflict (message_id, limit_id) do update
    set priority = excluded.priority, due = excluded.due, waits = false;
    select s.* into first from "tocsin".slots s
    where s.message_id = m.id and s.slot is null and not s.paid
    order by s.stage, s.limit_id limit 1;
    if found then
        update "tocsin".slots s set waits = true
        where s.message_id = m.id and s.limit_id = first.limit_id;
        perform "tocsin"._note_check(array[m.queue_id], first.limit_id, first.key);
    else
        update "tocsin".messages x set state = 'ready' where x.id = m.id;
        perform "tocsin"._ring(m.queue_id);
    end if;
end
$$;



CREATE FUNCTION tocsin._lock_dead_letters(ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer) RETURNS bigint[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_variable
declare
    queue_id integer := "tocsin"._resolve_queue(ids, queue);
    died_before timestamptz := "tocsin"._cutoff(older_than);
begin
    if ids is not null then
        return array(select d.id from "tocsin".dead_letters d
                     where "tocsin"._matches_filter(d, ids, queue_id, reason, error, died_before)
                     order by d.id limit max_letters for update);
    end if;
    return array(select d.id from "tocsin".dead_letters d
                 where "tocsin"._matches_filter(d, ids, queue_id, reason, error, died_before)
                 order by d.id limit max_letters for update skip locked);
end
$$;



CREATE FUNCTION tocsin._lock_flow(flow_id bigint) RETURNS bigint[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    ids bigint[];
begin
    perform from "tocsin".flows f where f.id = _lock_flow.flow_id for update;
    if not found then
        perform "tocsin"._raise_error('TC043', format('flow %s does not exist', flow_id),
                                    jsonb_build_object('flow_id', flow_id));
    end if;
    ids := array(select j.job_id from "tocsin".flow_jobs j where j.flow_id = _lock_flow.flow_id
                 order by j.job_id);
    perform from "tocsin".messages m where m.id = any (ids) order by m.id for update;
    return ids;
end
$$;



CREATE FUNCTION tocsin._lock_key(kind text, number bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select pg_catalog.hashtextextended('"tocsin".' || kind, number) $$;



CREATE FUNCTION tocsin._lock_own_worker(worker_id bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    return "tocsin"._check_own("tocsin"._find_worker(worker_id));
end
$$;



CREATE FUNCTION tocsin._lock_schedule(name text) RETURNS tocsin.schedules
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    s "tocsin".schedules;
begin
    select x.* into s from "tocsin".schedules x where x.name = _lock_schedule.name for update;
    if not found then
        perform "tocsin"._raise_error('TC046', format('there is no schedule "%s"', name),
                                    jsonb_build_object('schedule', name));
    end if;
    perform "tocsin"._check_change(s.queue_id);
    return s;
end
$$;



CREATE FUNCTION tocsin._lock_waiting(message_id bigint, queue text, key text, or_running boolean DEFAULT false) RETURNS tocsin.messages
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
declare
    q "tocsin".queues;
    wanted bigint := message_id;
    m "tocsin".messages;
begin
    if (wanted is null) = (_lock_waiting.key is null)
        or (_lock_waiting.queue is null) <> (_lock_waiting.key is null) then
        perform "tocsin"._raise_error('TC022', 'name a message by its id, or by its queue and key',
                                    '{"argument": "message_id"}');
    elsif wanted is null then
        q := "tocsin".find_queue(queue);
        perform "tocsin"._check_change(q.id);
        wanted := "tocsin"._find_key(q.id, key);
    end if;
    loop
        select x.* into m from "tocsin".messages x where x.id = wanted;
        exit when not found;
        perform "tocsin"._check_change(m.queue_id);
        if m.task = '$tick' then
            perform "tocsin"._raise_error('TC022',
                format('message %s is the next tick of schedule "%s"', m.id, m.payload ->> 'name'),
                '{"argument": "message_id"}', 'Pause, change or delete the schedule.');
        end if;
        or_running := or_running and m.task is not null;
        exit when m.state = 'leased' and not or_running
            and (m.vt > "tocsin"._clock() or m.cancel_reason is not null);
        select x.* into m from "tocsin".messages x
        where x.id = wanted and (x.state <> 'leased' or or_running or x.vt <= "tocsin"._clock())
        for update;
        continue when not found;
        return case when m.state = 'leased' and not or_running
            then "tocsin"._end_expired_lease(m) else m end;
    end loop;
    perform "tocsin"._refuse_change(wanted, queue, key);
end
$_$;



CREATE FUNCTION tocsin._lowest_free(limit_id bigint, key text) RETURNS integer
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
    return (
        select f.slot from (
            select 1 as slot
            where not exists (select from "tocsin".slots x
                              where x.limit_id = _lowest_free.limit_id
                                  and x.key = _lowest_free.key and x.slot = 1)
            union all
            (select x.slot + 1 from "tocsin".slots x
             where x.limit_id = _lowest_free.limit_id and x.key = _lowest_free.key
                 and x.slot is not null
                 and not exists (select from "tocsin".slots y
                                 where y.limit_id = x.limit_id and y.key = x.key
                                     and y.slot = x.slot + 1)
             order by x.slot limit 1)
        ) f limit 1
    );
end
$$;



CREATE FUNCTION tocsin._make_due_ready(queue_id integer) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    batch constant integer := 250;
    t timestamptz := "tocsin"._clock();
    stop_at timestamptz := t + interval '20 ms';
    over boolean := false;
    rows_due tid[];
    limited bigint[];
    ids bigint[];
    expired bigint[];
    ended bigint := 0;
begin
    while not over and exists (
        select from "tocsin".messages m
        where m.queue_id = _make_due_ready.queue_id and m.state <> 'leased'
            and m.expires_at is not null and m.expires_at <= t)
    loop
        select array_agg(d.id) into ids
        from (select m.id from "tocsin".messages m
              where m.queue_id = _make_due_ready.queue_id and m.state <> 'leased'
                  and m.expires_at is not null and m.expires_at <= t
              order by m.expires_at limit batch for update skip locked) d;
        exit when ids is null;
        perform "tocsin"._move_to_dead_letters(ids, 'expired');
        over := "tocsin"._clock() >= stop_at;
    end loop;

    while not over and exists (
        select from "tocsin".messages m
            where m.queue_id = _make_due_ready.queue_id and m.state = 'delayed' and m.vt <= t)
    loop
        select array_agg(d.ctid), array_agg(d.id) filter (where d.limited) into rows_due, limited
        from (select m.ctid, m.id, m.options ? 'limits' as limited from "tocsin".messages m
              where m.queue_id = _make_due_ready.queue_id and m.state = 'delayed' and m.vt <= t
              order by m.vt limit 4 * batch for update skip locked) d;
        exit when rows_due is null;
        update "tocsin".messages m
        set state = (case when m.options ? 'limits' then 'held'
                     else 'ready' end)::"tocsin".message_state
        where m.ctid = any (rows_due);
        if limited is not null then
            perform "tocsin"._line_up(m) from "tocsin".messages m where m.id = any (limited);
        end if;
        over := "tocsin"._clock() >= stop_at;
    end loop;

    while not over and exists (
        select from "tocsin".messages m
            where m.queue_id = _make_due_ready.queue_id and m.state = 'leased' and m.vt <= t)
    loop
        select array_agg(d.id), array_agg(d.lease) into ids, expired
        from (select m.id, m.lease from "tocsin".messages m
              where m.queue_id = _make_due_ready.queue_id and m.state = 'leased' and m.vt <= t
              order by m.vt limit batch for update skip locked) d;
        exit when ids is null;
        perform "tocsin"._requeue(ids, expired, '0 s', true, 'lease_expired');
        ended := ended + cardinality(ids);
        over := "tocsin"._clock() >= stop_at;
    end loop;
    return case when ended > 0 or not over then ended end;
end
$$;



CREATE TABLE tocsin.dead_letters (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    died_at timestamp with time zone NOT NULL,
    lease bigint,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    max_deliveries integer,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    reason text NOT NULL,
    error text,
    traceback text,
    history jsonb,
    task text,
    options jsonb,
    flow_id bigint
);



COMMENT ON COLUMN tocsin.dead_letters.lease IS 'Lease token of the last delivery. Deliveries after a replay get larger tokens.';



CREATE FUNCTION tocsin._matches_filter(letter tocsin.dead_letters, ids bigint[], queue_id integer, reason text, error text, died_before timestamp with time zone) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select (ids is null or letter.id = any (ids))
        and (queue_id is null or letter.queue_id = queue_id)
       and (reason is null or letter.reason = reason)
           and (error is null or strpos(letter.error, error) > 0)
       and (died_before is null or letter.died_at < died_before)
$$;



CREATE FUNCTION tocsin._may_consume() RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select "tocsin"._is_owner()
        or exists (select from "tocsin".roles r
                   where r.kind in ('consumer', 'admin')
                       and pg_has_role("tocsin"._caller(), r.role, 'usage'))
$$;



CREATE FUNCTION tocsin._may_enqueue(queue_id integer, worker_id bigint) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select "tocsin"._is_admin()
        or exists (select from "tocsin".queue_grants g
                   where g.queue_id = _may_enqueue.queue_id
                       and pg_has_role("tocsin"._caller(), g.role, 'usage'))
           and (worker_id is null
                or exists (select from "tocsin".workers w
                           where w.id = worker_id and w.role = "tocsin"._caller()))
$$;



CREATE FUNCTION tocsin._may_read_outcomes(queue_id integer) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$ select "tocsin"._may_consume() or "tocsin"._may_enqueue(queue_id, null) $$;



CREATE FUNCTION tocsin._move_to_dead_letters(ids bigint[], reason text, errors text[] DEFAULT NULL::text[], tracebacks text[] DEFAULT NULL::text[], deliveries jsonb[] DEFAULT NULL::jsonb[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    again_at timestamptz := "tocsin"._clock() + interval '1 minute';
    parents jsonb;
begin
    with given as (
        select g.id, g.error, g.traceback, g.delivery
        from unnest(ids, errors, tracebacks, deliveries) as g (id, error, traceback, delivery)
    ), died as (
        delete from "tocsin".messages m using given g where m.id = any (ids) and m.id = g.id
        returning m.*, coalesce(g.error, m.last_error) as error, g.traceback, g.delivery
    )
    insert into "tocsin".dead_letters (id, queue_id, priority, read_ct, enqueued_at, dequeued_at,
                                     died_at, lease, producer_worker_id,
                                     consumer_worker_id, max_deliveries, key, payload, headers,
                                     reason, error, traceback, history, task, options,
                                     flow_id)
    select d.id, d.queue_id, d.priority, d.read_ct, d.enqueued_at, d.dequeued_at, "tocsin"._clock(),
        d.lease, d.producer_worker_id,
           d.consumer_worker_id, d.max_deliveries, d.key, d.payload, d.headers,
           _move_to_dead_letters.reason, d.error, d.traceback,
           "tocsin"._add_delivery(d.history, d.delivery), d.task, d.options, d.flow_id
    from died d;
    perform "tocsin"._announce(d.queue_id, array_agg(d.id))
    from "tocsin".dead_letters d
    where d.id = any (ids) and d.task is not null group by d.queue_id;
    select jsonb_object_agg(d.id, null) into parents
    from "tocsin".dead_letters d
    where d.id = any (ids) and d.flow_id is not null;
    if parents is not null then
        perform "tocsin"._end_parents(parents, succeeded => false);
    end if;
exception when integrity_constraint_violation or data_exception or program_limit_exceeded
    or raise_exception then
    if cardinality(ids) > 1 then
        for n in 1 .. cardinality(ids) loop
            perform "tocsin"._move_to_dead_letters(ids[n:n], reason, errors[n:n], tracebacks[n:n],
                                                 deliveries[n:n]);
        end loop;
    else
        update "tocsin".messages m
        set state = case when m.state = 'held' then m.state else 'delayed' end,
            due = again_at, vt = again_at,
            expires_at = case when m.expires_at < again_at then again_at else m.expires_at end,
            last_error = format('%s, but cannot become a dead letter: %s', reason, sqlerrm),
            history = "tocsin"._add_delivery(m.history, deliveries[1])
        where m.id = any (ids);
    end if;
end
$$;



CREATE FUNCTION tocsin._move_worker(worker_id bigint, allowed text[], target text, grace interval DEFAULT NULL::interval, ended text DEFAULT NULL::text, registration bigint DEFAULT NULL::bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    w "tocsin".workers;
    t timestamptz := "tocsin"._clock();
begin
    update "tocsin".workers x
    set status = target, grace = _move_worker.grace, ended = _move_worker.ended, heartbeat_at = t,
        shutdown_at = case when target = 'stopped' then t end
    where x.id = worker_id and x.status = any (allowed) and "tocsin"._acts_for(x.role)
      and (_move_worker.registration is null or x.registration = _move_worker.registration)
    returning x.* into w;
    if not found then
        w := "tocsin"._check_own("tocsin"._find_worker(worker_id));
        if w.registration <> _move_worker.registration then
            perform "tocsin"._refuse_ended(w);
        end if;
        perform "tocsin"._refuse_transition(w, target, 'wrong_state',
                                          format('%s is reached only from %s', target,
                                                 array_to_string(allowed, ', ')));
    end if;
    return w;
end
$$;



CREATE FUNCTION tocsin._next_due(queue_id integer, with_ready boolean DEFAULT true) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    at timestamptz;
begin
    select least(
        case when with_ready then
            -- A ready message can be claimed now, also one that was enqueued while the
            -- clock was ahead.
            (select least(m.due, "tocsin"._clock()) from "tocsin".messages m
             where m.queue_id = q.id and m.state = 'ready' order by m.priority, m.due, m.id limit 1)
        end,
        (select m.vt from "tocsin".messages m where m.queue_id = q.id and m.state = 'delayed'
         order by m.vt limit 1),
        (select m.vt from "tocsin".messages m where m.queue_id = q.id and m.state = 'leased'
         order by m.vt limit 1),
        case when with_ready then
            (select "tocsin"._clock() from "tocsin".limit_checks c where c.queue_id = q.id limit 1)
        end
    )
    into at
    from "tocsin".queues q
    where q.id = _next_due.queue_id and q.paused_at is null;
    -- greatest() ignores null
    return greatest(case when with_ready and at is not null then 0 end,
                    extract(epoch from at - "tocsin"._clock()));
end
$$;



CREATE FUNCTION tocsin._note_check(queue_ids integer[], limit_id bigint, key text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    q integer;
begin
    foreach q in array queue_ids loop
        -- a row that another transaction has deleted would fail at a stricter level
        if current_setting('transaction_isolation') = 'read committed' then
            perform from "tocsin".limit_checks c
            where c.queue_id = q and c.limit_id = _note_check.limit_id
                and c.key = _note_check.key
            limit 1 for share skip locked;
        end if;
        if current_setting('transaction_isolation') <> 'read committed' or not found then
            insert into "tocsin".limit_checks (queue_id, limit_id, key) values (q, limit_id, key);
        end if;
        perform "tocsin"._ring(q);
    end loop;
end
$$;



CREATE FUNCTION tocsin._note_free(limit_id bigint, key text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
    perform "tocsin"._note_check(
        case when current_setting('transaction_isolation') = 'read committed' then
            array(select x.queue_id from "tocsin".limit_queues x
                  where x.limit_id = _note_free.limit_id order by 1)
        else array(select q.id from "tocsin".queues q order by 1) end, limit_id, key);
end
$$;



CREATE FUNCTION tocsin._note_waiting(limit_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
begin
    perform "tocsin"._note_free(_note_waiting.limit_id, s.key)
    from (select distinct x.key from "tocsin".slots x
          where x.limit_id = _note_waiting.limit_id and x.waits) s;
end
$$;



CREATE FUNCTION tocsin._oldest_ready(queue_id integer, t timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
    with recursive front as (
        (select m.priority, m.due from "tocsin".messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'ready'
         order by m.priority, m.due, m.id limit 1)
        union all
        select n.priority, n.due
        from front f
        cross join lateral (select m.priority, m.due from "tocsin".messages m
                            where m.queue_id = _oldest_ready.queue_id and m.state = 'ready'
                                and m.priority > f.priority
                            order by m.priority, m.due, m.id limit 1) n
    )
    select least(
        (select min(f.due) from (select x.due from front x limit 1000) f),
        (select m.vt from "tocsin".messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'delayed' and m.vt <= t
             order by m.vt limit 1),
        (select m.vt from "tocsin".messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'leased' and m.vt <= t
             order by m.vt limit 1))
$$;



CREATE FUNCTION tocsin._order_kept_for(queue_id integer) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    t timestamptz;
    until timestamptz;
    head bigint;
    seconds float8;
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('order', queue_id));
    t := "tocsin"._clock();
    select m.vt into until from "tocsin".messages m
    where m.queue_id = _order_kept_for.queue_id and m.state = 'leased' order by m.vt limit 1;
    if until is null then
        select least(m.vt, m.expires_at) into until from "tocsin".messages m
        where m.queue_id = _order_kept_for.queue_id and m.state = 'delayed' and m.due < m.vt
            order by m.vt limit 1;
    end if;
    if until is not null then
        seconds := extract(epoch from until - t);
        if seconds < 0.01 then
            -- another transaction has locked the message: see claim.sql
            seconds := greatest(0.01, least(-seconds / 4, 0.25));
        end if;
        return seconds;
    end if;
    select m.id into head from "tocsin".messages m
    where m.queue_id = _order_kept_for.queue_id and m.state = 'ready'
        order by m.priority, m.due, m.id limit 1;
    perform from "tocsin".messages m where m.id = head for update skip locked;
    return case when head is not null and not found then 0.25 end;
end
$$;



CREATE FUNCTION tocsin._outcomes(ids bigint[], settled bigint[]) RETURNS boolean[]
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    if cardinality(ids) = coalesce(cardinality(settled), 0) then
        return array_fill(true, array[cardinality(ids)]);
    end if;
    return (select array_agg(coalesce(g.id = any (settled), false) order by g.n)
            from unnest(ids) with ordinality as g (id, n));
end
$$;



CREATE TABLE tocsin.archive_policies (
    queue_id integer NOT NULL,
    retention interval NOT NULL,
    span integer DEFAULT 0 NOT NULL,
    covered tstzrange DEFAULT 'empty'::tstzrange NOT NULL,
    since timestamp with time zone DEFAULT '9999-01-01 00:00:00+00'::timestamp with time zone NOT NULL
);



COMMENT ON TABLE tocsin.archive_policies IS 'For each queue, how long to keep archived messages, and which partitions a statement that archives may use.';



COMMENT ON COLUMN tocsin.archive_policies.retention IS 'The retention of the queue.';



COMMENT ON COLUMN tocsin.archive_policies.covered IS 'The range of keep_until for which partitions of this span exist. Rows outside of it go to archive_rest.';



COMMENT ON COLUMN tocsin.archive_policies.since IS 'Transactions that began before this time do not use these partitions.';



CREATE FUNCTION tocsin._partition_span_for(a tocsin.archive_policies, keep_until timestamp with time zone) RETURNS integer
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select case when a.retention > '0 s' then case
        when a.covered @> keep_until and a.since <= pg_catalog.now() then a.span else 0 end end
$$;



CREATE FUNCTION tocsin._publish_partitions() RETURNS void
    LANGUAGE sql
    AS $$
    -- create_queue and update_queue write this row. A queue that was changed or
    -- restored by other means lacks it.
    insert into "tocsin".archive_policies (queue_id, retention)
    select q.id, q.retention from "tocsin".queues q
    where not exists (select from "tocsin".archive_policies a where a.queue_id = q.id)
        on conflict (queue_id) do nothing;
    update "tocsin".archive_policies a set retention = n.retention
    from (select x.queue_id, q.retention from "tocsin".archive_policies x
          join "tocsin".queues q on q.id = x.queue_id
          where x.retention <> q.retention for update of x skip locked) n
    where a.queue_id = n.queue_id;
    with there as (
        select w.queue_id, w.span, tstzrange(min(p.starts_at), max(p.ends_at)) as times
        from "tocsin"._wanted_partitions() w
        join "tocsin"._archive_partitions() p on p.span = w.span and p.starts_at = w.starts_at
        group by w.queue_id, w.span
    )
    update "tocsin".archive_policies a
    set span = coalesce(n.span, 0), covered = coalesce(n.times, 'empty'),
        since = pg_catalog.clock_timestamp()
    from (select x.queue_id, t.span, t.times from "tocsin".archive_policies x left
          join there t on t.queue_id = x.queue_id
          for update of x skip locked) n
    where a.queue_id = n.queue_id
      and ((a.span, a.covered) is distinct from (coalesce(n.span, 0), coalesce(n.times, 'empty'))
           or a.span > 0 and a.since > pg_catalog.clock_timestamp() + interval '1 s')
$$;



CREATE FUNCTION tocsin._purge_expired_dead_letters(most integer) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    queue record;
    purged bigint := 0;
    n bigint;
begin
    for queue in select q.id, "tocsin"._later(t, -q.dead_letter_retention) as before
        from "tocsin".queues q where q.dead_letter_retention < '1000 years' loop
        delete from "tocsin".dead_letters d
        where d.id = any (array(
            select x.id from "tocsin".dead_letters x
                where x.queue_id = queue.id and x.died_at <= queue.before
                    and (x.flow_id is null or not exists (
                        select from "tocsin".flows f where f.id = x.flow_id and f.ended_at is null))
            order by x.died_at limit most - purged for update skip locked));
        get diagnostics n = row_count;
        purged := purged + n;
        exit when purged >= most;
    end loop;
    return purged;
end
$$;



CREATE FUNCTION tocsin._purge_stopped_workers(most integer) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    purged bigint;
begin
    delete from "tocsin".workers w
    where w.status = 'stopped' and w.id = any (array(
        select x.id from "tocsin".workers x
        where x.status = 'stopped'
          and x.shutdown_at <= t - case x.kind when 'producer' then interval '24 hours'
              else interval '720 hours' end
        limit most for update skip locked));
    get diagnostics purged = row_count;
    return purged;
end
$$;



CREATE FUNCTION tocsin._raise_error(code text, message text, detail jsonb, hint text DEFAULT ''::text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    raise exception using errcode = code, message = message, detail = detail::text, hint = hint;
end
$$;



CREATE FUNCTION tocsin._read_progress(progress jsonb, lease bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select case when (progress ->> 'lease')::bigint = lease then (progress - 'lease')::text end $$;



CREATE FUNCTION tocsin._readable_queue(queue text) RETURNS integer
    LANGUAGE plpgsql STABLE
    AS $$
declare
    q "tocsin".queues;
begin
    if queue is null then
        return null;
    end if;
    q := "tocsin".find_queue(queue);
    if not "tocsin"._may_read_outcomes(q.id) then
        perform "tocsin"._refuse_caller(format('see jobs of queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.');
    end if;
    return q.id;
end
$$;



CREATE FUNCTION tocsin._readable_queues() RETURNS integer[]
    LANGUAGE sql STABLE
    AS $$
    select case when not "tocsin"._may_consume() then array(
        select q.id from "tocsin".queues q where "tocsin"._may_enqueue(q.id, null)) end
$$;



CREATE FUNCTION tocsin._reap_dead_processes(process_id bigint, living integer DEFAULT NULL::integer, stop_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS double precision
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    up_since timestamptz := "tocsin"._record_uptime(t);
    p "tocsin".processes;
    wait float8;
    again_in float8;
begin
    for p in
        (select x.* from "tocsin".processes x where x.id > process_id order by x.id)
        union all
        (select x.* from "tocsin".processes x where x.id < process_id order by x.id)
    loop
        wait := "tocsin"._reap_if_dead(p, t, up_since);
        if wait is null then
            living := living - 1;
            exit when living <= 0;
        elsif wait > 0 then
            again_in := least(again_in, wait);
        elsif "tocsin"._clock() >= stop_at then
            return 0;
        end if;
    end loop;
    return again_in;
end
$$;



CREATE FUNCTION tocsin._reap_if_dead(p tocsin.processes, t timestamp with time zone, up_since timestamp with time zone) RETURNS double precision
    LANGUAGE plpgsql
    AS $$
declare
    seems_alive boolean;
    dead_at timestamptz;
begin
    select e.seems_alive, e.dead_at into seems_alive, dead_at
        from "tocsin"._examine(p, t, up_since) e;
    if seems_alive then
        return null;
    elsif p.heartbeat_at > t + interval '1 s' then
        perform "tocsin"._correct_heartbeats(t);
    end if;
    if dead_at > t then
        return extract(epoch from dead_at - t);
    end if;
    -- Another session may be declaring the process dead, or the process may just have
    -- sent a heartbeat. Its row is then locked or changed.
    perform from "tocsin".processes x
    where x.id = p.id and x.lifeline is not distinct
        from p.lifeline and x.heartbeat_at = p.heartbeat_at
    for update skip locked;
    if found and "tocsin"._try_lock_workers(p.id) then
        perform "tocsin"._end_process(p.id, died => true);
        return 0;
    end if;
    return 1;
end
$$;



CREATE FUNCTION tocsin._record_uptime(t timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql
    AS $$
declare
    up_since timestamptz;
begin
    insert into "tocsin".uptime (since) select t
        where not exists (select from "tocsin".uptime) on conflict do nothing;
    update "tocsin".uptime u set since = t where u.since > t;
    select greatest(u.since, case when pg_postmaster_start_time() <= t
                    then pg_postmaster_start_time() end) into up_since from "tocsin".uptime u;
    return up_since;
end
$$;



CREATE FUNCTION tocsin._refuse_caller(doing text, hint text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._raise_error('TC030', format('role "%s" may not %s', "tocsin"._caller(), doing),
                                jsonb_build_object('role', "tocsin"._caller()),
                          hint);
end
$$;



CREATE FUNCTION tocsin._refuse_change(message_id bigint, queue text, key text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    found_message "tocsin".message_info;
begin
    select x.* into found_message from "tocsin".get_message(message_id) x;
    if found then
        perform "tocsin"._check_change(found_message.queue_id);
        perform "tocsin"._raise_error('TC015',
            format('message %s cannot be changed: it is %s', message_id, found_message.state),
            jsonb_build_object('message_id', message_id, 'state', found_message.state),
            case found_message.state when 'leased'
                then 'A worker holds it: wait until the worker has settled it.'
                                     when 'dead'
                                         then 'Replay, archive or purge the dead letter.'
                                     when 'archived' then 'It is finished: enqueue another message.'
                                     else 'Another transaction has locked it: try again.' end);
    end if;
    perform "tocsin"._raise_error('TC016',
        case when key is null then format('message %s does not exist', message_id)
             else format('no unfinished message of queue "%s" has the key "%s"', queue, key) end,
        jsonb_build_object('message_id', message_id, 'key', key));
end
$$;



CREATE FUNCTION tocsin._refuse_deletion(q tocsin.queues) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    active bigint := (select count(*) from "tocsin".workers w
                      where w.queue_id = q.id and w.status <> 'stopped');
    unfinished bigint := "tocsin"._count_unfinished(q.id);
begin
    if active > 0 or unfinished > 0 then
        perform "tocsin"._raise_error('TC010',
            format('queue "%s" has %s worker(s) that are not stopped and %s unfinished message(s)',
                   q.name, active, unfinished),
            jsonb_build_object('queue', q.name, 'workers', active, 'messages', unfinished),
            'Stop the workers and purge the messages first, or delete the queue with force.');
    end if;
end
$$;



CREATE FUNCTION tocsin._refuse_ended(w tocsin.workers) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._raise_error('TC006',
                                format('worker %s ("%s") has been registered by process %s on '
                                       '%s since', w.id, w.name, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', 'stopped', 'to', w.status, 'code',
                           'registration_ended', 'reason', 'its registration has ended'),
        'It was declared dead. Register it again, under its name or another.');
end
$$;



CREATE FUNCTION tocsin._refuse_held(w tocsin.workers) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    held bigint := "tocsin"._count_held(w);
begin
    if held > 0 then
        perform "tocsin"._raise_error('TC007',
                                    format('worker %s ("%s") holds %s message(s)', w.id, w.name,
                                           held),
            jsonb_build_object('worker_id', w.id, 'count', held),
            'Settle or release them first, or suspend with release or drain.');
    end if;
end
$$;



CREATE FUNCTION tocsin._refuse_large(q tocsin.queues, problem text, actual integer, index bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._raise_error('TC003',
        format(problem || ' the limit of queue "%s", %s bytes', actual, q.name, q.max_payload),
        jsonb_build_object('actual', actual, 'maximum', q.max_payload, 'index', index),
        'Store the data elsewhere and enqueue a reference, or raise the queue''s max_payload.');
end
$$;



CREATE FUNCTION tocsin._refuse_missing(queue text) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
begin
    perform "tocsin"._raise_error('TC001', format('queue "%s" does not exist', queue),
                                jsonb_build_object('queue', queue),
                          'Create the queue first, for example with ensure_queue.');
end
$$;



CREATE FUNCTION tocsin._refuse_task(task text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._check_any_grant();
    perform "tocsin"._raise_error('TC041', format('no worker has registered a task "%s"', task),
                                jsonb_build_object('task', task),
                                'Start a worker that runs the task, once, or correct the name.');
end
$$;



CREATE FUNCTION tocsin._refuse_transition(w tocsin.workers, target text, code text, reason text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._raise_error(case w.status when 'stopped' then 'TC006' else 'TC005' end,
        format('worker %s ("%s") is %s: %s', w.id, w.name, w.status, reason),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', target, 'code', code,
                           'reason', reason),
        case when code = 'not_stopped' then 'Stop the worker first.'
             when w.status = 'suspended' then 'Resume the worker, or shut it down.'
             when w.status = 'stopped' then 'Register the worker again by its name.'
             else 'Wait until the worker is in another state, or suspend it.' end);
end
$$;



CREATE FUNCTION tocsin._release_held(w tocsin.workers, counted boolean, outcome text, keep_ids bigint[] DEFAULT '{}'::bigint[], keep_leases bigint[] DEFAULT '{}'::bigint[]) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET lock_timeout TO '1s'
    AS $$
declare
    ids bigint[];
    leases bigint[];
begin
    begin
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from "tocsin".messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease
                                            from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update) h;
    exception when lock_not_available then
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from "tocsin".messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease
                                            from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update skip locked) h;
    end;
    if ids is null then
        return 0;
    end if;
    return (select count(*)
            from unnest("tocsin"._requeue(ids, leases, '0 s', counted, outcome)) g (outcome)
                where g.outcome is not null);
end
$$;



CREATE FUNCTION tocsin._remove_queue(q tocsin.queues, force boolean, OUT worker_count bigint, OUT message_count bigint, OUT archived_count bigint, OUT dead_letter_count bigint) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $$
declare
    patience timestamptz;
    closed boolean := false;
    emptied boolean := false;
begin
    message_count := 0;
    dead_letter_count := 0;
    loop
        if not closed then
            closed := "tocsin"._try_close_workers(q);
            if closed and force is not true then
                perform "tocsin"._refuse_deletion(q);
            end if;
        end if;
        if closed then
            select t.* into message_count, dead_letter_count, emptied
                from "tocsin"._try_empty_queue(q, message_count, dead_letter_count) t;
        end if;
        exit when emptied;
        patience := coalesce(patience, "tocsin"._clock() + interval '250 ms');
        if "tocsin"._clock() > patience then
            raise lock_not_available;
        end if;
        perform pg_sleep(0.005);
    end loop;
    archived_count := "tocsin".purge_archive(q.id, null, false);
    perform "tocsin"._end_parents(e.parents, succeeded => false, gone => true)
    from (select jsonb_object_agg(j.job_id, null) as parents from "tocsin".flow_jobs j
          where j.queue_id = q.id) e
    where e.parents is not null;
    perform "tocsin"._tell_process(w) from "tocsin".workers w
        where w.queue_id = q.id and w.status <> 'stopped';
    delete from "tocsin".workers w where w.queue_id = q.id;
    get diagnostics worker_count = row_count;
    -- Delete these rows explicitly: foreign keys are triggers, and may be off.
    delete from "tocsin".archive_policies a where a.queue_id = q.id;
    delete from "tocsin".queue_grants g where g.queue_id = q.id;
    delete from "tocsin".limit_queues l where l.queue_id = q.id;
    delete from "tocsin".limit_checks c where c.ctid = any (array(
        select x.ctid from "tocsin".limit_checks x where x.queue_id = q.id for update skip locked));
    delete from "tocsin".schedules s where s.queue_id = q.id;
    delete from "tocsin".tasks k where k.queue_id = q.id;
    delete from "tocsin".queues x where x.id = q.id;
end
$$;



CREATE FUNCTION tocsin._reopen_flows(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
    perform from "tocsin".flows f where f.id = any (ids) order by f.id for update;
    update "tocsin".flows f set ended_at = null, keep_until = null
    where f.id = any (ids) and f.ended_at is not null;
end
$$;



CREATE FUNCTION tocsin._replace_tick(s tocsin.schedules, next_tick timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
begin
    s.generation := s.generation + 1;
    s.next_tick := case when s.paused_at is null then _replace_tick.next_tick end;
    update "tocsin".schedules x
    set generation = s.generation, anchor = s.anchor, handled_to = s.handled_to,
        next_tick = s.next_tick, paused_at = s.paused_at
    where x.id = s.id;
    delete from "tocsin".messages m
    where m.queue_id = s.queue_id and m.key = "tocsin"._tick_key(s.id) and m.task = '$tick';
    if s.paused_at is null then
        perform "tocsin"._enqueue_tick(s);
    end if;
end
$_$;



CREATE FUNCTION tocsin._requeue(ids bigint[], leases bigint[], delay interval, counted boolean, outcome text, errors text[] DEFAULT NULL::text[], tracebacks text[] DEFAULT NULL::text[], delays double precision[] DEFAULT NULL::double precision[], verdicts text[] DEFAULT NULL::text[], keep_place boolean DEFAULT false) RETURNS double precision[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    outcomes float8[];
    refused bigint[];
begin
    with held as (
        select m.id, m.queue_id, m.due, g.error, g.traceback, v.outcome, c.counted, m.lease,
               m.cancel_reason is not null as cancelled,
               m.task is not distinct from '$tick' as tick,
               m.cancel_reason is null
                   and (v.outcome = 'rejected' or g.delay is not distinct from 'Infinity'
                        or c.counted and m.read_ct >= coalesce(m.max_deliveries, q.max_deliveries))
                   as exhausted,
               coalesce(make_interval(secs => nullif(g.delay, 'Infinity')), _requeue.delay,
                        "tocsin"._backoff(q, m.read_ct)) as delay,
               case when c.counted then "tocsin"._describe_delivery(m, t, v.outcome, g.error)
               end as delivery
        from (select x.id, x.lease, x.error, x.traceback, x.delay, x.verdict
              from unnest(ids, leases, errors, tracebacks, delays, verdicts) as x (id, lease, error,
                  traceback, delay, verdict)
              order by x.id) g
        cross join lateral (select coalesce(g.verdict, _requeue.outcome)) v (outcome)
        cross join lateral (select _requeue.counted and v.outcome <> 'snoozed') c (counted)
        join "tocsin".messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
            and m.state is not distinct from 'leased'
        join "tocsin".queues q on q.id = m.queue_id
        for update of m
    ), returned as (
        update "tocsin".messages m
        set state = (case when h.delay > '0 s' then 'delayed'
                     else 'ready' end)::"tocsin".message_state,
            -- a tick of a schedule keeps no place: this consumer leaves it to a worker
            due = case when h.delay > '0 s' and (h.tick or not keep_place)
                then "tocsin"._later(t, h.delay) else least(h.due, t) end,
            vt = case when h.delay > '0 s' then "tocsin"._later(t, h.delay) else least(h.due, t) end,
            read_ct = m.read_ct - (not h.counted)::integer,
            last_error = coalesce(h.error, m.last_error),
            history = "tocsin"._add_delivery(m.history, h.delivery)
        from held h
        where m.id = any (ids) and m.id = h.id and not h.exhausted and not h.cancelled
    ), moved as (
        select "tocsin"._move_to_dead_letters(
            array_agg(h.id),
            h.outcome,
            array_agg(h.error), array_agg(h.traceback), array_agg(h.delivery))
        from held h where h.exhausted group by h.outcome
    ), cancelled as (
        select "tocsin"._archive(array_agg(h.id), array_agg(h.lease), outcome => 'cancelled')
        from held h where h.cancelled having count(*) > 0
    ), rung as (
        select "tocsin"._ring(b.queue_id)
            from (select distinct h.queue_id from held h where not h.exhausted) b
    )
    select array_agg(case when h.exhausted then 'Infinity' when h.cancelled then '-Infinity'
                     else extract(epoch from h.delay)::float8 end order by g.n) into outcomes
    from unnest(ids) with ordinality as g (id, n)
    left join (select x.id, bool_or(x.exhausted) as exhausted, bool_or(x.cancelled) as cancelled,
                   max(x.delay) as delay from held x
               group by x.id) h on h.id = g.id
    cross join (select count(*) from moved) all_moved  -- a CTE that is not read is not run
    cross join (select count(*) from cancelled) all_cancelled
    cross join (select count(*) from rung) all_rung;
    -- A message that could not become a dead letter is delayed: see
    -- _move_to_dead_letters.
    if 'Infinity' = any (outcomes) then
        select array_agg(m.id) into refused from "tocsin".messages m
            where m.id = any (ids) and m.state = 'delayed';
        if refused is not null then
            select array_agg(case when g.outcome = 'Infinity' and g.id = any (refused) then 60
                             else g.outcome end order by g.n) into outcomes
            from unnest(ids, outcomes) with ordinality as g (id, outcome, n);
        end if;
    end if;
    return coalesce(outcomes, '{}');
end
$_$;



CREATE FUNCTION tocsin._resolve_queue(ids bigint[], queue text) RETURNS integer
    LANGUAGE plpgsql STABLE
    AS $$
begin
    if queue is not null then
        return ("tocsin".find_queue(queue)).id;
    elsif ids is null then
        perform "tocsin"._raise_error('TC022', 'name dead letters by ids or by a queue',
                                    '{"argument": "queue"}');
    end if;
    return null;
end
$$;



CREATE FUNCTION tocsin._restore_ticks() RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
begin
    perform "tocsin"._enqueue_tick(missing.s)
    from (select x as s from "tocsin".schedules x
          where x.paused_at is null
              and not exists (select from "tocsin".messages m
                              where m.queue_id = x.queue_id and m.key = "tocsin"._tick_key(x.id))
          for update skip locked) missing;
end
$$;



CREATE FUNCTION tocsin._ring(queue_id integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform "tocsin"._ring(q) from "tocsin".queues q where q.id = _ring.queue_id;
end
$$;



CREATE FUNCTION tocsin._ring(q tocsin.queues) RETURNS void
    LANGUAGE sql
    AS $$
    select case when "tocsin"._decide_to_ring(q.id, q.notify) then
        case when pg_notification_queue_usage() < 0.9 then pg_notify(q.channel, '') end
    end
$$;



CREATE FUNCTION tocsin._ring_inserted() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    perform from (select min(n.queue_id) as first, max(n.queue_id) as last from inserted n) i
    where case when i.first = i.last
        then (select "tocsin"._try_ring(q) from "tocsin".queues q where q.id = i.first) end is not true;
    if found then
        perform from (select distinct n.queue_id from inserted n) i
        where (select "tocsin"._try_ring(q) from "tocsin".queues q where q.id = i.queue_id) is not true;
        if found then
            perform "tocsin"._ring_late(i.queue_id)
                from (select distinct n.queue_id from inserted n) i;
        end if;
    end if;
    return null;
end
$$;



CREATE FUNCTION tocsin._ring_late(queue_id integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    q "tocsin".queues;
begin
    select x.* into q from "tocsin".queues x where x.id = queue_id;
    perform pg_advisory_xact_lock_shared("tocsin"._lock_key('rung', queue_id));
    -- finds no row or fails for a deleted queue, whatever the snapshot shows
    perform from "tocsin".queues x where x.id = queue_id for key share;
    if not found then
        -- the INSERT saw the queue, this statement does not
        perform "tocsin"._refuse_missing(coalesce(q.name, 'number ' || queue_id));
    end if;
    perform pg_notify(q.channel, '') where pg_notification_queue_usage() < 0.9;
end
$$;



CREATE FUNCTION tocsin._roll_up_count_deltas() RETURNS void
    LANGUAGE sql
    AS $$
    delete from "tocsin".archived_counts c
        where not exists (select from "tocsin".queues q where q.id = c.queue_id);
    with taken as (
        delete from "tocsin".archive_count_deltas y
            where y.archived_at <= "tocsin"._clock() - interval '1 minute' returning y.*
    )
    insert into "tocsin".archived_counts as c (queue_id, span, starts_at, n)
    select y.queue_id, y.span, "tocsin"._archive_slot(y.span, y.keep_until), sum(y.n)
    from taken y join "tocsin".queues q on q.id = y.queue_id
    where y.span is not null
    group by 1, 2, 3
    on conflict (queue_id, span, starts_at) do update set n = c.n + excluded.n
$$;



CREATE FUNCTION tocsin._scheduled_key(s tocsin.schedules, tick timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select "tocsin"._tick_key(s.id) || '/' || case when s.overlap = 'skip' then 'job'
        else to_char(tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') end
$$;



CREATE FUNCTION tocsin._shared_after_all(key bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    return case
        when not pg_try_advisory_lock_shared(key) then false
        when not pg_advisory_unlock_shared(key) then false
        when pg_try_advisory_lock(key) then not pg_advisory_unlock(key)
        else true
    end;
end
$$;



CREATE FUNCTION tocsin._shared_elsewhere(key bigint) RETURNS boolean
    LANGUAGE sql
    AS $$ select case when pg_try_advisory_lock(key) then not pg_advisory_unlock(key)
    else "tocsin"._shared_after_all(key) end $$;



CREATE FUNCTION tocsin._spend(l tocsin.limits, s tocsin.slots) RETURNS boolean
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    step float8 := extract(epoch from l.per) / coalesce(l.set_n, l.n);
    due_at timestamptz;
    next_at timestamptz;
begin
    select x.next_at into next_at from "tocsin".rates x where x.limit_id = l.id and x.key = s.key;
    due_at := greatest(t, next_at - make_interval(secs => step * (l.burst - 1)));
    -- a time in the past is as none: each message with a new key lets two of them go
    delete from "tocsin".rates x where x.ctid = any (array(
        select y.ctid from "tocsin".rates y
        where y.limit_id = l.id and y.next_at <= t order by y.next_at limit 2));
    insert into "tocsin".rates as x (limit_id, key, next_at)
    values (l.id, s.key, greatest(next_at, due_at) + make_interval(secs => step))
    on conflict (limit_id, key) do update set next_at = excluded.next_at;
    update "tocsin".slots x set paid = true, waits = false
    where x.message_id = s.message_id and x.limit_id = l.id;
    if due_at <= t then
        return true;
    end if;
    update "tocsin".messages m set state = 'delayed', due = due_at, vt = due_at
    where m.id = s.message_id;
    return false;
end
$$;



CREATE FUNCTION tocsin._submit_scheduled(s tocsin.schedules, tick timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    k "tocsin".tasks;
    options jsonb;
    job_id bigint;
begin
    select x.* into k from "tocsin".tasks x where x.name = s.task;
    options := jsonb_strip_nulls(jsonb_build_object('timeout', s.timeout, 'tick', tick));
    if k.limits <> '[]' then
        options := options || jsonb_build_object('limits', "tocsin"._limits_of(k, s.arguments));
    end if;
    insert into "tocsin".messages (queue_id, priority, state, due, vt, enqueued_at, expires_at,
                                 max_deliveries, key, payload, headers, task, options)
    values (s.queue_id, coalesce(s.priority, k.priority, 0), 'ready', least(tick, t),
            least(tick, t), t, "tocsin"._later(t, s.expires_in),
            coalesce(s.max_attempts, k.max_deliveries), "tocsin"._scheduled_key(s, tick),
            s.arguments, s.headers, s.task,
            options)
    on conflict (queue_id, key) where key is not null do nothing
    returning id into job_id;
    return job_id;
end
$$;



CREATE FUNCTION tocsin._sweep_orphans(most integer DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    swept bigint;
begin
    with gaps as (
        select coalesce(lag(q.id) over (order by q.id), 0) as above, q.id as below
            from "tocsin".queues q
        union all
        select coalesce(max(q.id), 0), 2147483647 from "tocsin".queues q
    ), orphans as (
        select o.id
        from gaps g
        cross join lateral (
            select m.id from "tocsin".messages m
                where m.queue_id > g.above and m.queue_id < g.below and m.state = 'ready'
            union all
            select m.id from "tocsin".messages m
                where m.queue_id > g.above and m.queue_id < g.below and m.state = 'held'
            union all
            select m.id from "tocsin".messages m
                where m.queue_id > g.above and m.queue_id < g.below
                    and m.state in ('delayed', 'leased')
        ) o
        where g.below - g.above > 1
        limit most
    )
    delete from "tocsin".messages m using orphans o where m.id = o.id;
    get diagnostics swept = row_count;
    return swept;
end
$$;



CREATE FUNCTION tocsin._tell_process(w tocsin.workers, leases_taken boolean DEFAULT false) RETURNS void
    LANGUAGE sql
    AS $$
    select pg_notify("tocsin".process_channel(w.process_id), case when leases_taken
                     then 'leases ' || w.id else '' end)
    -- see ring.sql; the next heartbeat tells the process, too
    where w.process_id is not null and pg_notification_queue_usage() < 0.9
$$;



CREATE FUNCTION tocsin._tick_key(schedule_id bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$ select '$schedule/' || schedule_id $_$;



CREATE FUNCTION tocsin._try_close_workers(q tocsin.queues) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    perform from "tocsin".queues x where x.id = q.id for update skip locked;
    if not found then
        if not exists (select from "tocsin".queues x where x.id = q.id) then
            perform "tocsin"._refuse_missing(q.name);
        end if;
        return false;
    end if;
    -- shared: deletions do not exclude each other
    return pg_try_advisory_xact_lock_shared("tocsin"._lock_key('maintain', 0))
        and (select coalesce(bool_and(pg_try_advisory_xact_lock("tocsin"._lock_key('worker', w.id))),
                             true)
             from "tocsin".workers w where w.queue_id = q.id)
        and (select count(*)
             from (select from "tocsin".workers w where w.queue_id = q.id for update skip locked) had)
          = (select count(*) from "tocsin".workers w where w.queue_id = q.id);
end
$$;



CREATE FUNCTION tocsin._try_empty_queue(q tocsin.queues, INOUT messages bigint, INOUT letters bigint, OUT emptied boolean) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    n bigint;
begin
    emptied := false;
    delete from "tocsin".messages m where m.ctid = any (array(
        select x.ctid from "tocsin".messages x where x.queue_id = q.id and x.state = 'leased'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from "tocsin".dead_letters d where d.ctid = any (array(
        select x.ctid from "tocsin".dead_letters x where x.queue_id = q.id for update skip locked));
    get diagnostics n = row_count;
    letters := letters + n;
    if exists (select from "tocsin".messages x where x.queue_id = q.id and x.state = 'leased')
       or exists (select from "tocsin".dead_letters x where x.queue_id = q.id) then
        return;
    end if;
    delete from "tocsin".messages m where m.ctid = any (array(
        select x.ctid from "tocsin".messages x where x.queue_id = q.id and x.state = 'held'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from "tocsin".messages m where m.ctid = any (array(
        select x.ctid from "tocsin".messages x where x.queue_id = q.id and x.state = 'delayed'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from "tocsin".messages m where m.ctid = any (array(
        select x.ctid from "tocsin".messages x where x.queue_id = q.id and x.state = 'ready'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    emptied := not exists (select from "tocsin".messages x
                           where x.queue_id = q.id and x.state = 'leased')
           and not exists (select from "tocsin".messages x
                           where x.queue_id = q.id and x.state = 'held')
           and not exists (select from "tocsin".messages x
                           where x.queue_id = q.id and x.state = 'delayed')
           and not exists (select from "tocsin".messages x
                           where x.queue_id = q.id and x.state = 'ready')
           and not exists (select from "tocsin".dead_letters x where x.queue_id = q.id);
end
$$;



CREATE FUNCTION tocsin._try_lock_workers(process_id bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
declare
    worker_id bigint;
begin
    for worker_id in select w.id from "tocsin".workers w
        where w.process_id = _try_lock_workers.process_id order by w.id loop
        if not pg_try_advisory_xact_lock("tocsin"._lock_key('worker', worker_id)) then
            raise lock_not_available;
        end if;
    end loop;
    return true;
exception when lock_not_available then  -- the locks taken so far are released
    return false;
end
$$;



CREATE FUNCTION tocsin._try_ring(q tocsin.queues) RETURNS boolean
    LANGUAGE sql
    AS $$
    select case
        when not "tocsin"._decide_to_ring(q.id, q.notify) then true
        when not pg_try_advisory_xact_lock_shared("tocsin"._lock_key('rung', q.id)) then false
        when set_config('bell.rung', case when q.notify = 'on_demand' then q.channel
                        else '' end, true) is null then false
        when pg_notification_queue_usage() >= 0.9 then true
        else pg_notify(q.channel, '') is not null
    end
$$;



CREATE FUNCTION tocsin._unserved_tasks(queue_id integer, t timestamp with time zone, max_age interval) RETURNS TABLE(task text, n bigint, since timestamp with time zone)
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $_$
#variable_conflict use_column
begin
    return query
        with front as (
            (select m.task, m.enqueued_at, m.due, m.dequeued_at from "tocsin".messages m
             where m.queue_id = _unserved_tasks.queue_id and m.state = 'ready'
             order by m.priority, m.due, m.id limit 1000)
            union all
            (select m.task, m.enqueued_at, m.due, m.dequeued_at from "tocsin".messages m
             where m.queue_id = _unserved_tasks.queue_id and m.state = 'delayed'
                 and m.vt <= t + interval '10 s'
             order by m.vt limit 1000)
        ), waiting as (
            -- a worker that leaves a job changes when the job is due
            select f.task, case when f.dequeued_at is null then f.due else f.enqueued_at end as since
            from front f where f.task is distinct from '$tick'
        ), tasks as (
            select w.task, count(*) as n, min(w.since) as since
            from waiting w where w.since < "tocsin"._later(t, -max_age) group by w.task
        )
        select k.task, k.n, k.since
        from tasks k
        where not exists (
            select from "tocsin".workers w left join "tocsin".processes p on p.id = w.process_id
            where w.queue_id = _unserved_tasks.queue_id and w.kind = 'consumer'
                and w.status in ('ready', 'polling', 'stopped')
                and greatest(w.heartbeat_at, p.heartbeat_at, w.shutdown_at)
                    >= "tocsin"._later(t, -max_age)
                and (w.tasks is null or k.task = any (w.tasks)))
        order by k.task;
end
$_$;



CREATE FUNCTION tocsin._update_limits(declared tocsin.limits[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    d "tocsin".limits;
begin
    foreach d in array declared loop
        update "tocsin".limits x set n = d.n, burst = d.burst, per = d.per
        where x.id = d.id and "tocsin"._may_consume()
            and (x.n, x.burst, x.per) is distinct from (d.n, d.burst, d.per);
        perform "tocsin"._note_waiting(d.id) where found;
    end loop;
end
$$;



CREATE FUNCTION tocsin._wanted_partitions() RETURNS TABLE(queue_id integer, span integer, starts_at timestamp with time zone)
    LANGUAGE sql
    AS $$
    select a.queue_id, a.span,
        "tocsin"._archive_slot(a.span, a.keep_until) + make_interval(hours => ahead * a.span)
    from (select x.queue_id, "tocsin"._archive_span(x.retention) as span,
          "tocsin"._keep_until(x.retention, "tocsin"._clock()) as keep_until
          from "tocsin".archive_policies x where x.retention > '0 s') a
    cross join generate_series(0, 1) ahead
    where a.span > 0
$$;



CREATE FUNCTION tocsin.archive(ids bigint[], leases bigint[], results jsonb DEFAULT NULL::jsonb, unless_cancelled boolean DEFAULT false) RETURNS boolean[]
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._archive(ids, leases, results, unless_cancelled => unless_cancelled) $$;



CREATE FUNCTION tocsin.archive_dead_letters(ids bigint[] DEFAULT NULL::bigint[], queue text DEFAULT NULL::text, reason text DEFAULT NULL::text, error text DEFAULT NULL::text, older_than interval DEFAULT NULL::interval, max_letters integer DEFAULT NULL::integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    taken bigint[] := "tocsin"._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    t timestamptz := "tocsin"._clock();
begin
    with removed as (
        delete from "tocsin".dead_letters d where d.id = any (taken) returning d.*
    ), shelved as (
        select a.queue_id, k.until, "tocsin"._partition_span_for(a, k.until) as span
        from "tocsin".archive_policies a
        cross join lateral (select "tocsin"._keep_until(a.retention, t)) k (until)
    ), kept as (
        insert into "tocsin".archive (id, queue_id, priority, read_ct, span, enqueued_at, dequeued_at,
                                    archived_at, keep_until,
                                    producer_worker_id, consumer_worker_id, key, payload, headers,
                                    last_error, history, task, options, outcome)
        select d.id, d.queue_id, d.priority, d.read_ct, s.span, d.enqueued_at, d.dequeued_at, t,
            s.until, d.producer_worker_id,
               d.consumer_worker_id, d.key, d.payload, d.headers, coalesce(d.error, d.reason),
               d.history, d.task, d.options, case when d.task is not null then 'failed' end
        from removed d join shelved s on s.queue_id = d.queue_id
        where s.span is not null
    )
    insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
    select s.queue_id, s.span, s.until, t, count(*)
    from removed d join shelved s on s.queue_id = d.queue_id
    group by s.queue_id, s.span, s.until;
    perform "tocsin"._give_up(taken);
    return cardinality(taken);
end
$$;



CREATE FUNCTION tocsin.archived_count(queue_id integer) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce((select sum(c.n) from "tocsin".archived_counts c
                     where c.queue_id = archived_count.queue_id), 0)::bigint
         + coalesce((select sum(y.n) from "tocsin".archive_count_deltas y
                     where y.queue_id = archived_count.queue_id and y.span is not null), 0)::bigint
$$;



CREATE FUNCTION tocsin.attach_process(process_id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    number bigint := nextval('"tocsin".lifelines');
    attached boolean;
begin
    perform pg_advisory_lock("tocsin"._lock_key('lifeline', number));
    update "tocsin".processes p set lifeline = number, detached = false,
        heartbeat_at = "tocsin"._clock() where p.id = process_id and "tocsin"._acts_for(p.role);
    attached := found;
    if not attached then
        perform pg_advisory_unlock("tocsin"._lock_key('lifeline', number));
        if exists (select from "tocsin".processes p
                   where p.id = process_id and not "tocsin"._acts_for(p.role)) then
            perform "tocsin"._refuse_caller(format('act for process %s', process_id),
                                          'Only its own role and administrators may act for it.');
        end if;
    end if;
    return attached;
end
$$;



CREATE FUNCTION tocsin.await_job(id bigint) RETURNS TABLE(session_number bigint, queue_id integer)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    select m.queue_id into await_job.queue_id from "tocsin".messages m
        where m.id = await_job.id and m.task is not null and "tocsin"._may_read_outcomes(m.queue_id);
    if not found then
        return;
    end if;
    session_number := nextval('"tocsin".lifelines');
    perform pg_advisory_lock("tocsin"._lock_key('lifeline', session_number));
    execute format('listen %I', "tocsin".process_channel(-session_number));
    insert into "tocsin".awaited (job_id, process_id) values (await_job.id, -session_number);
    return next;
end
$$;



CREATE FUNCTION tocsin.await_jobs(ids bigint[], process_id bigint, alone boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if alone then
        delete from "tocsin".awaited a using "tocsin".processes p
        where a.process_id = await_jobs.process_id and a.job_id <> all (ids)
            and p.id = a.process_id and "tocsin"._acts_for(p.role);
    end if;
    insert into "tocsin".awaited (job_id, process_id)
    select m.id, p.id
    from "tocsin".messages m
    join "tocsin".processes p on p.id = await_jobs.process_id and "tocsin"._acts_for(p.role)
    where m.id = any (ids) and m.task is not null and "tocsin"._may_read_outcomes(m.queue_id)
    on conflict do nothing;
end
$$;



CREATE FUNCTION tocsin.begin_awaiting(queue_ids integer[]) RETURNS integer[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform pg_advisory_lock_shared("tocsin"._lock_key('awaited', q)) from unnest(queue_ids) q;
    return "tocsin".unannounced_outcomes(queue_ids);
end
$$;



CREATE FUNCTION tocsin.begin_awaiting_jobs(ids bigint[], locked integer[]) RETURNS TABLE(job_id bigint, queue_id integer, again boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    jobs bigint[];
    queues integer[];
    unannounced integer[];
begin
    select array_agg(m.id), array_agg(m.queue_id) into jobs, queues
    from "tocsin".messages m
    where m.id = any (ids) and m.task is not null and "tocsin"._may_read_outcomes(m.queue_id);
    perform pg_advisory_lock_shared("tocsin"._lock_key('awaited', q.id))
    from (select distinct u.id from unnest(queues) u (id) where u.id <> all (locked)) q;
    unannounced := "tocsin".unannounced_outcomes(queues);
    return query select j.id, j.queue, j.queue = any (unannounced)
        from unnest(jobs, queues) j (id, queue);
end
$$;



CREATE FUNCTION tocsin.begin_poll(worker_id bigint, registration bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform "tocsin"._find_own_worker(worker_id);
    return "tocsin"._move_worker(worker_id, '{ready,polling}', 'polling',
                               registration => registration);
end
$$;



CREATE FUNCTION tocsin.begin_waiting(queue_ids integer[]) RETURNS integer[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform pg_advisory_lock_shared("tocsin"._lock_key('waiting', q)) from unnest(queue_ids) q;
    return "tocsin".unrung_transactions(queue_ids);
end
$$;



CREATE FUNCTION tocsin.cancel(message_id bigint DEFAULT NULL::bigint, queue text DEFAULT NULL::text, key text DEFAULT NULL::text, reason text DEFAULT 'cancelled'::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    m "tocsin".messages := "tocsin"._lock_waiting(message_id, queue, key, or_running => true);
begin
    reason := coalesce(reason, 'cancelled');
    if m.state = 'leased' and m.task is not null then
        update "tocsin".messages x set cancel_reason = cancel.reason
        where x.id = m.id and x.cancel_reason is null;
        if m.vt <= "tocsin"._clock() then
            perform "tocsin"._requeue(array[m.id], array[m.lease], '0 s', true, 'lease_expired');
        else
            perform "tocsin"._tell_process(w, leases_taken => true)
            from "tocsin".workers w where w.id = m.consumer_worker_id;
        end if;
        return m.id;
    end if;
    -- Lease the message first, so that "tocsin".archive accepts it like a handled
    -- message.
    update "tocsin".messages x
    set state = 'leased', lease = coalesce(m.lease, 0) + 1, last_error = cancel.reason,
        history = m.history
    where x.id = m.id;
    perform "tocsin"._archive(array[m.id], array[coalesce(m.lease, 0) + 1], outcome => 'cancelled');
    if m.due < m.vt then  -- the message kept its place, and so held up the queue: see order.sql
        perform "tocsin"._ring(m.queue_id);
    end if;
    return m.id;
end
$$;



CREATE FUNCTION tocsin.cancel_flow(flow_id bigint) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    ids bigint[] := "tocsin"._lock_flow(flow_id);
    t timestamptz := "tocsin"._clock();
    running bigint[];
    cancelled bigint[];
    leases bigint[];
begin
    running := array(select m.id from "tocsin".messages m
                     where m.id = any (ids) and m.state = 'leased' and m.vt > t order by m.id);
    with changed as (
        update "tocsin".messages m
        set state = 'leased', lease = coalesce(m.lease, 0) + 1, last_error = 'cancelled'
        where m.id = any (ids) and m.id <> all (running)
        returning m.id, m.lease
    )
    select array_agg(c.id order by c.id), array_agg(c.lease order by c.id) into cancelled, leases
    from changed c;
    perform "tocsin"._archive(cancelled, leases, outcome => 'cancelled') where cancelled is not null;
    perform "tocsin".cancel(r.id) from unnest(running) r (id);
    return coalesce(cancelled, '{}') || running;
end
$$;



CREATE FUNCTION tocsin.cancel_reasons(ids bigint[], leases bigint[]) RETURNS text[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (select coalesce(array_agg(m.cancel_reason order by g.n), '{}')
            from unnest(ids, leases) with ordinality as g (id, lease, n)
            left join "tocsin".messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
                and m.state is not distinct from 'leased');
end
$$;



CREATE FUNCTION tocsin.claim(worker_id bigint, registration bigint, max_messages integer, vt interval DEFAULT NULL::interval, from_priority integer DEFAULT NULL::integer, from_due timestamp with time zone DEFAULT NULL::timestamp with time zone, from_id bigint DEFAULT NULL::bigint, or_full_scan boolean DEFAULT true, finished_ids bigint[] DEFAULT NULL::bigint[], finished_leases bigint[] DEFAULT NULL::bigint[], durable boolean DEFAULT true, ordered boolean DEFAULT false, finished_results jsonb DEFAULT NULL::jsonb) RETURNS TABLE(kind text, id bigint, lease bigint, priority integer, read_ct integer, due timestamp with time zone, enqueued_at timestamp with time zone, vt_at timestamp with time zone, dequeued_at timestamp with time zone, producer_worker_id bigint, headers text, last_error text, max_deliveries integer, key text, payload text, task text, options text, next_due double precision)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    worker_lock bigint := "tocsin"._lock_key('worker', worker_id);
    q "tocsin".queues;
    archived boolean[];
    t timestamptz;
    token bigint;
    found_rows bigint;
    again float8;  -- seconds until a scan must grant slots
    ignored text;
begin
    if not durable then
        ignored := set_config('synchronous_commit', 'off', true);
    end if;
    -- Lock the worker before its messages, as a suspension does. A suspension waits for
    -- claims in progress by this lock. The claim reads the worker's status after it has
    -- taken the lock, in a separate statement. So either the claim sees the suspension,
    -- or the suspension sees the claim.
    if not pg_try_advisory_xact_lock_shared(worker_lock) then
        perform pg_advisory_xact_lock_shared(worker_lock);
    end if;
    if finished_ids is not null then
        -- as limit_lock_wait() does: see locks.sql
        ignored := set_config('lock_timeout', '250ms', true);
        archived := "tocsin"._archive(finished_ids, finished_leases, finished_results);
        if not true = all (archived) then
            kind := 'lost';
            for id in
                select s.id from unnest(finished_ids, archived) s (id, archived)
                where not s.archived
            loop
                return next;
            end loop;
            id := null;
        end if;
    end if;
    t := "tocsin"._clock();
    token := extract(epoch from t) * 1000000;
    loop
        if from_due is null then
            q := "tocsin"._check_claim(worker_id, registration);
            if q.paused_at is null then
                perform "tocsin"._make_due_ready(q.id);
                again := "tocsin"._grant_slots(q.id);
            end if;
            if ordered then
                next_due := "tocsin"._order_kept_for(q.id);
                if next_due is not null then
                    kind := case
                        when exists (select from "tocsin".messages m
                                     where m.queue_id = q.id and m.state = 'ready')
                            then 'held_up' else 'end' end;
                    return next;
                    return;
                end if;
            end if;
        end if;
        -- The plan is a nested loop from the worker to its queue to the queue's first
        -- messages, so these are in order without a sort; test_claim.py checks the
        -- plan. It is one statement because the handler of an idle consumer waits for
        -- it.
        return query
            update "tocsin".messages m
            set state = 'leased', lease = greatest(token, m.lease + 1),
                vt = "tocsin"._later(t, f.lease_length), read_ct = m.read_ct + 1,
                dequeued_at = t, consumer_worker_id = worker_id
            from (select r.ctid as found, coalesce(claim.vt, x.vt) as lease_length, x.max_deliveries
                  from "tocsin".workers w
                  join "tocsin".queues x on x.id = w.queue_id
                  cross join lateral (
                      select y.ctid from "tocsin".messages y
                      where y.queue_id = x.id and y.state = 'ready'
                          and (y.expires_at is null or y.expires_at > t)
                        and (y.priority, y.due, y.id)
                            >= (coalesce(from_priority, -2147483648),
                                coalesce(from_due, '-infinity'), coalesce(from_id, 0))
                      order by y.priority, y.due, y.id limit max_messages for update skip locked) r
                  where w.id = worker_id and w.registration = claim.registration
                      and w.status in ('ready', 'polling')
                    and "tocsin"._acts_for(w.role)
                    and x.paused_at is null) f
            where m.ctid = f.found
            returning 'message', m.id, m.lease, m.priority, m.read_ct, m.due, m.enqueued_at, m.vt,
                t, m.producer_worker_id, m.headers::text,
                      m.last_error, coalesce(m.max_deliveries, f.max_deliveries), m.key,
                      m.payload::text, m.task, m.options::text, null::float8;
        get diagnostics found_rows = row_count;
        if found_rows = 0 and from_due is not null then
            q := "tocsin"._check_claim(worker_id, registration);  -- or raises an error
        end if;
        exit when found_rows > 0 or from_due is null or not or_full_scan;
        from_priority := null;
        from_due := null;
        from_id := null;
    end loop;
    if from_due is null and found_rows < max_messages then
        -- A message that is due and was not claimed is locked: for a moment by another
        -- claim, or for long by its holder's transaction that settles it. So the next
        -- full scan comes after a quarter of the time for which the message has been
        -- due, a quarter of a second at most.
        next_due := "tocsin"._next_due(q.id, with_ready => false);
        if next_due < 0.01 then
            next_due := greatest(0.01, least(-next_due / 4, 0.25));
        end if;
        next_due := least(next_due, again);
        kind := 'end';
        return next;
    end if;
end
$$;



CREATE FUNCTION tocsin.clear_jobs(states text[] DEFAULT '{succeeded,cancelled}'::text[], task text DEFAULT NULL::text, older_than interval DEFAULT NULL::interval, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    before timestamptz := coalesce("tocsin"._cutoff(older_than), 'infinity');
    cleared bigint;
    given_up bigint[];  -- jobs that can no longer be requeued
    letters bigint[];
begin
    if not states <@ '{succeeded,failed,cancelled}' then
        perform "tocsin"._raise_error('TC022', 'states must be succeeded, failed or cancelled',
                                    '{"argument": "states"}');
    end if;
    if dry_run then
        return (select count(*) from "tocsin".archive a
                where a.task is not null and (clear_jobs.task is null or a.task = clear_jobs.task)
                    and a.outcome = any (states) and a.archived_at < before)
             + (select count(*) from "tocsin".dead_letters d
                where 'failed' = any (states) and d.task is not null
                    and (clear_jobs.task is null or d.task = clear_jobs.task)
                    and d.died_at < before);
    end if;
    with gone as (
        delete from "tocsin".archive a
        where a.task is not null and (clear_jobs.task is null or a.task = clear_jobs.task)
            and a.outcome = any (states) and a.archived_at < before
        returning a.queue_id, a.span, a.keep_until, a.id, a.outcome
    ), per_slot as (
        select g.queue_id, g.span, "tocsin"._archive_slot(g.span, g.keep_until) as starts_at,
            count(*) as n
        from gone g group by 1, 2, 3
    ), counted as (
        insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select p.queue_id, p.span, p.starts_at, t, -p.n from per_slot p
    )
    select coalesce((select sum(p.n) from per_slot p), 0),
        array(select g.id from gone g where g.outcome <> 'succeeded')
    into cleared, given_up;
    if 'failed' = any (states) then
        with gone as (
            delete from "tocsin".dead_letters d
            where d.task is not null and (clear_jobs.task is null or d.task = clear_jobs.task)
                and d.died_at < before
            returning d.id
        )
        select array_agg(g.id) into letters from gone g;
    end if;
    perform "tocsin"._give_up(given_up || letters);
    return cleared + coalesce(cardinality(letters), 0);
end
$$;



CREATE FUNCTION tocsin.complete_poll(worker_id bigint, registration bigint, keep_ids bigint[] DEFAULT '{}'::bigint[], keep_leases bigint[] DEFAULT '{}'::bigint[], interrupted boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    update "tocsin".workers x
    set status = case when x.status = 'polling' and not interrupted then 'ready'
                      else 'suspended' end,
        grace = null
    where x.id = worker_id and x.registration = complete_poll.registration
      and (x.status in ('polling', 'interrupted') or interrupted and x.status = 'ready')
      and "tocsin"._acts_for(x.role);
    return "tocsin".release_others(worker_id, registration, keep_ids, keep_leases);
end
$$;



CREATE FUNCTION tocsin.create_queue(queue text, vt interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, retry_base interval DEFAULT NULL::interval, retry_factor double precision DEFAULT NULL::double precision, retry_max interval DEFAULT NULL::interval, retry_jitter double precision DEFAULT NULL::double precision, max_payload integer DEFAULT NULL::integer, max_string integer DEFAULT NULL::integer, max_depth integer DEFAULT NULL::integer, required_keys text[] DEFAULT NULL::text[], forbidden_keys text[] DEFAULT NULL::text[], retention interval DEFAULT NULL::interval, dead_letter_retention interval DEFAULT NULL::interval, notify text DEFAULT NULL::text) RETURNS tocsin.queues
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    queue_id integer := "tocsin"._add_queue(queue);
begin
    if queue_id is null then
        perform "tocsin"._raise_error('TC002', format('queue "%s" exists already', queue),
                                    jsonb_build_object('queue', queue),
                              'ensure_queue accepts an existing queue.');
    end if;
    return "tocsin"._change_queue(queue_id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string, max_depth, required_keys, forbidden_keys, retention, dead_letter_retention, notify);
end
$$;



CREATE FUNCTION tocsin.delete(ids bigint[], leases bigint[]) RETURNS boolean[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    settled bigint[];
    jobs bigint[];
    queues integer[];
    parents jsonb;  -- jobs of flows
begin
    with finished as (
        delete from "tocsin".messages m
            using (select x.id, x.lease from unnest(ids, leases) as x (id, lease) order by x.id) g
        where m.id = any (ids) and m.id = g.id and m.lease = g.lease and m.state is not distinct
            from 'leased'
        returning m.id, m.queue_id, m.task, m.flow_id
    )
    select array_agg(f.id), array_agg(f.id) filter (where f.task is not null),
        array_agg(distinct f.queue_id) filter (where f.task is not null),
        jsonb_object_agg(f.id, null) filter (where f.flow_id is not null)
    into settled, jobs, queues, parents from finished f;
    if jobs is not null then
        perform "tocsin"._announce(q, jobs) from unnest(queues) q;
    end if;
    if parents is not null then
        perform "tocsin"._end_parents(parents, succeeded => false, gone => true);
    end if;
    return "tocsin"._outcomes(ids, settled);
end
$$;



CREATE FUNCTION tocsin.delete_queue(queue text, force boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS TABLE(worker_count bigint, message_count bigint, archived_count bigint, dead_letter_count bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
    deadline timestamptz := "tocsin"._clock() + interval '10 s';
begin
    if not dry_run and current_setting('transaction_isolation') <> 'read committed' then
        perform "tocsin"._raise_error('TC022',
            format('a queue cannot be deleted at the isolation level %s, which hides later '
                   'messages',
                   current_setting('transaction_isolation')),
            '{"argument": "transaction"}',
            'Delete the queue in a transaction that is read committed.');
    end if;
    if force is not true then
        perform "tocsin"._refuse_deletion(q);
    end if;
    if dry_run then
        worker_count := (select count(*) from "tocsin".workers w where w.queue_id = q.id);
        message_count := "tocsin"._count_unfinished(q.id);
        dead_letter_count := (select count(*) from "tocsin".dead_letters d where d.queue_id = q.id);
        archived_count := "tocsin".purge_archive(q.id, null, true);
        return next;
        return;
    end if;
    loop
        begin
            perform "tocsin"._close_queue(q, deadline);
            select r.* into worker_count, message_count, archived_count, dead_letter_count
                from "tocsin"._remove_queue(q, force) r;
            return next;
            return;
        exception  -- releases all locks of this attempt
            when lock_not_available or deadlock_detected then null;
        end;
        if "tocsin"._clock() > deadline then
            perform "tocsin"._raise_error('TC011',
                                        format('queue "%s" is in use by transactions that do '
                                               'not end', q.name),
                                  jsonb_build_object('queue', q.name),
                                  'Nothing was changed. Try again when they have ended, in a '
                                  'transaction that has done nothing else.');
        end if;
        perform pg_sleep(0.05);
    end loop;
end
$$;



CREATE FUNCTION tocsin.delete_schedule(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    s "tocsin".schedules := "tocsin"._lock_schedule(name);
begin
    delete from "tocsin".schedules x where x.id = s.id;
    delete from "tocsin".messages m
    where m.queue_id = s.queue_id and m.key = "tocsin"._tick_key(s.id) and m.task = '$tick';
end
$_$;



CREATE FUNCTION tocsin.delete_worker(worker_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from "tocsin".workers x where x.id = worker_id and x.status = 'stopped';
    if not found then
        perform "tocsin"._refuse_transition("tocsin"._find_worker(worker_id), null, 'not_stopped',
                                          'only a stopped worker may be deleted');
    end if;
end
$$;



CREATE FUNCTION tocsin.detach_process(process_id bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ update "tocsin".processes p set lifeline = null, detached = true
    where p.id = process_id and "tocsin"._acts_for(p.role) $$;



CREATE FUNCTION tocsin.edit_job(job_id bigint, priority integer DEFAULT NULL::integer, arguments jsonb DEFAULT NULL::jsonb, limits jsonb DEFAULT NULL::jsonb, task text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    m "tocsin".messages := "tocsin"._lock_waiting(job_id, null, null);
    t "tocsin".tasks;
begin
    if m.task is null or m.task <> edit_job.task then
        perform "tocsin"._raise_error('TC022',
            format('message %s is %s', m.id,
                   coalesce('a job of task "' || m.task || '"', 'no job')),
            '{"argument": "job_id"}');
    elsif arguments is null then
        return "tocsin".reprioritise(m.id, priority);
    end if;
    perform "tocsin"._check_arguments(arguments);
    perform "tocsin"._check_payloads(q, jsonb_build_array(arguments), null)
    from "tocsin".queues q where q.id = m.queue_id;
    if m.waits_for is not null and exists (
        select from "tocsin".edges e where e.child = m.id and e.argument <> '{}')
    then
        perform "tocsin"._raise_error('TC022',
            format('an argument of job %s is to be the result of a job before it', m.id),
            '{"argument": "arguments"}', 'Edit its arguments when it waits for no other job.');
    end if;
    if edit_job.limits is not null then
        perform "tocsin"._check_limits(limits);
    elsif m.options ? 'limits' then
        select x.* into t from "tocsin".tasks x where x.name = m.task;
        if not found then
            perform "tocsin"._refuse_task(m.task);
        end if;
        limits := "tocsin"._limits_of(t, arguments);
    end if;
    if limits is distinct from coalesce(m.options -> 'limits', '[]') and limits is not null then
        -- The update below puts the message into the lines of the new keys: limits.sql.
        perform "tocsin"._free(m.id);
        m.options := coalesce(m.options, '{}') || jsonb_build_object('limits', limits);
        m.state := case when m.state = 'ready' then 'held' else m.state end;
    end if;
    update "tocsin".messages x
    set priority = coalesce(edit_job.priority, x.priority), payload = arguments,
        options = m.options, state = m.state
    where x.id = m.id;
    if m.state not in ('delayed', 'held') then
        -- a consumer may have skipped the locked row, and may wait now
        perform "tocsin"._ring(m.queue_id);
    end if;
    return m.id;
end
$$;



CREATE FUNCTION tocsin.end_awaiting(queue_ids integer[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select pg_advisory_unlock_shared("tocsin"._lock_key('awaited', q)) from unnest(queue_ids) q $$;



CREATE FUNCTION tocsin.end_waiting(queue_ids integer[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select pg_advisory_unlock_shared("tocsin"._lock_key('waiting', q)) from unnest(queue_ids) q $$;



CREATE FUNCTION tocsin.enqueue(queue text, payload jsonb, delay interval DEFAULT NULL::interval, at timestamp with time zone DEFAULT NULL::timestamp with time zone, priority integer DEFAULT 0, headers jsonb DEFAULT NULL::jsonb, key text DEFAULT NULL::text, expires_in interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, ordered_by text DEFAULT NULL::text, worker_id bigint DEFAULT NULL::bigint, task text DEFAULT NULL::text, options jsonb DEFAULT NULL::jsonb, ring_early boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    due_at timestamptz := coalesce(at, "tocsin"._later(t, delay), t);
    q "tocsin".queues;
    new_id bigint;  -- drawn before the INSERT, or null
    message_id bigint;
    written pg_lsn;
    flushed pg_lsn;
    checked boolean;  -- whether the payload keeps the queue's rules
    -- Whether the INSERT itself rings (ring.sql). With a key, only the result of the
    -- INSERT shows whether there is a new message to ring for.
    rings boolean := key is null;
    ignored text;
begin
    if not "tocsin"._is_owner() then
        perform "tocsin"._check_enqueue("tocsin".find_queue(queue), worker_id);
    end if;
    if headers is not null then
        perform "tocsin"._check_headers("tocsin".find_queue(queue), headers);
    end if;
    if ordered_by is not null then
        options := "tocsin"._add_order(options, ordered_by);
    end if;
    if task is not null or options is not null then
        perform "tocsin"._check_job(task, options);
    end if;
    if rings then
        ignored := set_config('bell.rung_by', '"tocsin".', true);
    end if;
    -- Not with a key: the next enqueue with the key returns this message's id, and must
    -- not return it before the message is durable.
    ring_early := ring_early and key is null;
    if ring_early then
        -- The commit may be asynchronous only if the sequence's WAL record that covers
        -- the new id is flushed (ring_early.sql explains why). Such a record takes 99
        -- bytes, so fewer than 90 bytes that are not flushed cannot contain one. WAL
        -- pages are multiples of 1,024 bytes. A flush that ends at a page boundary may
        -- end within a record, so it proves nothing.
        written := pg_current_wal_insert_lsn();
        new_id := nextval('"tocsin".messages_id_seq');
        flushed := pg_current_wal_flush_lsn();
        ring_early := written = pg_current_wal_insert_lsn()
            and (flushed >= written or written - flushed < 90 and (flushed - '0/0') % 1024 <> 0);
    end if;
    loop
        insert into "tocsin".messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     expires_at, producer_worker_id, max_deliveries, key,
                                     payload, headers, task, options)
        select coalesce(new_id, nextval('"tocsin".messages_id_seq')), x.id, coalesce(priority, 0),
               case when due_at > t then 'delayed'::"tocsin".message_state
                   else 'ready' end, due_at, due_at, t,
               "tocsin"._later(t, expires_in), worker_id, enqueue.max_deliveries, key, payload,
               headers, task, options
        from "tocsin".queues x
        where x.name = queue
            and "tocsin"._is_valid(payload, x.max_payload, delay, at, expires_in,
                                 enqueue.max_deliveries)
          and (not x.ruled or checked)
          and (worker_id is null or "tocsin"._is_active(worker_id))
          and (not rings or "tocsin"._try_ring(x))
        on conflict (queue_id, key) where key is not null do nothing
        returning id into message_id;
        exit when message_id is not null;
        -- Nothing was inserted: the message is refused, its key is taken, or the queue
        -- has rules or is being deleted. When no such reason is left, or the message
        -- keeps the rules, the INSERT is tried again.
        q := "tocsin"._check_enqueue_options(queue, delay, at, expires_in, max_deliveries, worker_id);
        perform "tocsin"._check_payloads(q, jsonb_build_array(payload), null);
        message_id := "tocsin"._find_key(q.id, key);
        if message_id is not null then
            perform "tocsin"._check_key_holder(message_id, key, task);
            exit;
        end if;
        if q.ruled and checked is not true then
            checked := true;
            continue;
        end if;
        if key is not null and current_setting('transaction_isolation') <> 'read committed' then
            raise serialization_failure
                using message = format('key "%s" was taken by a transaction that this one '
                                       'cannot see', key),
                hint = 'Try the transaction again.';
        end if;
        perform "tocsin"._ring_late(q.id);  -- waits for the end of a deletion
    end loop;
    if rings then
        ignored := set_config('bell.rung_by', '', true);
    end if;
    if ring_early and current_setting('bell.rung', true) <> ''
        and new_id = pg_sequence_last_value('"tocsin".messages_id_seq')
       and current_setting('synchronous_commit') <> 'off'
           and current_setting('synchronous_standby_names') = '' then
        ignored := set_config('synchronous_commit', 'off', true);
        ignored := set_config('bell.unflushed', 'yes', false);
    end if;
    return message_id;
end
$$;



CREATE FUNCTION tocsin.enqueue_each(queue text, messages jsonb) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
    t timestamptz := "tocsin"._clock();
    unfit jsonb[];  -- payloads that break a rule of the queue
    ids bigint[];
begin
    if not "tocsin"._is_owner() then
        perform "tocsin"._check_enqueue(q, m.worker_id)
        from (select distinct x.worker_id
              from jsonb_to_recordset(messages) as x (worker_id bigint)) m;
    end if;
    perform "tocsin"._check_job(m.task, "tocsin"._add_order(m.options, m.ordered_by))
    from jsonb_to_recordset(messages) as m (task text, options jsonb, ordered_by text)
    where m.task is not null or m.options is not null or m.ordered_by is not null;
    if q.ruled then
        select array_agg(p.payload) into unfit
        from jsonb_array_elements(messages) m
        cross join lateral (select coalesce(m -> 'payload', 'null')) p (payload)
        where "tocsin"._find_violation(jsonb_build_array(p.payload), q) is not null;
    end if;
    with given as materialized (
        select nextval('"tocsin".messages_id_seq') as id, coalesce(m.payload, 'null') as payload,
            coalesce(m.at, "tocsin"._later(t, m.delay), t) as due_at,
               m.delay, m.at, m.priority, m.headers, m.expires_in, m.max_deliveries, m.worker_id,
               m.task, "tocsin"._add_order(m.options, m.ordered_by) as options
        from jsonb_to_recordset(messages) as m (payload jsonb, delay interval, at timestamptz,
                                                priority integer, headers jsonb,
                                                expires_in interval, max_deliveries integer,
                                                ordered_by text, worker_id bigint, task text,
                                                options jsonb)
    ), added as (
        insert into "tocsin".messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     expires_at, producer_worker_id, max_deliveries,
                                     payload, headers, task, options)
        select g.id, q.id, coalesce(g.priority, 0), case when g.due_at > t
            then 'delayed'::"tocsin".message_state else 'ready' end,
               g.due_at, g.due_at, t, "tocsin"._later(t, g.expires_in), g.worker_id, g.max_deliveries,
               g.payload, g.headers, g.task, g.options
        from given g
        where "tocsin"._is_valid(g.payload, q.max_payload, g.delay, g.at, g.expires_in,
                               g.max_deliveries)
          and (octet_length(g.headers::text) > q.max_payload) is not true
          and (unfit is null or g.payload <> all (unfit))
          and (g.worker_id is null or "tocsin"._is_active(g.worker_id))
        returning id
    )
    select array_agg(a.id order by g.id) into ids from given g left join added a on a.id = g.id;
    return coalesce(ids, '{}');
end
$$;



CREATE FUNCTION tocsin.enqueue_jobs(jobs jsonb, first_index integer DEFAULT 0) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    ids bigint[] := array_fill(null::bigint, array[jsonb_array_length(jobs)]);
    given bigint[];
    part record;
begin
    -- A job with a key may find another one, so it goes alone.
    for part in
        select j.job ->> 'queue' as queue, jsonb_agg(j.job order by j.n) as messages,
               array_agg(j.n::integer order by j.n) as places
        from jsonb_array_elements(jobs) with ordinality j (job, n)
        where j.job ->> 'key' is null
        group by 1 order by 1
    loop
        given := "tocsin".enqueue_each(part.queue, part.messages);
        for i in 1 .. cardinality(given) loop
            ids[part.places[i]] := given[i];
        end loop;
    end loop;
    -- enqueue_each leaves out what may not be enqueued; "tocsin".enqueue raises the reason.
    -- Jobs with keys come in the order of keys, because two calls with the same keys wait
    -- for each other's. So the ids of these jobs are in that order.
    for part in
        select j.n::integer as place, x.*
        from jsonb_array_elements(jobs) with ordinality j (job, n)
        cross join lateral jsonb_to_record(j.job) as x (
            queue text, payload jsonb, delay interval, at timestamptz, priority integer,
            headers jsonb, key text, expires_in interval, max_deliveries integer,
            worker_id bigint, task text, options jsonb)
        where ids[j.n] is null
        order by x.queue, x.key, j.n
    loop
        perform "tocsin"._check_payloads(
            "tocsin"._check_enqueue_options(part.queue, part.delay, part.at, part.expires_in,
                                          part.max_deliveries, part.worker_id),
            jsonb_build_array(coalesce(part.payload, 'null')), first_index + part.place - 1);
        ids[part.place] := "tocsin".enqueue(
            part.queue, coalesce(part.payload, 'null'), part.delay, part.at, part.priority,
            part.headers, part.key, part.expires_in, part.max_deliveries,
            worker_id => part.worker_id, task => part.task, options => part.options);
    end loop;
    return ids;
end
$$;



CREATE FUNCTION tocsin.enqueue_many(queue text, payloads jsonb, delay interval DEFAULT NULL::interval, at timestamp with time zone DEFAULT NULL::timestamp with time zone, priority integer DEFAULT 0, headers jsonb DEFAULT NULL::jsonb, expires_in interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, ordered_by text DEFAULT NULL::text, worker_id bigint DEFAULT NULL::bigint, first_index integer DEFAULT 0) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    q "tocsin".queues := "tocsin"._check_enqueue_options(queue, delay, at, expires_in, max_deliveries,
                                                     worker_id);
    t timestamptz := "tocsin"._clock();
    due_at timestamptz := coalesce(at, "tocsin"._later(t, delay), t);
    options jsonb := "tocsin"._add_order(null, ordered_by);
    ids bigint[];
begin
    perform "tocsin"._check_headers(q, headers);
    if options is not null then
        perform "tocsin"._check_job(null, options);
    end if;
    perform "tocsin"._check_payloads(q, payloads, first_index);
    with added as (
        insert into "tocsin".messages (queue_id, priority, state, due, vt, enqueued_at, expires_at,
                                     producer_worker_id, max_deliveries,
                                     payload, headers, options)
        select q.id, coalesce(priority, 0), case when due_at > t
            then 'delayed'::"tocsin".message_state else 'ready' end, due_at, due_at, t,
               "tocsin"._later(t, expires_in), worker_id, max_deliveries, p.payload, headers, options
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        order by p.n
        returning id
    )
    select array_agg(a.id order by a.id) into ids from added a;
    return coalesce(ids, '{}');
end
$$;



CREATE FUNCTION tocsin.ensure_queue(queue text, vt interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, retry_base interval DEFAULT NULL::interval, retry_factor double precision DEFAULT NULL::double precision, retry_max interval DEFAULT NULL::interval, retry_jitter double precision DEFAULT NULL::double precision, max_payload integer DEFAULT NULL::integer, max_string integer DEFAULT NULL::integer, max_depth integer DEFAULT NULL::integer, required_keys text[] DEFAULT NULL::text[], forbidden_keys text[] DEFAULT NULL::text[], retention interval DEFAULT NULL::interval, dead_letter_retention interval DEFAULT NULL::interval, notify text DEFAULT NULL::text) RETURNS tocsin.queues
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    ensured "tocsin".queues;
    queue_id integer;
begin
    while ensured.id is null loop
        queue_id := "tocsin"._add_queue(queue);
        if queue_id is null then
            select q.id into queue_id from "tocsin".queues q where q.name = queue;
        end if;
        ensured := "tocsin"._change_queue(queue_id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string, max_depth, required_keys, forbidden_keys, retention, dead_letter_retention, notify);
    end loop;
    return ensured;
end
$$;



CREATE FUNCTION tocsin.extend(ids bigint[], leases bigint[], vt interval, progress jsonb DEFAULT NULL::jsonb) RETURNS boolean[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    settled bigint[];
begin
    with held as (
        select m.id, g.n
        from (select x.id, x.lease, x.n from unnest(ids, leases) with ordinality as x (id, lease, n)
              order by x.id) g
        join "tocsin".messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
            and m.state is not distinct from 'leased'
        for update of m skip locked
    ), extended as (
        update "tocsin".messages m
        set vt = "tocsin"._later(t, extend.vt),
            progress = coalesce(nullif(extend.progress -> (h.n - 1)::integer, 'null')
                                || jsonb_build_object('at', t, 'lease', m.lease), m.progress)
        from held h where m.id = any (ids) and m.id = h.id
        returning m.id
    )
    select array_agg(e.id) into settled from extended e;
    if cardinality(ids) = coalesce(cardinality(settled), 0) then
        return "tocsin"._outcomes(ids, settled);
    end if;
    return (select array_agg(case when g.id = any (settled) then true when m.id is null
                             then false end order by g.n)
            from unnest(ids, leases) with ordinality as g (id, lease, n)
            left join "tocsin".messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
                and m.state is not distinct from 'leased');
end
$$;



CREATE FUNCTION tocsin.fail(ids bigint[], leases bigint[], errors text[], tracebacks text[], delays double precision[] DEFAULT NULL::double precision[], verdicts text[] DEFAULT NULL::text[], keep_place boolean DEFAULT false) RETURNS double precision[]
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._requeue(ids, leases, null, true, 'handler_failed', errors, tracebacks, delays,
                             verdicts, keep_place) $$;



CREATE FUNCTION tocsin.find_queue(queue text) RETURNS tocsin.queues
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    found_queue "tocsin".queues;
begin
    select q.* into found_queue from "tocsin".queues q where q.name = queue;
    if not found then
        perform "tocsin"._refuse_missing(queue);
    end if;
    return found_queue;
end
$$;



CREATE FUNCTION tocsin.get_dead_letter(message_id bigint) RETURNS SETOF tocsin.dead_letter_info
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select *
    from "tocsin"._describe_dead_letters(array[message_id], null, null, null, null, 1, null) $$;



CREATE FUNCTION tocsin.get_message(message_id bigint) RETURNS SETOF tocsin.message_info
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select *
    from "tocsin"._describe_messages(array[message_id], array(select x.id from "tocsin".queues x),
                                   "tocsin"._clock()) $$;



CREATE FUNCTION tocsin.grant_queue(queue text, role text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
begin
    insert into "tocsin".queue_grants (queue_id, role)
        values (q.id, "tocsin"._find_role(role)) on conflict do nothing;
end
$$;



CREATE FUNCTION tocsin.heartbeat(process_id bigint, queue_ids integer[], able boolean DEFAULT true) RETURNS TABLE(kind text, worker_id bigint, registration bigint, status text, grace double precision, queue_id integer, due_in double precision)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    last_heartbeat timestamptz;
begin
    update "tocsin".processes p set heartbeat_at = case when able then "tocsin"._clock()
        else p.heartbeat_at end
    from (select x.heartbeat_at from "tocsin".processes x where x.id = process_id) before
    where p.id = process_id and "tocsin"._acts_for(p.role)
    returning before.heartbeat_at into last_heartbeat;
    if not found then
        kind := 'dead';
        return next;
        return;
    end if;
    if last_heartbeat > "tocsin"._clock() + interval '1 s' then
        update "tocsin".maintenance m set clock_was_ahead = true, due_at = "tocsin"._clock();
    end if;
    due_in := "tocsin"._reap_dead_processes(process_id, 8);
    if due_in is not null then
        kind := 'heartbeat';
        return next;
        due_in := null;
    end if;
    if "tocsin"._elect_maintainer(process_id) then
        kind := 'maintenance';
        return next;
    end if;
    return query
        select 'worker', w.id, w.registration, w.status, extract(epoch from w.grace)::float8,
            null::integer, null::float8
        from "tocsin".workers w where w.process_id = heartbeat.process_id order by w.id;
    return query
        select 'queue', null::bigint, null::bigint, null::text, null::float8, d.queue_id, d.seconds
        from (select s.queue_id, "tocsin"._next_due(s.queue_id) as seconds
              from unnest(queue_ids) s (queue_id)
              where "tocsin"._may_consume()) d
        where d.seconds is not null;
end
$$;



CREATE FUNCTION tocsin.install_roles(producer text, consumer text, admin text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    former_roles oid[] := (select array_agg(r.role) from "tocsin".roles r);
    r record;
begin
    for r in select x.kind, x.name
        from (values ('producer', producer), ('consumer', consumer), ('admin', admin)) x (kind,
            name) loop
        if r.name is null then
            delete from "tocsin".roles x where x.kind = r.kind;
            continue;
        elsif not exists (select from pg_roles x where x.rolname = r.name) then
            begin
                execute format('create role %I nologin', r.name);
            exception
                -- another session has created the role, perhaps in another database
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    perform "tocsin"._refuse_caller(format('create role "%s"', r.name),
                        format('Creating a role requires CREATEROLE. Have a database '
                               'administrator run: %s. Then install again.', (
                            select string_agg(format('create role %I nologin', n), '; ' order by o)
                            from unnest(array[producer, consumer, admin]) with ordinality w (n, o)
                            where n is not null
                                and not exists (select from pg_roles x where x.rolname = n))));
            end;
        end if;
        insert into "tocsin".roles as x (kind, role) values (r.kind, "tocsin"._find_role(r.name))
        on conflict (kind) do update set role = excluded.role where x.role <> excluded.role;
    end loop;
    perform "tocsin".secure(coalesce(former_roles, '{}'));
end
$$;



CREATE FUNCTION tocsin.interrupt(worker_id bigint, grace interval DEFAULT NULL::interval, registration bigint DEFAULT NULL::bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers := "tocsin"._move_worker(worker_id, '{ready,polling}', 'interrupted', grace,
                                            registration => registration);
begin
    perform "tocsin"._tell_process(w);
    return w;
end
$$;



CREATE FUNCTION tocsin.job_attempts(job_id bigint) RETURNS TABLE(attempt integer, worker_id bigint, worker text, began_at timestamp with time zone, ended_at timestamp with time zone, outcome text, error text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    last record;
begin
    select x.* into last
    from (select m.queue_id, m.history, m.read_ct, m.consumer_worker_id, m.dequeued_at,
              null::timestamptz as ended_at, case when m.state = 'leased' then 'running' end as state
          from "tocsin".messages m where m.id = job_id and m.task <> '$tick'
          union all
          select d.queue_id, d.history, d.read_ct, d.consumer_worker_id, d.dequeued_at, d.died_at,
              'failed'
          from "tocsin".dead_letters d where d.id = job_id and d.task <> '$tick'
          union all
          select a.queue_id, a.history, a.read_ct, a.consumer_worker_id, a.dequeued_at,
              a.archived_at, a.outcome
          from "tocsin".archive a
          where a.queue_id in (select q.id from "tocsin".queues q) and a.id = job_id
              and a.task <> '$tick') x
    where "tocsin"._may_read_outcomes(x.queue_id);
    if not found then
        perform "tocsin"._raise_error('TC016', format('job %s does not exist', job_id),
                                    jsonb_build_object('message_id', job_id, 'key', null));
    end if;
    return query
        select h.delivery, h.worker_id, h.worker, h.dequeued_at, h.ended_at, h.outcome, h.error
        from jsonb_array_elements(last.history) with ordinality as e (entry, n)
        cross join lateral jsonb_to_record(e.entry) as h (
            delivery integer, worker_id bigint, worker text, dequeued_at timestamptz,
            ended_at timestamptz, outcome text, error text)
        order by e.n;
    if last.state in ('running', 'succeeded') then
        return query select last.read_ct, last.consumer_worker_id,
            (select w.name from "tocsin".workers w where w.id = last.consumer_worker_id),
            last.dequeued_at, last.ended_at, nullif(last.state, 'running'), null::text;
    end if;
end
$_$;



CREATE FUNCTION tocsin.job_outcomes(ids bigint[]) RETURNS TABLE(id bigint, task text, state text, attempts integer, result text, reason text, error text, traceback text, progress text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    finished bigint[] := array(select i.id from unnest(ids) i (id)
                               where not exists (select from "tocsin".messages m where m.id = i.id));
begin
    return query
        select m.id, m.task,
               case when m.state = 'leased' and m.vt > t then 'running' else 'waiting' end,
               m.read_ct, null::text, null::text, coalesce(m.cancel_reason, m.last_error), null::text,
               case when m.state = 'leased' and m.vt > t
                   then "tocsin"._read_progress(m.progress, m.lease) end
        from "tocsin".messages m
        where m.id = any (ids) and m.task is not null and "tocsin"._may_read_outcomes(m.queue_id);
    if finished = '{}' then
        return;
    end if;
    return query
        select d.id, d.task, 'failed', d.read_ct, null, d.reason, d.error, d.traceback, null
        from "tocsin".dead_letters d
        where d.id = any (finished) and d.task is not null and "tocsin"._may_read_outcomes(d.queue_id)
        union all
        select a.id, a.task, a.outcome, a.read_ct, a.result::text, null, a.last_error, null, null
        from "tocsin".archive a
        where a.queue_id in (select q.id from "tocsin".queues q) and a.id = any (finished)
            and a.task is not null and "tocsin"._may_read_outcomes(a.queue_id);
end
$$;



CREATE FUNCTION tocsin.job_stats(cap integer DEFAULT 100000) RETURNS TABLE(task_name text, job_state text, n bigint, exact boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    unfinished bigint;
    factor float8 := 1;
begin
    select count(*) into unfinished from (select from "tocsin".messages m limit cap + 1) x;
    if unfinished > cap then
        factor := greatest("tocsin"._estimate('select from "tocsin".messages'), unfinished)::float8
            / cap;
    end if;
    return query
        select x.task, x.state, (count(*) * factor)::bigint, factor = 1
        from (select m.task, case when m.state = 'leased' and m.vt > t then 'running'
                  else 'waiting' end as state
              from "tocsin".messages m limit cap) x
        where x.task <> '$tick'
        group by x.task, x.state;
    return query
        select c.task, coalesce(c.outcome, 'failed'),
            sum(case when c.n <= cap then c.n else greatest(c.n, "tocsin"._estimate(
                case when c.outcome is null
                    then format('select from "tocsin".dead_letters where task = %L', c.task)
                    else format('select from "tocsin".archive where task = %L and outcome = %L',
                                c.task, c.outcome) end)) end)::bigint,
            bool_and(c.n <= cap)
        from (select s.task, s.outcome, case when s.outcome is null
                  then (select count(*) from (select from "tocsin".dead_letters d
                                              where d.task is not null and d.task = s.task
                                              limit cap + 1) x)
                  else (select count(*) from (select from "tocsin".archive a
                                              where a.task is not null and a.task = s.task
                                                  and a.outcome = s.outcome limit cap + 1) x)
                  end as n
              from "tocsin"._job_shelves(null, null) s) c
        group by c.task, coalesce(c.outcome, 'failed');
end
$_$;



CREATE FUNCTION tocsin.leave_job(session_number bigint, queue_id integer, locked boolean) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    session_number := coalesce(session_number, currval('"tocsin".lifelines'));
    if not "tocsin"._holds_lock("tocsin"._lock_key('lifeline', session_number)) then
        return false;
    end if;
    delete from "tocsin".awaited a where a.process_id = -session_number;
    execute format('unlisten %I', "tocsin".process_channel(-session_number));
    if locked then
        perform "tocsin".end_awaiting(array[leave_job.queue_id]);
    end if;
    return pg_advisory_unlock("tocsin"._lock_key('lifeline', session_number));
end
$$;



CREATE FUNCTION tocsin.leave_jobs(ids bigint[], process_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from "tocsin".awaited a using "tocsin".processes p
    where a.job_id = any (ids) and a.process_id = leave_jobs.process_id
        and p.id = a.process_id and "tocsin"._acts_for(p.role);
end
$$;



CREATE FUNCTION tocsin.limit_lock_wait() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ begin return set_config('lock_timeout', '250ms', true) is not null; end $$;



CREATE FUNCTION tocsin.list_dead_letters(queue text, reason text DEFAULT NULL::text, error text DEFAULT NULL::text, older_than interval DEFAULT NULL::interval, max_letters integer DEFAULT 100, after bigint DEFAULT NULL::bigint) RETURNS SETOF tocsin.dead_letter_info
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select * from "tocsin"._describe_dead_letters(null, ("tocsin".find_queue(queue)).id, reason, error,
                                                "tocsin"._cutoff(older_than), max_letters, after)
$$;



CREATE FUNCTION tocsin.list_edges(flow_id bigint) RETURNS TABLE(parent bigint, child bigint, on_failure text, argument text[])
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    return query
        select e.parent, e.child, e.on_failure, e.argument from "tocsin".edges e
        where e.flow_id = list_edges.flow_id order by e.child, e.parent, e.argument;
end
$$;



CREATE FUNCTION tocsin.list_flow_jobs(flow_id bigint) RETURNS TABLE(id bigint, name text, queue text, task text, state text, attempts integer, error text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    return query
        select j.job_id, j.name, q.name, j.task, coalesce(o.state, 'deleted'),
               coalesce(o.attempts, 0), o.error
        from "tocsin".flow_jobs j
        left join "tocsin".queues q on q.id = j.queue_id
        left join "tocsin".job_outcomes(array(select x.job_id from "tocsin".flow_jobs x
                                            where x.flow_id = list_flow_jobs.flow_id)) o
            on o.id = j.job_id
        where j.flow_id = list_flow_jobs.flow_id
        order by j.job_id;
end
$$;



CREATE FUNCTION tocsin.list_flows(max_flows integer DEFAULT 100, before bigint DEFAULT NULL::bigint, flow_id bigint DEFAULT NULL::bigint) RETURNS TABLE(id bigint, name text, created_at timestamp with time zone, ended_at timestamp with time zone, state text, waiting bigint, running bigint, succeeded bigint, failed bigint, cancelled bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    return query
        select f.id, f.name, f.created_at, f.ended_at,
               case when c.waiting + c.running > 0 then 'running' when c.failed > 0 then 'failed'
                    when c.cancelled > 0 then 'cancelled' else 'succeeded' end,
               c.waiting, c.running, c.succeeded, c.failed, c.cancelled
        from (select x.* from "tocsin".flows x
              where (list_flows.before is null or x.id < list_flows.before)
                  and (list_flows.flow_id is null or x.id = list_flows.flow_id)
              order by x.id desc limit max_flows) f
        cross join lateral (
            select count(*) filter (where o.state = 'waiting'),
                   count(*) filter (where o.state = 'running'),
                   count(*) filter (where o.state = 'succeeded'),
                   count(*) filter (where o.state = 'failed'),
                   count(*) filter (where o.state = 'cancelled')
            from "tocsin".job_outcomes(array(select j.job_id from "tocsin".flow_jobs j
                                           where j.flow_id = f.id)) o
        ) c (waiting, running, succeeded, failed, cancelled)
        order by f.id desc;
end
$$;



CREATE FUNCTION tocsin.list_jobs(task text DEFAULT NULL::text, queue text DEFAULT NULL::text, state text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, key text DEFAULT NULL::text, newest_first boolean DEFAULT false, max_jobs integer DEFAULT 100, after bigint DEFAULT NULL::bigint, job_id bigint DEFAULT NULL::bigint) RETURNS TABLE(id bigint, task_name text, queue_name text, job_state text, job_priority integer, job_key text, attempts integer, max_attempts integer, submitted_at timestamp with time zone, due timestamp with time zone, began_at timestamp with time zone, ended_at timestamp with time zone, worker_id bigint, arguments text, result text, reason text, error text, progress text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    only_queue integer := "tocsin"._readable_queue(queue);
    readable integer[] := "tocsin"._readable_queues();
    shows_arguments boolean := "tocsin"._may_consume();
begin
    if state not in ('waiting', 'running', 'succeeded', 'failed', 'cancelled') then
        perform "tocsin"._raise_error('TC022',
            'state must be one of waiting, running, succeeded, failed, cancelled',
            '{"argument": "state"}');
    end if;
    return query execute replace(replace($q$
        with page as materialized (
            select p.id, p.queue_id
            from (
                (select m.id, m.queue_id from "tocsin".messages m
                 where coalesce($3, 'waiting') = 'waiting' and m.task <> '$tick'
                     and ($1 is null or m.task = $1) and ($2 is null or m.queue_id = $2)
                     and ($4 is null or m.enqueued_at >= $4) and ($5 is null or m.enqueued_at < $5)
                     and ($6 is null or m.key = $6) and ($7 is null or m.queue_id = any ($7))
                     and ($8 is null or m.id > $8) and ($12 is null or m.id = $12)
                     and ($3 is null or not (m.state = 'leased' and m.vt > $10))
                 order by m.id limit $9)
                union all
                (select m.id, m.queue_id from "tocsin".queues q
                 join "tocsin".messages m on m.queue_id = q.id
                 where $3 = 'running' and m.state = 'leased' and m.vt > $10
                     and m.task <> '$tick'
                     and ($1 is null or m.task = $1) and ($2 is null or q.id = $2)
                     and ($4 is null or m.enqueued_at >= $4) and ($5 is null or m.enqueued_at < $5)
                     and ($6 is null or m.key = $6) and ($7 is null or q.id = any ($7))
                     and ($8 is null or m.id > $8) and ($12 is null or m.id = $12)
                 order by m.id limit $9)
                union all
                (select x.id, x.queue_id
                 from "tocsin"._job_shelves($1, $3) s
                 cross join lateral (
                     select d.id, d.queue_id from "tocsin".dead_letters d
                     where s.outcome is null and d.task is not null and d.task = s.task
                         and ($2 is null or d.queue_id = $2)
                         and ($4 is null or d.enqueued_at >= $4)
                         and ($5 is null or d.enqueued_at < $5)
                         and ($6 is null or d.key = $6) and ($7 is null or d.queue_id = any ($7))
                         and ($8 is null or d.id > $8) and ($12 is null or d.id = $12)
                     order by d.id limit $9) x
                 order by x.id limit $9)
                union all
                (select x.id, x.queue_id
                 from "tocsin"._job_shelves($1, $3) s
                 cross join lateral (
                     select a.id, a.queue_id from "tocsin".archive a
                     where a.task is not null and a.task = s.task and a.outcome = s.outcome
                         and ($2 is null or a.queue_id = $2)
                         and ($4 is null or a.enqueued_at >= $4)
                         and ($5 is null or a.enqueued_at < $5)
                         and ($6 is null or a.key = $6) and ($7 is null or a.queue_id = any ($7))
                         and ($8 is null or a.id > $8) and ($12 is null or a.id = $12)
                     order by a.id limit $9) x
                 order by x.id limit $9)
            ) p
            order by p.id limit $9
        )
        select x.id, x.task, q.name, x.state, x.priority, x.key, x.read_ct, x.max_deliveries,
            x.enqueued_at, x.due, x.dequeued_at, x.ended_at, x.consumer_worker_id,
            case when $11 then x.payload::text end, x.result::text, x.reason, x.error,
            x.progress
        from page p
        join "tocsin".queues q on q.id = p.queue_id
        cross join lateral (
            select m.id, m.task, case when m.state = 'leased' and m.vt > $10 then 'running'
                       else 'waiting' end as state,
                m.priority, m.key, m.read_ct, coalesce(m.max_deliveries, q.max_deliveries)
                    as max_deliveries,
                m.enqueued_at, m.due, m.dequeued_at, null::timestamptz as ended_at,
                m.consumer_worker_id, m.payload, null::jsonb as result, null::text as reason,
                coalesce(m.cancel_reason, m.last_error) as error,
                case when m.state = 'leased' and m.vt > $10
                    then "tocsin"._read_progress(m.progress, m.lease) end as progress
            from "tocsin".messages m where m.id = p.id
            union all
            select d.id, d.task, 'failed', d.priority, d.key, d.read_ct,
                coalesce(d.max_deliveries, q.max_deliveries), d.enqueued_at, null, d.dequeued_at,
                d.died_at, d.consumer_worker_id, d.payload, null, d.reason, d.error, null
            from "tocsin".dead_letters d where d.id = p.id
            union all
            select a.id, a.task, a.outcome, a.priority, a.key, a.read_ct, null, a.enqueued_at,
                null, a.dequeued_at, a.archived_at, a.consumer_worker_id, a.payload, a.result,
                null, a.last_error, null
            from "tocsin".archive a where a.queue_id = p.queue_id and a.id = p.id
        ) x
        order by x.id
        $q$, '.id limit', case when newest_first then '.id desc limit' else '.id limit' end),
        '.id > $8', case when newest_first then '.id < $8' else '.id > $8' end)
        || case when newest_first then ' desc' else '' end
    using task, only_queue, state, since, until, key, readable, after, max_jobs, t,
        shows_arguments, job_id;
end
$_$;



CREATE FUNCTION tocsin.list_limits(limit_name text DEFAULT NULL::text) RETURNS TABLE(name text, key text, n integer, per double precision, ordered boolean, holders bigint, waiting bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    if limit_name is not null then
        perform "tocsin"._check_limit(limit_name);
    end if;
    return query
        select l.name, s.key, coalesce(l.set_n, l.n), extract(epoch from l.per)::float8, l.ordered,
               count(*) filter (where s.slot is not null), count(*) filter (where s.waits)
        from "tocsin".limits l left join "tocsin".slots s on s.limit_id = l.id
        where limit_name is null or l.name = limit_name
        group by l.id, s.key
        order by l.name, s.key;
end
$$;



CREATE FUNCTION tocsin.list_messages(queue text, state text DEFAULT NULL::text, worker_id bigint DEFAULT NULL::bigint, max_messages integer DEFAULT 100, after bigint DEFAULT NULL::bigint) RETURNS SETOF tocsin.message_info
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
    t timestamptz := "tocsin"._clock();
    beyond bigint := coalesce(after, -9223372036854775808);
    page bigint[];
    states text[] := case when state is not null then array[state]
                          when worker_id is not null then '{leased}'
                          else '{ready,delayed,held,leased}' end;
begin
    if not states <@ '{ready,delayed,held,leased,dead,archived}' then
        perform "tocsin"._raise_error('TC022',
                                    'state must be one of ready, delayed, held, leased, dead, '
                                    'archived',
                                    '{"argument": "state"}');
    elsif worker_id is not null and states <> '{leased}' then
        perform "tocsin"._raise_error('TC022',
                                    'worker_id chooses leased messages, so state must be leased or null',
                                    '{"argument": "worker_id"}');
    end if;
    page := array(
        select p.id
        from (
            (select m.id from "tocsin".messages m
             where 'ready' = any (states) and m.queue_id = q.id and m.state = 'ready'
                 and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select d.id from (select m.id from "tocsin".messages m
                               where 'ready' = any (states) and m.queue_id = q.id
                                   and m.state = 'delayed' and m.vt <= t offset 0) d
             where d.id > beyond
             order by d.id limit max_messages)
            union all
            (select d.id from (select m.id from "tocsin".messages m
                               where 'ready' = any (states) and m.queue_id = q.id
                                   and m.state = 'leased' and m.vt <= t offset 0) d
             where d.id > beyond
             order by d.id limit max_messages)
            union all
            (select m.id from "tocsin".messages m
             where 'delayed' = any (states) and m.queue_id = q.id and m.state = 'delayed'
                 and m.vt - t > '0 s' and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select m.id from "tocsin".messages m
             where 'held' = any (states) and m.queue_id = q.id and m.state = 'held'
                 and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select m.id from "tocsin".messages m
             where 'leased' = any (states) and m.queue_id = q.id and m.state = 'leased'
                 and m.id > beyond
               and case when worker_id is null then m.vt - t > '0 s'
                   else m.consumer_worker_id = worker_id end
             order by m.id limit max_messages)
            union all
            (select d.id from "tocsin".dead_letters d
             where 'dead' = any (states) and d.queue_id = q.id and d.id > beyond
             order by d.id limit max_messages)
            union all
            (select a.id from "tocsin".archive a
             where 'archived' = any (states) and a.queue_id = q.id and a.id > beyond
             order by a.id limit max_messages)
        ) p
        order by p.id limit max_messages);
    return query select * from "tocsin"._describe_messages(page, array[q.id], t);
end
$$;



CREATE FUNCTION tocsin.list_queues() RETURNS SETOF tocsin.queues
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select q.* from "tocsin".queues q order by q.name $$;



CREATE FUNCTION tocsin.list_schedules(name text DEFAULT NULL::text) RETURNS TABLE(schedule text, task text, queue text, arguments text, headers text, priority integer, max_attempts integer, timeout double precision, expires_in interval, cron text, every interval, start timestamp with time zone, zone text, missed integer, overlap text, anchor timestamp with time zone, handled_to timestamp with time zone, next_tick timestamp with time zone, last_tick timestamp with time zone, last_job_id bigint, paused_at timestamp with time zone, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select s.name, s.task, q.name,
           case when "tocsin"._may_consume() then s.arguments::text end,
           case when "tocsin"._may_consume() then s.headers::text end,
           s.priority, s.max_attempts, s.timeout, s.expires_in, s.cron, s.every, s.start,
           s.zone, s.missed, s.overlap, s.anchor, s.handled_to, s.next_tick, s.last_tick,
           s.last_job_id, s.paused_at,
           s.created_at
    from "tocsin".schedules s join "tocsin".queues q on q.id = s.queue_id
    where (list_schedules.name is null or s.name = list_schedules.name)
        and "tocsin"._may_read_outcomes(s.queue_id)
    order by s.name
$$;



CREATE FUNCTION tocsin.list_tasks() RETURNS TABLE(name text, queue text, max_deliveries integer, priority integer, timeout double precision, description text, registered_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select t.name, q.name, t.max_deliveries, t.priority, t.timeout, t.description, t.registered_at
    from "tocsin".tasks t join "tocsin".queues q on q.id = t.queue_id
    order by t.name
$$;



CREATE FUNCTION tocsin.list_workers(queue text DEFAULT NULL::text, worker_id bigint DEFAULT NULL::bigint) RETURNS TABLE(id bigint, name text, kind text, queue_id integer, queue text, status text, hostname text, pid integer, version text, started_at timestamp with time zone, heartbeat_at timestamp with time zone, heartbeat_age double precision, shutdown_at timestamp with time zone, ended text, held bigint, running_message_id bigint, running_for double precision, tasks text[])
    LANGUAGE sql STABLE SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    with shown as materialized (
        select w.*, q.name as queue_name
        from "tocsin".workers w join "tocsin".queues q on q.id = w.queue_id
        where (list_workers.queue is null or q.name = list_workers.queue)
          and (list_workers.worker_id is null or w.id = list_workers.worker_id)
          and "tocsin"._acts_for(w.role)
    ), holders as (
        select h.worker_id, h.held, h.message_id, h.since
        from (select distinct s.queue_id from shown s where s.status <> 'stopped') s
        cross join lateral "tocsin"._holders(s.queue_id) h
    )
    select s.id, s.name, s.kind, s.queue_id, s.queue_name, s.status, s.hostname, s.pid, s.version,
        s.started_at, beat.at,
           extract(epoch from "tocsin"._clock() - beat.at)::float8, s.shutdown_at, s.ended,
           coalesce(h.held, 0),
           h.message_id, case when h.since is not null
               then greatest(0, extract(epoch from "tocsin"._clock() - h.since)) end::float8,
           s.tasks
    from shown s
    left join "tocsin".processes p on p.id = s.process_id
    left join holders h on h.worker_id = s.id
    cross join lateral (select greatest(s.heartbeat_at, p.heartbeat_at)) beat (at)
    order by s.id
$$;



CREATE FUNCTION tocsin.locked_messages(ids bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    free bigint[];
    there bigint[];
begin
    select array_agg(x.id) into free
    from (select m.id from "tocsin".messages m where m.id = any (ids) order by m.id
          for update skip locked) x;
    select array_agg(m.id) into there from "tocsin".messages m
        where m.id = any (ids) and m.id <> all (coalesce(free, '{}'));
    return coalesce(there, '{}');
end
$$;



CREATE FUNCTION tocsin.maintain(OUT elected boolean, OUT partitions_created integer, OUT partitions_dropped integer, OUT archived_deleted bigint, OUT dead_letters_purged bigint, OUT orphans_deleted bigint, OUT workers_purged bigint, OUT more boolean, OUT problems text[]) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    rows constant integer := 10000;
    tables constant integer := 10;
    problem text;
begin
    elected := pg_try_advisory_xact_lock("tocsin"._lock_key('maintain', 0));
    partitions_created := 0;
    partitions_dropped := 0;
    archived_deleted := 0;
    dead_letters_purged := 0;
    orphans_deleted := 0;
    workers_purged := 0;
    more := false;
    problems := '{}';
    if not elected then
        return;
    end if;
    begin
        perform "tocsin"._correct_future_times();
    exception when others then
        problems := problems || format('times in the future are not corrected: %s', sqlerrm);
    end;
    begin
        perform "tocsin"._publish_partitions();
    exception when others then
        problems := problems || format('partitions of the archive are not published: %s', sqlerrm);
    end;
    begin
        select a.added, a.problem into partitions_created, problem from "tocsin"._add_partitions() a;
        if problem is not null then
            problems := problems
                || format('a partition of the archive cannot be created: %s', problem);
        end if;
    exception when others then
        problems := problems || format('partitions of the archive are not created: %s', sqlerrm);
    end;
    begin
        perform "tocsin"._end_flows(rows);
    exception when others then
        problems := problems || format('flows are not ended: %s', sqlerrm);
    end;
    begin
        archived_deleted := "tocsin"._delete_expired(rows);
    exception when others then
        problems := problems
            || format('expired messages of the archive are not deleted: %s', sqlerrm);
    end;
    begin
        dead_letters_purged := "tocsin"._purge_expired_dead_letters(rows);
    exception when others then
        problems := problems || format('expired dead letters are not deleted: %s', sqlerrm);
    end;
    begin
        orphans_deleted := "tocsin"._sweep_orphans(rows);
    exception when others then
        problems := problems || format('messages of deleted queues are not deleted: %s', sqlerrm);
    end;
    begin
        workers_purged := "tocsin"._purge_stopped_workers(rows);
    exception when others then
        problems := problems
            || format('workers that were stopped long ago are not deleted: %s', sqlerrm);
    end;
    begin
        perform "tocsin"._forget_ended_sessions();
    exception when others then
        problems := problems
            || format('waits of ended sessions are not deleted: %s', sqlerrm);
    end;
    begin
        perform "tocsin"._restore_ticks();
    exception when others then
        problems := problems || format('ticks of schedules are not enqueued: %s', sqlerrm);
    end;
    begin
        perform "tocsin"._roll_up_count_deltas();
    exception when others then
        problems := problems || format('counts of archived messages are not added up: %s', sqlerrm);
    end;
    begin
        select d.dropped, d.problem into partitions_dropped, problem
            from "tocsin"._drop_expired_partitions(tables) d;
        if problem is not null then
            problems := problems
                || format('a partition of the archive cannot be dropped: %s', problem);
        end if;
    exception when others then
        problems := problems
            || format('expired partitions of the archive are not dropped: %s', sqlerrm);
    end;
    more := partitions_created > 0 or archived_deleted >= rows or dead_letters_purged >= rows
        or orphans_deleted >= rows
            or workers_purged >= rows or partitions_dropped >= tables;
end
$$;



CREATE FUNCTION tocsin.pause_queue(queue text) RETURNS tocsin.queues
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    paused "tocsin".queues := "tocsin".find_queue(queue);
begin
    update "tocsin".queues q set paused_at = coalesce(q.paused_at, "tocsin"._clock())
        where q.id = paused.id returning q.* into paused;
    return paused;
end
$$;



CREATE FUNCTION tocsin.pause_schedule(name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    s "tocsin".schedules := "tocsin"._lock_schedule(name);
begin
    if s.paused_at is not null then
        return false;
    end if;
    s.paused_at := "tocsin"._clock();
    perform "tocsin"._replace_tick(s, null);
    return true;
end
$$;



CREATE FUNCTION tocsin.process_channel(process_id bigint) RETURNS text
    LANGUAGE sql IMMUTABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._channel('/process/' || process_id) $$;



CREATE FUNCTION tocsin.purge_archive(queue_id integer, older_than interval DEFAULT NULL::interval, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    before timestamptz := coalesce("tocsin"._later(t, -older_than), 'infinity');
    purged bigint;
    given_up bigint[];  -- jobs that can no longer be requeued
begin
    if dry_run and older_than is null then
        return "tocsin".archived_count(queue_id);
    elsif dry_run then
        return (select count(*) from "tocsin".archive a
                where a.queue_id = purge_archive.queue_id and a.archived_at < before);
    end if;
    with gone as (
        delete from "tocsin".archive a
            where a.queue_id = purge_archive.queue_id and a.archived_at < before
                returning a.span, a.keep_until, a.id, a.outcome
    ), per_slot as (
        select g.span, "tocsin"._archive_slot(g.span, g.keep_until) as starts_at, count(*) as n
            from gone g group by 1, 2
    ), counted as (
        insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select purge_archive.queue_id, p.span, p.starts_at, t, -p.n from per_slot p
    )
    select coalesce((select sum(p.n) from per_slot p), 0),
        array(select g.id from gone g where g.outcome <> 'succeeded')
    into purged, given_up;
    perform "tocsin"._give_up(given_up) where given_up <> '{}';
    return purged;
end
$$;



CREATE FUNCTION tocsin.purge_dead_letters(ids bigint[] DEFAULT NULL::bigint[], queue text DEFAULT NULL::text, reason text DEFAULT NULL::text, error text DEFAULT NULL::text, older_than interval DEFAULT NULL::interval, max_letters integer DEFAULT NULL::integer, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_variable
declare
    taken bigint[];
    queue_id integer;
    died_before timestamptz;
begin
    if dry_run then
        queue_id := "tocsin"._resolve_queue(ids, queue);
        died_before := "tocsin"._cutoff(older_than);
        return (select count(*)
                from (select from "tocsin".dead_letters d
                      where "tocsin"._matches_filter(d, ids, queue_id, reason, error, died_before)
                      limit max_letters) meant);
    end if;
    taken := "tocsin"._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    delete from "tocsin".dead_letters d where d.id = any (taken);
    perform "tocsin"._give_up(taken);
    return cardinality(taken);
end
$$;



CREATE FUNCTION tocsin.purge_queue(queue text, ready boolean DEFAULT false, delayed boolean DEFAULT false, held boolean DEFAULT false, archived boolean DEFAULT false, dead boolean DEFAULT false, older_than interval DEFAULT NULL::interval, dry_run boolean DEFAULT false) RETURNS TABLE(ready_count bigint, delayed_count bigint, held_count bigint, archived_count bigint, dead_count bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
    t timestamptz := "tocsin"._clock();
    before timestamptz := coalesce("tocsin"._later(t, -older_than), 'infinity');
    -- whether a deleted message kept its place, and so held up the queue: see order.sql
    held_up boolean;
    parents jsonb;  -- jobs of flows
begin
    if (ready or delayed or held or archived or dead) is not true then
        perform "tocsin"._raise_error('TC022', 'say what to purge: ready, delayed, held, archived or dead',
                                    '{"argument": "ready"}');
    elsif older_than < '0 s' then
        perform "tocsin"._raise_error('TC022', 'older_than must not be negative',
                                    '{"argument": "older_than"}');
    end if;
    -- Each ready message is due. A message that is due and still delayed counts as
    -- ready.
    if dry_run then
        select count(*) filter (where not w.held and w.vt <= t),
               count(*) filter (where not w.held and w.vt > t), count(*) filter (where w.held)
        into ready_count, delayed_count, held_count
        from (select m.vt, false as held from "tocsin".messages m
              where m.queue_id = q.id and m.state = 'ready' and purge_queue.ready
                  and m.enqueued_at < before
              union all
              select m.vt, false from "tocsin".messages m
              where m.queue_id = q.id and m.state = 'delayed' and case when m.vt > t then delayed
                  else purge_queue.ready end
                and m.enqueued_at < before
              union all
              select m.vt, true from "tocsin".messages m
              where m.queue_id = q.id and m.state = 'held' and purge_queue.held
                  and m.enqueued_at < before) w;
    else
        with waiting as (
            select r.id from (select m.id from "tocsin".messages m
                              where m.queue_id = q.id and m.state = 'ready' and purge_queue.ready
                                  and m.enqueued_at < before
                              for update skip locked) r
            union all
            select s.id from (select m.id from "tocsin".messages m
                              where m.queue_id = q.id and m.state = 'delayed'
                                and case when m.vt > t then delayed
                                    else purge_queue.ready end and m.enqueued_at < before
                              for update skip locked) s
            union all
            select h.id from (select m.id from "tocsin".messages m
                              where m.queue_id = q.id and m.state = 'held' and purge_queue.held
                                  and m.enqueued_at < before
                              for update skip locked) h
        ), gone as (
            delete from "tocsin".messages m using waiting w where m.id = w.id
            returning m.id, m.flow_id, m.due, m.vt, m.state = 'held' as held
        )
        select count(*) filter (where not g.held and g.vt <= t),
               count(*) filter (where not g.held and g.vt > t), count(*) filter (where g.held),
               bool_or(g.due < g.vt),
               jsonb_object_agg(g.id, null) filter (where g.flow_id is not null)
        into ready_count, delayed_count, held_count, held_up, parents
        from gone g;
        if parents is not null then
            perform "tocsin"._end_parents(parents, succeeded => false, gone => true);
        end if;
        if held_up then
            perform "tocsin"._ring(q.id);
        end if;
    end if;
    dead_count := case when dead
        then "tocsin".purge_dead_letters(queue => queue, older_than => older_than, dry_run => dry_run)
            else 0 end;
    archived_count := case when archived then "tocsin".purge_archive(q.id, older_than, dry_run)
        else 0 end;
    return next;
end
$$;



CREATE FUNCTION tocsin.purge_workers(older_than interval, queue text DEFAULT NULL::text, dry_run boolean DEFAULT false) RETURNS TABLE(id bigint, name text, kind text, queue_id integer, queue_name text, status text, hostname text, pid integer, version text, started_at timestamp with time zone, heartbeat_at timestamp with time zone, heartbeat_age double precision, shutdown_at timestamp with time zone, ended text, held bigint, running_message_id bigint, running_for double precision, tasks text[])
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    only_queue integer := case when queue is not null then ("tocsin".find_queue(queue)).id end;
    t timestamptz := "tocsin"._later("tocsin"._clock(), -older_than);
begin
    return query
        with gone as (
            delete from "tocsin".workers w
            where not dry_run and w.status = 'stopped' and w.shutdown_at <= t
                and (only_queue is null or w.queue_id = only_queue)
            returning w.id
        )
        select l.* from "tocsin".list_workers(purge_workers.queue) l
        where case when dry_run then l.status = 'stopped' and l.shutdown_at <= t
            else l.id in (select g.id from gone g) end;
end
$$;



CREATE FUNCTION tocsin.queue_channel(queue text) RETURNS text
    LANGUAGE sql IMMUTABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._channel('.' || queue) $$;



CREATE FUNCTION tocsin.queue_health(queue text DEFAULT NULL::text, max_age interval DEFAULT '00:00:30'::interval, max_running interval DEFAULT NULL::interval) RETURNS TABLE(name text, healthy boolean, problems text[], consumers bigint, unhealthy_workers bigint[], suspended_workers bigint[], ready bigint, oldest_ready_age double precision, paused_for double precision, running_worker_id bigint, running_message_id bigint, running_for double precision, unserved_tasks text[])
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    q "tocsin".queues;
    exact boolean;
    only_tasks boolean;
    since timestamptz;
    suspended text;
    mute text := case when current_setting('session_replication_role') = 'replica' or not exists (
        select from pg_catalog.pg_trigger g
            where g.tgrelid = '"tocsin".messages'::regclass and g.tgname = 'ring'
                and g.tgenabled in ('O', 'A'))
        then 'the trigger that notifies consumers is off, so messages wait for a heartbeat' end;
begin
    if queue is not null then
        perform "tocsin".find_queue(queue);
    end if;
    for q in
        select x.* from "tocsin".queues x
            where queue_health.queue is null or x.name = queue_health.queue order by x.name
    loop
        name := q.name;
        select count(*) filter (where w.kind = 'consumer' and w.status in ('ready', 'polling')
                                and beat.age <= max_age),
               coalesce(bool_and(w.tasks is not null)
                   filter (where w.kind = 'consumer' and w.status in ('ready', 'polling')
                           and beat.age <= max_age), false),
               coalesce(array_agg(w.id order by w.id) filter (where beat.age > max_age), '{}'),
               coalesce(array_agg(format('worker %s ("%s") is %s but has sent no heartbeat '
                                         'for %s s', w.id, w.name, w.status,
                                         round(extract(epoch from beat.age)))
                                             order by w.id) filter (where beat.age > max_age),
                                                 '{}'),
               coalesce(array_agg(w.id order by w.id) filter (where on_hold), '{}'),
               string_agg(format('%s ("%s")', w.id, w.name), ', '
                          order by w.id) filter (where on_hold)
        into consumers, only_tasks, unhealthy_workers, problems, suspended_workers, suspended
        from "tocsin".workers w
        left join "tocsin".processes p on p.id = w.process_id
        cross join lateral (select t - greatest(w.heartbeat_at, p.heartbeat_at)) beat (age)
        cross join lateral (select w.kind = 'consumer'
                            and w.status in ('interrupted', 'suspended')) held_up (on_hold)
        where w.queue_id = q.id and w.status <> 'stopped';

        select c.ready, c.exact into ready, exact from "tocsin"._count_queues(q.id, q.id, t, 10000) c;
        since := case when ready > 0 then "tocsin"._oldest_ready(q.id, t) end;
        -- The due time of a message may be earlier than the creation of its queue.
        oldest_ready_age := case when since is not null
            then greatest(0, extract(epoch from t - greatest(since, q.created_at))) end;
        if consumers = 0 and q.paused_at is null
            and oldest_ready_age > extract(epoch from max_age) then
            problems := format('messages wait and no consumer is active: %s%s, the oldest for '
                               '%s s%s',
                               case when exact then ''
                                   else 'about ' end, ready, round(oldest_ready_age),
                                       '; suspended: ' || suspended)
                        || problems;
        end if;
        unserved_tasks := '{}';
        if only_tasks and q.paused_at is null then
            select coalesce(array_agg(u.task) filter (where u.task is not null), '{}'),
                problems || coalesce(array_agg(
                    case when u.task is null
                        then 'plain messages wait and no consumer handles them'
                        else format('jobs wait and no worker runs task "%s"', u.task) end
                    || format(': %s, the oldest for %s s', u.n,
                              round(extract(epoch from t - u.since)))), '{}')
            into unserved_tasks, problems
            from "tocsin"._unserved_tasks(q.id, t, max_age) u;
        end if;
        -- For each worker, the message that it has held for longest under a lease that
        -- has not expired.
        select (array_agg(w.id order by h.since))[1], (array_agg(h.message_id order by h.since))[1],
               case when min(h.since) is not null
                   then greatest(0, extract(epoch from t - min(h.since))) end,
               problems || coalesce(
                   array_agg(format('worker %s ("%s") has been at message %s for %s s', w.id,
                                    w.name, h.message_id,
                                    round(extract(epoch from t - h.since))) order by h.since)
                       filter (where t - h.since > coalesce(max_running,
                           greatest('5 min', least('1 h', 10 * q.vt)))), '{}')
        into running_worker_id, running_message_id, running_for, problems
        from "tocsin"._holders(q.id, t) h
        join "tocsin".workers w on w.id = h.worker_id;
        paused_for := case when q.paused_at is not null
            then greatest(0, extract(epoch from t - q.paused_at)) end;
        if mute is not null then
            problems := problems || mute;
        end if;
        healthy := cardinality(problems) = 0;
        return next;
    end loop;
end
$$;



CREATE FUNCTION tocsin.queue_metrics(queue text DEFAULT NULL::text) RETURNS TABLE(queue_name text, paused boolean, ready bigint, delayed bigint, held bigint, leased bigint, dead bigint, archived bigint, oldest_ready_age double precision, enqueue_rate double precision, settle_rate double precision, consumers bigint, exact boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    only_queue integer := case when queue is not null then ("tocsin".find_queue(queue)).id end;
    first_id integer := coalesce(only_queue, 0);
    last_id integer := coalesce(only_queue, 2147483647);
    -- So few messages are read here: a function call would cost several times as much
    -- for a queue that is almost empty.
    few constant integer := 100;
begin
    return query
        with counts as materialized (
            select * from "tocsin"._count_queues(first_id, last_id, t)
        ), settled as (
            select y.queue_id, sum(y.n)::float8 / 60 as rate from "tocsin".archive_count_deltas y
            where y.queue_id between first_id and last_id
                and y.archived_at > t - interval '1 minute' and y.archived_at <= t and y.n > 0
            group by y.queue_id
        ), consuming as (
            select w.queue_id, count(*) as n from "tocsin".workers w
            where w.queue_id between first_id and last_id and w.kind = 'consumer'
                and w.status in ('ready', 'polling')
            group by w.queue_id
        )
        select q.name, q.paused_at is not null, c.ready, c.delayed, c.held, c.leased, c.dead,
            coalesce(a.n, 0),
               extract(epoch from t - case when c.ready > few then "tocsin"._oldest_ready(q.id, t)
                       when c.ready > 0 then (
                   select min(x.at)
                   from (select m.due as at from "tocsin".messages m
                         where m.queue_id = q.id and m.state = 'ready'
                         union all
                         select m.vt from "tocsin".messages m
                             where m.queue_id = q.id and m.state in ('delayed', 'leased')
                                 and m.vt <= t) x)
               end)::float8,
               case when c.ready + c.delayed + c.held + c.leased > few or s.rate > 0
                    then "tocsin"._enqueue_rate(q.id, t, c.ready + c.delayed + c.held + c.leased)
                    when c.ready + c.delayed + c.held + c.leased > 0 then (
                   select count(*) filter (where x.enqueued_at >= t - interval '1 minute')
                   from (select m.enqueued_at from "tocsin".messages m
                         where m.queue_id = q.id and m.state = 'ready'
                         union all
                         select m.enqueued_at from "tocsin".messages m
                             where m.queue_id = q.id and m.state = 'held'
                         union all
                         select m.enqueued_at from "tocsin".messages m
                             where m.queue_id = q.id and m.state in ('delayed', 'leased')) x) / 60.0
                    else 0 end::float8,
               coalesce(s.rate, 0), coalesce(w.n, 0), c.exact
        from counts c
        join "tocsin".queues q on q.id = c.queue_id
        left join "tocsin"._archived_in_all(first_id, last_id) a on a.queue_id = q.id
        left join settled s on s.queue_id = q.id
        left join consuming w on w.queue_id = q.id
        where q.id between first_id and last_id
        order by q.name;
end
$$;



CREATE FUNCTION tocsin.queue_of(worker_id bigint) RETURNS tocsin.queues
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select q.* from "tocsin".workers w join "tocsin".queues q on q.id = w.queue_id
    where w.id = queue_of.worker_id and "tocsin"._acts_for(w.role)
$$;



CREATE FUNCTION tocsin.reclaim(OUT workers bigint, OUT messages bigint, OUT more boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    t timestamptz := "tocsin"._clock();
    stop_at timestamptz := t + interval '50 ms';
    alive bigint[];
    held jsonb;
    q integer;
    expired bigint;
    over boolean := false;
begin
    -- Dead processes come first, because ending them locks workers before messages.
    -- Locked messages with expired leases are skipped.
    select coalesce(array_agg(w.id), '{}'),
        coalesce(jsonb_object_agg(w.id, "tocsin"._count_held(w)), '{}') into alive, held
    from "tocsin".workers w where w.process_id is not null;
    more := coalesce("tocsin"._reap_dead_processes(0, stop_at => stop_at) = 0, false);
    select count(*),
        coalesce(sum((held ->> w.id::text)::bigint - "tocsin"._count_held(w)), 0) into workers,
        messages
    from "tocsin".workers w where w.id = any (alive) and w.status_before_death is not null;

    if more then
        return;
    end if;
    for q in select x.id from "tocsin".queues x order by x.id loop
        while exists (select from "tocsin".messages m
                      where m.queue_id = q and m.state = 'leased' and m.vt <= t) loop
            more := over;
            exit when more;
            expired := "tocsin"._make_due_ready(q);
            -- A claim that does the same, or a late settlement, has locked the rest.
            exit when expired = 0;
            messages := messages + coalesce(expired, 0);
            over := "tocsin"._clock() >= stop_at;
        end loop;
        exit when more;
    end loop;
end
$$;



CREATE FUNCTION tocsin.register_process(hostname text, pid integer, version text, every interval, contract integer DEFAULT NULL::integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    process_id bigint;
    installed "tocsin".contract;
begin
    select c.* into installed from "tocsin".contract c;
    if contract not between installed.serves and installed.version then
        perform "tocsin"._raise_error('TC017',
                                    'the schema does not serve this version of the SQL contract',
            jsonb_build_object('schema', (parse_ident('"tocsin".contract'))[1], 'found',
                               installed.version, 'serves', installed.serves, 'known', contract));
    end if;
    -- the heartbeats of all processes rely on a valid interval
    if (every > '0 s' and every <= '1 hour') is not true then
        perform "tocsin"._raise_error('TC022',
                                    'the heartbeat interval must be positive, and at most an '
                                    'hour', '{"argument": "heartbeat"}');
    end if;
    perform "tocsin"._record_uptime("tocsin"._clock());
    perform "tocsin"._correct_heartbeats("tocsin"._clock());
    insert into "tocsin".processes (hostname, pid, version, role, every, started_at, heartbeat_at)
    values (hostname, pid, version, "tocsin"._caller(), every, "tocsin"._clock(), "tocsin"._clock())
    returning id into process_id;
    return process_id;
end
$$;



CREATE FUNCTION tocsin.register_tasks(tasks jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    perform "tocsin"._check_limits(coalesce(
        (select jsonb_agg(case when jsonb_typeof(l.spec) = 'object'
                          then l.spec - '{parameter,position,default,computed}'::text[]
                          else l.spec end)
         from jsonb_array_elements(t.limits) l (spec)), '[]'))
    from jsonb_to_recordset(tasks) as t (limits jsonb);
    insert into "tocsin".tasks as x (name, queue_id, max_deliveries, priority, timeout, limits,
                                   description, registered_at)
    select t.name, ("tocsin".find_queue(t.queue)).id, t.max_deliveries, t.priority, t.timeout,
           coalesce(t.limits, '[]'), t.description, "tocsin"._clock()
    from jsonb_to_recordset(tasks) as t (name text, queue text, max_deliveries integer,
                                         priority integer, timeout float8, limits jsonb,
                                         description text)
    order by t.name
    on conflict (name) do update
    set queue_id = excluded.queue_id, max_deliveries = excluded.max_deliveries,
        priority = excluded.priority, timeout = excluded.timeout,
        limits = excluded.limits, description = excluded.description,
        registered_at = excluded.registered_at
    where (x.queue_id, x.max_deliveries, x.priority, x.timeout, x.limits, x.description)
        is distinct from (excluded.queue_id, excluded.max_deliveries, excluded.priority,
                          excluded.timeout, excluded.limits, excluded.description);
    perform "tocsin"._declare_limits(tasks);
end
$$;



CREATE FUNCTION tocsin.register_worker(queue text, kind text, name text, process_id bigint, hostname text, pid integer, version text, again boolean DEFAULT false, tasks text[] DEFAULT NULL::text[]) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
    t timestamptz := "tocsin"._clock();
    w "tocsin".workers;
    retry_after float8;
begin
    -- This lock is held until the transaction ends: a deletion of the queue waits for
    -- the registration, or the registration waits for the deletion.
    perform from "tocsin".queues x where x.id = q.id for key share;
    if not found then
        perform "tocsin"._refuse_missing(queue);
    end if;
    perform "tocsin"._check_register(q, register_worker.kind);
    perform from "tocsin".processes p
        where p.id = register_worker.process_id and "tocsin"._acts_for(p.role) for key share;
    if not found and process_id is not null then
        perform "tocsin"._raise_error('TC008', format('process %s was declared dead', process_id),
                                    jsonb_build_object('process_id', process_id));
    end if;
    for attempt in 1..2 loop
        insert into "tocsin".workers as x
            (queue_id, kind, name, status, registration, role, process_id, hostname, pid, version,
             started_at, heartbeat_at, tasks)
        values (q.id, register_worker.kind,
                coalesce(register_worker.name,
                         format('%s-%s-%s', hostname, pid, substr(gen_random_uuid()::text, 1, 8))),
                'ready', nextval('"tocsin".registrations'), "tocsin"._caller(),
                register_worker.process_id, register_worker.hostname,
                register_worker.pid, register_worker.version, t, t, register_worker.tasks)
        on conflict (queue_id, kind, name) do update
            set status = case when again and x.status_before_death in ('suspended', 'interrupted')
                then x.status_before_death else 'ready' end,
                grace = null, status_before_death = null, ended = null,
                registration = excluded.registration, role = excluded.role,
                process_id = excluded.process_id, hostname = excluded.hostname, pid = excluded.pid,
                version = excluded.version,
                started_at = t, heartbeat_at = t, shutdown_at = null, tasks = excluded.tasks
            where x.status = 'stopped'
        returning x.* into w;
        if found then
            return w;
        end if;
        -- The owner of the name may be dead, with no other process alive to declare it
        -- dead.
        retry_after := null;
        select "tocsin"._reap_if_dead(p, t, "tocsin"._record_uptime(t)) into retry_after
        from "tocsin".workers x join "tocsin".processes p on p.id = x.process_id
        where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name
          and p.id is distinct from register_worker.process_id;
    end loop;
    select x.* into w from "tocsin".workers x
    where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name;
    perform "tocsin"._raise_error('TC005',
        format('worker %s ("%s") is %s: its name is in use by process %s on %s', w.id, w.name,
               w.status, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', 'ready', 'retry_after',
                           retry_after, 'code', 'name_in_use',
                           'reason',
                           format('its name is in use by process %s on %s', w.pid, w.hostname)),
        'Choose another name, or end that worker first.');
end
$$;



CREATE FUNCTION tocsin.release(ids bigint[], leases bigint[], delay interval DEFAULT '00:00:00'::interval, counted boolean DEFAULT true) RETURNS boolean[]
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce(array_agg(g.outcome is not null order by g.n), '{}')
    from unnest("tocsin"._requeue(ids, leases, delay, counted,
                                'released')) with ordinality as g (outcome, n)
$$;



CREATE FUNCTION tocsin.release_messages(worker_id bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers := "tocsin"._lock_own_worker(worker_id);
begin
    perform "tocsin"._tell_process(w, leases_taken => true);  -- sent at the commit
    return "tocsin"._release_held(w, false, '');
end
$$;



CREATE FUNCTION tocsin.release_others(worker_id bigint, registration bigint, keep_ids bigint[], keep_leases bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers;
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    select x.* into w from "tocsin".workers x
    where x.id = worker_id and x.registration = release_others.registration
        and "tocsin"._acts_for(x.role);
    if not found then
        return 0;
    end if;
    perform "tocsin"._ring(w.queue_id);
    return "tocsin"._release_held(w, false, '', keep_ids, keep_leases);
end
$$;



CREATE FUNCTION tocsin.replay(ids bigint[] DEFAULT NULL::bigint[], queue text DEFAULT NULL::text, reason text DEFAULT NULL::text, error text DEFAULT NULL::text, older_than interval DEFAULT NULL::interval, max_letters integer DEFAULT NULL::integer, delay interval DEFAULT NULL::interval) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    taken bigint[];
    replayed bigint[];
    flows bigint[];
    held_up bigint[];
    t timestamptz;
begin
    perform "tocsin"._check_due(delay, null);
    -- The rows of flows are locked before those of their jobs; a call by queue waits for
    -- neither.
    perform "tocsin"._reopen_flows(array(select d.flow_id from "tocsin".dead_letters d
                                       where d.id = any (ids) and d.flow_id is not null));
    taken := "tocsin"._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    flows := array(select f.id from "tocsin".flows f
                   where f.id in (select d.flow_id from "tocsin".dead_letters d
                                  where d.id = any (taken) and d.flow_id is not null)
                   for update skip locked);
    taken := array(select d.id from "tocsin".dead_letters d
                   where d.id = any (taken) and (d.flow_id is null or d.flow_id = any (flows)));
    perform "tocsin"._reopen_flows(flows);
    t := "tocsin"._later("tocsin"._clock(), coalesce(delay, '0 s'));
    with added as (
        insert into "tocsin".messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     dequeued_at, lease, producer_worker_id,
                                     consumer_worker_id, max_deliveries, key, payload, headers,
                                     last_error, history, task, options, flow_id)
        select d.id, d.queue_id, d.priority,
            (case when delay > '0 s' then 'delayed' else 'ready' end)::"tocsin".message_state, t, t,
               d.enqueued_at, d.dequeued_at, d.lease, d.producer_worker_id, d.consumer_worker_id,
               d.max_deliveries, d.key, d.payload,
               d.headers, d.error, d.history, d.task, d.options, d.flow_id
        from "tocsin".dead_letters d
        where d.id = any (taken)
        order by d.id
        on conflict (queue_id, key) where key is not null do nothing
        returning id
    ), removed as (
        delete from "tocsin".dead_letters d using added a where d.id = any (taken) and d.id = a.id
    )
    select coalesce(array_agg(a.id order by a.id), '{}') into replayed from added a;
    if ids is not null and cardinality(replayed) < cardinality(taken) then
        held_up := array(select x.id from unnest(taken) as x (id) where x.id <> all (replayed)
                         order by x.id);
        perform "tocsin"._raise_error('TC014',
            format('dead letter %s cannot be replayed: another unfinished message has its key',
                   array_to_string(held_up, ', ')),
            jsonb_build_object('ids', held_up),
            'Wait until that message is finished, or archive or purge the dead letter.');
    end if;
    return replayed;
end
$$;



CREATE FUNCTION tocsin.reprioritise(message_id bigint DEFAULT NULL::bigint, priority integer DEFAULT NULL::integer, queue text DEFAULT NULL::text, key text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    m "tocsin".messages;
begin
    if reprioritise.priority is null then
        perform "tocsin"._raise_error('TC022', 'give a priority', '{"argument": "priority"}');
    end if;
    m := "tocsin"._lock_waiting(message_id, queue, key);
    update "tocsin".messages x set priority = reprioritise.priority where x.id = m.id;
    if m.state not in ('delayed', 'held') then
        -- a consumer may have skipped the locked row, and may wait now
        perform "tocsin"._ring(m.queue_id);
    end if;
    return m.id;
end
$$;



CREATE FUNCTION tocsin.requeue_flow(flow_id bigint) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    ids bigint[] := "tocsin"._lock_flow(flow_id);
    t timestamptz := "tocsin"._clock();
    again bigint[];
    requeued bigint[];
begin
    -- The end of a parent in a transaction of a stricter isolation level, whose snapshot is
    -- older than this, would not see the jobs that are added. So it is refused.
    update "tocsin".messages m set flow_id = m.flow_id where m.id = any (ids);
    perform "tocsin"._reopen_flows(array[flow_id]);
    again := array(select d.id from "tocsin".dead_letters d
                   where d.id = any (ids) order by d.id for update)
        || array(select a.id from "tocsin".archive a
                 where a.queue_id in (select j.queue_id from "tocsin".flow_jobs j
                                      where j.flow_id = requeue_flow.flow_id)
                     and a.id = any (ids) and a.outcome <> 'succeeded'
                 order by a.id for update);
    with recursive behind (id) as (
        select e.child from "tocsin".edges e
        where e.flow_id = requeue_flow.flow_id and not e.done and e.parent <> all (again)
            and not exists (select from "tocsin".messages m where m.id = e.parent)
        union
        select e.child from behind b join "tocsin".edges e on e.parent = b.id where not e.done
    )
    select array_agg(x.id) into again
    from unnest(again) x (id) where x.id not in (select b.id from behind b);
    with dead as (
        delete from "tocsin".dead_letters d where d.id = any (again) returning d.*
    ), gone as (
        delete from "tocsin".archive a
        where a.queue_id in (select j.queue_id from "tocsin".flow_jobs j
                             where j.flow_id = requeue_flow.flow_id)
            and a.id = any (again)
        returning a.*
    ), counted as (
        insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select g.queue_id, g.span, g.keep_until, t, -count(*) from gone g group by 1, 2, 3
    ), added as (
        insert into "tocsin".messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     dequeued_at, lease, producer_worker_id, consumer_worker_id,
                                     max_deliveries, key, payload, headers, last_error, history,
                                     task, options, waits_for, flow_id)
        select x.id, x.queue_id, x.priority, 'held', t, t, x.enqueued_at, x.dequeued_at, x.lease,
               x.producer_worker_id, x.consumer_worker_id, x.max_deliveries, x.key, x.payload,
               x.headers, x.last_error, x.history, x.task, x.options, 0, requeue_flow.flow_id
        from (select d.id, d.queue_id, d.priority, d.enqueued_at, d.dequeued_at, d.lease,
                     d.producer_worker_id, d.consumer_worker_id, d.max_deliveries, d.key,
                     d.payload, d.headers, d.error as last_error, d.history, d.task, d.options
              from dead d
              union all
              select g.id, g.queue_id, g.priority, g.enqueued_at, g.dequeued_at, null,
                     g.producer_worker_id, g.consumer_worker_id,
                     (select k.max_deliveries from "tocsin".tasks k where k.name = g.task), g.key,
                     g.payload, g.headers, g.last_error, g.history, g.task, g.options
              from gone g) x
        order by x.id
        returning id
    )
    select array_agg(a.id order by a.id) into requeued from added a;
    update "tocsin".edges e set done = false, value = null
    where e.parent = any (requeued) and e.done;
    update "tocsin".messages m
    set waits_for = (select count(*) from "tocsin".edges e where e.child = m.id and not e.done)
    where m.id = any (ids) and m.waits_for is not null;
    perform "tocsin"._admit_children(array(
        select m.id from "tocsin".messages m
        where m.id = any (ids) and m.state is not distinct from 'held' and m.waits_for = 0));
    return coalesce(requeued, '{}');
end
$$;



CREATE FUNCTION tocsin.requeue_job(job_id bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    a "tocsin".archive;
    queue integer;
    parent bigint;
    flow bigint;
begin
    select min(e.parent) into parent from "tocsin".edges e where e.child = job_id and not e.done;
    select d.queue_id into queue from "tocsin".dead_letters d
    where d.id = job_id and d.task is not null;
    if found then
        perform "tocsin"._check_requeue(queue, job_id, parent);
        if cardinality("tocsin".replay(ids => array[job_id])) = 1 then
            return job_id;
        end if;
    end if;
    -- one lookup for each queue: the archive has no index of ids alone
    select x.queue_id into queue
    from "tocsin".queues q
    join "tocsin".archive x on x.queue_id = q.id and x.id = job_id and x.task is not null;
    if not found then
        perform "tocsin"._refuse_change(job_id, null, null);
    end if;
    perform "tocsin"._check_requeue(queue, job_id, parent);
    perform "tocsin"._reopen_flows(array[j.flow_id])
    from "tocsin".flow_jobs j where j.job_id = requeue_job.job_id;
    select j.flow_id into flow from "tocsin".flow_jobs j where j.job_id = requeue_job.job_id;
    delete from "tocsin".archive x where x.queue_id = queue and x.id = job_id returning x.* into a;
    if not found then  -- another call has requeued it
        perform "tocsin"._refuse_change(job_id, null, null);
    end if;
    insert into "tocsin".archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        values (a.queue_id, a.span, a.keep_until, t, -1);
    insert into "tocsin".messages (id, queue_id, priority, state, due, vt, enqueued_at, dequeued_at,
                                 producer_worker_id, consumer_worker_id, max_deliveries, key,
                                 payload, headers, history, task, options, flow_id)
    select a.id, a.queue_id, a.priority, 'ready', t, t, a.enqueued_at, a.dequeued_at,
        a.producer_worker_id, a.consumer_worker_id,
        (select x.max_deliveries from "tocsin".tasks x where x.name = a.task), a.key,
        case when flow is null then a.payload else "tocsin"._fill_arguments(a.id, a.payload) end,
        a.headers, a.history, a.task, a.options, flow
    on conflict (queue_id, key) where key is not null do nothing;
    if not found then
        perform "tocsin"._raise_error('TC014',
            format('job %s cannot be requeued: another unfinished message has its key', job_id),
            jsonb_build_object('ids', array[job_id]), 'Wait until that message is finished.');
    end if;
    return job_id;
end
$$;



CREATE FUNCTION tocsin.reschedule(message_id bigint DEFAULT NULL::bigint, delay interval DEFAULT NULL::interval, at timestamp with time zone DEFAULT NULL::timestamp with time zone, queue text DEFAULT NULL::text, key text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    m "tocsin".messages;
    t timestamptz;
    due_at timestamptz;
begin
    perform "tocsin"._check_due(delay, at);
    if delay is null and at is null then
        perform "tocsin"._raise_error('TC022', 'give delay or at', '{"argument": "delay"}');
    end if;
    m := "tocsin"._lock_waiting(message_id, queue, key);
    t := "tocsin"._clock();
    due_at := coalesce(at, "tocsin"._later(t, delay));
    update "tocsin".messages x
    set state = (case when m.state = 'held' then 'held' when due_at > t then 'delayed'
                 else 'ready' end)::"tocsin".message_state,
        due = due_at, vt = due_at,
        history = m.history
    where x.id = m.id;
    -- the third condition: the message kept its place, and so held up the queue
    if m.state <> 'held' and (due_at <= t or due_at < m.vt or m.due < m.vt) then
        perform "tocsin"._ring(m.queue_id);
    end if;
    return m.id;
end
$$;



CREATE FUNCTION tocsin.resume(worker_id bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers := "tocsin"._move_worker(worker_id, '{suspended}', 'ready');
begin
    perform "tocsin"._tell_process(w);
    return w;
end
$$;



CREATE FUNCTION tocsin.resume_queue(queue text) RETURNS tocsin.queues
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    resumed "tocsin".queues := "tocsin".find_queue(queue);
begin
    update "tocsin".queues q set paused_at = null where q.id = resumed.id returning q.* into resumed;
    perform "tocsin"._ring(resumed.id);
    return resumed;
end
$$;



CREATE FUNCTION tocsin.resume_schedule(name text, next_tick timestamp with time zone DEFAULT NULL::timestamp with time zone, since timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    s "tocsin".schedules := "tocsin"._lock_schedule(name);
begin
    perform "tocsin"._check_time(since, 'since');
    perform "tocsin"._check_time(next_tick, 'next_tick');
    if s.paused_at is null then
        return false;
    end if;
    s.paused_at := null;
    s.handled_to := coalesce(since, "tocsin"._clock());
    perform "tocsin"._replace_tick(s, next_tick);
    return true;
end
$$;



CREATE FUNCTION tocsin.revoke_queue(queue text, role text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    q "tocsin".queues := "tocsin".find_queue(queue);
begin
    delete from "tocsin".queue_grants g
        where g.queue_id = q.id and g.role = "tocsin"._find_role(revoke_queue.role);
end
$$;



CREATE FUNCTION tocsin.run_schedule(name text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    s "tocsin".schedules := "tocsin"._lock_schedule(name);
    job_id bigint;
begin
    loop
        job_id := "tocsin"._submit_scheduled(s, null);
        exit when job_id is not null;
        job_id := "tocsin"._find_key(s.queue_id, "tocsin"._scheduled_key(s, null));
        exit when job_id is not null;
    end loop;
    update "tocsin".schedules x set last_job_id = job_id where x.id = s.id;
    return job_id;
end
$$;



CREATE FUNCTION tocsin.secure(former_roles oid[] DEFAULT '{}'::oid[], before jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    our_schema oid := (select c.relnamespace from pg_class c
                       where c.oid = '"tocsin".contract'::regclass);
    f record;
begin
    for f in
        select p.oid::regprocedure as signature, a.roles is not null as is_entry_point
        from pg_proc p left join "tocsin"._access() a on a.function = p.proname
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
    delete from "tocsin".roles r where r.role not in (select x.oid from pg_roles x);
    delete from "tocsin".queue_grants g where g.role not in (select x.oid from pg_roles x);
    perform "tocsin"._apply_privileges(former_roles, before => before);
end
$$;



CREATE FUNCTION tocsin.server_time() RETURNS timestamp with time zone
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._clock() $$;



CREATE FUNCTION tocsin.set_limit(name text, n integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    ids bigint[];
    only_one boolean;
begin
    select array_agg(x.id order by x.id), bool_or(x.ordered) into ids, only_one
    from "tocsin".limits x where x.name = set_limit.name;
    perform "tocsin"._check_limit(set_limit.name);
    if set_limit.n < 1 or set_limit.n > 1000000 or only_one and set_limit.n <> 1 then
        perform "tocsin"._raise_error('TC022',
            case when only_one then 'an ordered limit has n = 1'
            else 'n must be at least 1, and at most a million' end, '{"argument": "n"}');
    end if;
    update "tocsin".limits x set set_n = set_limit.n where x.id = any (ids);
    perform "tocsin"._note_waiting(i) from unnest(ids) i;
end
$$;



CREATE FUNCTION tocsin.set_schedule(name text, task text, arguments jsonb DEFAULT '[]'::jsonb, cron text DEFAULT NULL::text, every interval DEFAULT NULL::interval, start timestamp with time zone DEFAULT NULL::timestamp with time zone, zone text DEFAULT 'UTC'::text, missed integer DEFAULT 1, overlap text DEFAULT 'allow'::text, queue text DEFAULT NULL::text, priority integer DEFAULT NULL::integer, headers jsonb DEFAULT NULL::jsonb, max_attempts integer DEFAULT NULL::integer, timeout interval DEFAULT NULL::interval, expires_in interval DEFAULT NULL::interval, next_tick timestamp with time zone DEFAULT NULL::timestamp with time zone, since timestamp with time zone DEFAULT NULL::timestamp with time zone, definition jsonb DEFAULT NULL::jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    k "tocsin".tasks;
    q "tocsin".queues;
    old "tocsin".schedules;
    s "tocsin".schedules;
    made boolean;
begin
    if definition is not null
        and not exists (select from "tocsin".tasks x where x.name = set_schedule.task) then
        perform "tocsin"._check_change(("tocsin".find_queue(definition ->> 'queue')).id);
        perform "tocsin".register_tasks(jsonb_build_array(definition));
    end if;
    select x.* into k from "tocsin".tasks x where x.name = set_schedule.task;
    if not found then
        perform "tocsin"._refuse_task(set_schedule.task);
    end if;
    q := "tocsin".find_queue(coalesce(
        queue, (select x.name from "tocsin".queues x where x.id = k.queue_id)));
    perform "tocsin"._check_change(q.id);
    s.name := name;
    s.queue_id := q.id;
    s.task := task;
    s.arguments := arguments;
    s.headers := headers;
    s.priority := priority;
    s.max_attempts := max_attempts;
    s.timeout := extract(epoch from timeout);
    s.expires_in := expires_in;
    s.cron := cron;
    s.every := every;
    s.start := start;
    s.zone := zone;
    s.missed := missed;
    s.overlap := overlap;
    s.anchor := coalesce(start, since, t);
    s.handled_to := coalesce(since, t);
    perform "tocsin"._check_time(start, 'start');
    perform "tocsin"._check_time(since, 'since');
    perform "tocsin"._check_time(next_tick, 'next_tick');
    perform "tocsin"._check_schedule(s);
    perform "tocsin"._check_payloads(q, jsonb_build_array(arguments), null);
    perform "tocsin"._check_headers(q, headers);
    perform "tocsin"._limits_of(k, arguments);  -- or refuses them
    loop
        insert into "tocsin".schedules as x (name, queue_id, task, arguments, headers, priority,
                                           max_attempts, timeout, expires_in, cron, every, start, zone,
                                           missed, overlap, anchor, handled_to, next_tick, created_at)
        values (s.name, s.queue_id, s.task, s.arguments, s.headers, s.priority, s.max_attempts,
                s.timeout, s.expires_in, s.cron, s.every, s.start, s.zone, s.missed, s.overlap,
                s.anchor, s.handled_to, next_tick, t)
        on conflict (name) do nothing
        returning true into made;
        exit when made;
        perform from "tocsin".schedules x where x.name = s.name for update;
        exit when found;  -- otherwise it was deleted at this moment
    end loop;
    old := "tocsin"._lock_schedule(name);
    if made then
        perform "tocsin"._enqueue_tick(old);
        return true;
    elsif (old.queue_id, old.task, old.arguments, old.headers, old.priority, old.max_attempts,
           old.timeout, old.expires_in, old.cron, old.every, old.start, old.zone, old.missed,
           old.overlap)
        is not distinct from
          (s.queue_id, s.task, s.arguments, s.headers, s.priority, s.max_attempts, s.timeout,
           s.expires_in, s.cron, s.every, s.start, s.zone, s.missed, s.overlap) then
        return false;
    end if;
    update "tocsin".schedules x
    set queue_id = s.queue_id, task = s.task, arguments = s.arguments, headers = s.headers,
        priority = s.priority, max_attempts = s.max_attempts, timeout = s.timeout,
        expires_in = s.expires_in, cron = s.cron, every = s.every, start = s.start,
        zone = s.zone, missed = s.missed, overlap = s.overlap
    where x.id = old.id;
    if old.queue_id <> s.queue_id then
        delete from "tocsin".messages m
        where m.queue_id = old.queue_id and m.key = "tocsin"._tick_key(old.id)
            and m.task = '$tick';
    end if;
    s.id := old.id;
    s.generation := old.generation;
    s.paused_at := old.paused_at;
    if (old.cron, old.every, old.start, old.zone)
        is not distinct from (s.cron, s.every, s.start, s.zone) then
        -- the same ticks as before: also those that are due are still to be handled
        s.anchor := old.anchor;
        s.handled_to := old.handled_to;
        next_tick := old.next_tick;
    end if;
    perform "tocsin"._replace_tick(s, next_tick);
    return true;
end
$_$;



CREATE FUNCTION tocsin.settle_rate(queue_id integer) RETURNS double precision
    LANGUAGE sql SECURITY DEFINER
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce(sum(y.n), 0)::float8 / 60 from "tocsin".archive_count_deltas y
    where y.queue_id = settle_rate.queue_id
        and y.archived_at > (select "tocsin"._clock() - interval '1 minute') and y.n > 0
$$;



CREATE FUNCTION tocsin.shutdown(worker_id bigint) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers;
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    w := "tocsin"._move_worker(worker_id, '{suspended}', 'stopped', ended => 'shut_down');
    perform "tocsin"._refuse_held(w);
    perform "tocsin"._tell_process(w);
    return w;
end
$$;



CREATE FUNCTION tocsin.stop(worker_id bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers := "tocsin"._lock_own_worker(worker_id);
    released bigint;
begin
    if w.status = 'stopped' then
        return 0;
    end if;
    w := "tocsin"._move_worker(worker_id, '{ready,polling,interrupted,suspended}', 'stopped',
                             ended => 'stopped');
    released := "tocsin"._release_held(w, false, '');
    perform "tocsin"._tell_process(w);
    return released;
end
$$;



CREATE FUNCTION tocsin.store_stats() RETURNS TABLE(queues bigint, workers jsonb, ready bigint, delayed bigint, held bigint, leased bigint, dead bigint, archived bigint, processes bigint, version integer, exact boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
begin
    return query
        select count(*),
               (select coalesce(jsonb_object_agg(s.status, s.n), '{}')
                from (select w.status, count(*) as n from "tocsin".workers w group by 1) s),
               coalesce(sum(c.ready), 0)::bigint, coalesce(sum(c.delayed), 0)::bigint,
               coalesce(sum(c.held), 0)::bigint,
               coalesce(sum(c.leased), 0)::bigint,
               coalesce(sum(c.dead), 0)::bigint,
               (select coalesce(sum(a.n), 0)::bigint
                    from "tocsin"._archived_in_all(0, 2147483647) a),
               (select count(*) from "tocsin".processes), (select x.version from "tocsin".contract x),
               coalesce(bool_and(c.exact), true)
        from "tocsin"._count_queues(0, 2147483647, t) c;
end
$$;



CREATE FUNCTION tocsin.submit(task text, arguments jsonb DEFAULT '[]'::jsonb, delay interval DEFAULT NULL::interval, at timestamp with time zone DEFAULT NULL::timestamp with time zone, priority integer DEFAULT NULL::integer, headers jsonb DEFAULT NULL::jsonb, key text DEFAULT NULL::text, expires_in interval DEFAULT NULL::interval, max_attempts integer DEFAULT NULL::integer, timeout interval DEFAULT NULL::interval) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    t "tocsin".tasks;
    options jsonb;
begin
    perform "tocsin"._check_arguments(arguments);
    select x.* into t from "tocsin".tasks x where x.name = submit.task;
    if not found then
        perform "tocsin"._refuse_task(submit.task);
    end if;
    if submit.timeout is not null then
        options := jsonb_build_object('timeout', extract(epoch from submit.timeout));
    end if;
    if t.limits <> '[]' then
        options := coalesce(options, '{}')
            || jsonb_build_object('limits', "tocsin"._limits_of(t, arguments));
    end if;
    return "tocsin".enqueue(
        (select q.name from "tocsin".queues q where q.id = t.queue_id), arguments, delay, at,
        coalesce(submit.priority, t.priority), headers, key, expires_in,
        coalesce(max_attempts, t.max_deliveries),
        task => t.name,
        options => options);
end
$$;



CREATE FUNCTION tocsin.submit_flow(name text, jobs jsonb) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    job jsonb;
    flow bigint;
    ids bigint[] := '{}';
    named integer;
begin
    if coalesce(submit_flow.name, '') = '' then
        perform "tocsin"._raise_error('TC022', 'a flow must have a name', '{"argument": "name"}');
    end if;
    insert into "tocsin".flows (name, created_at) values (submit_flow.name, "tocsin"._clock())
    returning id into flow;
    for job in select j.value from jsonb_array_elements(jobs) j loop
        if job ->> 'task' is null or exists (
            select from jsonb_to_recordset(job -> 'parents') p (job integer, on_failure text)
            where p.job is null or p.job not between 0 and cardinality(ids) - 1
                or p.on_failure not in ('cancel', 'run', 'hold'))
        then
            perform "tocsin"._raise_error('TC022',
                format('job %s of the flow must have a task, come after its parents, and have '
                       'on_failure as cancel, run or hold', cardinality(ids)),
                '{"argument": "jobs"}');
        end if;
        ids := ids || "tocsin".enqueue(
            job ->> 'queue', job -> 'payload', (job ->> 'delay')::interval,
            (job ->> 'at')::timestamptz, (job ->> 'priority')::integer, job -> 'headers', null,
            (job ->> 'expires_in')::interval, (job ->> 'max_deliveries')::integer,
            task => job ->> 'task', options => job -> 'options');
    end loop;
    insert into "tocsin".flow_jobs (job_id, flow_id, queue_id, task, name)
    select ids[j.n], flow, ("tocsin".find_queue(j.value ->> 'queue')).id, j.value ->> 'task',
           coalesce(j.value ->> 'name', (j.value ->> 'task') || '-' || j.n)
    from jsonb_array_elements(jobs) with ordinality j (value, n)
    on conflict do nothing;
    get diagnostics named = row_count;
    if named < cardinality(ids) then
        perform "tocsin"._raise_error('TC022', 'two jobs of the flow have the same name',
                                    '{"argument": "jobs"}');
    end if;
    insert into "tocsin".edges (parent, child, argument, flow_id, on_failure)
    select ids[p.job + 1], ids[j.n], coalesce(p.argument, '{}'), flow,
           coalesce(p.on_failure, 'cancel')
    from jsonb_array_elements(jobs) with ordinality j (value, n)
    cross join lateral jsonb_to_recordset(j.value -> 'parents')
        p (job integer, on_failure text, argument text[])
    on conflict do nothing;
    update "tocsin".messages m
    set flow_id = flow, waits_for = g.edges,
        state = case when g.edges is not null then 'held' else m.state end
    from (select i.id, (select nullif(count(*), 0) from "tocsin".edges e where e.child = i.id) as edges
          from unnest(ids) i (id)) g
    where m.id = any (ids) and m.id = g.id;
    -- A job with limits joins their lines when it waits for no parent: see held.sql.
    perform "tocsin"._free(m.id) from "tocsin".messages m
    where m.id = any (ids) and m.waits_for is not null and m.options ? 'limits';
    return flow || ids;
end
$$;



CREATE FUNCTION tocsin.suspend(worker_id bigint, release boolean DEFAULT false, drain boolean DEFAULT false) RETURNS tocsin.workers
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers;
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    w := "tocsin"._move_worker(worker_id, '{ready,polling,interrupted}', 'suspended');
    if release then
        perform "tocsin"._release_held(w, false, '');
    elsif not drain then
        perform "tocsin"._refuse_held(w);
    end if;
    perform "tocsin"._tell_process(w);
    return w;
end
$$;



CREATE FUNCTION tocsin.task_metrics(cap integer DEFAULT 10000) RETURNS TABLE(task_name text, waiting bigint, running bigint, failed bigint, success_rate double precision, exact boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    t timestamptz := "tocsin"._clock();
    minute timestamptz := t - interval '1 minute';
    sample constant integer := 1000;
    unfinished bigint;
    factor float8 := 1;
begin
    select count(*) into unfinished from (select from "tocsin".messages m limit cap + 1) x;
    if unfinished > cap then
        factor := greatest("tocsin"._estimate('select from "tocsin".messages'), unfinished)::float8
            / cap;
    end if;
    return query
        with waits as (
            select x.task, (count(*) * factor)::bigint as n
            from (select m.task, m.state, m.vt from "tocsin".messages m limit cap) x
            where x.task <> '$tick' and not (x.state = 'leased' and x.vt > t)
            group by x.task
        ), runs as (
            select m.task, count(*) as n
            from "tocsin".queues q
            join "tocsin".messages m on m.queue_id = q.id and m.state = 'leased' and m.vt > t
            where m.task <> '$tick' group by m.task
        ), ended as (
            select s.task,
                max(f.n) filter (where s.outcome is null) as failed,
                max(r.rate) filter (where s.outcome = 'succeeded') as rate
            from "tocsin"._job_shelves(null, null) s
            cross join lateral (
                select count(*) as n
                from (select from "tocsin".dead_letters d
                      where s.outcome is null and d.task is not null and d.task = s.task
                      limit cap + 1) x) f
            cross join lateral (
                select count(*) filter (where x.archived_at > minute)::float8
                    / case when count(*) < sample then 60
                          else greatest(extract(epoch from t - greatest(min(x.archived_at), minute)),
                                        0.01) end as rate
                from (select a.archived_at from "tocsin".archive a
                      where s.outcome = 'succeeded' and a.task is not null and a.task = s.task
                          and a.outcome = s.outcome
                      order by a.id desc limit sample) x) r
            where s.outcome is null or s.outcome = 'succeeded'
            group by s.task
        )
        select k.task, coalesce(w.n, 0), coalesce(r.n, 0), coalesce(e.failed, 0),
            coalesce(e.rate, 0), factor = 1 and coalesce(e.failed, 0) <= cap
        from (select x.task from waits x union select x.task from runs x
              union select x.task from ended x) k
        left join waits w on w.task = k.task
        left join runs r on r.task = k.task
        left join ended e on e.task = k.task
        order by k.task;
end
$_$;



CREATE FUNCTION tocsin.tick(message_id bigint, lease bigint, ticks timestamp with time zone[], next_tick timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
    about jsonb;
    s "tocsin".schedules;
    at timestamptz;
    job_id bigint;
begin
    select m.payload into about from "tocsin".messages m
    where m.id = message_id and m.lease = tick.lease and m.state is not distinct from 'leased'
        and m.task = '$tick';
    if not found then
        return false;
    end if;
    select x.* into s from "tocsin".schedules x where x.id = (about ->> 'schedule')::bigint
        for update;
    delete from "tocsin".messages m
    where m.id = message_id and m.lease = tick.lease and m.state is not distinct from 'leased';
    if not found then
        return false;
    elsif s.id is null or s.paused_at is not null
        or s.generation <> (about ->> 'generation')::bigint then
        return true;
    elsif tick.next_tick is null or tick.next_tick <= s.handled_to
        or tick.next_tick >= '9999-12-30 UTC' then
        perform "tocsin"._raise_error('TC022', 'the next tick must come after the ticks handled',
                                    '{"argument": "next_tick"}');
    end if;
    foreach at in array coalesce(ticks, '{}') loop
        continue when at <= s.handled_to;
        job_id := "tocsin"._submit_scheduled(s, at);
        s.handled_to := at;
        if job_id is not null then
            s.last_tick := at;
            s.last_job_id := job_id;
        end if;
    end loop;
    s.next_tick := tick.next_tick;
    update "tocsin".schedules x
    set handled_to = s.handled_to, next_tick = s.next_tick, last_tick = s.last_tick,
        last_job_id = s.last_job_id
    where x.id = s.id;
    perform "tocsin"._enqueue_tick(s);
    return true;
end
$_$;



CREATE FUNCTION tocsin.unannounced_outcomes(queue_ids integer[]) RETURNS integer[]
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce(array_agg(q) filter (where "tocsin"._shared_elsewhere("tocsin"._lock_key('unannounced',
        q))), '{}') from unnest(queue_ids) q
$$;



CREATE FUNCTION tocsin.unregister_process(process_id bigint, died boolean DEFAULT false) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ select "tocsin"._end_process(p.id, died) from "tocsin".processes p
    where p.id = process_id and "tocsin"._acts_for(p.role) $$;



CREATE FUNCTION tocsin.unregister_worker(worker_id bigint, registration bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers;
begin
    perform pg_advisory_xact_lock("tocsin"._lock_key('worker', worker_id));
    update "tocsin".workers x set status = 'stopped', ended = 'left', grace = null,
        shutdown_at = "tocsin"._clock(), process_id = null
    where x.id = worker_id and x.registration = unregister_worker.registration
        and x.status <> 'stopped' and "tocsin"._acts_for(x.role)
    returning x.* into w;
    return case when found then "tocsin"._release_held(w, false, '') else 0 end;
end
$$;



CREATE FUNCTION tocsin.unrung_transactions(queue_ids integer[]) RETURNS integer[]
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce(array_agg(q) filter (where "tocsin"._shared_elsewhere("tocsin"._lock_key('unrung',
        q))), '{}') from unnest(queue_ids) q
$$;



CREATE FUNCTION tocsin.update_queue(queue text, vt interval DEFAULT NULL::interval, max_deliveries integer DEFAULT NULL::integer, retry_base interval DEFAULT NULL::interval, retry_factor double precision DEFAULT NULL::double precision, retry_max interval DEFAULT NULL::interval, retry_jitter double precision DEFAULT NULL::double precision, max_payload integer DEFAULT NULL::integer, max_string integer DEFAULT NULL::integer, max_depth integer DEFAULT NULL::integer, required_keys text[] DEFAULT NULL::text[], forbidden_keys text[] DEFAULT NULL::text[], retention interval DEFAULT NULL::interval, dead_letter_retention interval DEFAULT NULL::interval, notify text DEFAULT NULL::text) RETURNS tocsin.queues
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return "tocsin"._change_queue(("tocsin".find_queue(queue)).id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string, max_depth, required_keys, forbidden_keys, retention, dead_letter_retention, notify);
end
$$;



CREATE FUNCTION tocsin.wait_for_flush() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if current_setting('bell.unflushed', true) = 'yes' then
        perform set_config('bell.unflushed', '', false), setval('"tocsin".flush_marker', 1);
    end if;
end
$$;



CREATE FUNCTION tocsin.worker_heartbeat(worker_id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    w "tocsin".workers;
begin
    update "tocsin".workers x set heartbeat_at = "tocsin"._clock()
    where x.id = worker_id and x.status <> 'stopped' and "tocsin"._acts_for(x.role)
    returning x.* into w;
    if not found then
        w := "tocsin"._check_own("tocsin"._find_worker(worker_id));
        perform "tocsin"._refuse_transition(w, null, 'registration_ended',
                                          'a stopped worker has no heartbeat');
    end if;
end
$$;



CREATE FUNCTION tocsin.worker_stats(queue text DEFAULT NULL::text) RETURNS TABLE(total bigint, by_status jsonb, by_kind jsonb, held bigint, oldest_heartbeat_age double precision)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
    if worker_stats.queue is not null then
        perform "tocsin".find_queue(worker_stats.queue);
    end if;
    return query
        select count(*),
               jsonb_build_object(
                   'ready', count(*) filter (where w.status = 'ready'),
                   'polling', count(*) filter (where w.status = 'polling'),
                   'interrupted', count(*) filter (where w.status = 'interrupted'),
                   'suspended', count(*) filter (where w.status = 'suspended'),
                   'stopped', count(*) filter (where w.status = 'stopped')),
               jsonb_build_object(
                   'producer', count(*) filter (where w.kind = 'producer'),
                   'consumer', count(*) filter (where w.kind = 'consumer')),
               coalesce(sum(w.held), 0)::bigint,
               max(w.heartbeat_age) filter (where w.status <> 'stopped')
        from "tocsin".list_workers(worker_stats.queue) w;
end
$$;



CREATE TABLE tocsin.archive (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT 0 NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT '9999-01-01 00:00:00+00'::timestamp with time zone NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
)
PARTITION BY RANGE (span, keep_until);

ALTER TABLE ONLY tocsin.archive REPLICA IDENTITY FULL;



COMMENT ON COLUMN tocsin.archive.span IS 'Length of the row''s partition in hours of keep_until; 0: the row is in archive_rest.';



COMMENT ON COLUMN tocsin.archive.keep_until IS 'When the row may be deleted: archived_at plus the retention that the queue had then. The year 9999 means never.';



COMMENT ON COLUMN tocsin.archive.outcome IS 'Of a job: succeeded, cancelled, or failed (a dead letter that was archived).';



COMMENT ON COLUMN tocsin.archive.result IS 'Of a job that has succeeded: what its function returned, as JSON.';



CREATE TABLE tocsin.archive_1h_2026113022 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_1h_2026113022 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_1h_2026113023 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_1h_2026113023 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_24h_2026122900 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_24h_2026122900 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_24h_2026123000 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_24h_2026123000 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_8640h_2984032500 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_8640h_2984032500 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_8640h_2985032000 (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT NULL NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT NULL NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_8640h_2985032000 REPLICA IDENTITY FULL;



CREATE TABLE tocsin.archive_count_deltas (
    queue_id integer NOT NULL,
    span integer,
    keep_until timestamp with time zone NOT NULL,
    archived_at timestamp with time zone NOT NULL,
    n bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY tocsin.archive_count_deltas REPLICA IDENTITY FULL;



COMMENT ON TABLE tocsin.archive_count_deltas IS 'Numbers of rows that were added to the archive (negative: deleted from it) and are not in archived_counts yet. A statement that changes the archive only inserts here.';



COMMENT ON COLUMN tocsin.archive_count_deltas.span IS 'As in the table archive; null: the queue keeps no archive.';



CREATE TABLE tocsin.archive_rest (
    id bigint NOT NULL,
    queue_id integer NOT NULL,
    priority integer NOT NULL,
    read_ct integer NOT NULL,
    span integer DEFAULT 0 NOT NULL,
    enqueued_at timestamp with time zone NOT NULL,
    dequeued_at timestamp with time zone,
    archived_at timestamp with time zone NOT NULL,
    keep_until timestamp with time zone DEFAULT '9999-01-01 00:00:00+00'::timestamp with time zone NOT NULL,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key text,
    payload jsonb NOT NULL,
    headers jsonb,
    last_error text,
    history jsonb,
    task text,
    options jsonb,
    outcome text,
    result jsonb
);

ALTER TABLE ONLY tocsin.archive_rest REPLICA IDENTITY FULL;



COMMENT ON TABLE tocsin.archive_rest IS 'Rows that are kept forever, and rows whose partition did not exist in time.';



CREATE TABLE tocsin.archived_counts (
    queue_id integer NOT NULL,
    span integer NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    n bigint NOT NULL
);



COMMENT ON TABLE tocsin.archived_counts IS 'Number of archived messages of each queue in each partition, without those in archive_count_deltas. Only maintenance writes to this table.';



CREATE UNLOGGED TABLE tocsin.awaited (
    job_id bigint NOT NULL,
    process_id bigint NOT NULL
);



COMMENT ON TABLE tocsin.awaited IS 'Which process waits for the outcome of which job; see sql/functions/jobs/outcomes.sql.';



COMMENT ON COLUMN tocsin.awaited.process_id IS 'A process; a negative number: a session, see sql/functions/jobs/session_waits.sql.';



CREATE TABLE tocsin.contract (
    only_row boolean DEFAULT true NOT NULL,
    version integer NOT NULL,
    serves integer NOT NULL,
    digest text NOT NULL,
    CONSTRAINT contract_check CHECK ((serves <= version)),
    CONSTRAINT contract_only_row_check CHECK (only_row)
);



COMMENT ON TABLE tocsin.contract IS 'The installed version of the SQL contract: tables, functions, and the privileges on them.';



COMMENT ON COLUMN tocsin.contract.serves IS 'The oldest version whose clients the installed functions serve.';



COMMENT ON COLUMN tocsin.contract.digest IS 'Digest of the SQL that was last installed.';



CREATE TABLE tocsin.edges (
    parent bigint NOT NULL,
    child bigint NOT NULL,
    argument text[] DEFAULT '{}'::text[] NOT NULL,
    flow_id bigint NOT NULL,
    on_failure text NOT NULL,
    done boolean DEFAULT false NOT NULL,
    value jsonb,
    CONSTRAINT edges_on_failure_check CHECK ((on_failure = ANY (ARRAY['cancel'::text, 'run'::text, 'hold'::text])))
);



COMMENT ON TABLE tocsin.edges IS 'Which job of a flow waits for which.';



COMMENT ON COLUMN tocsin.edges.argument IS 'Where in the child''s arguments the parent''s result goes; empty: nowhere.';



COMMENT ON COLUMN tocsin.edges.on_failure IS 'What becomes of the child when the parent does not succeed.';



COMMENT ON COLUMN tocsin.edges.done IS 'Whether the child waits for the parent no more.';



COMMENT ON COLUMN tocsin.edges.value IS 'The result of the parent, if the child takes it.';



CREATE TABLE tocsin.flow_jobs (
    job_id bigint NOT NULL,
    flow_id bigint NOT NULL,
    queue_id integer NOT NULL,
    task text NOT NULL,
    name text NOT NULL
);



COMMENT ON TABLE tocsin.flow_jobs IS 'The jobs of each flow, with their names in it.';



CREATE TABLE tocsin.flows (
    id bigint NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    keep_until timestamp with time zone,
    CONSTRAINT flows_name_check CHECK ((name <> ''::text))
);



COMMENT ON TABLE tocsin.flows IS 'Graphs of jobs that were submitted together; see sql/functions/jobs/flows.sql.';



COMMENT ON COLUMN tocsin.flows.ended_at IS 'When maintenance found that no job of the flow is unfinished; null: it has not.';



COMMENT ON COLUMN tocsin.flows.keep_until IS 'When the flow may be deleted: ended_at plus the longest retention of its queues, or later if it has a dead letter.';



ALTER TABLE tocsin.flows ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.flows_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



CREATE SEQUENCE tocsin.flush_marker
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;



COMMENT ON SEQUENCE tocsin.flush_marker IS 'A write to this sequence makes a commit wait for the flush of the WAL; see sql/functions/queue/ring_early.sql.';



CREATE VIEW tocsin.jobs AS
 SELECT m.id,
    m.task,
    q.name AS queue,
        CASE
            WHEN ((m.state = 'leased'::tocsin.message_state) AND (m.vt > clock_timestamp())) THEN 'running'::text
            ELSE 'waiting'::text
        END AS state,
    m.priority,
    m.key,
    m.read_ct AS attempts,
    COALESCE(m.max_deliveries, q.max_deliveries) AS max_attempts,
    m.enqueued_at AS submitted_at,
    m.due,
    m.dequeued_at AS began_at,
    NULL::timestamp with time zone AS ended_at,
    m.consumer_worker_id AS worker_id,
    m.payload AS arguments,
    m.options,
    NULL::jsonb AS result,
    NULL::text AS reason,
    COALESCE(m.cancel_reason, m.last_error) AS error,
    NULL::text AS traceback,
    m.history,
        CASE
            WHEN ((m.state = 'leased'::tocsin.message_state) AND (m.vt > clock_timestamp()) AND (((m.progress ->> 'lease'::text))::bigint = m.lease)) THEN (m.progress - 'lease'::text)
            ELSE NULL::jsonb
        END AS progress
   FROM (tocsin.messages m
     JOIN tocsin.queues q ON ((q.id = m.queue_id)))
  WHERE (m.task <> '$tick'::text)
UNION ALL
 SELECT d.id,
    d.task,
    q.name AS queue,
    'failed'::text AS state,
    d.priority,
    d.key,
    d.read_ct AS attempts,
    COALESCE(d.max_deliveries, q.max_deliveries) AS max_attempts,
    d.enqueued_at AS submitted_at,
    NULL::timestamp with time zone AS due,
    d.dequeued_at AS began_at,
    d.died_at AS ended_at,
    d.consumer_worker_id AS worker_id,
    d.payload AS arguments,
    d.options,
    NULL::jsonb AS result,
    d.reason,
    d.error,
    d.traceback,
    d.history,
    NULL::jsonb AS progress
   FROM (tocsin.dead_letters d
     JOIN tocsin.queues q ON ((q.id = d.queue_id)))
  WHERE (d.task <> '$tick'::text)
UNION ALL
 SELECT a.id,
    a.task,
    q.name AS queue,
    a.outcome AS state,
    a.priority,
    a.key,
    a.read_ct AS attempts,
    NULL::integer AS max_attempts,
    a.enqueued_at AS submitted_at,
    NULL::timestamp with time zone AS due,
    a.dequeued_at AS began_at,
    a.archived_at AS ended_at,
    a.consumer_worker_id AS worker_id,
    a.payload AS arguments,
    a.options,
    a.result,
    NULL::text AS reason,
    a.last_error AS error,
    NULL::text AS traceback,
    a.history,
    NULL::jsonb AS progress
   FROM (tocsin.archive a
     JOIN tocsin.queues q ON ((q.id = a.queue_id)))
  WHERE (a.task <> '$tick'::text);



COMMENT ON VIEW tocsin.jobs IS 'All jobs, for the owner and administrators; other roles call "tocsin".list_jobs.';



CREATE SEQUENCE tocsin.lifelines
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;



CREATE TABLE tocsin.limit_checks (
    queue_id integer NOT NULL,
    limit_id bigint NOT NULL,
    key text NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY tocsin.limit_checks REPLICA IDENTITY FULL;



COMMENT ON TABLE tocsin.limit_checks IS 'The keys whose lines the next full scan of the queue looks at.';



CREATE TABLE tocsin.limit_queues (
    limit_id bigint NOT NULL,
    queue_id integer NOT NULL,
    added xid8 NOT NULL,
    since xid8
);



COMMENT ON TABLE tocsin.limit_queues IS 'The queues whose messages name a limit.';



COMMENT ON COLUMN tocsin.limit_queues.added IS 'The transaction that has added the row.';



COMMENT ON COLUMN tocsin.limit_queues.since IS 'A transaction id: all transactions from it on see the row; null: no scan has seen it.';



CREATE TABLE tocsin.maintenance (
    only_row boolean DEFAULT true NOT NULL,
    due_at timestamp with time zone NOT NULL,
    clock_was_ahead boolean DEFAULT false NOT NULL,
    CONSTRAINT maintenance_only_row_check CHECK (only_row)
);



COMMENT ON COLUMN tocsin.maintenance.clock_was_ahead IS 'Whether a timestamp in the future was found. Maintenance then corrects all such timestamps.';



ALTER TABLE tocsin.messages ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME tocsin.messages_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



CREATE TABLE tocsin.migrations (
    number integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);



COMMENT ON TABLE tocsin.migrations IS 'The files of sql/migrations that have been applied.';



ALTER TABLE tocsin.processes ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.processes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



CREATE TABLE tocsin.queue_grants (
    queue_id integer NOT NULL,
    role regrole NOT NULL
);



COMMENT ON TABLE tocsin.queue_grants IS 'The roles that may enqueue to a queue, in addition to the owner and administrators.';



ALTER TABLE tocsin.queues ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.queues_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



CREATE TABLE tocsin.rates (
    limit_id bigint NOT NULL,
    key text NOT NULL,
    next_at timestamp with time zone NOT NULL
);



COMMENT ON COLUMN tocsin.rates.next_at IS 'The theoretical arrival time: when the next message is due if the key has no burst.';



CREATE SEQUENCE tocsin.registrations
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;



CREATE TABLE tocsin.roles (
    kind text NOT NULL,
    role regrole NOT NULL,
    CONSTRAINT roles_kind_check CHECK ((kind = ANY (ARRAY['producer'::text, 'consumer'::text, 'admin'::text])))
);



COMMENT ON TABLE tocsin.roles IS 'The roles that may use Tocsin, in addition to its owner; see sql/security/access.sql.';



ALTER TABLE tocsin.schedules ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.schedules_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



CREATE UNLOGGED TABLE tocsin.uptime (
    only_row boolean DEFAULT true NOT NULL,
    since timestamp with time zone NOT NULL,
    CONSTRAINT uptime_only_row_check CHECK (only_row)
);



ALTER TABLE tocsin.workers ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.workers_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_1h_2026113022 FOR VALUES FROM (1, '2026-11-30 22:00:00+00') TO (1, '2026-11-30 23:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_1h_2026113023 FOR VALUES FROM (1, '2026-11-30 23:00:00+00') TO (1, '2026-12-01 00:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_24h_2026122900 FOR VALUES FROM (24, '2026-12-29 00:00:00+00') TO (24, '2026-12-30 00:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_24h_2026123000 FOR VALUES FROM (24, '2026-12-30 00:00:00+00') TO (24, '2026-12-31 00:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_8640h_2984032500 FOR VALUES FROM (8640, '2984-03-25 00:00:00+00') TO (8640, '2985-03-20 00:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_8640h_2985032000 FOR VALUES FROM (8640, '2985-03-20 00:00:00+00') TO (8640, '2986-03-15 00:00:00+00');



ALTER TABLE ONLY tocsin.archive ATTACH PARTITION tocsin.archive_rest FOR VALUES FROM (0, MINVALUE) TO (0, MAXVALUE);



INSERT INTO tocsin.archive_1h_2026113022 VALUES (1, 2, 0, 1, 1, '2026-11-29 22:26:30.575419+00', '2026-11-29 22:26:30.584851+00', '2026-11-29 22:26:30.589381+00', '2026-11-30 22:26:30.589381+00', NULL, 1, NULL, '"archived for a day"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);












INSERT INTO tocsin.archive_8640h_2984032500 VALUES (2, 1, 0, 1, 8640, '2026-11-29 22:26:30.620381+00', '2026-11-29 22:26:30.635879+00', '2026-11-29 22:26:30.636938+00', '2985-03-06 22:26:30.636938+00', NULL, 3, NULL, '"archived"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);






INSERT INTO tocsin.archive_count_deltas VALUES (2, 1, '2026-11-30 22:26:30.589381+00', '2026-11-29 22:26:30.589381+00', 1);
INSERT INTO tocsin.archive_count_deltas VALUES (1, 8640, '2985-03-06 22:26:30.636938+00', '2026-11-29 22:26:30.636938+00', 1);



INSERT INTO tocsin.archive_policies VALUES (1, '350000 days', 8640, '["2984-03-25 00:00:00+00","2986-03-15 00:00:00+00")', '2026-11-29 22:26:30.50777+00');
INSERT INTO tocsin.archive_policies VALUES (2, '1 day', 1, '["2026-11-30 22:00:00+00","2026-12-01 00:00:00+00")', '2026-11-29 22:26:30.507788+00');
INSERT INTO tocsin.archive_policies VALUES (3, '30 days', 24, '["2026-12-29 00:00:00+00","2026-12-31 00:00:00+00")', '2026-11-29 22:26:30.507792+00');












INSERT INTO tocsin.contract VALUES (true, 1, 1, '571131d9058dfab2944fc26b0db4d6a7ed9c177ed412887ec03624db1a063364');



INSERT INTO tocsin.dead_letters VALUES (6, 1, 0, 1, '2026-11-29 22:26:30.648661+00', '2026-11-29 22:26:30.65586+00', '2026-11-29 22:26:30.662548+00', 1795991190655860, NULL, 3, 1, NULL, '"dead"', NULL, 'handler_failed', 'boom', NULL, '[{"error": "boom", "worker": "c", "outcome": "handler_failed", "delivery": 1, "ended_at": "2026-11-29T22:26:30.657768+00:00", "worker_id": 3, "dequeued_at": "2026-11-29T22:26:30.65586+00:00"}]', NULL, NULL, NULL);





















INSERT INTO tocsin.maintenance VALUES (true, '2026-11-29 22:27:29.882453+00', false);



INSERT INTO tocsin.messages VALUES (4, 1, -1, 'leased', 1, '2026-11-29 22:26:30.631834+00', '2026-11-29 22:26:32.635879+00', '2026-11-29 22:26:30.631834+00', '2026-11-29 22:26:30.635879+00', NULL, 1795991190635879, NULL, 3, NULL, NULL, '"leased"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (5, 1, 0, 'delayed', 1, '2026-11-29 22:26:31.791588+00', '2026-11-29 22:26:31.791588+00', '2026-11-29 22:26:30.643798+00', '2026-11-29 22:26:30.647862+00', NULL, 1795991190647862, NULL, 3, NULL, NULL, '"fails"', NULL, 'boom', '[{"error": "boom", "worker": "c", "outcome": "handler_failed", "delivery": 1, "ended_at": "2026-11-29T22:26:30.657768+00:00", "worker_id": 3, "dequeued_at": "2026-11-29T22:26:30.647862+00:00"}]', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (7, 1, 0, 'ready', 0, '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '"ready"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (8, 1, 0, 'ready', 0, '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"number": 1}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (9, 1, 0, 'ready', 0, '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[null, true]', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (10, 1, 0, 'ready', 0, '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2.5', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (11, 1, 0, 'ready', 0, '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', '2026-11-29 22:26:30.672365+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '""', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (12, 1, -5, 'ready', 0, '2026-11-29 22:26:30.67984+00', '2026-11-29 22:26:30.67984+00', '2026-11-29 22:26:30.67984+00', NULL, NULL, NULL, NULL, NULL, NULL, 'one', '"important"', '{"trace": "x"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (13, 1, 0, 'delayed', 0, '2026-11-29 22:26:31.681064+00', '2026-11-29 22:26:31.681064+00', '2026-11-29 22:26:30.681064+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '"soon"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (14, 1, 0, 'delayed', 0, '2026-11-29 22:26:31.687769+00', '2026-11-29 22:26:31.687769+00', '2026-11-29 22:26:30.687769+00', NULL, '2026-11-29 22:26:31.187769+00', NULL, NULL, NULL, NULL, NULL, '"expires"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (15, 1, 0, 'delayed', 0, '2985-03-06 22:26:30.691739+00', '2985-03-06 22:26:30.691739+00', '2026-11-29 22:26:30.691739+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '"in a thousand years"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tocsin.messages VALUES (16, 3, 0, 'ready', 0, '2026-11-29 22:26:30.692558+00', '2026-11-29 22:26:30.692558+00', '2026-11-29 22:26:30.692558+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '"waits"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);



INSERT INTO tocsin.migrations VALUES (1, '0001_messages.sql', '2026-11-29 22:26:29.882453+00');
INSERT INTO tocsin.migrations VALUES (2, '0002_workers.sql', '2026-11-29 22:26:29.882453+00');
INSERT INTO tocsin.migrations VALUES (3, '0003_jobs.sql', '2026-11-29 22:26:29.882453+00');
INSERT INTO tocsin.migrations VALUES (4, '0004_limits.sql', '2026-11-29 22:26:29.882453+00');
INSERT INTO tocsin.migrations VALUES (5, '0005_schedules.sql', '2026-11-29 22:26:29.882453+00');



INSERT INTO tocsin.processes OVERRIDING SYSTEM VALUE VALUES (1, 'vm', 28071, '0.1.0', 'postgres', '00:00:02', 1, false, '2026-11-29 22:26:30.513358+00', '2026-11-29 22:26:30.568687+00');






INSERT INTO tocsin.queues OVERRIDING SYSTEM VALUE VALUES (1, 'work', '00:00:02', 5, '00:00:01', 2, '01:00:00', 0.2, 1048576, 0, 0, '{}', '{}', DEFAULT, '350000 days', '1000 years', 'on_demand', NULL, '2026-11-29 22:26:30.362793+00', 'tocsin.work');
INSERT INTO tocsin.queues OVERRIDING SYSTEM VALUE VALUES (2, 'short', '00:00:30', 5, '00:00:01', 2, '01:00:00', 0.2, 1048576, 0, 0, '{}', '{}', DEFAULT, '1 day', '1000 years', 'on_demand', NULL, '2026-11-29 22:26:30.368457+00', 'tocsin.short');
INSERT INTO tocsin.queues OVERRIDING SYSTEM VALUE VALUES (3, 'paused', '00:00:30', 5, '00:00:01', 2, '01:00:00', 0.2, 1048576, 0, 0, '{}', '{}', DEFAULT, '30 days', '1000 years', 'on_demand', '2026-11-29 22:26:30.693863+00', '2026-11-29 22:26:30.372075+00', 'tocsin.paused');


















INSERT INTO tocsin.uptime VALUES (true, '2026-11-29 22:26:30.512601+00');



INSERT INTO tocsin.workers OVERRIDING SYSTEM VALUE VALUES (1, 2, 'consumer', 'short', 'stopped', NULL, NULL, 'left', 1, 'postgres', NULL, 'vm', 28071, '0.1.0', '2026-11-29 22:26:30.53089+00', '2026-11-29 22:26:30.53089+00', '2026-11-29 22:26:30.600509+00', NULL);
INSERT INTO tocsin.workers OVERRIDING SYSTEM VALUE VALUES (2, 1, 'producer', 'p', 'ready', NULL, NULL, NULL, 2, 'postgres', 1, 'vm', 28071, '0.1.0', '2026-11-29 22:26:30.604459+00', '2026-11-29 22:26:30.604459+00', NULL, NULL);
INSERT INTO tocsin.workers OVERRIDING SYSTEM VALUE VALUES (3, 1, 'consumer', 'c', 'ready', NULL, NULL, NULL, 3, 'postgres', 1, 'vm', 28071, '0.1.0', '2026-11-29 22:26:30.616587+00', '2026-11-29 22:26:30.616587+00', NULL, NULL);



SELECT pg_catalog.setval('tocsin.flows_id_seq', 1, false);



SELECT pg_catalog.setval('tocsin.flush_marker', 1, false);



SELECT pg_catalog.setval('tocsin.lifelines', 1, true);



SELECT pg_catalog.setval('tocsin.messages_id_seq', 16, true);



SELECT pg_catalog.setval('tocsin.processes_id_seq', 1, true);



SELECT pg_catalog.setval('tocsin.queues_id_seq', 3, true);



SELECT pg_catalog.setval('tocsin.registrations', 3, true);



SELECT pg_catalog.setval('tocsin.schedules_id_seq', 1, false);



SELECT pg_catalog.setval('tocsin.workers_id_seq', 3, true);



ALTER TABLE ONLY tocsin.archive_policies
    ADD CONSTRAINT archive_policies_pkey PRIMARY KEY (queue_id);



ALTER TABLE ONLY tocsin.archived_counts
    ADD CONSTRAINT archived_counts_pkey PRIMARY KEY (queue_id, span, starts_at);



ALTER TABLE ONLY tocsin.awaited
    ADD CONSTRAINT awaited_pkey PRIMARY KEY (job_id, process_id);



ALTER TABLE ONLY tocsin.contract
    ADD CONSTRAINT contract_pkey PRIMARY KEY (only_row);



ALTER TABLE ONLY tocsin.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.edges
    ADD CONSTRAINT edges_pkey PRIMARY KEY (parent, child, argument);



ALTER TABLE ONLY tocsin.flow_jobs
    ADD CONSTRAINT flow_jobs_flow_id_name_key UNIQUE (flow_id, name);



ALTER TABLE ONLY tocsin.flow_jobs
    ADD CONSTRAINT flow_jobs_pkey PRIMARY KEY (job_id);



ALTER TABLE ONLY tocsin.flows
    ADD CONSTRAINT flows_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.limit_queues
    ADD CONSTRAINT limit_queues_pkey PRIMARY KEY (limit_id, queue_id);



ALTER TABLE ONLY tocsin.limits
    ADD CONSTRAINT limits_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.maintenance
    ADD CONSTRAINT maintenance_pkey PRIMARY KEY (only_row);



ALTER TABLE ONLY tocsin.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (number);



ALTER TABLE ONLY tocsin.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.queue_grants
    ADD CONSTRAINT queue_grants_pkey PRIMARY KEY (queue_id, role);



ALTER TABLE ONLY tocsin.queues
    ADD CONSTRAINT queues_name_key UNIQUE (name);



ALTER TABLE ONLY tocsin.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.rates
    ADD CONSTRAINT rates_pkey PRIMARY KEY (limit_id, key);



ALTER TABLE ONLY tocsin.roles
    ADD CONSTRAINT roles_pkey PRIMARY KEY (kind);



ALTER TABLE ONLY tocsin.schedules
    ADD CONSTRAINT schedules_name_key UNIQUE (name);



ALTER TABLE ONLY tocsin.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.slots
    ADD CONSTRAINT slots_pkey PRIMARY KEY (message_id, limit_id);



ALTER TABLE ONLY tocsin.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (name);



ALTER TABLE ONLY tocsin.uptime
    ADD CONSTRAINT uptime_pkey PRIMARY KEY (only_row);



ALTER TABLE ONLY tocsin.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);



ALTER TABLE ONLY tocsin.workers
    ADD CONSTRAINT workers_queue_id_kind_name_key UNIQUE (queue_id, kind, name);



CREATE INDEX archive_queue ON ONLY tocsin.archive USING btree (queue_id, id);



CREATE INDEX archive_1h_2026113022_queue_id_id_idx ON tocsin.archive_1h_2026113022 USING btree (queue_id, id);



CREATE INDEX archive_jobs ON ONLY tocsin.archive USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_1h_2026113022_task_outcome_id_idx ON tocsin.archive_1h_2026113022 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_1h_2026113023_queue_id_id_idx ON tocsin.archive_1h_2026113023 USING btree (queue_id, id);



CREATE INDEX archive_1h_2026113023_task_outcome_id_idx ON tocsin.archive_1h_2026113023 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_24h_2026122900_queue_id_id_idx ON tocsin.archive_24h_2026122900 USING btree (queue_id, id);



CREATE INDEX archive_24h_2026122900_task_outcome_id_idx ON tocsin.archive_24h_2026122900 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_24h_2026123000_queue_id_id_idx ON tocsin.archive_24h_2026123000 USING btree (queue_id, id);



CREATE INDEX archive_24h_2026123000_task_outcome_id_idx ON tocsin.archive_24h_2026123000 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_8640h_2984032500_queue_id_id_idx ON tocsin.archive_8640h_2984032500 USING btree (queue_id, id);



CREATE INDEX archive_8640h_2984032500_task_outcome_id_idx ON tocsin.archive_8640h_2984032500 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_8640h_2985032000_queue_id_id_idx ON tocsin.archive_8640h_2985032000 USING btree (queue_id, id);



CREATE INDEX archive_8640h_2985032000_task_outcome_id_idx ON tocsin.archive_8640h_2985032000 USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX archive_count_deltas_queue ON tocsin.archive_count_deltas USING btree (queue_id, archived_at);



CREATE INDEX archive_rest_ending ON tocsin.archive_rest USING btree (keep_until) WHERE (keep_until < '9999-01-01 00:00:00+00'::timestamp with time zone);



CREATE INDEX archive_rest_queue_id_id_idx ON tocsin.archive_rest USING btree (queue_id, id);



CREATE INDEX archive_rest_task_outcome_id_idx ON tocsin.archive_rest USING btree (task, outcome, id) WHERE (task IS NOT NULL);



CREATE INDEX awaited_sessions ON tocsin.awaited USING btree (process_id) WHERE (process_id < 0);



CREATE INDEX dead_letters_died ON tocsin.dead_letters USING btree (queue_id, died_at);



CREATE INDEX dead_letters_jobs ON tocsin.dead_letters USING btree (task, id) WHERE (task IS NOT NULL);



CREATE INDEX dead_letters_queue ON tocsin.dead_letters USING btree (queue_id, id);



CREATE INDEX edges_child ON tocsin.edges USING btree (child);



CREATE INDEX edges_flow ON tocsin.edges USING btree (flow_id);



CREATE INDEX flows_ending ON tocsin.flows USING btree (keep_until) WHERE (keep_until IS NOT NULL);



CREATE INDEX flows_unended ON tocsin.flows USING btree (id) WHERE (ended_at IS NULL);



CREATE INDEX limit_checks_key ON tocsin.limit_checks USING btree (queue_id, limit_id, key);



CREATE INDEX limit_queues_queue ON tocsin.limit_queues USING btree (queue_id);



CREATE INDEX limits_name ON tocsin.limits USING btree (name);



CREATE INDEX messages_expiring ON tocsin.messages USING btree (queue_id, expires_at) WHERE ((state <> 'leased'::tocsin.message_state) AND (expires_at IS NOT NULL));



CREATE INDEX messages_held ON tocsin.messages USING btree (queue_id, id) WHERE (state = 'held'::tocsin.message_state);



CREATE UNIQUE INDEX messages_key ON tocsin.messages USING btree (queue_id, key) WHERE (key IS NOT NULL);



CREATE INDEX messages_ready ON tocsin.messages USING btree (queue_id, priority, due, id) WHERE (state = 'ready'::tocsin.message_state);



CREATE INDEX messages_timed ON tocsin.messages USING btree (queue_id, state, vt) WHERE (state = ANY (ARRAY['delayed'::tocsin.message_state, 'leased'::tocsin.message_state]));



CREATE INDEX rates_past ON tocsin.rates USING btree (limit_id, next_at);



CREATE INDEX schedules_queue ON tocsin.schedules USING btree (queue_id);



CREATE UNIQUE INDEX slots_held ON tocsin.slots USING btree (limit_id, key, slot) WHERE (slot IS NOT NULL);



CREATE INDEX slots_line ON tocsin.slots USING btree (limit_id, key, line, priority, due, message_id) WHERE waits;



CREATE INDEX tasks_queue ON tocsin.tasks USING btree (queue_id);



CREATE INDEX workers_process ON tocsin.workers USING btree (process_id) WHERE (process_id IS NOT NULL);



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_1h_2026113022_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_1h_2026113022_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_1h_2026113023_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_1h_2026113023_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_24h_2026122900_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_24h_2026122900_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_24h_2026123000_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_24h_2026123000_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_8640h_2984032500_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_8640h_2984032500_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_8640h_2985032000_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_8640h_2985032000_task_outcome_id_idx;



ALTER INDEX tocsin.archive_queue ATTACH PARTITION tocsin.archive_rest_queue_id_id_idx;



ALTER INDEX tocsin.archive_jobs ATTACH PARTITION tocsin.archive_rest_task_outcome_id_idx;



CREATE STATISTICS tocsin.messages_states (mcv) ON queue_id, state FROM tocsin.messages;



CREATE TRIGGER follow_limited AFTER UPDATE OF due, priority ON tocsin.messages FOR EACH ROW WHEN ((new.options ? 'limits'::text)) EXECUTE FUNCTION tocsin._follow_limited();



CREATE TRIGGER free_limited AFTER DELETE ON tocsin.messages FOR EACH ROW WHEN ((old.options ? 'limits'::text)) EXECUTE FUNCTION tocsin._follow_limited();



CREATE TRIGGER hold_limited BEFORE INSERT ON tocsin.messages FOR EACH ROW WHEN ((new.options ? 'limits'::text)) EXECUTE FUNCTION tocsin._hold_limited();



CREATE TRIGGER line_up_limited AFTER INSERT ON tocsin.messages FOR EACH ROW WHEN ((new.options ? 'limits'::text)) EXECUTE FUNCTION tocsin._follow_limited();



CREATE TRIGGER ring AFTER INSERT ON tocsin.messages REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT WHEN (((pg_trigger_depth() > 0) OR (current_setting('bell.rung_by'::text, true) IS DISTINCT FROM '"tocsin".'::text))) EXECUTE FUNCTION tocsin._ring_inserted();



ALTER TABLE ONLY tocsin.archive_policies
    ADD CONSTRAINT archive_policies_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES tocsin.queues(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.limit_queues
    ADD CONSTRAINT limit_queues_limit_id_fkey FOREIGN KEY (limit_id) REFERENCES tocsin.limits(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.queue_grants
    ADD CONSTRAINT queue_grants_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES tocsin.queues(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.rates
    ADD CONSTRAINT rates_limit_id_fkey FOREIGN KEY (limit_id) REFERENCES tocsin.limits(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.schedules
    ADD CONSTRAINT schedules_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES tocsin.queues(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.tasks
    ADD CONSTRAINT tasks_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES tocsin.queues(id) ON DELETE CASCADE;



ALTER TABLE ONLY tocsin.workers
    ADD CONSTRAINT workers_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES tocsin.queues(id);



REVOKE ALL ON FUNCTION tocsin._access() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._acts_for(role name) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._add_delivery(history jsonb, delivery jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._add_order(options jsonb, ordered_by text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._add_partition(span integer, starts_at timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._add_partitions(OUT added integer, OUT problem text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._add_queue(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._admit(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._admit_children(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._advance(from_line tocsin.slots) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._announce(queue_id integer, ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._apply_privileges(former_roles oid[], only_table regclass, before jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._archive(ids bigint[], leases bigint[], results jsonb, outcome text, unless_cancelled boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._archive_partitions() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._archive_slot(span integer, keep_until timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._archive_span(retention interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._archived_in_all(first_id integer, last_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._backoff(queue tocsin.queues, deliveries integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._beyond(counted bigint, cap integer, relation text, queue_id integer, state text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._caller() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._cancel_held(ids bigint[], ended bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._change_queue(queue_id integer, vt interval, max_deliveries integer, retry_base interval, retry_factor double precision, retry_max interval, retry_jitter double precision, max_payload integer, max_string integer, max_depth integer, required_keys text[], forbidden_keys text[], retention interval, dead_letter_retention interval, notify text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._channel(path text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_active(worker_id bigint, doing text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_any_grant() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_arguments(arguments jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_change(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_claim(worker_id bigint, registration bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_contents(q tocsin.queues, payloads jsonb, first_index integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_due(delay interval, at timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_enqueue(q tocsin.queues, worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_enqueue_options(queue text, delay interval, at timestamp with time zone, expires_in interval, max_deliveries integer, worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_headers(q tocsin.queues, headers jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_job(task text, options jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_key_holder(message_id bigint, key text, task text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_limit(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_limits(limits jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_own(w tocsin.workers) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_payloads(q tocsin.queues, payloads jsonb, first_index integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_register(q tocsin.queues, kind text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_requeue(queue_id integer, job_id bigint, parent bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_schedule(s tocsin.schedules) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._check_time(at timestamp with time zone, argument text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._clock() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._close_edges(parents bigint[], results jsonb, rule text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._close_queue(q tocsin.queues, deadline timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._correct_future_times() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._correct_heartbeats(t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._correct_history(history jsonb, t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._correct_ticks(t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._count_held(w tocsin.workers) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._count_queues(first_id integer, last_id integer, t timestamp with time zone, cap integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._count_unfinished(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._cutoff(older_than interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._decide_to_ring(queue_id integer, notify text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._declare_limits(tasks jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._delete_expired(most integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._describe_dead_letters(ids bigint[], queue_id integer, reason text, error text, died_before timestamp with time zone, max_letters integer, after bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._describe_delivery(m tocsin.messages, ended_at timestamp with time zone, outcome text, error text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._describe_limit(spec jsonb, queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._describe_messages(ids bigint[], queues integer[], t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._describe_path(path jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._drop_expired_partitions(most integer, OUT dropped integer, OUT problem text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._elect_maintainer(process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._end_expired_lease(m tocsin.messages) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._end_flows(most integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._end_parents(parents jsonb, succeeded boolean, gone boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._end_process(process_id bigint, died boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._enqueue_rate(queue_id integer, t timestamp with time zone, unfinished bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._enqueue_tick(s tocsin.schedules) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._estimate(query text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._examine(p tocsin.processes, t timestamp with time zone, up_since timestamp with time zone, OUT seems_alive boolean, OUT dead_at timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._fill_arguments(job_id bigint, arguments jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_key(queue_id integer, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_other_kind(l tocsin.limits) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_own_worker(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_role(role text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_violation(payloads jsonb, q tocsin.queues) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._find_worker(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._follow_limited() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._forget_ended_sessions() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._free(message_id bigint, keep_ordered boolean, keep_paid boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._free_slots(l tocsin.limits, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._give_up(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._grant_line(queue_id integer, limit_id bigint, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._grant_slots(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._hold_limited() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._holders(queue_id integer, until timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._holds_lock(key bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_active(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_admin() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_known(limit_id bigint, queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_owner() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_unfinished(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._is_valid(payload jsonb, max_payload integer, delay interval, at timestamp with time zone, expires_in interval, max_deliveries integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._job_shelves(only_task text, state text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._keep_until(retention interval, at timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._later(moment timestamp with time zone, length interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._limit_of(place tocsin.slots) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._limits_of(t tocsin.tasks, arguments jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._line_up(m tocsin.messages) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_dead_letters(ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_flow(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_key(kind text, number bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_own_worker(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_schedule(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lock_waiting(message_id bigint, queue text, key text, or_running boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._lowest_free(limit_id bigint, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._make_due_ready(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._matches_filter(letter tocsin.dead_letters, ids bigint[], queue_id integer, reason text, error text, died_before timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._may_consume() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._may_enqueue(queue_id integer, worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._may_read_outcomes(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._move_to_dead_letters(ids bigint[], reason text, errors text[], tracebacks text[], deliveries jsonb[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._move_worker(worker_id bigint, allowed text[], target text, grace interval, ended text, registration bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._next_due(queue_id integer, with_ready boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._note_check(queue_ids integer[], limit_id bigint, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._note_free(limit_id bigint, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._note_waiting(limit_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._oldest_ready(queue_id integer, t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._order_kept_for(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._outcomes(ids bigint[], settled bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._partition_span_for(a tocsin.archive_policies, keep_until timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._publish_partitions() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._purge_expired_dead_letters(most integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._purge_stopped_workers(most integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._raise_error(code text, message text, detail jsonb, hint text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._read_progress(progress jsonb, lease bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._readable_queue(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._readable_queues() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._reap_dead_processes(process_id bigint, living integer, stop_at timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._reap_if_dead(p tocsin.processes, t timestamp with time zone, up_since timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._record_uptime(t timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_caller(doing text, hint text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_change(message_id bigint, queue text, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_deletion(q tocsin.queues) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_ended(w tocsin.workers) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_held(w tocsin.workers) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_large(q tocsin.queues, problem text, actual integer, index bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_missing(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_task(task text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._refuse_transition(w tocsin.workers, target text, code text, reason text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._release_held(w tocsin.workers, counted boolean, outcome text, keep_ids bigint[], keep_leases bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._remove_queue(q tocsin.queues, force boolean, OUT worker_count bigint, OUT message_count bigint, OUT archived_count bigint, OUT dead_letter_count bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._reopen_flows(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._replace_tick(s tocsin.schedules, next_tick timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._requeue(ids bigint[], leases bigint[], delay interval, counted boolean, outcome text, errors text[], tracebacks text[], delays double precision[], verdicts text[], keep_place boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._resolve_queue(ids bigint[], queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._restore_ticks() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._ring(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._ring(q tocsin.queues) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._ring_inserted() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._ring_late(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._roll_up_count_deltas() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._scheduled_key(s tocsin.schedules, tick timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._shared_after_all(key bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._shared_elsewhere(key bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._spend(l tocsin.limits, s tocsin.slots) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._submit_scheduled(s tocsin.schedules, tick timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._sweep_orphans(most integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._tell_process(w tocsin.workers, leases_taken boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._tick_key(schedule_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._try_close_workers(q tocsin.queues) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._try_empty_queue(q tocsin.queues, INOUT messages bigint, INOUT letters bigint, OUT emptied boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._try_lock_workers(process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._try_ring(q tocsin.queues) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._unserved_tasks(queue_id integer, t timestamp with time zone, max_age interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._update_limits(declared tocsin.limits[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin._wanted_partitions() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.archive(ids bigint[], leases bigint[], results jsonb, unless_cancelled boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.archive_dead_letters(ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.archived_count(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.attach_process(process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.await_job(id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.await_jobs(ids bigint[], process_id bigint, alone boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.begin_awaiting(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.begin_awaiting_jobs(ids bigint[], locked integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.begin_poll(worker_id bigint, registration bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.begin_waiting(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.cancel(message_id bigint, queue text, key text, reason text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.cancel_flow(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.cancel_reasons(ids bigint[], leases bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.claim(worker_id bigint, registration bigint, max_messages integer, vt interval, from_priority integer, from_due timestamp with time zone, from_id bigint, or_full_scan boolean, finished_ids bigint[], finished_leases bigint[], durable boolean, ordered boolean, finished_results jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.clear_jobs(states text[], task text, older_than interval, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.complete_poll(worker_id bigint, registration bigint, keep_ids bigint[], keep_leases bigint[], interrupted boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.create_queue(queue text, vt interval, max_deliveries integer, retry_base interval, retry_factor double precision, retry_max interval, retry_jitter double precision, max_payload integer, max_string integer, max_depth integer, required_keys text[], forbidden_keys text[], retention interval, dead_letter_retention interval, notify text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.delete(ids bigint[], leases bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.delete_queue(queue text, force boolean, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.delete_schedule(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.delete_worker(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.detach_process(process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.edit_job(job_id bigint, priority integer, arguments jsonb, limits jsonb, task text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.end_awaiting(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.end_waiting(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.enqueue(queue text, payload jsonb, delay interval, at timestamp with time zone, priority integer, headers jsonb, key text, expires_in interval, max_deliveries integer, ordered_by text, worker_id bigint, task text, options jsonb, ring_early boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.enqueue_each(queue text, messages jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.enqueue_jobs(jobs jsonb, first_index integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.enqueue_many(queue text, payloads jsonb, delay interval, at timestamp with time zone, priority integer, headers jsonb, expires_in interval, max_deliveries integer, ordered_by text, worker_id bigint, first_index integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.ensure_queue(queue text, vt interval, max_deliveries integer, retry_base interval, retry_factor double precision, retry_max interval, retry_jitter double precision, max_payload integer, max_string integer, max_depth integer, required_keys text[], forbidden_keys text[], retention interval, dead_letter_retention interval, notify text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.extend(ids bigint[], leases bigint[], vt interval, progress jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.fail(ids bigint[], leases bigint[], errors text[], tracebacks text[], delays double precision[], verdicts text[], keep_place boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.find_queue(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.get_dead_letter(message_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.get_message(message_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.grant_queue(queue text, role text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.heartbeat(process_id bigint, queue_ids integer[], able boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.install_roles(producer text, consumer text, admin text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.interrupt(worker_id bigint, grace interval, registration bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.job_attempts(job_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.job_outcomes(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.job_stats(cap integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.leave_job(session_number bigint, queue_id integer, locked boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.leave_jobs(ids bigint[], process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.limit_lock_wait() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_dead_letters(queue text, reason text, error text, older_than interval, max_letters integer, after bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_edges(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_flow_jobs(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_flows(max_flows integer, before bigint, flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_jobs(task text, queue text, state text, since timestamp with time zone, until timestamp with time zone, key text, newest_first boolean, max_jobs integer, after bigint, job_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_limits(limit_name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_messages(queue text, state text, worker_id bigint, max_messages integer, after bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_queues() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_schedules(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_tasks() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.list_workers(queue text, worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.locked_messages(ids bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.maintain(OUT elected boolean, OUT partitions_created integer, OUT partitions_dropped integer, OUT archived_deleted bigint, OUT dead_letters_purged bigint, OUT orphans_deleted bigint, OUT workers_purged bigint, OUT more boolean, OUT problems text[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.pause_queue(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.pause_schedule(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.process_channel(process_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.purge_archive(queue_id integer, older_than interval, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.purge_dead_letters(ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.purge_queue(queue text, ready boolean, delayed boolean, held boolean, archived boolean, dead boolean, older_than interval, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.purge_workers(older_than interval, queue text, dry_run boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.queue_channel(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.queue_health(queue text, max_age interval, max_running interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.queue_metrics(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.queue_of(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.reclaim(OUT workers bigint, OUT messages bigint, OUT more boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.register_process(hostname text, pid integer, version text, every interval, contract integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.register_tasks(tasks jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.register_worker(queue text, kind text, name text, process_id bigint, hostname text, pid integer, version text, again boolean, tasks text[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.release(ids bigint[], leases bigint[], delay interval, counted boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.release_messages(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.release_others(worker_id bigint, registration bigint, keep_ids bigint[], keep_leases bigint[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.replay(ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer, delay interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.reprioritise(message_id bigint, priority integer, queue text, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.requeue_flow(flow_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.requeue_job(job_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.reschedule(message_id bigint, delay interval, at timestamp with time zone, queue text, key text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.resume(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.resume_queue(queue text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.resume_schedule(name text, next_tick timestamp with time zone, since timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.revoke_queue(queue text, role text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.run_schedule(name text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.secure(former_roles oid[], before jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.server_time() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.set_limit(name text, n integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.set_schedule(name text, task text, arguments jsonb, cron text, every interval, start timestamp with time zone, zone text, missed integer, overlap text, queue text, priority integer, headers jsonb, max_attempts integer, timeout interval, expires_in interval, next_tick timestamp with time zone, since timestamp with time zone, definition jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.settle_rate(queue_id integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.shutdown(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.stop(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.store_stats() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.submit(task text, arguments jsonb, delay interval, at timestamp with time zone, priority integer, headers jsonb, key text, expires_in interval, max_attempts integer, timeout interval) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.submit_flow(name text, jobs jsonb) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.suspend(worker_id bigint, release boolean, drain boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.task_metrics(cap integer) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.tick(message_id bigint, lease bigint, ticks timestamp with time zone[], next_tick timestamp with time zone) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.unannounced_outcomes(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.unregister_process(process_id bigint, died boolean) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.unregister_worker(worker_id bigint, registration bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.unrung_transactions(queue_ids integer[]) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.update_queue(queue text, vt interval, max_deliveries integer, retry_base interval, retry_factor double precision, retry_max interval, retry_jitter double precision, max_payload integer, max_string integer, max_depth integer, required_keys text[], forbidden_keys text[], retention interval, dead_letter_retention interval, notify text) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.wait_for_flush() FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.worker_heartbeat(worker_id bigint) FROM PUBLIC;



REVOKE ALL ON FUNCTION tocsin.worker_stats(queue text) FROM PUBLIC;




