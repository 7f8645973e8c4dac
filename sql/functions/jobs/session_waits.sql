-- How a program without a registered process waits for a job: by the session of its own
-- connection. Such programs are scripts and web applications without a store.
--
-- The session takes the steps of the protocol in outcomes.sql as a process does. Its
-- rows in `awaited` have the negative number of a lifeline, which the session holds. So
-- the numbers of sessions and processes differ, and a free lifeline shows that the
-- session has ended. A session that ends without leave_job loses its LISTEN and its
-- locks; maintenance deletes the row.

-- Takes step 1 for a job that is not finished: begins to LISTEN, and inserts the row.
-- Returns the session's number for leave_job, and the queue for begin_awaiting; no row
-- when there is no such job, or it is finished. The caller commits.
create or replace function tocsin.await_job(id bigint)
    returns table (session_number bigint, queue_id integer)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    select m.queue_id into await_job.queue_id from tocsin.messages m
        where m.id = await_job.id and m.task is not null and tocsin._may_read_outcomes(m.queue_id);
    if not found then
        return;
    end if;
    session_number := nextval('tocsin.lifelines');
    perform pg_advisory_lock(tocsin._lock_key('lifeline', session_number));
    execute format('listen %I', tocsin.process_channel(-session_number));
    insert into tocsin.awaited (job_id, process_id) values (await_job.id, -session_number);
    return next;
end
$$;

-- Ends the wait that await_job began in this session. Returns whether this session has
-- the number. `locked`: begin_awaiting has run for the queue.
create or replace function tocsin.leave_job(session_number bigint, queue_id integer, locked boolean)
    returns boolean
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    session_number := coalesce(session_number, currval('tocsin.lifelines'));
    if not tocsin._holds_lock(tocsin._lock_key('lifeline', session_number)) then
        return false;
    end if;
    delete from tocsin.awaited a where a.process_id = -session_number;
    execute format('unlisten %I', tocsin.process_channel(-session_number));
    if locked then
        perform tocsin.end_awaiting(array[leave_job.queue_id]);
    end if;
    return pg_advisory_unlock(tocsin._lock_key('lifeline', session_number));
end
$$;

-- Whether this session holds the advisory lock.
create or replace function tocsin._holds_lock(key bigint) returns boolean
language sql
as $$
    select exists (select from pg_locks l
                   where l.locktype = 'advisory' and l.pid = pg_backend_pid()
                     and l.database = (select d.oid from pg_database d
                                       where d.datname = current_database())
                     and l.classid::bigint = (key >> 32) & 4294967295
                     and l.objid::bigint = key & 4294967295
                     and l.objsubid = 1 and l.granted)
$$;

-- Deletes the rows of sessions and of processes that have ended.
create or replace function tocsin._forget_ended_sessions() returns void
language sql
as $$
    delete from tocsin.awaited a
    where a.process_id < 0
            and pg_try_advisory_xact_lock_shared(tocsin._lock_key('lifeline', -a.process_id))
        or a.process_id > 0
            and not exists (select from tocsin.processes p where p.id = a.process_id)
$$;
