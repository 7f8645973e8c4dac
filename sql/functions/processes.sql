-- Processes: alive or dead.
--
-- A process that consumes holds an advisory lock, its *lifeline*, on its LISTEN connection. The server drops it when that connection ends,
-- milliseconds after a SIGKILL. So anyone who can take the lock knows that the connection is gone, without waiting for any timeout.
--
-- A lost connection is not yet a dead process: it may be reconnecting. So a process is declared dead when its lifeline is free and it has
-- also missed a heartbeat. A process whose event loop is blocked misses heartbeats, but keeps its lifeline, and is not declared dead. One
-- without a lifeline (it only produces, or a pooler stands in between) is given fifteen heartbeats.
--
-- When the server itself was away, every lifeline is free at once, and the first process that comes back would declare all others dead. So
-- nobody is declared dead until the server has been up for ten seconds, which is longer than any process takes between two attempts to
-- reconnect. How long it has been up: since the postmaster's start, and since the unlogged table `uptime` was last emptied, which crash
-- recovery and a failover do. When that was, an empty table does not tell, nor does the postmaster's start, which may be long before. So
-- the first who looks has it count from then on, and buries nobody.
--
-- Declared dead: the workers are stopped, their leases void (a late settlement finds another token), their messages ready. A process that
-- was alive after all learns it from its next heartbeat, cancels the handlers whose leases are gone, and registers anew.

create or replace function tocsin.register_process(hostname text, pid integer, version text, every interval) returns bigint
language plpgsql
as $$
declare
    process_id bigint;
begin
    if (every > '0 s' and every <= '1 hour') is not true then  -- everybody's heartbeat reckons with it
        perform tocsin.refuse('TC022', 'the heartbeat''s interval must be more than nothing, and at most an hour', '{"argument": "heartbeat"}');
    end if;
    insert into tocsin.processes (hostname, pid, version, role, every, started_at, heartbeat_at)
    values (hostname, pid, version, tocsin.caller(), every, tocsin.clock(), tocsin.clock())
    returning id into process_id;
    return process_id;
end
$$;

-- Called on the process's LISTEN connection, at start and after each reconnect: takes a new lifeline (the old connection may not have
-- noticed its end yet, so its number is not used again). False: the process has been declared dead.
create or replace function tocsin.attach_process(process_id bigint) returns boolean
language plpgsql
as $$
declare
    line bigint := nextval('tocsin.lifelines');
    attached boolean;
begin
    perform pg_advisory_lock(tocsin.lock_key('lifeline', line));
    update tocsin.processes p set lifeline = line, heartbeat_at = tocsin.clock() where p.id = process_id and tocsin.acts_for(p.role);
    attached := found;
    if not attached then
        perform pg_advisory_unlock(tocsin.lock_key('lifeline', line));
    end if;
    return attached;
end
$$;

-- The process goes on without a LISTEN connection.
create or replace function tocsin.detach_process(process_id bigint) returns void
language sql
as $$ update tocsin.processes p set lifeline = null where p.id = process_id and tocsin.acts_for(p.role) $$;

create or replace function tocsin.unregister_process(process_id bigint, died boolean default false) returns void
language sql
as $$ select tocsin.end_process(p.id, died) from tocsin.processes p where p.id = process_id and tocsin.acts_for(p.role) $$;

-- The end of a process: its workers are stopped, and what they hold is given back; that counts as a delivery when it died of it.
create or replace function tocsin.end_process(process_id bigint, died boolean) returns void
language plpgsql
as $$
declare
    w tocsin.workers;
    last_heartbeat timestamptz;
begin
    -- First the process: so a registration under way is waited for and seen below, and a later one finds no process.
    delete from tocsin.processes p where p.id = process_id returning p.heartbeat_at into last_heartbeat;
    for w in select x.* from tocsin.workers x where x.process_id = end_process.process_id order by x.id loop
        perform pg_advisory_xact_lock(tocsin.lock_key('worker', w.id));
        update tocsin.workers x
        set status = 'stopped', ended = coalesce(x.ended, case when died then 'died' else 'left' end), grace = null,
            buried_as = case when died then x.status end, shutdown_at = tocsin.clock(), process_id = null,
            heartbeat_at = greatest(x.heartbeat_at, last_heartbeat)
        where x.id = w.id and x.registration = w.registration;
        if found then
            perform tocsin.release_held(w, died, 'worker died');
        end if;
    end loop;
