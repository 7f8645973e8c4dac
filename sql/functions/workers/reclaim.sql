-- Reclaim messages on demand, as heartbeats and claims do by themselves: for a database
-- without consumers, or before the next heartbeat.

-- Declares dead processes dead (see processes.sql), and requeues the messages that they
-- held and those whose lease has expired. A message without deliveries left becomes a
-- dead letter. Returns how many workers were declared dead, and how many messages were
-- reclaimed. After 50 ms the function finishes the current process or batch of leases,
-- and begins no other. `more` says that there may be more to do, so call the function
-- again.
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
    over boolean := false;
begin
    -- Dead processes come first, because ending them locks workers before messages.
    -- Locked messages with expired leases are skipped.
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
        while exists (select from tocsin.messages m
                      where m.queue_id = q and m.state = 'leased' and m.vt <= t) loop
            more := over;
            exit when more;
            expired := tocsin._make_due_ready(q);
            -- A claim that does the same, or a late settlement, has locked the rest.
            exit when expired = 0;
            messages := messages + coalesce(expired, 0);
            over := tocsin._clock() >= stop_at;
        end loop;
        exit when more;
    end loop;
end
$$;
