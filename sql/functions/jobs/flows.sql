-- Flows: graphs of jobs that are submitted together. A job of a flow is held until the
-- jobs before it, its parents, have come to an end.
--
-- An edge leads from a parent to a child. Its rule says what becomes of the child when
-- the parent does not succeed: `cancel` cancels the child, and so the jobs behind it by
-- their own rules; `run` lets it run; `hold` keeps it held until the parent is requeued
-- and succeeds, and cancels it when the parent's row is deleted. An edge with an argument
-- carries the parent's result there. The result is kept in the edge, so the child gets it
-- whatever becomes of the parent's row.
--
-- The statement that ends a parent also closes its edges, and lowers `waits_for` of each
-- child by the edges that it has closed. Concurrent transactions close different edges
-- and change the child's row one after the other. Each reads the row again when it has
-- waited for the lock, so the last of them finds 0 and admits the child. In a transaction
-- of a stricter isolation level, PostgreSQL refuses the second change.
--
-- The ids of a flow ascend from parents to children, and each statement that ends parents
-- locks their rows first, and then the held rows that it changes, both in the order of
-- ids. So the ends of two parents do not deadlock. A change of a whole flow locks the
-- row of the flow, and then all rows of unfinished jobs in the order of ids. So the end
-- of a job comes before all of the change or after it. Statements without a job of a
-- flow do none of this.

-- Submits a flow, all of it or nothing. `jobs` is a JSON array in which each job comes
-- after its parents: an object with `name`, `queue`, the arguments of tocsin.enqueue, and
-- `parents`, an array of objects with `job` (an index of the array), `on_failure` and
-- `argument` (a path, as an array of texts). Returns the id of the flow, then those of
-- the jobs.
create or replace function tocsin.submit_flow(name text, jobs jsonb) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    job jsonb;
    flow bigint;
    ids bigint[] := '{}';
    named integer;
begin
    if coalesce(submit_flow.name, '') = '' then
        perform tocsin._raise_error('TC022', 'a flow must have a name', '{"argument": "name"}');
    end if;
    insert into tocsin.flows (name, created_at) values (submit_flow.name, tocsin._clock())
    returning id into flow;
    for job in select j.value from jsonb_array_elements(jobs) j loop
        if job ->> 'task' is null or exists (
            select from jsonb_to_recordset(job -> 'parents') p (job integer, on_failure text)
            where p.job is null or p.job not between 0 and cardinality(ids) - 1
                or p.on_failure not in ('cancel', 'run', 'hold'))
        then
            perform tocsin._raise_error('TC022',
                format('job %s of the flow must have a task, come after its parents, and have '
                       'on_failure as cancel, run or hold', cardinality(ids)),
                '{"argument": "jobs"}');
        end if;
        ids := ids || tocsin.enqueue(
            job ->> 'queue', job -> 'payload', (job ->> 'delay')::interval,
            (job ->> 'at')::timestamptz, (job ->> 'priority')::integer, job -> 'headers', null,
            (job ->> 'expires_in')::interval, (job ->> 'max_deliveries')::integer,
            task => job ->> 'task', options => job -> 'options');
    end loop;
    insert into tocsin.flow_jobs (job_id, flow_id, queue_id, task, name)
    select ids[j.n], flow, (tocsin.find_queue(j.value ->> 'queue')).id, j.value ->> 'task',
           coalesce(j.value ->> 'name', (j.value ->> 'task') || '-' || j.n)
    from jsonb_array_elements(jobs) with ordinality j (value, n)
    on conflict do nothing;
    get diagnostics named = row_count;
    if named < cardinality(ids) then
        perform tocsin._raise_error('TC022', 'two jobs of the flow have the same name',
                                    '{"argument": "jobs"}');
    end if;
    insert into tocsin.edges (parent, child, argument, flow_id, on_failure)
    select ids[p.job + 1], ids[j.n], coalesce(p.argument, '{}'), flow,
           coalesce(p.on_failure, 'cancel')
    from jsonb_array_elements(jobs) with ordinality j (value, n)
    cross join lateral jsonb_to_recordset(j.value -> 'parents')
        p (job integer, on_failure text, argument text[])
    on conflict do nothing;
    update tocsin.messages m
    set flow_id = flow, waits_for = g.edges,
        state = case when g.edges is not null then 'held' else m.state end
    from (select i.id, (select nullif(count(*), 0) from tocsin.edges e where e.child = i.id) as edges
          from unnest(ids) i (id)) g
    where m.id = any (ids) and m.id = g.id;
    -- A job with limits joins their lines when it waits for no parent: see held.sql.
    perform tocsin._free(m.id) from tocsin.messages m
    where m.id = any (ids) and m.waits_for is not null and m.options ? 'limits';
    return flow || ids;
