-- What is in the queues and how fast it moves. The time that it takes is limited: at
-- most 100,000 entries of an index, up to ten milliseconds, for each kind
-- of messages of a queue (`python -m bench --only metrics`).
--
-- - Counts of messages and dead letters are exact up to 100,000 index entries, and
--   beyond that the planner's estimate; `exact` says which. The functions that count
--   are stable, so that all counts are of one moment: a message on its way from one
--   state to the next counts once.
-- - What is archived is counted as it is archived (archive.sql).
-- - The age of the oldest ready message is read off an index, one entry for each
--   priority.
-- - The rate of enqueueing is that of a sample of the newest messages (enqueue_rate). A
--   counter would be work for each producer, and producers would wait for each other to
--   change its row.

-- How many rows the planner expects. Volatile, since EXPLAIN is allowed nowhere else.
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

-- What each queue of these ids has at this time, by what a claim would find: a
-- delayed message that is due and one whose lease has ended are ready. All that are
-- delayed, or leased, are estimated together: how many of a queue's are due the
-- planner does not know. One statement for all queues, of which most may be empty: an
-- empty one costs six looks into an index.
create or replace function tocsin._count_queues(first_id integer, last_id integer, t timestamptz,
                                                cap integer default 100000)
returns table (queue_id integer, ready bigint, delayed bigint, leased bigint, dead bigint,
               exact boolean)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
        select s.id, s.ready + s.due + s.lapsed, greatest(s.delayed - s.due, 0),
            greatest(s.leased - s.lapsed, 0), s.dead,
               c.ready <= cap and c.due <= cap and c.lapsed <= cap and c.delayed <= cap
                   and c.leased <= cap and c.dead <= cap
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
                          where m.queue_id = q.id and m.state = 'leased' limit cap + 1) x),
                   (select count(*)
                    from (select from tocsin.dead_letters d where d.queue_id = q.id
                          limit cap + 1) x)
            offset 0
        ) c (ready, due, lapsed, delayed, leased, dead)
        cross join lateral (
            select q.id, tocsin._beyond(c.ready, cap, 'tocsin.messages', q.id, 'ready'), c.due,
                c.lapsed,
                   tocsin._beyond(c.delayed, cap, 'tocsin.messages', q.id, 'delayed'),
                   tocsin._beyond(c.leased, cap, 'tocsin.messages', q.id, 'leased'),
                   tocsin._beyond(c.dead, cap, 'tocsin.dead_letters', q.id)
        ) s (id, ready, due, lapsed, delayed, leased, dead)
        where q.id between first_id and last_id;
end
$$;

-- A count, or where it has reached the cap the planner's estimate of all.
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

-- Since when the queue's oldest message is ready; null: none is. Without a consumer, a
-- message that has become due is still `delayed`, and one whose lease has expired is
-- still `leased`. Of more than 1,000 priorities, the most urgent ones count.
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

-- Messages enqueued per second, over the last minute or as far back as the samples go:
-- of the archive the queue's newest 2,000 ids; of the messages, which have no index for
-- that, all of the queue's when these are fewer (`unfinished`), otherwise those of it
-- among the newest 2,000 of all queues. So above 33 messages a second it is a rate over
-- less than a minute, and after one batch that is larger than the sample it is too low.
-- Messages that were deleted, or not archived, do not count.
--
-- It is read from what is there, since `tocsin queue metrics` and `tocsin top` show it
-- for producers in every process and language, which no event of one process can.
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
               where m.queue_id = _enqueue_rate.queue_id and m.state = 'leased' limit size)) s;
    else
        select array_agg(s.enqueued_at) filter (where s.queue_id = _enqueue_rate.queue_id),
            min(s.enqueued_at) into times, reached
        from (select m.queue_id, m.enqueued_at from tocsin.messages m order by m.id desc
              limit size) s;
        since := greatest(since, reached);
    end if;
    -- Without a count delta of the last minute nothing was archived in it, and so nothing
    -- archived was enqueued in it.
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

-- One queue, or all of them by name.
create or replace function tocsin.queue_metrics(queue text default null)
returns table (
    queue_name text, paused boolean, ready bigint, delayed bigint, leased bigint, dead bigint,
    archived bigint, oldest_ready_age float8,
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
    -- so few are read here: a function would cost ten times as much for a queue with
    -- next to nothing in it
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
        select q.name, q.paused_at is not null, c.ready, c.delayed, c.leased, c.dead,
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
               case when c.ready + c.delayed + c.leased > few or s.rate > 0
                    then tocsin._enqueue_rate(q.id, t, c.ready + c.delayed + c.leased)
                    when c.ready + c.delayed + c.leased > 0 then (
                   select count(*) filter (where x.enqueued_at >= t - interval '1 minute')
                   from (select m.enqueued_at from tocsin.messages m
                         where m.queue_id = q.id and m.state = 'ready'
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

-- The whole store; workers by status, as a JSON object.
create or replace function tocsin.store_stats()
returns table (
    queues bigint, workers jsonb, ready bigint, delayed bigint, leased bigint, dead bigint,
    archived bigint, processes bigint,
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
               coalesce(sum(c.leased), 0)::bigint,
               coalesce(sum(c.dead), 0)::bigint,
               (select coalesce(sum(a.n), 0)::bigint
                    from tocsin._archived_in_all(0, 2147483647) a),
               (select count(*) from tocsin.processes), (select x.version from tocsin.contract x),
               coalesce(bool_and(c.exact), true)
        from tocsin._count_queues(0, 2147483647, t) c;
end
$$;
