-- Grant slots: the part of a full scan that makes held messages ready (limits.sql has the
-- protocol). One transaction grants at a time. It waits for no lock: a scan that finds the
-- lock taken grants nothing and soon comes again, and rows that another transaction has
-- locked are skipped, until a later scan.
--
-- When a line has a free slot, the scan looks at the message at its front. If each later
-- key that the message needs has a free slot, too, the scan grants all of them. If not,
-- the message moves to the line of the first key that has none. The free slot stays
-- reserved for it while it waits there: the scan looks at no further message for that
-- slot. When a message finds an earlier key taken, it moves back to that line, and the
-- scan looks at the lines behind once more. So a scan moves few messages, whatever the
-- length of the lines.

-- Grants what the queue's held messages wait for. Returns the seconds until the next scan
-- must come again; null: it need not.
create or replace function tocsin._grant_slots(queue_id integer) returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    batch constant integer := 50;
    stop_at timestamptz := tocsin._clock() + interval '20 ms';
    locked boolean := false;  -- whether it has looked at the rows that are locked
    pause float8;
    again float8;
    keys tocsin.limit_checks[];
    kept tocsin.limit_checks[] := '{}';  -- for the next scan
    c tocsin.limit_checks;
begin
    if not exists (select from tocsin.limit_checks x where x.queue_id = _grant_slots.queue_id) then
        return null;
    elsif current_setting('transaction_isolation') <> 'read committed' then
        return 0.25;  -- its snapshot may be older than the rows that it would delete
    elsif not pg_try_advisory_xact_lock(tocsin._lock_key('grant', 0)) then
        return 0.01;
    end if;
    loop
        with gone as (
            delete from tocsin.limit_checks x where x.ctid = any (array(
                select y.ctid from tocsin.limit_checks y
                where y.queue_id = _grant_slots.queue_id limit batch for update skip locked))
            returning x.queue_id, x.limit_id, x.key
        )
        select array_agg(distinct row(g.queue_id, g.limit_id, g.key)::tocsin.limit_checks)
        into keys from gone g;
        if keys is null then
            exit when locked;
            locked := true;
            select array_agg(distinct z.x) into keys
            from (select x from tocsin.limit_checks x
                  where x.queue_id = _grant_slots.queue_id order by random() limit batch) z;
            if cardinality(keys) = batch then
                again := 0.01;  -- for the rest; each has its turn by chance
            end if;
        end if;
        foreach c in array coalesce(keys, '{}') loop
            pause := tocsin._grant_line(queue_id, c.limit_id, c.key);
            again := least(again, nullif(pause, 0));
            if pause = 0 then
                insert into tocsin.limit_checks select c.*;  -- for the next round
            elsif pause > 0 then
                kept := kept || c;
            end if;
        end loop;
        if tocsin._clock() >= stop_at then
            again := least(again, 0.01);
            exit;
        end if;
    end loop;
    insert into tocsin.limit_checks select distinct k.* from unnest(kept) k;
    return again;
end
$$;

-- Grants the free slots of a key to messages of the queue. Returns null when an event is
-- to come first, 0 when the line may have more to grant, and else the seconds until the
-- next look.
create or replace function tocsin._grant_line(queue_id integer, limit_id bigint, key text)
    returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off set jit = off
as $$
#variable_conflict use_column
declare
    l tocsin.limits;
    here integer := queue_id;  -- the line of the queue, or of all queues
    free integer := 100;  -- of a rate: how many messages to look at
    size integer;
    wanted bigint[] := '{}';
    candidate bigint;
    place tocsin.slots;
    granted integer := 0;
    known boolean;  -- whether all open transactions know the queue; before the look
    locked boolean := false;  -- whether it has skipped a message that it could grant
