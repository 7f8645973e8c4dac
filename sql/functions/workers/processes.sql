-- Processes: alive or dead.
--
-- A process that consumes holds an advisory lock, its *lifeline*, on its LISTEN
-- connection. The server releases it when that connection ends, milliseconds after a
-- SIGKILL. So a session that can take the lock knows that the connection is gone,
-- without waiting for a timeout.
--
-- A lost connection is not yet a dead process: the process may be reconnecting. So a
-- process is declared dead when its lifeline is free and it has also missed a
-- heartbeat. A process whose event loop is blocked misses heartbeats, but keeps its
-- lifeline, and is not declared dead. Without a lifeline the number of heartbeats
-- decides:
--
-- - Fifteen for a process that only produces, and for one that is *detached*: it has
--   said that it cannot have a lifeline, because its LISTEN connection cannot be made
--   or does not work.
-- - Three for a process that consumes and has said nothing yet. Its first consumer
--   claims nothing before it has said so, so a mistake costs that one nothing. One that
--   registers again after a death has consumers at work for the moment until it has its
--   lifeline.
--
-- When the server itself was away, every lifeline is free at once, and the first
-- process that comes back would declare every other one dead. So no process is declared
-- dead until the server has been up for ten seconds, which is longer than any process
-- takes between two attempts to reconnect. For the same reason a process that has been
-- silent since the server came up is not given fifteen heartbeats, but one after these
-- ten seconds.
--
-- The server has been up since the later of two times: the postmaster's start, and the
-- moment when the unlogged table `uptime` was last emptied, which crash recovery and a
-- failover do. An empty table does not tell when that was, and the postmaster's start
-- may be long before. So the first process that reads it empty writes the current time.
-- The registration of a process reads it and commits, so that a later refusal does not
-- roll that back.
--
-- The server's clock may have been ahead for a moment. A time of the future counts as
-- now, and is corrected to that.
--
-- A heartbeat examines few processes ================================== The processes
-- are a ring, in the order of ids. A heartbeat goes along the ring from its own
-- process, and ends when it has met eight that are alive. So it costs the same with ten
-- processes and with thousands, and needs no index on a time, which would fill up with
-- dead entries. Every dead process is found: between it and the last living one before
-- it there are only dead ones, and that one's heartbeat passes all of these. So a free
-- lifeline is found within one heartbeat. The heartbeat that finds it is repeated when
-- the process may be declared dead, a heartbeat and a quarter after its last. A living
-- process that is blocked sends no heartbeat, so eight examine each.
--
-- Declared dead: the workers are stopped, their leases void (a late settlement finds
-- another token), their messages ready. A process that was alive after all learns it
-- from its next heartbeat, cancels the handlers whose leases are gone, and registers
-- again.

-- `contract` is the version of the SQL contract that the client was written for.
create or replace function tocsin.register_process(
    hostname text, pid integer, version text, every interval, contract integer default null
) returns bigint
language plpgsql
as $$
declare
    process_id bigint;
    installed tocsin.contract;
begin
    select c.* into installed from tocsin.contract c;
    if contract not between installed.serves and installed.version then
        perform tocsin._raise_error('TC017',
                                    'the schema does not serve this version of the SQL contract',
            jsonb_build_object('schema', (parse_ident('tocsin.contract'))[1], 'found',
                               installed.version, 'serves', installed.serves, 'known', contract));
    end if;
    -- the heartbeats of all processes rely on it
    if (every > '0 s' and every <= '1 hour') is not true then
        perform tocsin._raise_error('TC022',
                                    'the heartbeat''s interval must be more than nothing, and '
                                    'at most an hour', '{"argument": "heartbeat"}');
    end if;
    perform tocsin._record_uptime(tocsin._clock());
    perform tocsin._correct_heartbeats(tocsin._clock());
    insert into tocsin.processes (hostname, pid, version, role, every, started_at, heartbeat_at)
    values (hostname, pid, version, tocsin._caller(), every, tocsin._clock(), tocsin._clock())
    returning id into process_id;
    return process_id;
end
$$;

-- Takes a new lifeline, on the LISTEN connection, at start and after each reconnect.
-- The server may still hold the session of the old connection, so its number is not
-- used again. Returns false when the process has been declared dead. Refused where
-- another role has registered the process: its heartbeat would be refused, too.
create or replace function tocsin.attach_process(process_id bigint) returns boolean
language plpgsql
as $$
declare
    number bigint := nextval('tocsin.lifelines');
    attached boolean;
begin
    perform pg_advisory_lock(tocsin._lock_key('lifeline', number));
    update tocsin.processes p set lifeline = number, detached = false,
        heartbeat_at = tocsin._clock() where p.id = process_id and tocsin._acts_for(p.role);
    attached := found;
    if not attached then
        perform pg_advisory_unlock(tocsin._lock_key('lifeline', number));
        if exists (select from tocsin.processes p
                   where p.id = process_id and not tocsin._acts_for(p.role)) then
            perform tocsin._refuse_caller(format('act for process %s', process_id),
                                          'Another role has registered it; administrators may.');
        end if;
    end if;
    return attached;
