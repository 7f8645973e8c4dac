-- Settle a delivery: archive, delete, release, fail; and extend a lease. Each function
-- takes ids with the lease tokens of the claim, acts on messages whose row still has
-- that token, and returns, in the order given, whether it did. Functions that requeue
-- messages ring; the other functions do not. A caller may run them in its own
-- transaction, and their effect is then committed with the caller's rows. Until then
-- the rows are locked, so a claim skips them even when their leases have expired; after
-- a rollback the leases are unchanged.
--
-- All of these functions lock rows in the order of ids, one queue after the other, so
-- that two of them never deadlock. A session keeps the plan that it made when the table
-- was empty and all plans cost the same. So the settings leave the planner one plan:
-- look up the ids in the primary key (`id = any (ids)`), and join by hash. The
-- condition on the state says `is not distinct from`. With `=` the planner would use
-- the index messages_timed, which such a session takes for empty.

-- Archives messages. `results` is a JSON array with the result of each job. With
-- `unless_cancelled`, a job with a mark counts as one whose lease is lost: what the
-- caller commits with its end is rolled back.
create or replace function tocsin.archive(ids bigint[], leases bigint[],
                                          results jsonb default null,
                                          unless_cancelled boolean default false)
    returns boolean[]
language sql
as $$ select tocsin._archive(ids, leases, results, unless_cancelled => unless_cancelled) $$;

