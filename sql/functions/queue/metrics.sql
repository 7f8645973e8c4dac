-- Metrics: how many messages the queues have, and how fast they move. The cost is
-- limited: at most 100,000 entries of an index, up to ten milliseconds, for each kind
-- of messages of a queue (`python -m bench --only metrics`).
--
-- - Counts of messages and dead letters are exact up to 100,000 index entries, and
--   beyond that the planner's estimate; `exact` says which. The functions that count
--   are stable, so all counts are of one snapshot, and a message that changes its state
--   counts once.
-- - Archived messages are counted when they are archived (archive.sql).
-- - The age of the oldest ready message is read from an index, one entry for each
--   priority.
-- - The enqueue rate is computed from a sample of the newest messages (_enqueue_rate).
--   A counter would cost each producer time, and producers would wait for each other to
--   change its row.

-- Returns how many rows the planner expects. The function is volatile, because
-- PostgreSQL allows EXPLAIN in no other kind of function.
create or replace function tocsin._estimate(query text) returns bigint
language plpgsql
as $$
declare
    plan json;
begin
    execute 'explain (format json) ' || query into plan;
    return plan -> 0 -> 'Plan' ->> 'Plan Rows';
end
$$;

-- Counts the messages of each queue in this range of ids, in the states that a claim
-- would find at this time: a delayed message that is due, and a message whose lease has
-- expired, are ready. An estimate is of all delayed or all leased messages of a queue,
-- because the planner does not know how many of them are due. One statement counts all
-- queues, because most of them may be empty: an empty queue costs seven index lookups.
create or replace function tocsin._count_queues(first_id integer, last_id integer, t timestamptz,
                                                cap integer default 100000)
returns table (queue_id integer, ready bigint, delayed bigint, held bigint, leased bigint,
               dead bigint, exact boolean)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
        select s.id, s.ready + s.due + s.lapsed, greatest(s.delayed - s.due, 0),
            s.held, greatest(s.leased - s.lapsed, 0), s.dead,
               c.ready <= cap and c.due <= cap and c.lapsed <= cap and c.delayed <= cap
                   and c.held <= cap and c.leased <= cap and c.dead <= cap
        from tocsin.queues q
        cross join lateral (
            select (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'ready' limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'delayed' and m.vt <= t
                                          limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'leased' and m.vt <= t
                                          limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'delayed' limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'held' limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.messages m
                          where m.queue_id = q.id and m.state = 'leased' limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.dead_letters d where d.queue_id = q.id
                          limit cap + 1) x)
            offset 0
        ) c (ready, due, lapsed, delayed, held, leased, dead)
        cross join lateral (
            select q.id, tocsin._beyond(c.ready, cap, 'tocsin.messages', q.id, 'ready'), c.due,
                c.lapsed,
                   tocsin._beyond(c.delayed, cap, 'tocsin.messages', q.id, 'delayed'),
                   tocsin._beyond(c.held, cap, 'tocsin.messages', q.id, 'held'),
                   tocsin._beyond(c.leased, cap, 'tocsin.messages', q.id, 'leased'),
                   tocsin._beyond(c.dead, cap, 'tocsin.dead_letters', q.id)
        ) s (id, ready, due, lapsed, delayed, held, leased, dead)
        where q.id between first_id and last_id;
end
$$;

-- Returns the count, or the planner's estimate of all rows if the count has reached the
-- cap.
create or replace function tocsin._beyond(counted bigint, cap integer, relation text,
                                          queue_id integer, state text default null) returns bigint
language sql
as $$
    select case when counted <= cap then counted
                else greatest(counted,
                              tocsin._estimate(format('select from %s x where x.queue_id = %s',
                                                      relation, queue_id)
                                                       || case when state is not null
                                                           then format(' and x.state = %L', state)
                                                               else '' end)) end
$$;

