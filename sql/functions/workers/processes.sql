-- Register processes, and declare dead processes dead.
--
-- A process that consumes holds an advisory lock, its *lifeline*, on its LISTEN
-- connection. The server releases it when that connection ends, milliseconds after a
-- SIGKILL. So a session that can take the lock knows that the connection is gone,
-- without waiting for a timeout.
--
-- A lost connection does not prove that the process is dead: it may be reconnecting. So
-- a process is declared dead when its lifeline is free and it has also missed a
-- heartbeat. A process whose event loop is blocked misses heartbeats, but keeps its
-- lifeline, and is not declared dead. For a process without a lifeline, the number of
-- missed heartbeats decides:
--
-- - Fifteen for a process that only produces, and for a *detached* process. A detached
--   process has reported that it has no lifeline, because its LISTEN connection cannot
--   be opened or does not work.
-- - Three for a process that consumes and has not yet taken a lifeline or detached. Its
--   first consumer claims nothing before that, so a wrong decision costs it nothing. A
--   process that registers again after it was declared dead has active consumers until
--   it has its lifeline.
--
-- After a restart of the server every lifeline is free, and the first process that
-- reconnects would declare every other process dead. So no process is declared dead
-- until the server has been up for ten seconds, which is longer than any process waits
-- between two attempts to reconnect. A process without a lifeline that has been silent
-- since the restart is therefore declared dead one heartbeat after these ten seconds,
-- and not after fifteen.
--
-- The server has been up since the later of two times: the postmaster's start, and the
-- moment when crash recovery or a failover last emptied the unlogged table `uptime`. An
-- empty table does not tell when it was emptied, and the postmaster may have started
-- long before. So the first process that finds the table empty writes the current time.
-- The registration of a process does this, too, and commits, so that the refusal of a
-- later statement does not roll the write back.
--
-- The server's clock may have been ahead for a while. A heartbeat in the future counts
-- as sent now, and is corrected to now.
--
-- The processes form a circle in the order of ids. A heartbeat examines the processes
-- that follow its own in this circle, and ends after eight living ones. So it costs the
-- same with ten processes and with thousands, and needs no index on a time, which would
-- fill up with dead entries. Every dead process is found: the last living process
-- before it examines all dead processes between the two. So a free lifeline is found
-- within one heartbeat interval. The process that finds it repeats its heartbeat when
-- the silent process may be declared dead, one and a quarter intervals after that
-- process's last heartbeat. A living process that is blocked sends no heartbeat, so
-- eight processes examine each process.
--
-- When a process is declared dead, its workers are stopped and their messages are
-- requeued. Their leases end, so a late settlement changes nothing. A process that is
-- alive after all learns of this from its next heartbeat, cancels the handlers whose
-- leases were lost, and registers again.

-- Registers a process and returns its id. `contract` is the version of the SQL contract
-- for which the client was written.
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
    -- the heartbeats of all processes rely on a valid interval
    if (every > '0 s' and every <= '1 hour') is not true then
        perform tocsin._raise_error('TC022',
                                    'the heartbeat interval must be positive, and at most an '
                                    'hour', '{"argument": "heartbeat"}');
    end if;
    perform tocsin._record_uptime(tocsin._clock());
    perform tocsin._correct_heartbeats(tocsin._clock());
    insert into tocsin.processes (hostname, pid, version, role, every, started_at, heartbeat_at)
    values (hostname, pid, version, tocsin._caller(), every, tocsin._clock(), tocsin._clock())
    returning id into process_id;
    return process_id;
end
$$;

-- Takes a new lifeline on the LISTEN connection, at the start and after each reconnect.
-- The session of the old connection may still exist on the server, so its number is not
-- used again. Returns false when the process has been declared dead. Raises an error
-- when another role has registered the process, because that process could not send a
-- heartbeat either.
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
                                          'Only its own role and administrators may act for it.');
        end if;
    end if;
    return attached;
end
$$;

-- Marks a process as detached: it works without a lifeline.
create or replace function tocsin.detach_process(process_id bigint) returns void
language sql
as $$ update tocsin.processes p set lifeline = null, detached = true
    where p.id = process_id and tocsin._acts_for(p.role) $$;

create or replace function tocsin.unregister_process(process_id bigint, died boolean default false)
    returns void
