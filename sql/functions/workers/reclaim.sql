-- What heartbeats and claims do by themselves, on demand: for a database
-- without consumers, or before the next heartbeat.

-- Declares dead processes dead (see processes.sql), and requeues what they held and
-- what expired leases hold; a message without deliveries left becomes a dead letter.
-- Returns how many workers were declared dead, and how many messages were taken back.
-- After 50 ms it begins nothing more, and ends with the process or the batch of leases
-- that it is at. `more`: there may be more to do, so call it again.
create or replace function tocsin.reclaim(out workers bigint, out messages bigint, out more boolean)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off
set enable_bitmapscan = off set jit = off
as $$
declare
    t timestamptz := tocsin._clock();
    stop_at timestamptz := t + interval '50 ms';
    alive bigint[];
    held jsonb;
    q integer;
    expired bigint;
    remaining bigint;
begin
    -- The dead first: their end locks workers before messages. Expired leases are
    -- skipped where they are locked.
    select coalesce(array_agg(w.id), '{}'),
        coalesce(jsonb_object_agg(w.id, tocsin._count_held(w)), '{}') into alive, held
    from tocsin.workers w where w.process_id is not null;
    more := coalesce(tocsin._reap_dead_processes(0, stop_at => stop_at) = 0, false);
    select count(*),
        coalesce(sum((held ->> w.id::text)::bigint - tocsin._count_held(w)), 0) into workers,
        messages
    from tocsin.workers w where w.id = any (alive) and w.status_before_death is not null;

    if more then
        return;
    end if;
    for q in select x.id from tocsin.queues x order by x.id loop
        select count(*) into expired from tocsin.messages m
            where m.queue_id = q and m.state = 'leased' and m.vt <= t;
        while expired > 0 loop
            perform tocsin._make_due_ready(q);
            select count(*) into remaining from tocsin.messages m
                where m.queue_id = q and m.state = 'leased' and m.vt <= t;
            -- locked: by a claim that does the same, or by a late settlement
            exit when remaining >= expired;
            messages := messages + expired - remaining;
            expired := remaining;
            more := expired > 0 and tocsin._clock() >= stop_at;
            exit when more;
        end loop;
        exit when more;
    end loop;
end
$$;
