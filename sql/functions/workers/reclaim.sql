-- What heartbeats and claims do by themselves, for an operator who does not want to
-- wait for them, or has no consumer running.

-- Declares dead who is dead (see processes.sql), and gives back what they held and what
-- leases that have lapsed hold; without deliveries left it becomes a dead letter.
-- Returns how many workers were declared dead, and how many messages were taken back.
-- It takes about 50 ms at most; `more`: there are messages left, so call it again.
create or replace function tocsin.reclaim(out workers bigint, out messages bigint, out more boolean)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off set enable_bitmapscan = off set jit = off
as $$
declare
    t timestamptz := tocsin._clock();
    stop_at timestamptz := t + interval '50 ms';
    alive bigint[];
    held jsonb;
    q integer;
    lapsed bigint;
    remaining bigint;
begin
    -- First the dead, since burying locks workers, and then their messages; what has
    -- lapsed is passed over where it is locked.
    select coalesce(array_agg(w.id), '{}'), coalesce(jsonb_object_agg(w.id, tocsin._count_held(w)), '{}') into alive, held
    from tocsin.workers w where w.process_id is not null;
    perform tocsin._reap_dead_processes(0);
    select count(*), coalesce(sum((held ->> w.id::text)::bigint - tocsin._count_held(w)), 0) into workers, messages
    from tocsin.workers w where w.id = any (alive) and w.status_before_death is not null;

    more := false;
    for q in select x.id from tocsin.queues x order by x.id loop
        select count(*) into lapsed from tocsin.messages m where m.queue_id = q and m.state = 'leased' and m.vt <= t;
        while lapsed > 0 loop
            perform tocsin._make_due_ready(q);
            select count(*) into remaining from tocsin.messages m where m.queue_id = q and m.state = 'leased' and m.vt <= t;
            exit when remaining >= lapsed;  -- others have locked them: a claim that does the same, or their consumer settling late
            messages := messages + lapsed - remaining;
            lapsed := remaining;
            more := lapsed > 0 and tocsin._clock() >= stop_at;
            exit when more;
        end loop;
        exit when more;
    end loop;
end
$$;
