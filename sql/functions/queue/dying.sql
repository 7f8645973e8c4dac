-- The end of messages that are not delivered any more.

-- Moves messages to the dead letters. A message that cannot become a dead letter
-- (because of a constraint, a trigger, or an index for which its payload is too large)
-- does not stop the other messages. It is delayed for a minute, and then delivered once
-- more if it has not expired. A message that waits for another one stays held.
create or replace function tocsin._move_to_dead_letters(
    ids bigint[], reason text, errors text[] default null, tracebacks text[] default null,
    deliveries jsonb[] default null
) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    again_at timestamptz := tocsin._clock() + interval '1 minute';
    parents jsonb;
begin
    with given as (
        select g.id, g.error, g.traceback, g.delivery
        from unnest(ids, errors, tracebacks, deliveries) as g (id, error, traceback, delivery)
    ), died as (
        delete from tocsin.messages m using given g where m.id = any (ids) and m.id = g.id
        returning m.*, coalesce(g.error, m.last_error) as error, g.traceback, g.delivery
    )
    insert into tocsin.dead_letters (id, queue_id, priority, read_ct, enqueued_at, dequeued_at,
                                     died_at, lease, producer_worker_id,
                                     consumer_worker_id, max_deliveries, key, payload, headers,
                                     reason, error, traceback, history, task, options,
                                     flow_id)
    select d.id, d.queue_id, d.priority, d.read_ct, d.enqueued_at, d.dequeued_at, tocsin._clock(),
        d.lease, d.producer_worker_id,
           d.consumer_worker_id, d.max_deliveries, d.key, d.payload, d.headers,
           _move_to_dead_letters.reason, d.error, d.traceback,
           tocsin._add_delivery(d.history, d.delivery), d.task, d.options, d.flow_id
    from died d;
    perform tocsin._announce(d.queue_id, array_agg(d.id))
    from tocsin.dead_letters d
    where d.id = any (ids) and d.task is not null group by d.queue_id;
    select jsonb_object_agg(d.id, null) into parents
    from tocsin.dead_letters d
    where d.id = any (ids) and d.flow_id is not null;
    if parents is not null then
        perform tocsin._end_parents(parents, succeeded => false);
    end if;
exception when integrity_constraint_violation or data_exception or program_limit_exceeded
    or raise_exception then
    if cardinality(ids) > 1 then
        for n in 1 .. cardinality(ids) loop
            perform tocsin._move_to_dead_letters(ids[n:n], reason, errors[n:n], tracebacks[n:n],
                                                 deliveries[n:n]);
        end loop;
    else
        update tocsin.messages m
        set state = case when m.state = 'held' then m.state else 'delayed' end,
            due = again_at, vt = again_at,
            expires_at = case when m.expires_at < again_at then again_at else m.expires_at end,
            last_error = format('%s, but cannot become a dead letter: %s', reason, sqlerrm),
            history = tocsin._add_delivery(m.history, deliveries[1])
        where m.id = any (ids);
    end if;
end
$$;
