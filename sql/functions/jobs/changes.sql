-- Tell the holder which jobs to give up, edit a job that waits, and change finished jobs:
-- run them again, or delete them. waiting_messages.sql has the changes of all messages.

-- Returns for each message, in order, why it is to be cancelled; null: it is not, or the
-- lease is lost. The holder ends the attempt and then settles the message in any way,
-- which archives it as cancelled.
create or replace function tocsin.cancel_reasons(ids bigint[], leases bigint[]) returns text[]
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
begin
    return (select coalesce(array_agg(m.cancel_reason order by g.n), '{}')
            from unnest(ids, leases) with ordinality as g (id, lease, n)
            left join tocsin.messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
                and m.state is not distinct from 'leased');
end
$$;

-- Gives a job that waits another priority, other arguments or both, and returns its id.
-- `arguments` replaces all of its arguments, and `limits` its limits with their keys;
-- null: they become those of a new submission. `task`: refuses a job of another task.
create or replace function tocsin.edit_job(
    job_id bigint, priority integer default null, arguments jsonb default null,
    limits jsonb default null, task text default null
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    m tocsin.messages := tocsin._lock_waiting(job_id, null, null);
    t tocsin.tasks;
begin
    if m.task is null or m.task <> edit_job.task then
        perform tocsin._raise_error('TC022',
            format('message %s is %s', m.id,
                   coalesce('a job of task "' || m.task || '"', 'no job')),
            '{"argument": "job_id"}');
    elsif arguments is null then
        return tocsin.reprioritise(m.id, priority);
    end if;
    perform tocsin._check_arguments(arguments);
    perform tocsin._check_payloads(q, jsonb_build_array(arguments), null)
    from tocsin.queues q where q.id = m.queue_id;
    if m.waits_for is not null and exists (
        select from tocsin.edges e where e.child = m.id and e.argument <> '{}')
    then
        perform tocsin._raise_error('TC022',
            format('an argument of job %s is to be the result of a job before it', m.id),
            '{"argument": "arguments"}', 'Edit its arguments when it waits for no other job.');
    end if;
    if edit_job.limits is not null then
        perform tocsin._check_limits(limits);
    elsif m.options ? 'limits' then
        select x.* into t from tocsin.tasks x where x.name = m.task;
        if not found then
            perform tocsin._refuse_task(m.task);
        end if;
        limits := tocsin._limits_of(t, arguments);
    end if;
    if limits is distinct from coalesce(m.options -> 'limits', '[]') and limits is not null then
        -- The update below puts the message into the lines of the new keys: limits.sql.
        perform tocsin._free(m.id);
        m.options := coalesce(m.options, '{}') || jsonb_build_object('limits', limits);
        m.state := case when m.state = 'ready' then 'held' else m.state end;
    end if;
    update tocsin.messages x
    set priority = coalesce(edit_job.priority, x.priority), payload = arguments,
        options = m.options, state = m.state
    where x.id = m.id;
    if m.state not in ('delayed', 'held') then
        -- a consumer may have skipped the locked row, and may wait now
        perform tocsin._ring(m.queue_id);
    end if;
    return m.id;
end
$$;

-- Makes a finished job wait again, due now and with all of its attempts, and returns its
-- id, which stays the same. The history stays. The result and the error of a job from
-- the archive are not kept. A job of a flow takes the results of its parents once more;
-- while one of them has not succeeded, the call is refused.
create or replace function tocsin.requeue_job(job_id bigint) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    a tocsin.archive;
    queue integer;
    parent bigint;
    flow bigint;
begin
    select min(e.parent) into parent from tocsin.edges e where e.child = job_id and not e.done;
    select d.queue_id into queue from tocsin.dead_letters d
    where d.id = job_id and d.task is not null;
    if found then
        perform tocsin._check_requeue(queue, job_id, parent);
        if cardinality(tocsin.replay(ids => array[job_id])) = 1 then
            return job_id;
        end if;
    end if;
    -- one lookup for each queue: the archive has no index of ids alone
    select x.queue_id into queue
    from tocsin.queues q
    join tocsin.archive x on x.queue_id = q.id and x.id = job_id and x.task is not null;
    if not found then
        perform tocsin._refuse_change(job_id, null, null);
    end if;
    perform tocsin._check_requeue(queue, job_id, parent);
    perform tocsin._reopen_flows(array[j.flow_id])
    from tocsin.flow_jobs j where j.job_id = requeue_job.job_id;
    select j.flow_id into flow from tocsin.flow_jobs j where j.job_id = requeue_job.job_id;
    delete from tocsin.archive x where x.queue_id = queue and x.id = job_id returning x.* into a;
    if not found then  -- another call has requeued it
        perform tocsin._refuse_change(job_id, null, null);
    end if;
    insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        values (a.queue_id, a.span, a.keep_until, t, -1);
    insert into tocsin.messages (id, queue_id, priority, state, due, vt, enqueued_at, dequeued_at,
                                 producer_worker_id, consumer_worker_id, max_deliveries, key,
                                 payload, headers, history, task, options, flow_id)
    select a.id, a.queue_id, a.priority, 'ready', t, t, a.enqueued_at, a.dequeued_at,
        a.producer_worker_id, a.consumer_worker_id,
        (select x.max_deliveries from tocsin.tasks x where x.name = a.task), a.key,
        case when flow is null then a.payload else tocsin._fill_arguments(a.id, a.payload) end,
        a.headers, a.history, a.task, a.options, flow
    on conflict (queue_id, key) where key is not null do nothing;
    if not found then
        perform tocsin._raise_error('TC014',
            format('job %s cannot be requeued: another unfinished message has its key', job_id),
            jsonb_build_object('ids', array[job_id]), 'Wait until that message is finished.');
    end if;
    return job_id;
end
$$;

-- Raises an error unless the caller may requeue the job, and all of its parents have
-- ended; `parent` is one that has not.
create or replace function tocsin._check_requeue(queue_id integer, job_id bigint, parent bigint)
    returns void
language plpgsql
as $$
begin
    perform tocsin._check_change(queue_id);
    if parent is not null then
        perform tocsin._raise_error('TC022',
            format('job %s waits for job %s of its flow, which has not succeeded', job_id, parent),
            '{"argument": "job_id"}', 'Requeue the flow.');
    end if;
end
$$;

-- Deletes finished jobs in these states (succeeded, failed, cancelled), of one task or of
-- all, and returns how many were deleted, or would be (dry_run). `older_than`: only jobs
-- that were finished longer ago.
create or replace function tocsin.clear_jobs(
    states text[] default '{succeeded,cancelled}', task text default null,
    older_than interval default null, dry_run boolean default false
) returns bigint
language plpgsql
set plan_cache_mode = force_custom_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    before timestamptz := coalesce(tocsin._cutoff(older_than), 'infinity');
    cleared bigint;
    given_up bigint[];  -- jobs that can no longer be requeued
    letters bigint[];
begin
    if not states <@ '{succeeded,failed,cancelled}' then
        perform tocsin._raise_error('TC022', 'states must be succeeded, failed or cancelled',
                                    '{"argument": "states"}');
    end if;
    if dry_run then
        return (select count(*) from tocsin.archive a
                where a.task is not null and (clear_jobs.task is null or a.task = clear_jobs.task)
                    and a.outcome = any (states) and a.archived_at < before)
             + (select count(*) from tocsin.dead_letters d
                where 'failed' = any (states) and d.task is not null
                    and (clear_jobs.task is null or d.task = clear_jobs.task)
                    and d.died_at < before);
    end if;
    with gone as (
        delete from tocsin.archive a
        where a.task is not null and (clear_jobs.task is null or a.task = clear_jobs.task)
            and a.outcome = any (states) and a.archived_at < before
        returning a.queue_id, a.span, a.keep_until, a.id, a.outcome
    ), per_slot as (
        select g.queue_id, g.span, tocsin._archive_slot(g.span, g.keep_until) as starts_at,
            count(*) as n
        from gone g group by 1, 2, 3
    ), counted as (
        insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select p.queue_id, p.span, p.starts_at, t, -p.n from per_slot p
    )
    select coalesce((select sum(p.n) from per_slot p), 0),
        array(select g.id from gone g where g.outcome <> 'succeeded')
    into cleared, given_up;
    if 'failed' = any (states) then
        with gone as (
            delete from tocsin.dead_letters d
            where d.task is not null and (clear_jobs.task is null or d.task = clear_jobs.task)
                and d.died_at < before
            returning d.id
        )
        select array_agg(g.id) into letters from gone g;
    end if;
    perform tocsin._give_up(given_up || letters);
    return cleared + coalesce(cardinality(letters), 0);
end
$$;
