-- Find the tasks whose jobs wait while no worker of the queue runs them.
--
-- A worker that claims a job whose task it does not know leaves it for ten seconds
-- (Snooze), so such a job is ready, or delayed by at most ten seconds. No index has the
-- tasks of messages. So the front of both is read, a thousand messages each: other jobs
-- leave the front, and these come back to it.
--
-- A consumer without tasks handles every message of its queue. A worker that has stopped
-- or fallen silent within `max_age` counts as if it were there, because between two
-- versions of a service there is briefly none.

-- Returns these tasks with the number of jobs that have waited longer than `max_age`, of
-- those read, and since when the oldest waits. Null stands for plain messages.
create or replace function tocsin._unserved_tasks(queue_id integer, t timestamptz, max_age interval)
    returns table (task text, n bigint, since timestamptz)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
        with front as (
            (select m.task, m.enqueued_at, m.due, m.dequeued_at from tocsin.messages m
             where m.queue_id = _unserved_tasks.queue_id and m.state = 'ready'
             order by m.priority, m.due, m.id limit 1000)
            union all
            (select m.task, m.enqueued_at, m.due, m.dequeued_at from tocsin.messages m
             where m.queue_id = _unserved_tasks.queue_id and m.state = 'delayed'
                 and m.vt <= t + interval '10 s'
             order by m.vt limit 1000)
        ), waiting as (
            -- a worker that leaves a job changes when the job is due
            select f.task, case when f.dequeued_at is null then f.due else f.enqueued_at end as since
            from front f where f.task is distinct from '$tick'
        ), tasks as (
            select w.task, count(*) as n, min(w.since) as since
            from waiting w where w.since < tocsin._later(t, -max_age) group by w.task
        )
        select k.task, k.n, k.since
        from tasks k
        where not exists (
            select from tocsin.workers w left join tocsin.processes p on p.id = w.process_id
            where w.queue_id = _unserved_tasks.queue_id and w.kind = 'consumer'
                and w.status in ('ready', 'polling', 'stopped')
                and greatest(w.heartbeat_at, p.heartbeat_at, w.shutdown_at)
                    >= tocsin._later(t, -max_age)
                and (w.tasks is null or k.task = any (w.tasks)))
        order by k.task;
end
$$;