end
$$;

-- Ends jobs of flows for their children. `parents` is a JSON object with the ids of the
-- jobs and their results, if they have succeeded. `gone`: their rows are deleted, so they
-- cannot be requeued.
create or replace function tocsin._end_parents(parents jsonb, succeeded boolean,
                                               gone boolean default false) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    ended bigint[] := array(select k::bigint from jsonb_object_keys(parents) k);
    doomed bigint[];
begin
    if succeeded then
        perform tocsin._close_edges(ended, parents, null);
        return;
    end if;
    with recursive reached (id) as (
        select e.child from tocsin.edges e
        where e.parent = any (ended) and not e.done
            and (e.on_failure = 'cancel' or gone and e.on_failure = 'hold')
        union
        select e.child from reached r join tocsin.edges e on e.parent = r.id
        where e.on_failure = 'cancel' and not e.done
    )
    select array_agg(r.id) into doomed from reached r;
    -- the rows that are changed below, in the order of ids
    perform from tocsin.messages m
    where m.state is not distinct from 'held' and m.id = any (doomed || array(
        select e.child from tocsin.edges e
        where e.parent = any (ended || doomed) and e.on_failure = 'run' and not e.done))
    order by m.id for update;
    perform tocsin._cancel_held(doomed, ended || doomed) where doomed is not null;
    perform tocsin._close_edges(ended, null, 'run');
end
$$;