begin
    select x.* into l from tocsin.limits x where x.id = limit_id;
    if not found then
        select s.* into place
        from tocsin.slots s join tocsin.messages m on m.id = s.message_id
        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key and s.waits limit 1;
        if not found then
            return null;
        end if;
        l := tocsin._limit_of(place);
    end if;
    known := tocsin._is_known(limit_id, queue_id);
    if l.per is null then
        free := tocsin._free_slots(l, key);
    end if;
    size := least(free, 100);
    if free > 0 and l.ordered then
        here := 0;
        select s.message_id into candidate from tocsin.slots s
        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key and s.line = 0
            and s.waits
        order by s.priority, s.due, s.message_id limit 1;
        size := 1;
        wanted := array(select m.id from tocsin.messages m
                        where m.id = candidate and m.queue_id = _grant_line.queue_id
                        for update skip locked);
        locked := cardinality(wanted) = 0
            and exists (select from tocsin.slots s
                        where s.message_id = candidate and s.limit_id = _grant_line.limit_id
                            and s.queue_id = _grant_line.queue_id);
    elsif free > 0 then
        wanted := array(select m.id
                        from tocsin.slots s join tocsin.messages m on m.id = s.message_id
                        where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key
                            and s.line = _grant_line.queue_id and s.waits
                        order by s.priority, s.due, s.message_id limit size
                        for update of m skip locked);
    end if;
    foreach candidate in array wanted loop
        select s.* into place from tocsin.slots s
        where s.message_id = candidate and s.limit_id = _grant_line.limit_id and s.waits;
        continue when not found;
        if l.per is not null then
            continue when not tocsin._spend(l, place);
        elsif l.ordered then
            update tocsin.slots s set slot = 1, waits = false
            where s.message_id = candidate and s.limit_id = _grant_line.limit_id;
        end if;
        case tocsin._advance(place)
            when 'ready' then granted := granted + 1; free := free - 1;
            when 'later' then free := free - 1;
            else null;
        end case;
    end loop;
    if granted > 1 then
        perform tocsin._ring(queue_id);  -- the claim may take one of them
    end if;
    if not exists (select from tocsin.slots s
                   where s.limit_id = _grant_line.limit_id and s.key = _grant_line.key
                       and s.line = here and s.waits
                       and s.queue_id = _grant_line.queue_id) then
        return null;
    end if;
    return case
        when free > 0 and cardinality(wanted) = size then 0
        when locked or free > 0 and not l.ordered  -- another transaction has locked the rest
            -- or a transaction may not know that this queue has messages in the line
            or not known then 0.25
    end;
end
$$;

-- Returns the limit that a message's row of `slots` is for. A scan creates it as the
-- message describes it if no worker has registered it.
create or replace function tocsin._limit_of(place tocsin.slots) returns tocsin.limits
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    l tocsin.limits;
begin
    select x.* into l from tocsin.limits x where x.id = place.limit_id;
    if not found then
        insert into tocsin.limits
        select d.* from tocsin.messages m
        cross join lateral jsonb_array_elements(m.options -> 'limits') x (spec)
        cross join lateral tocsin._describe_limit(x.spec, m.queue_id) d
        where m.id = place.message_id and d.id = place.limit_id
        returning * into l;
    end if;
    return l;
end
$$;

-- Returns whether all open transactions see that the queue has messages in the lines of
-- the limit (limits.sql). If not, the scan does what is next to make them see it.
create or replace function tocsin._is_known(limit_id bigint, queue_id integer) returns boolean
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    x tocsin.limit_queues;
begin
    select y.* into x from tocsin.limit_queues y
    where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
    if x.since is not null then
        return x.since <= pg_snapshot_xmin(pg_current_snapshot());
    elsif x.added is null then
        insert into tocsin.limit_queues (limit_id, queue_id, added)
        values (limit_id, queue_id, pg_current_xact_id());
    elsif x.added <> pg_current_xact_id() then  -- else no other transaction sees the row
        -- An older transaction may have a later id than this one. So take a new id, for a
        -- subtransaction. Its end moves the end of the next snapshot past it.
        begin
            update tocsin.limit_queues y set since = null
            where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
            raise triggered_action_exception;
        exception when triggered_action_exception then null;
        end;
        update tocsin.limit_queues y set since = pg_snapshot_xmax(pg_current_snapshot())
        where y.limit_id = _is_known.limit_id and y.queue_id = _is_known.queue_id;
    end if;
    return false;
end
$$;

-- Returns how many slots of the key are free.
create or replace function tocsin._free_slots(l tocsin.limits, key text) returns integer
language sql stable
as $$
    select coalesce(l.set_n, l.n) - count(*)::integer from tocsin.slots s
    where s.limit_id = l.id and s.key = _free_slots.key and s.slot is not null
