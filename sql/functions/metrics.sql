-- What is in the queues and how fast it moves, in a time that has an end however much that is: at most 100,000 entries of an index, up to ten
-- milliseconds, for each kind of messages of a queue (`python -m bench --only metrics`).
--
-- - Counts of messages and dead letters are exact up to 100,000 index entries, and beyond that the planner's estimate; `exact` says which.
--   The functions that count are stable, so that all counts are of one moment: a message on its way from one state to the next counts once.
-- - What is archived is counted as it is archived (archive.sql).
-- - The age of the oldest ready message is read off an index, one entry for each priority.
-- - The rate of enqueueing is that of a sample of the newest messages (enqueue_rate). A counter would be work for each producer, and a row
--   that all of them change would have them wait for each other.

-- Rows of a table that satisfy a condition, written by a function of ours.
create or replace function tocsin.count_some(relation text, condition text, out total bigint, out exact boolean)
language plpgsql stable
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
    cap constant integer := 100000;
    source text := format('select from %s x where %s', relation, condition);
begin
    execute format('select count(*) from (%s limit %s) c', source, cap + 1) into total;
    exact := total <= cap;
    if not exact then
        total := greatest(total, tocsin.estimate(source));
    end if;
end
$$;

-- How many rows the planner expects. Volatile, since EXPLAIN is allowed nowhere else.
create or replace function tocsin.estimate(query text) returns bigint
language plpgsql
as $$
declare
    plan json;
begin
    execute 'explain (format json) ' || query into plan;
    return plan -> 0 -> 'Plan' ->> 'Plan Rows';
end
$$;