end
$$;

-- Locks all workers of a process, or none, and says whether it could.
create or replace function tocsin.try_workers_of(process_id bigint) returns boolean
language plpgsql
as $$
declare
    worker_id bigint;
begin
    for worker_id in select w.id from tocsin.workers w where w.process_id = try_workers_of.process_id order by w.id loop
        if not pg_try_advisory_xact_lock(tocsin.lock_key('worker', worker_id)) then
            raise lock_not_available;
        end if;
    end loop;
    return true;
exception when lock_not_available then  -- gives back those that it has taken
    return false;
end
$$;

-- Buries the dead among the other processes. Returns the seconds after which to look again because of one whose lifeline is free but whose
-- heartbeat is not overdue yet, or one of whose workers somebody has locked; null: none such. It does not wait for that lock: a deletion of a
-- large queue holds it for long, and this is part of the heartbeat of a process that is well and has other queues.
create or replace function tocsin.bury_dead(process_id bigint) returns float8
language plpgsql
as $$
declare
    t timestamptz := tocsin.clock();
    up_since timestamptz;
    p record;
    look_again float8;
begin
    insert into tocsin.uptime (since) select t where not exists (select from tocsin.uptime) on conflict do nothing;
    select greatest(u.since, pg_postmaster_start_time()) into up_since from tocsin.uptime u;
    for p in
        select x.id, x.lifeline, x.heartbeat_at,
               greatest(tocsin.later(x.heartbeat_at, x.every * case when x.lifeline is null then 15 else 1.25 end), up_since + interval '10 s') as dead_at
        from tocsin.processes x
        where x.id <> process_id
    loop
        continue when p.lifeline is null and p.dead_at > t;
        continue when p.lifeline is not null and not pg_try_advisory_xact_lock_shared(tocsin.lock_key('lifeline', p.lifeline));
        if p.dead_at > t then
            look_again := least(look_again, extract(epoch from p.dead_at - t));
        else
            -- Another process may be burying it, or it has come back in this moment; then its row is locked or changed.
            perform from tocsin.processes x
            where x.id = p.id and x.lifeline is not distinct from p.lifeline and x.heartbeat_at = p.heartbeat_at
            for update skip locked;
            if found and tocsin.try_workers_of(p.id) then
                perform tocsin.end_process(p.id, died => true);
            elsif found then
                look_again := least(look_again, 1);
            end if;
        end if;
    end loop;
    return look_again;
end
$$;

-- The one periodic statement of a process. Rows:
--   dead                      the process has been declared dead; nothing else follows
--   look_again  seconds       send the next heartbeat after this time, if that is sooner
--   maintain                  maintenance is due, and this process is to do it
--   worker      id, status, seconds = grace of an interruption, registration; in the order of ids
--   queue       id, seconds until its next message is due (0: now); none when nothing is known to come
-- The queues are those given, where somebody sleeps or may lie down meanwhile; any other consumer looks by itself.
create or replace function tocsin.heartbeat(process_id bigint, queue_ids integer[])
returns table (kind text, id bigint, status text, seconds float8, registration bigint)
language plpgsql
as $$
#variable_conflict use_column
declare
    look_again float8;
begin
    update tocsin.processes p set heartbeat_at = tocsin.clock() where p.id = process_id and tocsin.acts_for(p.role);
    if not found then
        return query select 'dead', process_id, null::text, null::float8, null::bigint;
        return;
    end if;
    look_again := tocsin.bury_dead(process_id);
    if look_again is not null then
        return query select 'look_again', null::bigint, null::text, look_again, null::bigint;
    end if;
    if tocsin.take_maintenance(process_id) then
        return query select 'maintain', null::bigint, null::text, null::float8, null::bigint;
    end if;
    return query
        select 'worker', w.id, w.status, extract(epoch from w.grace)::float8, w.registration
        from tocsin.workers w where w.process_id = heartbeat.process_id order by w.id;
    return query
        select 'queue', d.queue_id::bigint, null::text, d.seconds, null::bigint
        from (select s.queue_id, tocsin.next_due(s.queue_id) as seconds from unnest(queue_ids) s (queue_id)
              where tocsin.may_consume()) d
        where d.seconds is not null;
end
$$;
