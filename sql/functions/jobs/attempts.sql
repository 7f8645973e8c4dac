-- Show the attempts of a job. An attempt is a delivery of its message: those that have
-- failed, and one that a cancellation has ended, are in the message's history; the one
-- that runs and the one that has succeeded are in the message's row.

-- Returns the attempts of a job, in the order in which they began: of those that have not
-- succeeded, the last twenty. The number counts from 1 since the job was submitted or
-- last requeued. An attempt that does not count, because its worker was shut down or it
-- has raised Snooze, is left out. `outcome` is the outcome in the history, or
-- `succeeded`; null: the attempt runs.
create or replace function tocsin.job_attempts(job_id bigint) returns table (
    attempt integer, worker_id bigint, worker text, began_at timestamptz, ended_at timestamptz,
    outcome text, error text
)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    last record;
begin
    select x.* into last
    from (select m.queue_id, m.history, m.read_ct, m.consumer_worker_id, m.dequeued_at,
              null::timestamptz as ended_at, case when m.state = 'leased' then 'running' end as state
          from tocsin.messages m where m.id = job_id and m.task <> '$tick'
          union all
          select d.queue_id, d.history, d.read_ct, d.consumer_worker_id, d.dequeued_at, d.died_at,
              'failed'
          from tocsin.dead_letters d where d.id = job_id and d.task <> '$tick'
          union all
          select a.queue_id, a.history, a.read_ct, a.consumer_worker_id, a.dequeued_at,
              a.archived_at, a.outcome
          from tocsin.archive a
          where a.queue_id in (select q.id from tocsin.queues q) and a.id = job_id
              and a.task <> '$tick') x
    where tocsin._may_read_outcomes(x.queue_id);
    if not found then
        perform tocsin._raise_error('TC016', format('job %s does not exist', job_id),
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
            (select w.name from tocsin.workers w where w.id = last.consumer_worker_id),
            last.dequeued_at, last.ended_at, nullif(last.state, 'running'), null::text;
    end if;
end
$$;