-- Returns since when the queue's oldest ready message is ready; null: no message is
-- ready. Without a consumer, a message that has become due is still `delayed`, and a
-- message whose lease has expired is still `leased`. Of more than 1,000 priorities,
-- only the 1,000 most urgent ones count.
create or replace function tocsin._oldest_ready(queue_id integer, t timestamptz) returns timestamptz
language sql stable
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
    with recursive front as (
        (select m.priority, m.due from tocsin.messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'ready'
         order by m.priority, m.due, m.id limit 1)
        union all
        select n.priority, n.due
        from front f
        cross join lateral (select m.priority, m.due from tocsin.messages m
                            where m.queue_id = _oldest_ready.queue_id and m.state = 'ready'
                                and m.priority > f.priority
                            order by m.priority, m.due, m.id limit 1) n
    )
    select least(
        (select min(f.due) from (select x.due from front x limit 1000) f),
        (select m.vt from tocsin.messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'delayed' and m.vt <= t
             order by m.vt limit 1),
        (select m.vt from tocsin.messages m
         where m.queue_id = _oldest_ready.queue_id and m.state = 'leased' and m.vt <= t
             order by m.vt limit 1))
$$;

-- Returns how many messages were enqueued per second, over the last minute or as far
-- back as the samples go. The sample of the archive is the queue's newest 2,000 ids.
-- The table messages has no index for that. If the queue has fewer unfinished messages
-- than that (`unfinished`), the sample is all of them. Otherwise it is the queue's
-- messages among the newest 2,000 messages of all queues. So above 33 messages a second
-- the rate covers less than a minute, and after one batch that is larger than the
-- sample it is too low. Messages that were deleted, or not archived, do not count.
--
-- The rate is computed from the tables, because `tocsin queue metrics` and `tocsin top`
-- show it for producers in every process and language. The events of one process cannot
-- give that rate.
create or replace function tocsin._enqueue_rate(queue_id integer, t timestamptz, unfinished bigint)
    returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
#variable_conflict use_column
declare
    size constant integer := 2000;
    since timestamptz := t - interval '1 minute';
    reached timestamptz;
    times timestamptz[];
    kept timestamptz[];
begin
    if unfinished <= size then
        select array_agg(s.enqueued_at) into times
        from ((select m.enqueued_at from tocsin.messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'ready' limit size)
              union all
              (select m.enqueued_at from tocsin.messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'delayed' limit size)
              union all
              (select m.enqueued_at from tocsin.messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'held' limit size)
              union all
              (select m.enqueued_at from tocsin.messages m
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'leased' limit size)) s;
    else
        select array_agg(s.enqueued_at) filter (where s.queue_id = _enqueue_rate.queue_id),
            min(s.enqueued_at) into times, reached
        from (select m.queue_id, m.enqueued_at from tocsin.messages m order by m.id desc
              limit size) s;
        since := greatest(since, reached);
    end if;
    -- Without a count delta of the last minute, no message was archived in that minute,
    -- so no archived message was enqueued in it.
    select array_agg(s.enqueued_at), min(s.enqueued_at) into kept, reached
    from (select a.enqueued_at from tocsin.archive a where a.queue_id = _enqueue_rate.queue_id
          order by a.id desc limit size) s
    where exists (select from tocsin.archive_count_deltas y
                  where y.queue_id = _enqueue_rate.queue_id
                      and y.archived_at >= t - interval '1 minute' and y.n > 0);
    if cardinality(kept) = size then
        since := greatest(since, reached);
    end if;
    return (select count(*) from unnest(times || kept) e
            where e >= since) / greatest(extract(epoch from t - since)::float8, 0.01);
end
$$;

-- Returns the metrics of one queue, or of all queues by name.
create or replace function tocsin.queue_metrics(queue text default null)
returns table (
    queue_name text, paused boolean, ready bigint, delayed bigint, held bigint, leased bigint,
    dead bigint, archived bigint, oldest_ready_age float8,
    enqueue_rate float8, settle_rate float8, consumers bigint, exact boolean
)
language plpgsql
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    only_queue integer := case when queue is not null then (tocsin.find_queue(queue)).id end;
    first_id integer := coalesce(only_queue, 0);
    last_id integer := coalesce(only_queue, 2147483647);
    -- So few messages are read here: a function call would cost several times as much
    -- for a queue that is almost empty.
    few constant integer := 100;
