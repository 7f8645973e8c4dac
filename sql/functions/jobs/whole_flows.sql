-- Whole flows: look at them, cancel them, run them again.

-- Returns the newest flows, those before this id, or one flow. The state of a flow:
--
--   running    a job is unfinished
--   failed     a job has failed, and none is unfinished
--   cancelled  a job was cancelled, none has failed or is unfinished
--   succeeded  each job has succeeded
create or replace function tocsin.list_flows(max_flows integer default 100,
                                             before bigint default null,
                                             flow_id bigint default null)
returns table (
    id bigint, name text, created_at timestamptz, ended_at timestamptz, state text, waiting bigint,
    running bigint, succeeded bigint, failed bigint, cancelled bigint
)
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
        select f.id, f.name, f.created_at, f.ended_at,
               case when c.waiting + c.running > 0 then 'running' when c.failed > 0 then 'failed'
                    when c.cancelled > 0 then 'cancelled' else 'succeeded' end,
               c.waiting, c.running, c.succeeded, c.failed, c.cancelled
        from (select x.* from tocsin.flows x
              where (list_flows.before is null or x.id < list_flows.before)
                  and (list_flows.flow_id is null or x.id = list_flows.flow_id)
              order by x.id desc limit max_flows) f
        cross join lateral (
            select count(*) filter (where o.state = 'waiting'),
                   count(*) filter (where o.state = 'running'),
                   count(*) filter (where o.state = 'succeeded'),
                   count(*) filter (where o.state = 'failed'),
                   count(*) filter (where o.state = 'cancelled')
            from tocsin.job_outcomes(array(select j.job_id from tocsin.flow_jobs j
                                           where j.flow_id = f.id)) o
        ) c (waiting, running, succeeded, failed, cancelled)
        order by f.id desc;
end
$$;

-- Returns the jobs of a flow, parents before children. A job that was deleted has the
-- state `deleted`.
create or replace function tocsin.list_flow_jobs(flow_id bigint)
returns table (id bigint, name text, queue text, task text, state text, attempts integer,
               error text)
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
        select j.job_id, j.name, q.name, j.task, coalesce(o.state, 'deleted'),
               coalesce(o.attempts, 0), o.error
        from tocsin.flow_jobs j
        left join tocsin.queues q on q.id = j.queue_id
        left join tocsin.job_outcomes(array(select x.job_id from tocsin.flow_jobs x
                                            where x.flow_id = list_flow_jobs.flow_id)) o
            on o.id = j.job_id
        where j.flow_id = list_flow_jobs.flow_id
        order by j.job_id;
end
$$;

-- Returns the edges of a flow.
create or replace function tocsin.list_edges(flow_id bigint)
returns table (parent bigint, child bigint, on_failure text, argument text[])
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
        select e.parent, e.child, e.on_failure, e.argument from tocsin.edges e
        where e.flow_id = list_edges.flow_id order by e.child, e.parent, e.argument;
end
$$;

-- Cancels the unfinished jobs of a flow, and returns their ids. A job that is running is
-- cancelled as tocsin.cancel does it: when its attempt has ended.
create or replace function tocsin.cancel_flow(flow_id bigint) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    ids bigint[] := tocsin._lock_flow(flow_id);
    t timestamptz := tocsin._clock();
    running bigint[];
    cancelled bigint[];
    leases bigint[];
begin
    running := array(select m.id from tocsin.messages m
                     where m.id = any (ids) and m.state = 'leased' and m.vt > t order by m.id);
    with changed as (
        update tocsin.messages m
        set state = 'leased', lease = coalesce(m.lease, 0) + 1, last_error = 'cancelled'
        where m.id = any (ids) and m.id <> all (running)
        returning m.id, m.lease
    )
    select array_agg(c.id order by c.id), array_agg(c.lease order by c.id) into cancelled, leases
    from changed c;
    perform tocsin._archive(cancelled, leases, outcome => 'cancelled') where cancelled is not null;
    perform tocsin.cancel(r.id) from unnest(running) r (id);
    return coalesce(cancelled, '{}') || running;
end
$$;

-- Runs the jobs of a flow that have failed or were cancelled once more, and returns
-- their ids. Each waits for those of its parents that have not succeeded; a job behind
-- one that was deleted is not run.
create or replace function tocsin.requeue_flow(flow_id bigint) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    ids bigint[] := tocsin._lock_flow(flow_id);
    t timestamptz := tocsin._clock();
    again bigint[];
    requeued bigint[];
begin
    -- The end of a parent in a transaction of a stricter isolation level, whose snapshot is
    -- older than this, would not see the jobs that are added. So it is refused.
    update tocsin.messages m set flow_id = m.flow_id where m.id = any (ids);
    perform tocsin._reopen_flows(array[flow_id]);
    again := array(select d.id from tocsin.dead_letters d
                   where d.id = any (ids) order by d.id for update)
        || array(select a.id from tocsin.archive a
                 where a.queue_id in (select j.queue_id from tocsin.flow_jobs j
                                      where j.flow_id = requeue_flow.flow_id)
                     and a.id = any (ids) and a.outcome <> 'succeeded'
                 order by a.id for update);
    with recursive behind (id) as (
        select e.child from tocsin.edges e
        where e.flow_id = requeue_flow.flow_id and not e.done and e.parent <> all (again)
            and not exists (select from tocsin.messages m where m.id = e.parent)
        union
        select e.child from behind b join tocsin.edges e on e.parent = b.id where not e.done
    )
    select array_agg(x.id) into again
    from unnest(again) x (id) where x.id not in (select b.id from behind b);
    with dead as (
        delete from tocsin.dead_letters d where d.id = any (again) returning d.*
    ), gone as (
        delete from tocsin.archive a
        where a.queue_id in (select j.queue_id from tocsin.flow_jobs j
                             where j.flow_id = requeue_flow.flow_id)
            and a.id = any (again)
        returning a.*
    ), counted as (
        insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select g.queue_id, g.span, g.keep_until, t, -count(*) from gone g group by 1, 2, 3
    ), added as (
        insert into tocsin.messages (id, queue_id, priority, state, due, vt, enqueued_at,
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
                     (select k.max_deliveries from tocsin.tasks k where k.name = g.task), g.key,
                     g.payload, g.headers, g.last_error, g.history, g.task, g.options
              from gone g) x
        order by x.id
        returning id
    )
    select array_agg(a.id order by a.id) into requeued from added a;
    update tocsin.edges e set done = false, value = null
    where e.parent = any (requeued) and e.done;
    update tocsin.messages m
    set waits_for = (select count(*) from tocsin.edges e where e.child = m.id and not e.done)
    where m.id = any (ids) and m.waits_for is not null;
    perform tocsin._admit_children(array(
        select m.id from tocsin.messages m
        where m.id = any (ids) and m.state is not distinct from 'held' and m.waits_for = 0));
    return coalesce(requeued, '{}');
end
$$;

-- Locks a flow and its unfinished jobs, parents before children, and returns the ids of
-- all of its jobs in order. Raises an error if there is no such flow.
create or replace function tocsin._lock_flow(flow_id bigint) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    ids bigint[];
begin
    perform from tocsin.flows f where f.id = _lock_flow.flow_id for update;
    if not found then
        perform tocsin._raise_error('TC043', format('flow %s does not exist', flow_id),
                                    jsonb_build_object('flow_id', flow_id));
    end if;
    ids := array(select j.job_id from tocsin.flow_jobs j where j.flow_id = _lock_flow.flow_id
                 order by j.job_id);
    perform from tocsin.messages m where m.id = any (ids) order by m.id for update;
    return ids;
end
$$;
