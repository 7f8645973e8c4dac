-- Workers: who produces for and consumes from a queue, and in which state.
--
--                 poll              interrupt
--     ready ---------------> polling ---------> interrupted
--       ^ ^  complete poll     |                    |
--       | +--------------------+ suspend            | suspend (by itself when its run has ended)
--       | +--------------+       |                  |
--       | resume         +-- suspended <------------+          interrupt and suspend also from ready
--       +-----------------------+  | shutdown
--                                  v
--                               stopped -- registered anew, by its name --> ready
--
-- Every change is one UPDATE whose condition is the state it may start from, so of two
-- that race one is refused.
--
-- A name, and the id with it, may pass from one process to another: when its process
-- was declared dead, or after a restart. Each registration has a token, and what the
-- owner does in its own name (polling, claiming, giving back, leaving) names it; for a
-- registration that has ended it is refused, or does nothing. What operators do by id
-- (suspend, resume, interrupt, shutdown, stop) is meant for whoever is registered now.
--
-- A stopped worker can be purged. Messages, dead letters and the archive keep its id
-- and have no foreign key, so they stay as they are.
--
-- Whoever is neither owner nor administrator acts only for the workers that its own
-- role has registered (acts_for).

-- Raises unless the worker exists; returns it.
create or replace function tocsin._find_worker(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    select x.* into w from tocsin.workers x where x.id = worker_id;
    if not found then
        perform tocsin._raise_error('TC004', format('worker %s does not exist', worker_id), jsonb_build_object('worker_id', worker_id),
                              'It may have been purged; list the workers.');
    end if;
    return w;
end
$$;

create or replace function tocsin._refuse_transition(w tocsin.workers, target text, reason text) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error(case w.status when 'stopped' then 'TC006' else 'TC005' end,
        format('worker %s ("%s") is %s: %s', w.id, w.name, w.status, reason),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', target, 'reason', reason),
        case when target = 'deleted' then 'Stop it first.'
             when w.status = 'suspended' then 'Resume it, or shut it down.'
             when w.status = 'stopped' then 'Register it again by its name.'
             else 'Wait until it is in another state, or suspend it.' end);
end
$$;

create or replace function tocsin._refuse_ended(w tocsin.workers) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error('TC006', format('worker %s ("%s") has been registered by process %s on %s since', w.id, w.name, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', 'stopped', 'to', w.status, 'reason', 'its registration has ended'),
        'It was declared dead; register it again, by its name or another.');
end
$$;

-- Like find_worker, for the owner of a registration: of a worker that is gone, it has
-- ended.
create or replace function tocsin._find_own_worker(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    select x.* into w from tocsin.workers x where x.id = worker_id;
    if not found then
        perform tocsin._raise_error('TC006', format('worker %s is not registered: it has been purged, or its queue deleted', worker_id),
            jsonb_build_object('worker_id', worker_id, 'from', 'stopped', 'to', 'polling', 'reason', 'it has been purged, or its queue deleted'),
            'Register it again, by its name or another.');
    end if;
    return tocsin._check_own(w);
end
$$;

-- Raises unless the worker may take work.
create or replace function tocsin._check_active(worker_id bigint, doing text) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._find_own_worker(worker_id);
begin
    if w.status not in ('ready', 'polling') then
        perform tocsin._refuse_transition(w, 'polling', 'only a ready or polling worker may ' || doing);
    end if;
    return w;
end
$$;

-- The queue that a consumer may claim from now.
create or replace function tocsin._check_claim(worker_id bigint, registration bigint) returns tocsin.queues
language plpgsql
as $$
declare
    q tocsin.queues;
begin
    select x.* into q
    from tocsin.workers w join tocsin.queues x on x.id = w.queue_id
    where w.id = worker_id and w.registration = _check_claim.registration and w.status in ('ready', 'polling') and tocsin._acts_for(w.role);
    if not found then
        perform tocsin._refuse_ended(tocsin._check_active(worker_id, 'claim'));
    end if;
    return q;
end
$$;

-- Registers a worker. The name of a stopped worker is taken over together with its id,
-- also of one that is found dead only now; that of any other is refused, with
-- `retry_after` when its owner seems dead but may not be declared so yet. A null name
-- is made up. `again`: its process was declared dead and is alive, so that a suspended
-- worker stays so. Refused with TC008 when the process has been declared dead (null:
-- none; such a worker is never found dead).
create or replace function tocsin.register_worker(
    queue text, kind text, name text, process_id bigint, hostname text, pid integer, version text, again boolean default false
) returns tocsin.workers
language plpgsql
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin.find_queue(queue);
    t timestamptz := tocsin._clock();
    w tocsin.workers;
    retry_after float8;
begin
    -- Held until this has ended, against a deletion of the queue: that waits for the
    -- registration, or has been waited for by it.
    perform from tocsin.queues x where x.id = q.id for key share;
    if not found then
        perform tocsin._refuse_missing(queue);
    end if;
    perform tocsin._check_register(q, register_worker.kind);
    perform from tocsin.processes p where p.id = register_worker.process_id and tocsin._acts_for(p.role) for key share;
    if not found and process_id is not null then
        perform tocsin._raise_error('TC008', format('process %s was declared dead', process_id), jsonb_build_object('process_id', process_id));
    end if;
    for attempt in 1..2 loop
        insert into tocsin.workers as x
            (queue_id, kind, name, status, registration, role, process_id, hostname, pid, version, started_at, heartbeat_at)
        values (q.id, register_worker.kind,
                coalesce(register_worker.name, format('%s-%s-%s', hostname, pid, substr(gen_random_uuid()::text, 1, 8))),
                'ready', nextval('tocsin.registrations'), tocsin._caller(), register_worker.process_id, register_worker.hostname,
                register_worker.pid, register_worker.version, t, t)
        on conflict (queue_id, kind, name) do update
            set status = case when again and x.status_before_death in ('suspended', 'interrupted') then x.status_before_death else 'ready' end,
                grace = null, status_before_death = null, ended = null, registration = excluded.registration, role = excluded.role,
                process_id = excluded.process_id, hostname = excluded.hostname, pid = excluded.pid, version = excluded.version,
                started_at = t, heartbeat_at = t, shutdown_at = null
            where x.status = 'stopped'
        returning x.* into w;
        if found then
            return w;
        end if;
        -- Its owner may be dead, and no other process there to notice.
        retry_after := null;
        select tocsin._reap_if_dead(p, t, tocsin._record_uptime(t)) into retry_after
        from tocsin.workers x join tocsin.processes p on p.id = x.process_id
        where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name
          and p.id is distinct from register_worker.process_id;
    end loop;
    select x.* into w from tocsin.workers x
    where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name;
    perform tocsin._raise_error('TC005',
        format('worker %s ("%s") is %s: its name is in use by process %s on %s', w.id, w.name, w.status, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', 'ready', 'retry_after', retry_after,
                           'reason', format('its name is in use by process %s on %s', w.pid, w.hostname)),
        'Choose another name, or end that worker first.');
end
$$;

-- The queue that a worker is on. Volatile, so that it sees one that the same statement
-- has registered.
create or replace function tocsin.queue_of(worker_id bigint) returns tocsin.queues
language sql volatile
as $$
    select q.* from tocsin.workers w join tocsin.queues q on q.id = w.queue_id
    where w.id = queue_of.worker_id and tocsin._acts_for(w.role)
$$;

-- Tells the process that runs this worker to look at its state, or (`leases_taken`) at
-- its leases.
create or replace function tocsin._tell_process(w tocsin.workers, leases_taken boolean default false) returns void
language sql
as $$
    select pg_notify(tocsin.process_channel(w.process_id), case when leases_taken then 'leases ' || w.id else '' end)
    where w.process_id is not null and pg_notification_queue_usage() < 0.9  -- ring.sql; its heartbeat tells it, too
$$;

-- The one place where a worker's status changes while it is registered.
create or replace function tocsin._move_worker(
    worker_id bigint, allowed text[], target text, grace interval default null, ended text default null
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
    returning x.* into w;
    if not found then
        w := tocsin._check_own(tocsin._find_worker(worker_id));
        perform tocsin._refuse_transition(w, target, format('%s is reached only from %s', target, array_to_string(allowed, ', ')));
    end if;
    return w;
end
$$;

-- How many messages the worker holds.
create or replace function tocsin._count_held(w tocsin.workers) returns bigint
language sql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select count(*) from tocsin.messages m
    where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
$$;

-- Gives back all that the worker holds, beside the leases to keep; those leases are
-- void. Returns how many messages that were. A message that another transaction has
-- locked for longer than a moment is passed over: that one settles it or, rolled back,
-- leaves it leased until its lease ends. So it may be the caller's own transaction,
-- which waits for this one to return.
--
-- It locks the rows in the order of ids, as settle.sql says. `m.id + 0` keeps a session
-- whose plan is of the empty table from walking all of the primary key for that.
create or replace function tocsin._release_held(
    w tocsin.workers, counted boolean, outcome text, keep_ids bigint[] default '{}', keep_leases bigint[] default '{}'
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off set lock_timeout = '1s'
as $$
declare
    ids bigint[];
    leases bigint[];
begin
    begin
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from tocsin.messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update) h;
    exception when lock_not_available then
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from tocsin.messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update skip locked) h;
    end;
    if ids is null then
        return 0;
    end if;
    return (select count(*) from unnest(tocsin._requeue(ids, leases, '0 s', counted, outcome)) g (outcome) where g.outcome is not null);
end
$$;

create or replace function tocsin.begin_poll(worker_id bigint, registration bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform tocsin._find_own_worker(worker_id);
    w := tocsin._move_worker(worker_id, '{ready,polling}', 'polling');
    if w.registration <> begin_poll.registration then
        perform tocsin._refuse_ended(w);
    end if;
    return w;
end
$$;

-- The end of a run, by whatever way: what it still holds, beside the leases to keep, is
-- given back uncounted; a polling worker is ready again, an interrupted one suspended.
-- Returns how many messages were given back.
create or replace function tocsin.complete_poll(
    worker_id bigint, registration bigint, keep_ids bigint[] default '{}', keep_leases bigint[] default '{}'
) returns bigint
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    update tocsin.workers x
    set status = case x.status when 'polling' then 'ready' else 'suspended' end, grace = null
    where x.id = worker_id and x.registration = complete_poll.registration and x.status in ('polling', 'interrupted')
      and tocsin._acts_for(x.role);
    return tocsin.release_others(worker_id, registration, keep_ids, keep_leases);
end
$$;

-- Claims are refused from here on; the process ends the worker's run, whose handlers
-- may go on for `grace` (null: until they end).
create or replace function tocsin.interrupt(worker_id bigint, grace interval default null) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._move_worker(worker_id, '{ready,polling}', 'interrupted', grace);
begin
    perform tocsin._tell_process(w);
    return w;
end
$$;

-- Claims are refused from here on. A worker that holds messages is refused, unless it
-- is to release them (at once; its handlers are then cancelled by its process) or to
-- drain (they may be finished).
create or replace function tocsin.suspend(worker_id bigint, release boolean default false, drain boolean default false)
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
        perform tocsin._raise_error('TC007', format('worker %s ("%s") holds %s message(s)', w.id, w.name, held),
            jsonb_build_object('worker_id', w.id, 'count', held), 'Settle or release them first, or suspend with release or drain.');
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

-- The end, from whatever state: what it holds is given back, uncounted (its handlers
-- are then cancelled by its process). A stopped worker stays so. Returns how many
-- messages were given back.
create or replace function tocsin.stop(worker_id bigint) returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
    released bigint;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    w := tocsin._check_own(tocsin._find_worker(worker_id));
    if w.status = 'stopped' then
        return 0;
    end if;
    w := tocsin._move_worker(worker_id, '{ready,polling,interrupted,suspended}', 'stopped', ended => 'stopped');
    released := tocsin._release_held(w, false, '');
    perform tocsin._tell_process(w);
    return released;
end
$$;

-- Gives back, uncounted, what the worker holds, whatever its state (its handlers are
-- then cancelled by its process). One that is active may claim the same messages again.
-- Returns how many they were.
create or replace function tocsin.release_messages(worker_id bigint) returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    w := tocsin._check_own(tocsin._find_worker(worker_id));
    perform tocsin._tell_process(w, leases_taken => true);  -- when this is committed
    return tocsin._release_held(w, false, '');
end
$$;

-- Gives back, uncounted, what the worker holds beside the leases to keep: after a claim
-- whose answer was lost. Like a suspension it waits for a claim under way. If that was
-- rolled back nothing is held, but others may have passed over the rows that it had
-- locked, and gone to sleep: so it rings in any case. Returns how many messages that
-- were.
create or replace function tocsin.release_others(worker_id bigint, registration bigint, keep_ids bigint[], keep_leases bigint[])
returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    select x.* into w from tocsin.workers x
    where x.id = worker_id and x.registration = release_others.registration and tocsin._acts_for(x.role);
    if not found then
        return 0;
    end if;
    perform tocsin._ring(w.queue_id);
    return tocsin._release_held(w, false, '', keep_ids, keep_leases);
end
$$;

-- The end of a registration, from whatever state: what it holds is given back,
-- uncounted. Returns how many messages that were.
create or replace function tocsin.unregister_worker(worker_id bigint, registration bigint) returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    update tocsin.workers x set status = 'stopped', ended = 'left', grace = null, shutdown_at = tocsin._clock(), process_id = null
    where x.id = worker_id and x.registration = unregister_worker.registration and x.status <> 'stopped' and tocsin._acts_for(x.role)
    returning x.* into w;
    return case when found then tocsin._release_held(w, false, '') else 0 end;
end
$$;

create or replace function tocsin.worker_heartbeat(worker_id bigint) returns void
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    update tocsin.workers x set heartbeat_at = tocsin._clock()
    where x.id = worker_id and x.status <> 'stopped' and tocsin._acts_for(x.role)
    returning x.* into w;
    if not found then
        w := tocsin._check_own(tocsin._find_worker(worker_id));
        perform tocsin._refuse_transition(w, 'heartbeat', 'a stopped worker has no heartbeat');
    end if;
end
$$;

-- Forgets a stopped worker; its name is free then, and its id is not used again.
create or replace function tocsin.delete_worker(worker_id bigint) returns void
language plpgsql
as $$
begin
    delete from tocsin.workers x where x.id = worker_id and x.status = 'stopped';
    if not found then
        perform tocsin._refuse_transition(tocsin._find_worker(worker_id), 'deleted', 'only a stopped worker may be deleted');
    end if;
end
$$;

-- Forgets workers (of one queue) that have been stopped for at least this long, and
-- returns them; a dry run only returns them. One statement, so that what is returned is
-- what is gone: one that is registered anew in this moment is neither.
create or replace function tocsin.purge_workers(older_than interval, queue text default null, dry_run boolean default false)
returns table (
    id bigint, name text, kind text, queue_id integer, queue_name text, status text, hostname text, pid integer, version text,
    started_at timestamptz, heartbeat_at timestamptz, heartbeat_age float8, shutdown_at timestamptz, ended text, held bigint,
    running_message_id bigint, running_for float8
)
language plpgsql
as $$
#variable_conflict use_column
declare
    only_queue integer := case when queue is not null then (tocsin.find_queue(queue)).id end;
    t timestamptz := tocsin._later(tocsin._clock(), -older_than);
begin
    return query
        with gone as (
            delete from tocsin.workers w
            where not dry_run and w.status = 'stopped' and w.shutdown_at <= t and (only_queue is null or w.queue_id = only_queue)
            returning w.id
        )
        select l.* from tocsin.list_workers(purge_workers.queue) l
        where case when dry_run then l.status = 'stopped' and l.shutdown_at <= t else l.id in (select g.id from gone g) end;
end
$$;
