-- Count and release the messages that a worker holds.

-- Returns how many messages the worker holds.
create or replace function tocsin._count_held(w tocsin.workers) returns bigint
language sql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
    select count(*) from tocsin.messages m
    where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
$$;

-- Requeues the messages that the worker holds, except the leases to keep. Returns how
-- many messages were requeued. A message that another transaction keeps locked for
-- longer than the lock timeout is skipped: that transaction settles the message or,
-- rolled back, leaves it leased until its lease ends. So the lock may belong to a
-- transaction of the caller that waits for this call.
--
-- The function locks the rows in the order of ids, as settle.sql requires. Without
-- `m.id + 0`, a session that planned for an empty table would scan the whole primary
-- key to get that order.
create or replace function tocsin._release_held(
    w tocsin.workers, counted boolean, outcome text, keep_ids bigint[] default '{}',
    keep_leases bigint[] default '{}'
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off set lock_timeout = '1s'
as $$
declare
    ids bigint[];
    leases bigint[];
begin
    begin
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from tocsin.messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease
                                            from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update) h;
    exception when lock_not_available then
        select array_agg(h.id), array_agg(h.lease) into ids, leases
        from (select m.id, m.lease from tocsin.messages m
              where m.queue_id = w.queue_id and m.state = 'leased' and m.consumer_worker_id = w.id
                and (m.id, m.lease) not in (select k.id, k.lease
                                            from unnest(keep_ids, keep_leases) k (id, lease))
              order by m.id + 0 for update skip locked) h;
    end;
    if ids is null then
        return 0;
    end if;
    return (select count(*)
            from unnest(tocsin._requeue(ids, leases, '0 s', counted, outcome)) g (outcome)
                where g.outcome is not null);
end
$$;

-- Requeues the messages that a worker in any state holds, without counting the
-- deliveries. Its process then cancels its handlers. An active worker may claim the
-- same messages again. Returns how many messages were requeued.
create or replace function tocsin.release_messages(worker_id bigint) returns bigint
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._lock_own_worker(worker_id);
begin
    perform tocsin._tell_process(w, leases_taken => true);  -- sent at the commit
    return tocsin._release_held(w, false, '');
end
$$;

-- Requeues the messages that the worker holds, except the leases to keep, without
-- counting the deliveries; for a process that has lost the answer to a claim. Like a
-- suspension, the function waits for a claim in progress. If that claim was rolled
-- back, the worker holds nothing, but other consumers may have skipped the rows that it
-- had locked, and be idle now. So the function rings in any case. Returns how many
-- messages were requeued.
create or replace function tocsin.release_others(worker_id bigint, registration bigint,
                                                 keep_ids bigint[], keep_leases bigint[])
returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    select x.* into w from tocsin.workers x
    where x.id = worker_id and x.registration = release_others.registration
        and tocsin._acts_for(x.role);
    if not found then
        return 0;
    end if;
    perform tocsin._ring(w.queue_id);
    return tocsin._release_held(w, false, '', keep_ids, keep_leases);
end
$$;
