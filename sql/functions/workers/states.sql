-- The states of workers: producers and consumers of a queue.
--
--                 poll              interrupt
--     ready ---------------> polling ---------> interrupted
--       ^ ^  complete poll     |                    |
--       | +--------------------+ suspend            | suspend (by itself when its run has ended)
--       | +--------------+       |                  |
--       | resume         +-- suspended <------------+   interrupt and suspend also from ready
--       +-----------------------+  | shutdown
--                                  v
--                               stopped -- registered again, by its name --> ready
--
-- Every change is one UPDATE whose condition is the allowed current state, so one of
-- two conflicting changes is refused.
--
-- A name, and the id with it, may pass from one process to another: after its process
-- was declared dead, or after a restart. Each registration has a token. A call of the
-- owner for its own registration (poll, claim, release, interrupt on a signal, leave)
-- names the token. Once that registration has ended, the call is refused or does
-- nothing. A call of an operator by id (suspend, resume, interrupt, shutdown, stop)
-- applies to the current registration.
--
-- A stopped worker can be purged. Messages, dead letters and the archive keep its id
-- and have no foreign key, so a purge does not change them.
--
-- A role that is neither owner nor administrator acts only for the workers that it has
-- registered itself (_acts_for).

-- Notifies the process of a worker that it is to read the worker's state or, with
-- `leases_taken`, to check the worker's leases: some are taken, or to be given up.
create or replace function tocsin._tell_process(w tocsin.workers,
                                                leases_taken boolean default false) returns void
language sql
as $$
    select pg_notify(tocsin.process_channel(w.process_id), case when leases_taken
                     then 'leases ' || w.id else '' end)
    -- see ring.sql; the next heartbeat tells the process, too
    where w.process_id is not null and pg_notification_queue_usage() < 0.9
$$;

-- Moves a worker from one of the allowed states to the target state, or raises an
-- error.
create or replace function tocsin._move_worker(
    worker_id bigint, allowed text[], target text, grace interval default null,
    ended text default null, registration bigint default null
) returns tocsin.workers
language plpgsql
as $$
#variable_conflict use_column
declare
    w tocsin.workers;
    t timestamptz := tocsin._clock();
begin
    update tocsin.workers x
    set status = target, grace = _move_worker.grace, ended = _move_worker.ended, heartbeat_at = t,
        shutdown_at = case when target = 'stopped' then t end
    where x.id = worker_id and x.status = any (allowed) and tocsin._acts_for(x.role)
      and (_move_worker.registration is null or x.registration = _move_worker.registration)
    returning x.* into w;
    if not found then
        w := tocsin._check_own(tocsin._find_worker(worker_id));
        if w.registration <> _move_worker.registration then
            perform tocsin._refuse_ended(w);
        end if;
        perform tocsin._refuse_transition(w, target, 'wrong_state',
                                          format('%s is reached only from %s', target,
                                                 array_to_string(allowed, ', ')));
    end if;
    return w;
end
$$;

create or replace function tocsin.begin_poll(worker_id bigint, registration bigint)
    returns tocsin.workers
language plpgsql
as $$
begin
    perform tocsin._find_own_worker(worker_id);
    return tocsin._move_worker(worker_id, '{ready,polling}', 'polling',
                               registration => registration);
end
$$;

-- Ends a run: requeues the messages that it still holds, except the leases to keep,
-- without counting the deliveries. A polling worker becomes ready, an interrupted
-- worker becomes suspended. `interrupted` says that the process has interrupted the run
-- and may not have reported it yet, so a polling or ready worker becomes suspended,
-- too. Returns how many messages were requeued.
create or replace function tocsin.complete_poll(
    worker_id bigint, registration bigint, keep_ids bigint[] default '{}',
    keep_leases bigint[] default '{}', interrupted boolean default false
) returns bigint
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    update tocsin.workers x
    set status = case when x.status = 'polling' and not interrupted then 'ready'
                      else 'suspended' end,
        grace = null
    where x.id = worker_id and x.registration = complete_poll.registration
      and (x.status in ('polling', 'interrupted') or interrupted and x.status = 'ready')
      and tocsin._acts_for(x.role);
    return tocsin.release_others(worker_id, registration, keep_ids, keep_leases);
end
$$;

-- Interrupts a worker: its later claims are refused, and its process ends the run. The
-- handlers may continue for `grace` (null: until they end). With `registration`, only
-- that registration is interrupted, and the call is refused once it has ended.
create or replace function tocsin.interrupt(worker_id bigint, grace interval default null,
                                            registration bigint default null)
returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._move_worker(worker_id, '{ready,polling}', 'interrupted', grace,
                                            registration => registration);
begin
    perform tocsin._tell_process(w);
    return w;
end
$$;

-- Suspends a worker: its later claims are refused. With `release`, the messages that it
-- holds are requeued at once, and the process cancels the handlers. With `drain`, the
-- handlers may finish. Without either, the call is refused while the worker holds
-- messages.
create or replace function tocsin.suspend(worker_id bigint, release boolean default false,
                                          drain boolean default false)
returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    w := tocsin._move_worker(worker_id, '{ready,polling,interrupted}', 'suspended');
    if release then
        perform tocsin._release_held(w, false, '');
    elsif not drain then
        perform tocsin._refuse_held(w);
    end if;
    perform tocsin._tell_process(w);
    return w;
end
$$;

create or replace function tocsin._refuse_held(w tocsin.workers) returns void
language plpgsql
as $$
declare
    held bigint := tocsin._count_held(w);
begin
    if held > 0 then
        perform tocsin._raise_error('TC007',
                                    format('worker %s ("%s") holds %s message(s)', w.id, w.name,
                                           held),
            jsonb_build_object('worker_id', w.id, 'count', held),
            'Settle or release them first, or suspend with release or drain.');
    end if;
end
$$;

create or replace function tocsin.resume(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._move_worker(worker_id, '{suspended}', 'ready');
begin
    perform tocsin._tell_process(w);
    return w;
end
$$;

create or replace function tocsin.shutdown(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    w := tocsin._move_worker(worker_id, '{suspended}', 'stopped', ended => 'shut_down');
    perform tocsin._refuse_held(w);
    perform tocsin._tell_process(w);
    return w;
end
$$;

-- Stops a worker in any state, and requeues the messages that it holds, without
-- counting the deliveries. Its process cancels its handlers. A stopped worker stays
-- stopped. Returns how many messages were requeued.
create or replace function tocsin.stop(worker_id bigint) returns bigint
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._lock_own_worker(worker_id);
    released bigint;
begin
    if w.status = 'stopped' then
        return 0;
    end if;
    w := tocsin._move_worker(worker_id, '{ready,polling,interrupted,suspended}', 'stopped',
                             ended => 'stopped');
    released := tocsin._release_held(w, false, '');
    perform tocsin._tell_process(w);
    return released;
end
$$;