begin
    return query
        with counts as materialized (
            select * from tocsin._count_queues(first_id, last_id, t)
        ), settled as (
            select y.queue_id, sum(y.n)::float8 / 60 as rate from tocsin.archive_count_deltas y
            where y.queue_id between first_id and last_id
                and y.archived_at > t - interval '1 minute' and y.archived_at <= t and y.n > 0
            group by y.queue_id
        ), consuming as (
            select w.queue_id, count(*) as n from tocsin.workers w
            where w.queue_id between first_id and last_id and w.kind = 'consumer'
                and w.status in ('ready', 'polling')
            group by w.queue_id
        )
        select q.name, q.paused_at is not null, c.ready, c.delayed, c.held, c.leased, c.dead,
            coalesce(a.n, 0),
               extract(epoch from t - case when c.ready > few then tocsin._oldest_ready(q.id, t)
                       when c.ready > 0 then (
                   select min(x.at)
                   from (select m.due as at from tocsin.messages m
                         where m.queue_id = q.id and m.state = 'ready'
                         union all
                         select m.vt from tocsin.messages m
                             where m.queue_id = q.id and m.state in ('delayed', 'leased')
                                 and m.vt <= t) x)
               end)::float8,
               case when c.ready + c.delayed + c.held + c.leased > few or s.rate > 0
                    then tocsin._enqueue_rate(q.id, t, c.ready + c.delayed + c.held + c.leased)
                    when c.ready + c.delayed + c.held + c.leased > 0 then (
                   select count(*) filter (where x.enqueued_at >= t - interval '1 minute')
                   from (select m.enqueued_at from tocsin.messages m
                         where m.queue_id = q.id and m.state = 'ready'
                         union all
                         select m.enqueued_at from tocsin.messages m
                             where m.queue_id = q.id and m.state = 'held'
                         union all
                         select m.enqueued_at from tocsin.messages m
                             where m.queue_id = q.id and m.state in ('delayed', 'leased')) x) / 60.0
                    else 0 end::float8,
               coalesce(s.rate, 0), coalesce(w.n, 0), c.exact
        from counts c
        join tocsin.queues q on q.id = c.queue_id
        left join tocsin._archived_in_all(first_id, last_id) a on a.queue_id = q.id
        left join settled s on s.queue_id = q.id
        left join consuming w on w.queue_id = q.id
        where q.id between first_id and last_id
        order by q.name;
end
$$;

-- Returns the metrics of the whole store. `workers` has the number of workers of each
-- status, as a JSON object.
create or replace function tocsin.store_stats()
returns table (
    queues bigint, workers jsonb, ready bigint, delayed bigint, held bigint, leased bigint,
    dead bigint, archived bigint, processes bigint,
    version integer, exact boolean
)
language plpgsql
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
begin
    return query
        select count(*),
               (select coalesce(jsonb_object_agg(s.status, s.n), '{}')
                from (select w.status, count(*) as n from tocsin.workers w group by 1) s),
               coalesce(sum(c.ready), 0)::bigint, coalesce(sum(c.delayed), 0)::bigint,
               coalesce(sum(c.held), 0)::bigint,
               coalesce(sum(c.leased), 0)::bigint,
               coalesce(sum(c.dead), 0)::bigint,
               (select coalesce(sum(a.n), 0)::bigint
                    from tocsin._archived_in_all(0, 2147483647) a),
               (select count(*) from tocsin.processes), (select x.version from tocsin.contract x),
               coalesce(bool_and(c.exact), true)
        from tocsin._count_queues(0, 2147483647, t) c;
end
$$;
