-- Ordered claims, which keep a queue's order. A message that has failed keeps its place
-- (see _requeue). An ordered claim claims nothing while such a message waits for its
-- next delivery, or while any message of the queue is leased. So one message is
-- delivered at a time, also with several consumers, of which one works while the rest
-- stand by. A held message has no place in the queue yet, so it holds up no message:
-- messages behind its due time may be delivered before it.

-- Returns for how many seconds an ordered claim has to wait at most, or null when it
-- may claim the queue's first message. That message is then locked.
--
-- A message that has failed in an ordered run has a `due` that is earlier than its
-- `vt`; no other delayed message has. No index covers this comparison, so the function
-- searches the queue's delayed messages.
create or replace function tocsin._order_kept_for(queue_id integer) returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz;
    until timestamptz;
    head bigint;
    seconds float8;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('order', queue_id));
    t := tocsin._clock();
    select m.vt into until from tocsin.messages m
    where m.queue_id = _order_kept_for.queue_id and m.state = 'leased' order by m.vt limit 1;
    if until is null then
        select least(m.vt, m.expires_at) into until from tocsin.messages m
        where m.queue_id = _order_kept_for.queue_id and m.state = 'delayed' and m.due < m.vt
            order by m.vt limit 1;
    end if;
    if until is not null then
        seconds := extract(epoch from until - t);
        if seconds < 0.01 then
            -- another transaction has locked the message: see claim.sql
            seconds := greatest(0.01, least(-seconds / 4, 0.25));
        end if;
        return seconds;
    end if;
    select m.id into head from tocsin.messages m
    where m.queue_id = _order_kept_for.queue_id and m.state = 'ready'
        order by m.priority, m.due, m.id limit 1;
    perform from tocsin.messages m where m.id = head for update skip locked;
    return case when head is not null and not found then 0.25 end;
end
$$;