language sql
as $$ select tocsin._end_process(p.id, died) from tocsin.processes p
    where p.id = process_id and tocsin._acts_for(p.role) $$;

-- Ends a process: stops its workers and requeues the messages that they hold. The
-- deliveries count if the process died.
create or replace function tocsin._end_process(process_id bigint, died boolean) returns void
language plpgsql
as $$
declare
    w tocsin.workers;
    last_heartbeat timestamptz;
begin
    -- Delete the process first: the DELETE waits for a registration of a worker that is
    -- in progress, and a later registration finds no process.
    delete from tocsin.processes p where p.id = process_id
        returning p.heartbeat_at into last_heartbeat;
    delete from tocsin.awaited a where a.process_id = _end_process.process_id;
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

-- Locks all workers of a process or none, and returns whether they are locked.
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

-- Returns since when the server has been up. Writes the current time to the table
-- `uptime` if it is empty.
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

-- Corrects heartbeats in the future, which were sent while the clock was ahead, to now.
-- A heartbeat that is being sent at this moment is at most a second ahead.
create or replace function tocsin._correct_heartbeats(t timestamptz) returns void
language sql
as $$
    update tocsin.processes p set heartbeat_at = t
    from (select x.id from tocsin.processes x where x.heartbeat_at > t + interval '1 s'
          for update skip locked) ahead
    where p.id = ahead.id
$$;

-- Returns whether a process seems alive, and if not, when it may be declared dead.
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
        seems_alive := false;  -- unknown: it is about to take a lifeline or to detach
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

-- Declares a process dead if it is dead, and then returns 0. Returns null when the
-- process seems alive. Otherwise returns the seconds after which to examine the process
-- again: it may not be declared dead yet, or another session has locked one of its
-- workers. The function does not wait for that lock, because the deletion of a large
-- queue holds it for long, and the heartbeat of a healthy process with other queues
-- calls this function.
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
    -- Another session may be declaring the process dead, or the process may just have
    -- sent a heartbeat. Its row is then locked or changed.
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

-- Examines the processes that follow this one in the circle, and declares the dead ones
-- dead, until it has found `living` processes alive (null: all processes). Returns the
-- seconds after which to examine them again, or null when no process seems dead. With
-- `stop_at`, returns 0 at the first process that it declares dead after that time,
-- because there may be more.
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

-- The heartbeat: the one periodic statement of a process. Each row has a kind, and the
-- columns that belong to other kinds are null.
--
--   dead         The process has been declared dead. No row follows.
--   heartbeat    due_in: the next heartbeat is due after this many seconds, if that is
--                sooner than usual.
--   maintenance  Maintenance is due, and this process is elected to do it.
--   worker       worker_id, registration, status, grace (seconds, of an interrupted
--                worker), in the order of ids.
--   queue        queue_id, due_in: its next message is due after this many seconds, 0
--                for now. A queue without such a message has no row.
--
-- `queue_ids` are the queues on which consumers of the process wait, or may begin to
-- wait before the answer arrives. A busy consumer claims without such a row.
--
-- `able` says whether the process reaches the server by more than its LISTEN
-- connection. Otherwise the process is alive, but its heartbeat, and so that of its
-- workers, is not updated.
create or replace function tocsin.heartbeat(process_id bigint, queue_ids integer[],
                                            able boolean default true)
returns table (kind text, worker_id bigint, registration bigint, status text, grace float8,
               queue_id integer, due_in float8)
language plpgsql
as $$
#variable_conflict use_column
declare
    last_heartbeat timestamptz;
begin
    update tocsin.processes p set heartbeat_at = case when able then tocsin._clock()
        else p.heartbeat_at end
    from (select x.heartbeat_at from tocsin.processes x where x.id = process_id) before
    where p.id = process_id and tocsin._acts_for(p.role)
    returning before.heartbeat_at into last_heartbeat;
    if not found then
        kind := 'dead';
        return next;
        return;
    end if;
    if last_heartbeat > tocsin._clock() + interval '1 s' then
        update tocsin.maintenance m set clock_was_ahead = true, due_at = tocsin._clock();
    end if;
    due_in := tocsin._reap_dead_processes(process_id, 8);
    if due_in is not null then
        kind := 'heartbeat';
        return next;
        due_in := null;
    end if;
    if tocsin._elect_maintainer(process_id) then
        kind := 'maintenance';
        return next;
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