$$;

-- Returns the lowest number that no slot of the key has. It is one statement: with two,
-- a slot that becomes free between them would make it a number beyond the limit.
create or replace function tocsin._lowest_free(limit_id bigint, key text) returns integer
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off set jit = off
as $$
#variable_conflict use_column
begin
    return (
        select f.slot from (
            select 1 as slot
            where not exists (select from tocsin.slots x
                              where x.limit_id = _lowest_free.limit_id
                                  and x.key = _lowest_free.key and x.slot = 1)
            union all
            (select x.slot + 1 from tocsin.slots x
             where x.limit_id = _lowest_free.limit_id and x.key = _lowest_free.key
                 and x.slot is not null
                 and not exists (select from tocsin.slots y
                                 where y.limit_id = x.limit_id and y.key = x.key
                                     and y.slot = x.slot + 1)
             order by x.slot limit 1)
        ) f limit 1
    );
end
$$;

-- Takes the next stage of what a locked message needs. Returns 'ready' when it has all,
-- 'later' when it waits behind the line of `from_line`, and 'earlier' when it has moved
-- back before it.
create or replace function tocsin._advance(from_line tocsin.slots) returns text
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    l tocsin.limits;
    s tocsin.slots;
    slot_limits bigint[] := '{}';
    slot_numbers integer[] := '{}';
begin
    for s in select x.* from tocsin.slots x
        where x.message_id = from_line.message_id and x.slot is null and not x.paid
        order by x.stage, x.limit_id
    loop
        l := tocsin._limit_of(s);
        if s.stage >= 2 and tocsin._free_slots(l, s.key) > 0 then
            slot_limits := slot_limits || s.limit_id;
            slot_numbers := slot_numbers || tocsin._lowest_free(s.limit_id, s.key);
            continue;
        end if;
        update tocsin.slots x set waits = x.limit_id = s.limit_id
        where x.message_id = s.message_id and x.waits is distinct from (x.limit_id = s.limit_id);
        -- the line may not be known yet (_is_known), or its slot may be free by now
        insert into tocsin.limit_checks (queue_id, limit_id, key)
        values (s.queue_id, s.limit_id, s.key);
        if (s.stage, s.limit_id) >= (from_line.stage, from_line.limit_id) then
            return 'later';
        end if;
        -- the lines behind may have reserved a slot for this message
        perform tocsin._note_free(x.limit_id, x.key) from tocsin.slots x
        where x.message_id = s.message_id and x.stage >= 2 and x.limit_id <> s.limit_id;
        return 'earlier';
    end loop;
    update tocsin.slots x set slot = n.slot, waits = false
    from unnest(slot_limits, slot_numbers) n (limit_id, slot)
    where x.message_id = from_line.message_id and x.limit_id = n.limit_id;
    update tocsin.messages m set state = 'ready' where m.id = from_line.message_id;
    return 'ready';
end
$$;

-- Gives a locked message its due time from the rate that it waits for. Returns whether
-- that is now; else the message is delayed.
create or replace function tocsin._spend(l tocsin.limits, s tocsin.slots) returns boolean
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    step float8 := extract(epoch from l.per) / coalesce(l.set_n, l.n);
    due_at timestamptz;
    next_at timestamptz;
begin
    select x.next_at into next_at from tocsin.rates x where x.limit_id = l.id and x.key = s.key;
    due_at := greatest(t, next_at - make_interval(secs => step * (l.burst - 1)));
    -- a time in the past is as none: each message with a new key lets two of them go
    delete from tocsin.rates x where x.ctid = any (array(
        select y.ctid from tocsin.rates y
        where y.limit_id = l.id and y.next_at <= t order by y.next_at limit 2));
    insert into tocsin.rates as x (limit_id, key, next_at)
    values (l.id, s.key, greatest(next_at, due_at) + make_interval(secs => step))
    on conflict (limit_id, key) do update set next_at = excluded.next_at;
    update tocsin.slots x set paid = true, waits = false
    where x.message_id = s.message_id and x.limit_id = l.id;
    if due_at <= t then
        return true;
    end if;
    update tocsin.messages m set state = 'delayed', due = due_at, vt = due_at
    where m.id = s.message_id;
    return false;
end
$$;