-- What a queue has at this time, by what a claim would find: a scheduled message that is due and one whose lease has ended are ready. All
-- that are scheduled, or leased, are estimated together: how many of a queue's are due the planner does not know.
create or replace function tocsin.count_queue(
    queue_id integer, t timestamptz, out ready bigint, out delayed bigint, out leased bigint, out dead bigint, out exact boolean
)
language plpgsql stable
as $$
declare
    counts bigint[];
    at text := to_char(t at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00';  -- the same in every session
begin
    select array_agg(c.total order by s.n), bool_and(c.exact) into counts, exact
    from (values (1, 'tocsin.messages', 'x.state = ''ready'''),
                 (2, 'tocsin.messages', format('x.state = ''scheduled'' and x.vt <= %L', at)),
                 (3, 'tocsin.messages', format('x.state = ''leased'' and x.vt <= %L', at)),
                 (4, 'tocsin.messages', 'x.state = ''scheduled'''),
                 (5, 'tocsin.messages', 'x.state = ''leased'''),
                 (6, 'tocsin.dead_letters', 'true')) s (n, relation, condition)
    cross join lateral tocsin.count_some(s.relation, format('x.queue_id = %s and %s', count_queue.queue_id, s.condition)) c;
    ready := counts[1] + counts[2] + counts[3];
    delayed := greatest(counts[4] - counts[2], 0);
    leased := greatest(counts[5] - counts[3], 0);
    dead := counts[6];
end
$$;

-- Since when the queue's oldest message is ready; null: none is. With nobody there to look, what has become due is still `scheduled`, and what
-- was held by somebody who died is still `leased`. Of more than 1,000 priorities, the most urgent ones count.
create or replace function tocsin.oldest_ready(queue_id integer, t timestamptz) returns timestamptz
language sql stable
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
    with recursive front as (
        (select m.priority, m.due from tocsin.messages m where m.queue_id = oldest_ready.queue_id and m.state = 'ready'
         order by m.priority, m.due, m.id limit 1)
        union all
        select n.priority, n.due
        from front f
        cross join lateral (select m.priority, m.due from tocsin.messages m
                            where m.queue_id = oldest_ready.queue_id and m.state = 'ready' and m.priority > f.priority
                            order by m.priority, m.due, m.id limit 1) n
    )
    select least(
        (select min(f.due) from (select x.due from front x limit 1000) f),
        (select m.vt from tocsin.messages m
         where m.queue_id = oldest_ready.queue_id and m.state = 'scheduled' and m.vt <= t order by m.vt limit 1),
        (select m.vt from tocsin.messages m
         where m.queue_id = oldest_ready.queue_id and m.state = 'leased' and m.vt <= t order by m.vt limit 1))
$$;

-- Messages enqueued per second, over the last minute or as far back as the samples go: of the archive the queue's newest 2,000 ids; of the
-- messages, which have no index for that, all of the queue's when these are fewer (`unfinished`), otherwise those of it among the newest
-- 2,000 of all queues. So it is a rate over less than a minute for who enqueues more than 33 a second, and for one batch of more than the sample,
-- all at one moment, it is too low. What was deleted, or is not archived, is not seen.
create or replace function tocsin.enqueue_rate(queue_id integer, t timestamptz, unfinished bigint) returns float8
language plpgsql
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
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
        from ((select m.enqueued_at from tocsin.messages m where m.queue_id = enqueue_rate.queue_id and m.state = 'ready' limit size)
              union all
              (select m.enqueued_at from tocsin.messages m where m.queue_id = enqueue_rate.queue_id and m.state = 'scheduled' limit size)
              union all
              (select m.enqueued_at from tocsin.messages m where m.queue_id = enqueue_rate.queue_id and m.state = 'leased' limit size)) s;
    else
        select array_agg(s.enqueued_at) filter (where s.queue_id = enqueue_rate.queue_id), min(s.enqueued_at) into times, reached
        from (select m.queue_id, m.enqueued_at from tocsin.messages m order by m.id desc limit size) s;
        since := greatest(since, reached);
    end if;
    select array_agg(s.enqueued_at), min(s.enqueued_at) into kept, reached
    from (select a.enqueued_at from tocsin.archive a where a.queue_id = enqueue_rate.queue_id order by a.id desc limit size) s;
    if cardinality(kept) = size then
        since := greatest(since, reached);
    end if;
    return (select count(*) from unnest(times || kept) e where e >= since) / greatest(extract(epoch from t - since)::float8, 0.01);
end
$$;

-- One queue, or all of them by name.
create or replace function tocsin.queue_metrics(queue text default null)
returns table (
    queue_name text, paused boolean, ready bigint, delayed bigint, leased bigint, dead bigint, archived bigint, oldest_ready_age float8,
    enqueue_rate float8, settle_rate float8, consumers bigint, exact boolean
)
language plpgsql
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin.clock();
begin
    if queue is not null then
        perform tocsin.find_queue(queue);
    end if;
    return query
        select q.name, q.paused_at is not null, c.ready, c.delayed, c.leased, c.dead, tocsin.archived_count(q.id),
               extract(epoch from t - tocsin.oldest_ready(q.id, t))::float8,
               tocsin.enqueue_rate(q.id, t, c.ready + c.delayed + c.leased), tocsin.settle_rate(q.id),
               (select count(*) from tocsin.workers w where w.queue_id = q.id and w.kind = 'consumer' and w.status in ('ready', 'polling')),
               c.exact
        from tocsin.queues q cross join lateral tocsin.count_queue(q.id, t) c
        where queue is null or q.name = queue
        order by q.name;
end
$$;

-- The whole store; workers by status, as a JSON object.
create or replace function tocsin.store_stats()
returns table (
    queues bigint, workers jsonb, ready bigint, delayed bigint, leased bigint, dead bigint, archived bigint, processes bigint,
    version integer, exact boolean
)
language plpgsql
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin.clock();
begin
    return query
        select count(*),
               (select coalesce(jsonb_object_agg(s.status, s.n), '{}')
                from (select w.status, count(*) as n from tocsin.workers w group by 1) s),
               coalesce(sum(c.ready), 0)::bigint, coalesce(sum(c.delayed), 0)::bigint, coalesce(sum(c.leased), 0)::bigint,
               coalesce(sum(c.dead), 0)::bigint, coalesce(sum(tocsin.archived_count(q.id)), 0)::bigint,
               (select count(*) from tocsin.processes), (select max(m.number) from tocsin.migrations m), coalesce(bool_and(c.exact), true)
        from tocsin.queues q cross join lateral tocsin.count_queue(q.id, t) c;
end
$$;
