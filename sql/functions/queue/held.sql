-- Held messages: they wait for other messages, such as a job for the jobs whose results it
-- takes.
--
-- A held message is in no index that a claim reads, so a claim costs the same with any
-- number of them. It has a due time from the beginning. When it waits for nothing any
-- more, it becomes ready, or delayed until that time. Its place among equal priorities
-- is its due time, and not the time at which it is admitted.

-- Admits those of the held messages that wait for nothing: makes them ready or delayed,
-- and rings their queues. Returns their ids. The rows are locked in the order of ids, and
-- read again when another transaction has changed them.
create or replace function tocsin._admit(ids bigint[]) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    admitted bigint[];
    queues integer[];
begin
    with free as (
        select m.id from tocsin.messages m
        where m.id = any (ids) and m.state is not distinct from 'held'
            and coalesce(m.waits_for, 0) = 0
        order by m.id for update
    ), changed as (
        update tocsin.messages m
        set state = (case when m.due > t then 'delayed' when m.options ? 'limits' then 'held'
                     else 'ready' end)::tocsin.message_state,
            waits_for = null
        from free f
        where m.id = any (ids) and m.id = f.id
        returning m.id, m.queue_id
    )
    select array_agg(c.id order by c.id), array_agg(distinct c.queue_id order by c.queue_id)
    into admitted, queues
    from changed c;
    perform tocsin._line_up(m) from tocsin.messages m
    where m.id = any (admitted) and m.state is not distinct from 'held';
    perform tocsin._ring(q) from unnest(queues) q;
    return coalesce(admitted, '{}');
end
$$;
