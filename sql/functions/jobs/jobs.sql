-- Show jobs in any state, in the order of ids, which is that of submission.
--
-- A page continues after the last id of the page before, in either direction, so it costs
-- the same whatever its number. Finished jobs are read by the indexes archive_jobs and
-- dead_letters_jobs, one lookup for each task and outcome. Jobs that run are read by
-- the index messages_timed: they are few. Jobs that wait are read in the order of
-- messages' ids, or by queue and state, as in messages.sql. The other filters (time and
-- key) only skip rows.
--
-- A role sees the jobs of the queues whose outcomes it may read. It sees their arguments
-- only if it may consume, because a producer may not read payloads.

-- Returns a page of jobs. `since` and `until`: when they were submitted. `after`: the
-- last id of the page before. `job_id`: only this job.
create or replace function tocsin.list_jobs(
    task text default null, queue text default null, state text default null,
    since timestamptz default null, until timestamptz default null, key text default null,
    newest_first boolean default false, max_jobs integer default 100, after bigint default null,
    job_id bigint default null
) returns table (
    id bigint, task_name text, queue_name text, job_state text, job_priority integer, job_key text,
    attempts integer, max_attempts integer, submitted_at timestamptz, due timestamptz,
    began_at timestamptz, ended_at timestamptz, worker_id bigint, arguments text, result text,
    reason text, error text, progress text
)
language plpgsql stable
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    only_queue integer := tocsin._readable_queue(queue);
    readable integer[] := tocsin._readable_queues();
    shows_arguments boolean := tocsin._may_consume();