-- Archives messages; `outcome` is the outcome of the jobs among them. A job with a mark
-- (cancel_reason) is archived as cancelled: its result is not kept, and its history has
-- the delivery. archive.sql explains the partitions and the counts.
create or replace function tocsin._archive(ids bigint[], leases bigint[],
                                           results jsonb default null,
                                           outcome text default 'succeeded',
                                           unless_cancelled boolean default false)
    returns boolean[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    queue integer;
    until timestamptz;
    hours integer;  -- null: not kept
    seen integer[] := '{}';
    batch bigint[];
    jobs bigint[];
    in_flows bigint;
    succeeded jsonb;  -- jobs of flows, with their results
    stopped jsonb;  -- jobs of flows that were cancelled
    settled bigint[] := '{}';
begin
    -- One queue after the other. Usually there is only one.
    loop
        select a.queue_id, k.until, tocsin._partition_span_for(a, k.until)
        into queue, until, hours
        from tocsin.archive_policies a
        cross join lateral (select tocsin._keep_until(a.retention, t)) k (until)
        where a.queue_id = (select m.queue_id from tocsin.messages m
                            where m.id = any (ids) and m.queue_id <> all (seen) limit 1);
        exit when not found;
        with finished as (
            delete from tocsin.messages m
                using (select x.id, x.lease, x.n
                       from unnest(ids, leases) with ordinality as x (id, lease, n)
                       order by x.id) g
            where m.id = any (ids) and m.id = g.id and m.lease = g.lease and m.state is not distinct
                from 'leased' and m.queue_id = queue
                and not (unless_cancelled and m.cancel_reason is not null)
            returning m.id, m.queue_id, m.priority, m.read_ct, m.enqueued_at, m.dequeued_at,
                m.producer_worker_id, m.consumer_worker_id,
                      m.key, m.payload, m.headers, coalesce(m.cancel_reason, m.last_error)
                          as last_error,
                      case when m.cancel_reason is null then m.history
                          else tocsin._add_delivery(m.history,
                              tocsin._describe_delivery(m, t, 'cancelled', null)) end as history,
                      m.task, m.options,
                      case when m.task is null then null when m.cancel_reason is null then outcome
                          else 'cancelled' end as outcome,
                      m.flow_id, g.n
        ), stored as (
            insert into tocsin.archive (id, queue_id, priority, read_ct, span, enqueued_at,
                                        dequeued_at, archived_at, keep_until,
                                        producer_worker_id, consumer_worker_id, key, payload,
                                        headers, last_error, history, task, options, outcome,
                                        result)
            select f.id, f.queue_id, f.priority, f.read_ct,
                   case when f.flow_id is null then hours else 0 end,
                   f.enqueued_at, f.dequeued_at, t,
                   case when f.flow_id is null then until else '9999-01-01+00' end,
                   f.producer_worker_id, f.consumer_worker_id, f.key, f.payload, f.headers,
                   f.last_error, f.history, f.task, f.options, f.outcome,
                   case when f.outcome = 'succeeded' then results -> (f.n - 1)::integer end
            from finished f where hours is not null or f.flow_id is not null
        )
        select array_agg(f.id), array_agg(f.id) filter (where f.task is not null),
               count(*) filter (where f.flow_id is not null),
               jsonb_object_agg(f.id, results -> (f.n - 1)::integer)
                   filter (where f.flow_id is not null and f.outcome = 'succeeded'),
               jsonb_object_agg(f.id, null)
                   filter (where f.flow_id is not null and f.outcome <> 'succeeded')
        into batch, jobs, in_flows, succeeded, stopped
        from finished f;
        if jobs is not null then
            perform tocsin._announce(queue, jobs);
        end if;
        if in_flows > 0 then
            -- The results of a flow are kept until the flow has ended: see flows.sql.
            insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
                values (queue, 0, '9999-01-01+00', t, in_flows);
            perform tocsin._end_parents(succeeded, succeeded => true) where succeeded is not null;
            perform tocsin._end_parents(stopped, succeeded => false) where stopped is not null;
        end if;
        if cardinality(batch) > in_flows then
            insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
                values (queue, hours, until, t, cardinality(batch) - in_flows);
        end if;
        settled := settled || batch;
        exit when cardinality(settled) = cardinality(ids);
        seen := seen || queue;
    end loop;
    return tocsin._outcomes(ids, settled);
end
$$;

create or replace function tocsin.delete(ids bigint[], leases bigint[]) returns boolean[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    settled bigint[];
    jobs bigint[];
    queues integer[];
    parents jsonb;  -- jobs of flows
begin
    with finished as (
        delete from tocsin.messages m
            using (select x.id, x.lease from unnest(ids, leases) as x (id, lease) order by x.id) g
        where m.id = any (ids) and m.id = g.id and m.lease = g.lease and m.state is not distinct
            from 'leased'
        returning m.id, m.queue_id, m.task, m.flow_id
    )
    select array_agg(f.id), array_agg(f.id) filter (where f.task is not null),
        array_agg(distinct f.queue_id) filter (where f.task is not null),
        jsonb_object_agg(f.id, null) filter (where f.flow_id is not null)
    into settled, jobs, queues, parents from finished f;
    if jobs is not null then
        perform tocsin._announce(q, jobs) from unnest(queues) q;
    end if;
    if parents is not null then
        perform tocsin._end_parents(parents, succeeded => false, gone => true);
    end if;
    return tocsin._outcomes(ids, settled);
end
$$;

-- Extends leases so that they end vt from now. The function does not wait for a row
-- that another transaction has locked, and returns null for it: the lease still exists,
-- but was not extended. Usually that transaction is the holder's own, which has settled
-- the message and has not ended. `progress` is a JSON array with what each job reports: an
-- object with `done` and, perhaps, `total` and `text`, or null.
create or replace function tocsin.extend(ids bigint[], leases bigint[], vt interval,
                                         progress jsonb default null) returns boolean[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    settled bigint[];
begin
    with held as (
        select m.id, g.n
        from (select x.id, x.lease, x.n from unnest(ids, leases) with ordinality as x (id, lease, n)
              order by x.id) g
        join tocsin.messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
            and m.state is not distinct from 'leased'
        for update of m skip locked
    ), extended as (
        update tocsin.messages m
        set vt = tocsin._later(t, extend.vt),
            progress = coalesce(nullif(extend.progress -> (h.n - 1)::integer, 'null')
                                || jsonb_build_object('at', t, 'lease', m.lease), m.progress)
        from held h where m.id = any (ids) and m.id = h.id
        returning m.id
    )
    select array_agg(e.id) into settled from extended e;
    if cardinality(ids) = coalesce(cardinality(settled), 0) then
        return tocsin._outcomes(ids, settled);
    end if;
    return (select array_agg(case when g.id = any (settled) then true when m.id is null
                             then false end order by g.n)
            from unnest(ids, leases) with ordinality as g (id, lease, n)
            left join tocsin.messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
                and m.state is not distinct from 'leased');
end
$$;

-- Returns for each id, in order, whether it is one of the settled ids.
create or replace function tocsin._outcomes(ids bigint[], settled bigint[]) returns boolean[]
language plpgsql immutable
as $$
begin
    if cardinality(ids) = coalesce(cardinality(settled), 0) then
        return array_fill(true, array[cardinality(ids)]);
    end if;
    return (select array_agg(coalesce(g.id = any (settled), false) order by g.n)
            from unnest(ids) with ordinality as g (id, n));
end
$$;

-- Releases messages: requeues them with a delay. Without `counted`, the delivery does
-- not count, for a message whose handler has not failed (it never started, or a
-- shutdown stopped it).
create or replace function tocsin.release(ids bigint[], leases bigint[],
                                          delay interval default '0 s',
                                          counted boolean default true)
returns boolean[]
language sql
as $$
    select coalesce(array_agg(g.outcome is not null order by g.n), '{}')
    from unnest(tocsin._requeue(ids, leases, delay, counted,
                                'released')) with ordinality as g (outcome, n)
$$;

-- Requeues messages whose handler has failed, after the backoff that the queue's
-- settings give, and keeps the errors. A delay in `delays` (seconds) that is not null
-- replaces the backoff; Infinity makes the message a dead letter. `verdicts` says for
-- each message what has happened: 'handler_failed' (also null), 'timed_out', 'rejected'
-- (a dead letter at once) or 'snoozed' (the delivery does not count). With `keep_place`,
-- a message keeps its place in the queue (see order.sql). Returns for each message, in
-- order, after how many seconds it is delivered again; Infinity: it is a dead letter
-- now; -Infinity: it was to be cancelled, and is archived; null: its lease was lost, and
-- nothing was changed.
create or replace function tocsin.fail(
    ids bigint[], leases bigint[], errors text[], tracebacks text[], delays float8[] default null,
    verdicts text[] default null,
    keep_place boolean default false
) returns float8[]
language sql
as $$ select tocsin._requeue(ids, leases, null, true, 'handler_failed', errors, tracebacks, delays,
                             verdicts, keep_place) $$;

-- Requeues messages after a release, a failure, an expired lease or the death of a
-- worker. A message without deliveries left becomes a dead letter. A job with a mark
-- (cancel_reason) is archived as cancelled, so no further attempt begins. Without a delay
-- the message keeps its place in the queue. A delivery that counts is added to the
-- message's history with its outcome: handler_failed, timed_out,
-- rejected, lease_expired, worker_died or released. Returns the same as `fail`.
create or replace function tocsin._requeue(
    ids bigint[], leases bigint[], delay interval, counted boolean, outcome text,
    errors text[] default null, tracebacks text[] default null,
    delays float8[] default null, verdicts text[] default null, keep_place boolean default false
) returns float8[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    outcomes float8[];
    refused bigint[];
begin
    with held as (
        select m.id, m.queue_id, m.due, g.error, g.traceback, v.outcome, c.counted, m.lease,
               m.cancel_reason is not null as cancelled,
               m.task is not distinct from '$tick' as tick,
               m.cancel_reason is null
                   and (v.outcome = 'rejected' or g.delay is not distinct from 'Infinity'
                        or c.counted and m.read_ct >= coalesce(m.max_deliveries, q.max_deliveries))
                   as exhausted,
               coalesce(make_interval(secs => nullif(g.delay, 'Infinity')), _requeue.delay,
                        tocsin._backoff(q, m.read_ct)) as delay,
               case when c.counted then tocsin._describe_delivery(m, t, v.outcome, g.error)
               end as delivery
        from (select x.id, x.lease, x.error, x.traceback, x.delay, x.verdict
              from unnest(ids, leases, errors, tracebacks, delays, verdicts) as x (id, lease, error,
                  traceback, delay, verdict)
              order by x.id) g
        cross join lateral (select coalesce(g.verdict, _requeue.outcome)) v (outcome)
        cross join lateral (select _requeue.counted and v.outcome <> 'snoozed') c (counted)
        join tocsin.messages m on m.id = any (ids) and m.id = g.id and m.lease = g.lease
            and m.state is not distinct from 'leased'
        join tocsin.queues q on q.id = m.queue_id
        for update of m
    ), returned as (
        update tocsin.messages m
        set state = (case when h.delay > '0 s' then 'delayed'
                     else 'ready' end)::tocsin.message_state,
            -- a tick of a schedule keeps no place: this consumer leaves it to a worker
            due = case when h.delay > '0 s' and (h.tick or not keep_place)
                then tocsin._later(t, h.delay) else least(h.due, t) end,
            vt = case when h.delay > '0 s' then tocsin._later(t, h.delay) else least(h.due, t) end,
            read_ct = m.read_ct - (not h.counted)::integer,
            last_error = coalesce(h.error, m.last_error),
            history = tocsin._add_delivery(m.history, h.delivery)
        from held h
        where m.id = any (ids) and m.id = h.id and not h.exhausted and not h.cancelled
    ), moved as (
        select tocsin._move_to_dead_letters(
            array_agg(h.id),
            h.outcome,
            array_agg(h.error), array_agg(h.traceback), array_agg(h.delivery))
        from held h where h.exhausted group by h.outcome
    ), cancelled as (
        select tocsin._archive(array_agg(h.id), array_agg(h.lease), outcome => 'cancelled')
        from held h where h.cancelled having count(*) > 0
    ), rung as (
        select tocsin._ring(b.queue_id)
            from (select distinct h.queue_id from held h where not h.exhausted) b
    )
    select array_agg(case when h.exhausted then 'Infinity' when h.cancelled then '-Infinity'
                     else extract(epoch from h.delay)::float8 end order by g.n) into outcomes
    from unnest(ids) with ordinality as g (id, n)
    left join (select x.id, bool_or(x.exhausted) as exhausted, bool_or(x.cancelled) as cancelled,
                   max(x.delay) as delay from held x
               group by x.id) h on h.id = g.id
    cross join (select count(*) from moved) all_moved  -- a CTE that is not read is not run
    cross join (select count(*) from cancelled) all_cancelled
    cross join (select count(*) from rung) all_rung;
    -- A message that could not become a dead letter is delayed: see
    -- _move_to_dead_letters.
    if 'Infinity' = any (outcomes) then
        select array_agg(m.id) into refused from tocsin.messages m
            where m.id = any (ids) and m.state = 'delayed';
        if refused is not null then
            select array_agg(case when g.outcome = 'Infinity' and g.id = any (refused) then 60
                             else g.outcome end order by g.n) into outcomes
            from unnest(ids, outcomes) with ordinality as g (id, outcome, n);
        end if;
    end if;
    return coalesce(outcomes, '{}');
end
$$;

-- Returns the entry of the message's history for a delivery that has ended.
create or replace function tocsin._describe_delivery(m tocsin.messages, ended_at timestamptz,
                                                     outcome text, error text) returns jsonb
language sql stable
as $$
    select jsonb_build_object('delivery', m.read_ct, 'worker_id', m.consumer_worker_id,
                              'worker',
                              (select w.name from tocsin.workers w
                                   where w.id = m.consumer_worker_id),
                              'dequeued_at', m.dequeued_at, 'ended_at', ended_at, 'outcome',
                              outcome, 'error', left(error, 1000))
$$;

-- Returns a message's history with one more delivery. A history of twenty loses its
-- oldest delivery. A null delivery leaves the history unchanged.
create or replace function tocsin._add_delivery(history jsonb, delivery jsonb) returns jsonb
language sql immutable parallel safe
as $$
    select case
        when delivery is null then history
        when history is null then jsonb_build_array(delivery)
        when jsonb_array_length(history) < 20 then history || delivery
        else (history - 0) || delivery
    end
$$;

-- Returns the delay after a message's n-th failed delivery.
create or replace function tocsin._backoff(queue tocsin.queues, deliveries integer) returns interval
language sql volatile
as $$
    select make_interval(secs =>
        least(extract(epoch from queue.retry_max)::float8,
              extract(epoch from queue.retry_base)::float8
              -- the cap of the exponent keeps the power in the range of float8
              * power(queue.retry_factor,
                      least(greatest(deliveries - 1, 0),
                            300 / greatest(log(queue.retry_factor), 1e-9))))
        * (1 + queue.retry_jitter * (2 * random() - 1)))
$$;