-- Cancels the jobs that wait until jobs among these, whose rows are deleted, succeed.
create or replace function tocsin._give_up(ids bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
begin
    perform tocsin._end_parents(p.parents, succeeded => false, gone => true)
    from (select jsonb_object_agg(j.job_id, null) as parents from tocsin.flow_jobs j
          where j.job_id = any (ids)) p
    where p.parents is not null;
end
$$;

-- Cancels held jobs of these ids, because of parents among those that have ended.
create or replace function tocsin._cancel_held(ids bigint[], ended bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    cancelled bigint[];
    leases bigint[];
begin
    with changed as (
        update tocsin.messages m
        set state = 'leased', lease = coalesce(m.lease, 0) + 1,
            last_error = (select format('cancelled: job %s before it has not succeeded',
                                        min(e.parent))
                          from tocsin.edges e where e.child = m.id and e.parent = any (ended))
        where m.id = any (ids) and m.state is not distinct from 'held'
        returning m.id, m.lease
    )
    select array_agg(c.id order by c.id), array_agg(c.lease order by c.id) into cancelled, leases
    from changed c;
    perform tocsin._archive(cancelled, leases, outcome => 'cancelled') where cancelled is not null;
end
$$;

-- Closes the open edges of these parents, or only those with this rule, and admits the
-- children that wait for nothing any more.
create or replace function tocsin._close_edges(parents bigint[], results jsonb, rule text)
    returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    children bigint[];
    closed integer[];
    free bigint[];
begin
    with changed as (
        update tocsin.edges e
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
        join tocsin.messages m on m.id = any (children) and m.id = g.child
            and m.state is not distinct from 'held'
        order by m.id for update of m
    ), lowered as (
        update tocsin.messages m set waits_for = m.waits_for - l.n
        from locked l
        where m.id = any (children) and m.id = l.id
        returning m.id, m.waits_for
    )
    select array_agg(l.id) into free from lowered l where l.waits_for <= 0;
    perform tocsin._admit_children(free) where free is not null;
end
$$;

-- Gives children the results that they take, and admits them.
create or replace function tocsin._admit_children(ids bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
begin
    update tocsin.messages m
    set waits_for = null, payload = tocsin._fill_arguments(m.id, m.payload)
    where m.id = any (ids) and m.state is not distinct from 'held';
    perform tocsin._admit(ids);
end
$$;

-- Returns a child's arguments with the results of its parents; null for a parent that
-- has none.
create or replace function tocsin._fill_arguments(job_id bigint, arguments jsonb) returns jsonb
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
    e record;
    filled jsonb := arguments;
begin
    for e in select x.argument, x.value from tocsin.edges x
        where x.child = job_id and x.argument <> '{}'
    loop
        filled := jsonb_set(filled, e.argument, coalesce(e.value, 'null'));
    end loop;
    return filled;
end
$$;

-- Reopens flows of which jobs are requeued, and locks their rows.
create or replace function tocsin._reopen_flows(ids bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    perform from tocsin.flows f where f.id = any (ids) order by f.id for update;
    update tocsin.flows f set ended_at = null, keep_until = null
    where f.id = any (ids) and f.ended_at is not null;
end
$$;

-- Looks at open flows, at most this many, and ends those without an unfinished job: an
-- archived job is then deleted when the retention since its end is over. If more flows
-- are open, the call looks at a part of them at random. Deletes the flows that were ended
-- so long ago. A flow with a dead letter is kept, and looked at again after a day.
create or replace function tocsin._end_flows(most integer) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    parts float8 := ceil((select count(*) from tocsin.flows f where f.ended_at is null)::float8
                         / most);
    over bigint[];
begin
    over := array(select f.id
                  from (select x.id from tocsin.flows x where x.ended_at is null order by x.id
                        offset most * floor(random() * parts) limit most) f
                  where not tocsin._is_unfinished(f.id));
    over := array(select f.id from tocsin.flows f
                  where f.id = any (over) and f.ended_at is null
                  order by f.id for update skip locked);
    with ended as (
        update tocsin.flows f
        set ended_at = t,
            keep_until = coalesce((select max(tocsin._keep_until(p.retention, t))
                                   from tocsin.flow_jobs j
                                   join tocsin.archive_policies p on p.queue_id = j.queue_id
                                   where j.flow_id = f.id), t)
        -- a job may have been requeued since the statement above began
        where f.id = any (over) and not tocsin._is_unfinished(f.id)
        returning f.id
    )
    select array_agg(e.id) into over from ended e;
    update tocsin.archive_rest a
    set keep_until = tocsin._keep_until(p.retention, a.archived_at)
    from tocsin.flow_jobs j
    join tocsin.archive_policies p on p.queue_id = j.queue_id
    where j.flow_id = any (over) and a.queue_id = j.queue_id and a.id = j.job_id;
    over := array(select f.id from tocsin.flows f where f.keep_until <= t
                  order by f.keep_until limit most for update skip locked);
    with kept as (
        update tocsin.flows f set keep_until = t + interval '24 hours'
        where f.id = any (over) and exists (
            select from tocsin.flow_jobs j join tocsin.dead_letters d on d.id = j.job_id
            where j.flow_id = f.id)
        returning f.id
    )
    select array_agg(x.id) into over
    from unnest(over) x (id) where x.id not in (select k.id from kept k);
    delete from tocsin.edges e where e.flow_id = any (over);
    delete from tocsin.flow_jobs j where j.flow_id = any (over);
    delete from tocsin.flows f where f.id = any (over);
end
$$;

-- Returns whether a job of the flow is unfinished.
create or replace function tocsin._is_unfinished(flow_id bigint) returns boolean
language plpgsql stable
as $$
begin
    return exists (select from tocsin.flow_jobs j join tocsin.messages m on m.id = j.job_id
                   where j.flow_id = _is_unfinished.flow_id);
end
$$;