begin
    if state not in ('waiting', 'running', 'succeeded', 'failed', 'cancelled') then
        perform tocsin._raise_error('TC022',
            'state must be one of waiting, running, succeeded, failed, cancelled',
            '{"argument": "state"}');
    end if;
    return query execute replace(replace($q$
        with page as materialized (
            select p.id, p.queue_id
            from (
                (select m.id, m.queue_id from tocsin.messages m
                 where coalesce($3, 'waiting') = 'waiting' and m.task <> '$tick'
                     and ($1 is null or m.task = $1) and ($2 is null or m.queue_id = $2)
                     and ($4 is null or m.enqueued_at >= $4) and ($5 is null or m.enqueued_at < $5)
                     and ($6 is null or m.key = $6) and ($7 is null or m.queue_id = any ($7))
                     and ($8 is null or m.id > $8) and ($12 is null or m.id = $12)
                     and ($3 is null or not (m.state = 'leased' and m.vt > $10))
                 order by m.id limit $9)
                union all
                (select m.id, m.queue_id from tocsin.queues q
                 join tocsin.messages m on m.queue_id = q.id
                 where $3 = 'running' and m.state = 'leased' and m.vt > $10
                     and m.task <> '$tick'
                     and ($1 is null or m.task = $1) and ($2 is null or q.id = $2)
                     and ($4 is null or m.enqueued_at >= $4) and ($5 is null or m.enqueued_at < $5)
                     and ($6 is null or m.key = $6) and ($7 is null or q.id = any ($7))
                     and ($8 is null or m.id > $8) and ($12 is null or m.id = $12)
                 order by m.id limit $9)
                union all
                (select x.id, x.queue_id
                 from tocsin._job_shelves($1, $3) s
                 cross join lateral (
                     select d.id, d.queue_id from tocsin.dead_letters d
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
                 from tocsin._job_shelves($1, $3) s
                 cross join lateral (
                     select a.id, a.queue_id from tocsin.archive a
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
        join tocsin.queues q on q.id = p.queue_id
        cross join lateral (
            select m.id, m.task, case when m.state = 'leased' and m.vt > $10 then 'running'
                       else 'waiting' end as state,
                m.priority, m.key, m.read_ct, coalesce(m.max_deliveries, q.max_deliveries)
                    as max_deliveries,
                m.enqueued_at, m.due, m.dequeued_at, null::timestamptz as ended_at,
                m.consumer_worker_id, m.payload, null::jsonb as result, null::text as reason,
                coalesce(m.cancel_reason, m.last_error) as error,
                case when m.state = 'leased' and m.vt > $10
                    then tocsin._read_progress(m.progress, m.lease) end as progress
            from tocsin.messages m where m.id = p.id
            union all
            select d.id, d.task, 'failed', d.priority, d.key, d.read_ct,
                coalesce(d.max_deliveries, q.max_deliveries), d.enqueued_at, null, d.dequeued_at,
                d.died_at, d.consumer_worker_id, d.payload, null, d.reason, d.error, null
            from tocsin.dead_letters d where d.id = p.id
            union all
            select a.id, a.task, a.outcome, a.priority, a.key, a.read_ct, null, a.enqueued_at,
                null, a.dequeued_at, a.archived_at, a.consumer_worker_id, a.payload, a.result,
                null, a.last_error, null
            from tocsin.archive a where a.queue_id = p.queue_id and a.id = p.id
        ) x
        order by x.id
        $q$, '.id limit', case when newest_first then '.id desc limit' else '.id limit' end),
        '.id > $8', case when newest_first then '.id < $8' else '.id > $8' end)
        || case when newest_first then ' desc' else '' end
    using task, only_queue, state, since, until, key, readable, after, max_jobs, t,
        shows_arguments, job_id;
end
$$;

-- Returns the tasks and outcomes of which there are finished jobs in these states: an
-- outcome of the archive, or null for the dead letters. Each is found by one index lookup.
create or replace function tocsin._job_shelves(only_task text, state text)
    returns table (task text, outcome text)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
#variable_conflict use_column
begin
    if state in ('waiting', 'running') then
        return;
    end if;
    return query
        with recursive shelves (task, outcome) as (
            (select a.task, a.outcome from tocsin.archive a
             where a.task is not null order by a.task, a.outcome limit 1)
            union all
            select n.task, n.outcome
            from shelves s
            cross join lateral (
                select a.task, a.outcome from tocsin.archive a
                where a.task is not null and (a.task, a.outcome) > (s.task, s.outcome)
                order by a.task, a.outcome limit 1) n
        )
        select s.task, s.outcome from shelves s
        where s.task <> '$tick' and (only_task is null or s.task = only_task)
            and (_job_shelves.state is null or s.outcome = _job_shelves.state);
    if coalesce(state, 'failed') = 'failed' then
        return query
            with recursive letters (task) as (
                (select d.task from tocsin.dead_letters d
                 where d.task is not null order by d.task limit 1)
                union all
                select n.task
                from letters l
                cross join lateral (select d.task from tocsin.dead_letters d
                                    where d.task is not null and d.task > l.task
                                    order by d.task limit 1) n
            )
            select l.task, null::text from letters l
            where l.task <> '$tick' and (only_task is null or l.task = only_task);
    end if;
end
$$;

-- Returns the queues whose jobs the caller may see; null: all.
create or replace function tocsin._readable_queues() returns integer[]
language sql stable
as $$
    select case when not tocsin._may_consume() then array(
        select q.id from tocsin.queues q where tocsin._may_enqueue(q.id, null)) end
$$;

-- Returns the id of the named queue, if the caller may see its jobs; null: none is named.
create or replace function tocsin._readable_queue(queue text) returns integer
language plpgsql stable
as $$
declare
    q tocsin.queues;
begin
    if queue is null then
        return null;
    end if;
    q := tocsin.find_queue(queue);
    if not tocsin._may_read_outcomes(q.id) then
        perform tocsin._refuse_caller(format('see jobs of queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.');
    end if;
    return q.id;
end
$$;

-- Returns how many jobs there are of each task and state. Finished jobs are counted
-- exactly up to `cap`, and beyond that estimated by the planner. Unfinished jobs are
-- counted among the first `cap` unfinished messages, and extrapolated if there are more.
create or replace function tocsin.job_stats(cap integer default 100000)
    returns table (task_name text, job_state text, n bigint, exact boolean)
language plpgsql
set plan_cache_mode = force_custom_plan set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    unfinished bigint;
    factor float8 := 1;
begin
    select count(*) into unfinished from (select from tocsin.messages m limit cap + 1) x;
    if unfinished > cap then
        factor := greatest(tocsin._estimate('select from tocsin.messages'), unfinished)::float8
            / cap;
    end if;
    return query
        select x.task, x.state, (count(*) * factor)::bigint, factor = 1
        from (select m.task, case when m.state = 'leased' and m.vt > t then 'running'
                  else 'waiting' end as state
              from tocsin.messages m limit cap) x
        where x.task <> '$tick'
        group by x.task, x.state;
    return query
        select c.task, coalesce(c.outcome, 'failed'),
            sum(case when c.n <= cap then c.n else greatest(c.n, tocsin._estimate(
                case when c.outcome is null
                    then format('select from tocsin.dead_letters where task = %L', c.task)
                    else format('select from tocsin.archive where task = %L and outcome = %L',
                                c.task, c.outcome) end)) end)::bigint,
            bool_and(c.n <= cap)
        from (select s.task, s.outcome, case when s.outcome is null
                  then (select count(*) from (select from tocsin.dead_letters d
                                              where d.task is not null and d.task = s.task
                                              limit cap + 1) x)
                  else (select count(*) from (select from tocsin.archive a
                                              where a.task is not null and a.task = s.task
                                                  and a.outcome = s.outcome limit cap + 1) x)
                  end as n
              from tocsin._job_shelves(null, null) s) c
        group by c.task, coalesce(c.outcome, 'failed');
end
$$;