end
$$;

-- The process goes on without a lifeline.
create or replace function tocsin.detach_process(process_id bigint) returns void
language sql
as $$ update tocsin.processes p set lifeline = null, detached = true
    where p.id = process_id and tocsin._acts_for(p.role) $$;

create or replace function tocsin.unregister_process(process_id bigint, died boolean default false)
    returns void
language sql
as $$ select tocsin._end_process(p.id, died) from tocsin.processes p
    where p.id = process_id and tocsin._acts_for(p.role) $$;

-- Ends a process: stops its workers and requeues what they hold. The delivery counts
-- when the process died.
create or replace function tocsin._end_process(process_id bigint, died boolean) returns void
language plpgsql
as $$
declare
    w tocsin.workers;
    last_heartbeat timestamptz;
begin
    -- The process first: the deletion waits for the registration of a worker that is
    -- under way, and a later one finds no process.
    delete from tocsin.processes p where p.id = process_id
        returning p.heartbeat_at into last_heartbeat;
    for w in select x.* from tocsin.workers x where x.process_id = _end_process.process_id
        order by x.id loop
        perform pg_advisory_xact_lock(tocsin._lock_key('worker', w.id));
        update tocsin.workers x
        set status = 'stopped',
            ended = coalesce(x.ended, case when died then 'died' else 'left' end), grace = null,
            status_before_death = case when died
                then x.status end, shutdown_at = tocsin._clock(), process_id = null,
            heartbeat_at = least(greatest(x.heartbeat_at, last_heartbeat), tocsin._clock())
        where x.id = w.id and x.registration = w.registration;
        if found then
            perform tocsin._release_held(w, died, 'worker_died');
        end if;
    end loop;
end
$$;

-- Locks all workers of a process, or none; returns whether it has.
create or replace function tocsin._try_lock_workers(process_id bigint) returns boolean
language plpgsql
as $$
declare
    worker_id bigint;
begin
    for worker_id in select w.id from tocsin.workers w
        where w.process_id = _try_lock_workers.process_id order by w.id loop
        if not pg_try_advisory_xact_lock(tocsin._lock_key('worker', worker_id)) then
            raise lock_not_available;
        end if;
    end loop;
    return true;
exception when lock_not_available then  -- the locks taken so far are released
    return false;
end
$$;

-- Returns since when the server has been up, as far as the table tells, and writes it.
create or replace function tocsin._record_uptime(t timestamptz) returns timestamptz
language plpgsql
as $$
declare
    up_since timestamptz;
begin
    insert into tocsin.uptime (since) select t
        where not exists (select from tocsin.uptime) on conflict do nothing;
    update tocsin.uptime u set since = t where u.since > t;
    select greatest(u.since, case when pg_postmaster_start_time() <= t
                    then pg_postmaster_start_time() end) into up_since from tocsin.uptime u;
    return up_since;
end
$$;

-- Makes heartbeats of the future, sent while the clock was ahead, count as sent now.
-- Those that are being sent at this moment are at most a second ahead.
create or replace function tocsin._correct_heartbeats(t timestamptz) returns void
language sql
as $$
    update tocsin.processes p set heartbeat_at = t
    from (select x.id from tocsin.processes x where x.heartbeat_at > t + interval '1 s'
          for update skip locked) ahead
    where p.id = ahead.id
$$;

-- Whether a process seems alive; if not, when it may be declared dead.
create or replace function tocsin._examine(
    p tocsin.processes, t timestamptz, up_since timestamptz, out seems_alive boolean,
    out dead_at timestamptz
)
language plpgsql
as $$
declare
    beat timestamptz := least(p.heartbeat_at, t);
    silent boolean := beat < up_since;  -- since the server came up
    soon timestamptz := tocsin._later(beat, p.every * 1.25);
    settled timestamptz := up_since + interval '10 s';
begin
    if p.lifeline is not null then
        seems_alive := not pg_try_advisory_xact_lock_shared(tocsin._lock_key('lifeline',
            p.lifeline));
        dead_at := greatest(soon, settled);
    elsif not p.detached
        and exists (select from tocsin.workers w
                    where w.process_id = p.id and w.kind = 'consumer') then
        seems_alive := false;  -- unknown; it is about to take a lifeline or to detach
        dead_at := greatest(tocsin._later(beat, p.every * 3), settled);
    elsif silent then
        seems_alive := false;
        dead_at := greatest(soon, tocsin._later(settled, p.every * 1.25));
    else
        seems_alive := soon > t;
        dead_at := greatest(tocsin._later(beat, p.every * 15), settled);
    end if;
end
$$;

-- Declares a process dead if it is. Returns 0 when it has. Returns null when the
-- process seems alive. Otherwise returns the seconds after which to examine it again:
-- it may not be declared dead yet, or another session has locked one of its workers. It
-- does not wait for that lock. The deletion of a large queue holds it for long, and
-- this is part of the heartbeat of a process that is well and has other queues.
create or replace function tocsin._reap_if_dead(p tocsin.processes, t timestamptz,
                                                up_since timestamptz) returns float8
