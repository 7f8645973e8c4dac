-- What jobs have come to, and how a process that waits for that is told.
--
-- A process that waits for the outcome of a job has a row in `awaited`. The transaction
-- that finishes the job notifies the process's channel. It looks for such rows
-- only while a process waits for outcomes of the queue: so jobs that no process waits
-- for cost one lock and its test, and no notification, whose commits would come one
-- after the other.
--
-- A waiting process, with a LISTEN that was committed before:
--   1. Insert its row, and commit (await_jobs).
--   2. Take `awaited`, which its session keeps (begin_awaiting, begin_awaiting_jobs).
--   3. Test whether another session holds `unannounced`. Held: pause, look, and test again.
--   4. Look for the outcome in a new transaction. Found none: wait for a notification.
-- A process sends steps 1 to 3 in one request, whose two transactions come one after the
-- other.
--
-- A transaction that finishes jobs, with each statement that does (_announce):
--   1. Take `unannounced` until its end.
--   2. Test `awaited`. Held: look into the table, and notify the channels.
--
-- No outcome is missed. Let the process find `unannounced` free in its step 3. A transaction
-- that took `unannounced` before has ended, so step 4 sees its outcome. One that takes it
-- later tests `awaited` after step 2, and its look into the table sees the row of step 1.
-- The look locks no row, so a transaction that stays open delays no process: the process
-- deletes its row itself (leave_jobs).
--
-- In a transaction of a stricter isolation level that look does not see new rows. The
-- process then finds the outcome with its next heartbeat, as it does when PostgreSQL's
-- queue of notifications is full.
--
-- tests/model/outcomes.pml is this protocol as a model that is searched through.

-- Returns how these jobs stand, with the result or the error of those that are
-- finished. Ids without a job are left out. The states:
--
--   waiting    not due yet, or not claimed yet
--   running    a worker holds it; with its progress, if the attempt has reported any
--   succeeded  with its result
--   failed     a dead letter, with why (`reason`), the error and its traceback
--   cancelled  with the reason as its error
create or replace function tocsin.job_outcomes(ids bigint[]) returns table (
    id bigint, task text, state text, attempts integer, result text, reason text, error text,
    traceback text, progress text
)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    finished bigint[] := array(select i.id from unnest(ids) i (id)
                               where not exists (select from tocsin.messages m where m.id = i.id));
begin
    return query
        select m.id, m.task,
               case when m.state = 'leased' and m.vt > t then 'running' else 'waiting' end,
               m.read_ct, null::text, null::text, coalesce(m.cancel_reason, m.last_error), null::text,
               case when m.state = 'leased' and m.vt > t
                   then tocsin._read_progress(m.progress, m.lease) end
        from tocsin.messages m
        where m.id = any (ids) and m.task is not null and tocsin._may_read_outcomes(m.queue_id);
    if finished = '{}' then
        return;
    end if;
    return query
        select d.id, d.task, 'failed', d.read_ct, null, d.reason, d.error, d.traceback, null
        from tocsin.dead_letters d
        where d.id = any (finished) and d.task is not null and tocsin._may_read_outcomes(d.queue_id)
        union all
        select a.id, a.task, a.outcome, a.read_ct, a.result::text, null, a.last_error, null, null
        from tocsin.archive a
        where a.queue_id in (select q.id from tocsin.queues q) and a.id = any (finished)
            and a.task is not null and tocsin._may_read_outcomes(a.queue_id);
end
$$;

-- Returns the progress that the attempt with this lease token has reported, as JSON text.
create or replace function tocsin._read_progress(progress jsonb, lease bigint) returns text
language sql immutable parallel safe
as $$ select case when (progress ->> 'lease')::bigint = lease then (progress - 'lease')::text end $$;

