-- Consumers that keep a queue's order. A message that has failed keeps its place (see
-- _requeue), and an ordered claim takes nothing for as long as such a message waits for
-- its next delivery, or any message of the queue is leased. So there is one at a time,
-- also with several consumers, of which one works while the rest stand by.

-- For how many seconds an ordered claim has to wait at most, or null when it may claim
-- the queue's first message; that is locked then.
--
-- A message that has failed in order is due earlier than it can be claimed, which no
-- other delayed one is. No index has that, so the queue's delayed messages are
-- searched.
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
            -- another transaction has locked it: see claim
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
