-- Show messages in any state: ready, delayed, held, leased, dead or archived. The state
-- is the one that a claim would find now, as in metrics.sql. So a message is ready if it
-- is `delayed` in the table and due, or if its lease has expired.
--
-- Pages are in the order of ids, and each page continues after the last id of the page
-- before. So a page costs the same whatever its number. Messages that are added or
-- removed between two pages do not move other messages to another page. No index has
-- the ids of one queue's unfinished messages in order, because every enqueue and every
-- claim would pay for it. So the planner chooses between two plans. For a queue with
-- many messages, it scans the ids of all queues and skips the ids of other queues. For
-- a queue with few messages, it sorts the ids of the queue's messages in this state.
-- The choice depends on the queue, so the plan is made for each call. The messages
-- themselves are read after the page is known, so that a sort does not carry them.
--
-- The planner assumes that the state and the time are independent, and does not know
-- how many messages of a state are due. It would scan all ids to find few due messages,
-- or none. So due messages are always read by the index messages_timed (`offset 0`).
-- They are few where a consumer claims, because a claim makes them ready. For messages
-- that are not due, which are most messages, the condition has a form that the planner
-- cannot estimate (`vt - t`).

-- Returns a page of a queue's messages in one state (null: the unfinished ones), from
-- the first one after the id `after`. With `worker_id`, returns the messages that this
-- consumer holds. They include messages whose lease has expired, until a claim makes
-- them ready.
create or replace function tocsin.list_messages(
    queue text, state text default null, worker_id bigint default null,
    max_messages integer default 100, after bigint default null
) returns setof tocsin.message_info
language plpgsql stable
set plan_cache_mode = force_custom_plan set enable_seqscan = off set jit = off
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
    t timestamptz := tocsin._clock();
    beyond bigint := coalesce(after, -9223372036854775808);
    page bigint[];
    states text[] := case when state is not null then array[state]
                          when worker_id is not null then '{leased}'
                          else '{ready,delayed,held,leased}' end;
begin
    if not states <@ '{ready,delayed,held,leased,dead,archived}' then
        perform tocsin._raise_error('TC022',
                                    'state must be one of ready, delayed, held, leased, dead, '
                                    'archived',
                                    '{"argument": "state"}');
    elsif worker_id is not null and states <> '{leased}' then
        perform tocsin._raise_error('TC022',
                                    'worker_id chooses leased messages, so state must be leased or null',
                                    '{"argument": "worker_id"}');
    end if;
    page := array(
        select p.id
        from (
            (select m.id from tocsin.messages m
             where 'ready' = any (states) and m.queue_id = q.id and m.state = 'ready'
                 and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select d.id from (select m.id from tocsin.messages m
                               where 'ready' = any (states) and m.queue_id = q.id
                                   and m.state = 'delayed' and m.vt <= t offset 0) d
             where d.id > beyond
             order by d.id limit max_messages)
            union all
            (select d.id from (select m.id from tocsin.messages m
                               where 'ready' = any (states) and m.queue_id = q.id
                                   and m.state = 'leased' and m.vt <= t offset 0) d
             where d.id > beyond
             order by d.id limit max_messages)
            union all
            (select m.id from tocsin.messages m
             where 'delayed' = any (states) and m.queue_id = q.id and m.state = 'delayed'
                 and m.vt - t > '0 s' and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select m.id from tocsin.messages m
             where 'held' = any (states) and m.queue_id = q.id and m.state = 'held'
                 and m.id > beyond
             order by m.id limit max_messages)
            union all
            (select m.id from tocsin.messages m
             where 'leased' = any (states) and m.queue_id = q.id and m.state = 'leased'
                 and m.id > beyond
               and case when worker_id is null then m.vt - t > '0 s'
                   else m.consumer_worker_id = worker_id end
             order by m.id limit max_messages)
            union all
            (select d.id from tocsin.dead_letters d
             where 'dead' = any (states) and d.queue_id = q.id and d.id > beyond
             order by d.id limit max_messages)
            union all
            (select a.id from tocsin.archive a
             where 'archived' = any (states) and a.queue_id = q.id and a.id > beyond
             order by a.id limit max_messages)
        ) p
        order by p.id limit max_messages);
    return query select * from tocsin._describe_messages(page, array[q.id], t);
end
$$;

create or replace function tocsin.get_message(message_id bigint) returns setof tocsin.message_info
language sql stable
as $$ select *
    from tocsin._describe_messages(array[message_id], array(select x.id from tocsin.queues x),
                                   tocsin._clock()) $$;

-- Returns messages of these ids and queues, in the order of ids, with their state at
-- this time. Ids without a message are left out.
create or replace function tocsin._describe_messages(ids bigint[], queues integer[], t timestamptz)
    returns setof tocsin.message_info
language plpgsql stable
set plan_cache_mode = force_custom_plan set enable_seqscan = off set jit = off
as $$
begin
    return query
        select x.id, q.name, x.queue_id, x.payload::text, x.headers::text, x.priority, x.key,
            x.enqueued_at, x.dequeued_at, x.read_ct,
               x.max_deliveries, x.producer_worker_id, x.consumer_worker_id, x.history::text,
               x.state, x.due, x.vt, x.expires_at,
               x.archived_at, x.died_at, x.reason, x.last_error
        from (
            select m.id, m.queue_id, m.payload, m.headers, m.priority, m.key, m.enqueued_at,
                m.dequeued_at, m.read_ct, m.max_deliveries,
                   m.producer_worker_id, m.consumer_worker_id, m.history,
                   case when m.state = 'held' then 'held'
                       when m.state = 'ready' or m.vt <= t then 'ready' when m.state = 'delayed'
                       then 'delayed' else 'leased' end as state,
                   m.due, m.vt, m.expires_at,
                   null::timestamptz as archived_at, null::timestamptz as died_at,
                   null::text as reason, m.last_error
            from tocsin.messages m
            where m.id = any (ids)
            union all
            select d.id, d.queue_id, d.payload, d.headers, d.priority, d.key, d.enqueued_at,
                d.dequeued_at, d.read_ct, d.max_deliveries,
                   d.producer_worker_id, d.consumer_worker_id, d.history, 'dead', null, null, null,
                   null, d.died_at, d.reason, d.error
            from tocsin.dead_letters d
            where d.id = any (ids)
            union all
            select a.id, a.queue_id, a.payload, a.headers, a.priority, a.key, a.enqueued_at,
                a.dequeued_at, a.read_ct, null,
                   a.producer_worker_id, a.consumer_worker_id, a.history, 'archived', null, null,
                   null, a.archived_at, null, null,
                   a.last_error
            from tocsin.archive a
            where a.queue_id = any (queues) and a.id = any (ids)
        ) x
        join tocsin.queues q on q.id = x.queue_id
        order by x.id;
end
$$;