-- Takes step 1: records that the process waits for the outcomes of these jobs, if the
-- caller may act for the process. `alone`: the process waits for no other job; rows that
-- a lost connection has left are deleted.
create or replace function tocsin.await_jobs(ids bigint[], process_id bigint,
                                             alone boolean default false) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    if alone then
        delete from tocsin.awaited a using tocsin.processes p
        where a.process_id = await_jobs.process_id and a.job_id <> all (ids)
            and p.id = a.process_id and tocsin._acts_for(p.role);
    end if;
    insert into tocsin.awaited (job_id, process_id)
    select m.id, p.id
    from tocsin.messages m
    join tocsin.processes p on p.id = await_jobs.process_id and tocsin._acts_for(p.role)
    where m.id = any (ids) and m.task is not null and tocsin._may_read_outcomes(m.queue_id)
    on conflict do nothing;
end
$$;

-- Records that the process no longer waits for these jobs.
create or replace function tocsin.leave_jobs(ids bigint[], process_id bigint) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    delete from tocsin.awaited a using tocsin.processes p
    where a.job_id = any (ids) and a.process_id = leave_jobs.process_id
        and p.id = a.process_id and tocsin._acts_for(p.role);
end
$$;

-- Takes steps 2 and 3 for the queues of these jobs, in the session that LISTENs. The
-- transaction of await_jobs has been committed before. `locked`: the queues for which the
-- session has taken step 2 already. Returns the jobs that are not finished, with their
-- queue, and whether to test the queue again after a pause (unannounced_outcomes).
create or replace function tocsin.begin_awaiting_jobs(ids bigint[], locked integer[])
    returns table (job_id bigint, queue_id integer, again boolean)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    jobs bigint[];
    queues integer[];
    unannounced integer[];
begin
    select array_agg(m.id), array_agg(m.queue_id) into jobs, queues
    from tocsin.messages m
    where m.id = any (ids) and m.task is not null and tocsin._may_read_outcomes(m.queue_id);
    perform pg_advisory_lock_shared(tocsin._lock_key('awaited', q.id))
    from (select distinct u.id from unnest(queues) u (id) where u.id <> all (locked)) q;
    unannounced := tocsin.unannounced_outcomes(queues);
    return query select j.id, j.queue, j.queue = any (unannounced)
        from unnest(jobs, queues) j (id, queue);
end
$$;

-- Takes steps 2 and 3 for these queues, in the session that LISTENs; once for each queue
-- until end_awaiting. Returns the queues to test again after a pause (unannounced_outcomes).
create or replace function tocsin.begin_awaiting(queue_ids integer[]) returns integer[]
language plpgsql
as $$
begin
    perform pg_advisory_lock_shared(tocsin._lock_key('awaited', q)) from unnest(queue_ids) q;
    return tocsin.unannounced_outcomes(queue_ids);
end
$$;

-- Returns those of the queues for which an open transaction has finished jobs.
create or replace function tocsin.unannounced_outcomes(queue_ids integer[]) returns integer[]
language sql
as $$
    select coalesce(array_agg(q) filter (where tocsin._shared_elsewhere(tocsin._lock_key('unannounced',
        q))), '{}') from unnest(queue_ids) q
$$;

-- Ends the wait for outcomes of these queues, in the session that began it.
create or replace function tocsin.end_awaiting(queue_ids integer[]) returns void
language sql
as $$ select pg_advisory_unlock_shared(tocsin._lock_key('awaited', q)) from unnest(queue_ids) q $$;

-- Tells the processes that wait for the outcomes of these jobs, which the statement has
-- finished.
create or replace function tocsin._announce(queue_id integer, ids bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    perform pg_advisory_xact_lock_shared(tocsin._lock_key('unannounced', queue_id));
    if tocsin._shared_elsewhere(tocsin._lock_key('awaited', queue_id)) then
        perform pg_notify(tocsin.process_channel(a.process_id), 'job ' || a.job_id)
        from tocsin.awaited a
        where a.job_id = any (ids) and pg_notification_queue_usage() < 0.9;
    end if;
end
$$;