language plpgsql
as $$
declare
    seems_alive boolean;
    dead_at timestamptz;
begin
    select e.seems_alive, e.dead_at into seems_alive, dead_at
        from tocsin._examine(p, t, up_since) e;
    if seems_alive then
        return null;
    elsif p.heartbeat_at > t + interval '1 s' then
        perform tocsin._correct_heartbeats(t);
    end if;
    if dead_at > t then
        return extract(epoch from dead_at - t);
    end if;
    -- Another session may be declaring it dead, or it may just have come back. Its row
    -- is then locked or changed.
    perform from tocsin.processes x
    where x.id = p.id and x.lifeline is not distinct
        from p.lifeline and x.heartbeat_at = p.heartbeat_at
    for update skip locked;
    if found and tocsin._try_lock_workers(p.id) then
        perform tocsin._end_process(p.id, died => true);
        return 0;
    end if;
    return 1;
end
$$;

-- Declares dead the dead processes along the ring from this one, until it has met
-- `living` processes that are alive (null: all around). Returns the seconds after which
-- to examine again, or null when no process seems dead. With `stop_at` it returns 0
-- after the first death past that time: there may be more.
create or replace function tocsin._reap_dead_processes(
    process_id bigint, living integer default null, stop_at timestamptz default null
) returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
declare
    t timestamptz := tocsin._clock();
    up_since timestamptz := tocsin._record_uptime(t);
    p tocsin.processes;
    wait float8;
    again_in float8;
begin
    for p in
        (select x.* from tocsin.processes x where x.id > process_id order by x.id)
        union all
        (select x.* from tocsin.processes x where x.id < process_id order by x.id)
    loop
        wait := tocsin._reap_if_dead(p, t, up_since);
        if wait is null then
            living := living - 1;
            exit when living <= 0;
        elsif wait > 0 then
            again_in := least(again_in, wait);
        elsif tocsin._clock() >= stop_at then
            return 0;
        end if;
    end loop;
    return again_in;
end
$$;

-- The heartbeat: the one periodic statement of a process. A row says one thing, by its
-- kind; the columns that belong to other kinds are null.
--
--   dead         The process has been declared dead. No row follows.
--   heartbeat    due_in: the next heartbeat is due after this many seconds, if that is
--                sooner than usual.
--   maintenance  Maintenance is due, and this process is elected to do it.
--   worker       worker_id, registration, status, grace (seconds, of an interrupted
--                worker), in the order of ids.
--   queue        queue_id, due_in: its next message is due after this many seconds, 0
--                for now. No row: none is known.
--
-- The queues are those on which the process's consumers wait or may begin to wait
-- before the answer. A consumer that works claims without being told.
--
-- `able`: whether the process reaches the server by more than its LISTEN connection. A
-- process that is not able is alive, but its workers show no sign of life.
create or replace function tocsin.heartbeat(process_id bigint, queue_ids integer[],
                                            able boolean default true)
returns table (kind text, worker_id bigint, registration bigint, status text, grace float8,
               queue_id integer, due_in float8)
language plpgsql
as $$
#variable_conflict use_column
declare
    reap_in float8;
    last_heartbeat timestamptz;
begin
    update tocsin.processes p set heartbeat_at = case when able then tocsin._clock()
        else p.heartbeat_at end
    from (select x.heartbeat_at from tocsin.processes x where x.id = process_id) before
    where p.id = process_id and tocsin._acts_for(p.role)
    returning before.heartbeat_at into last_heartbeat;
    if not found then
        return query select 'dead', null::bigint, null::bigint, null::text, null::float8,
            null::integer, null::float8;
        return;
    end if;
    if last_heartbeat > tocsin._clock() + interval '1 s' then
        update tocsin.maintenance m set clock_was_ahead = true, due_at = tocsin._clock();
    end if;
    reap_in := tocsin._reap_dead_processes(process_id, 8);
    if reap_in is not null then
        return query select 'heartbeat', null::bigint, null::bigint, null::text, null::float8,
            null::integer, reap_in;
    end if;
    if tocsin._elect_maintainer(process_id) then
        return query select 'maintenance', null::bigint, null::bigint, null::text, null::float8,
            null::integer, null::float8;
    end if;
    return query
        select 'worker', w.id, w.registration, w.status, extract(epoch from w.grace)::float8,
            null::integer, null::float8
        from tocsin.workers w where w.process_id = heartbeat.process_id order by w.id;
    return query
        select 'queue', null::bigint, null::bigint, null::text, null::float8, d.queue_id, d.seconds
        from (select s.queue_id, tocsin._next_due(s.queue_id) as seconds
              from unnest(queue_ids) s (queue_id)
              where tocsin._may_consume()) d
        where d.seconds is not null;
end
$$;
