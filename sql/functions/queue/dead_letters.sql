-- Dead letters: messages that are not delivered any more. They can be replayed (they
-- become messages again), archived and purged.
--
-- A call chooses dead letters by ids, by a queue, or both, and narrows them down by the
-- reason, by a part of the error, and by age. Each function locks the chosen letters in
-- the order of ids before it moves them. So only one of two concurrent calls gets a
-- letter, and the letter becomes one message at most. A call by ids waits for
-- concurrent calls, and gets their letters if they roll back. A call by queue skips
-- locked rows.
--
-- A replayed message keeps its id, key, headers, priority, history and maximum of
-- deliveries. It also keeps the token of its last lease, so that its next deliveries
-- fence all former ones. Its deliveries are counted from zero again, and its expiry is
-- removed. Its place in the queue is behind the messages that already wait.
--
-- The key of a dead letter is free, so another unfinished message may have the same
-- key. Then the letter cannot be replayed. A replay by ids is refused as a whole,
-- because the caller has named that letter. A replay by queue replays all letters that
-- can be replayed, and leaves the rest.

create or replace function tocsin._matches_filter(
    letter tocsin.dead_letters, ids bigint[], queue_id integer, reason text, error text,
    died_before timestamptz
) returns boolean
-- The planner inlines this function, and removes the conditions whose argument is null.
language sql immutable parallel safe
as $$
    select (ids is null or letter.id = any (ids))
        and (queue_id is null or letter.queue_id = queue_id)
       and (reason is null or letter.reason = reason)
           and (error is null or strpos(letter.error, error) > 0)
       and (died_before is null or letter.died_at < died_before)
$$;

-- Returns the time that was this long ago; null: there is no limit.
create or replace function tocsin._cutoff(older_than interval) returns timestamptz
language plpgsql
as $$
begin
    if older_than < '0 s' then
        perform tocsin._raise_error('TC022', 'older_than must not be negative',
                                    '{"argument": "older_than"}');
    end if;
    return case when older_than is not null
        then tocsin._later(tocsin._clock(), -least(older_than, interval '5000 years')) end;
end
$$;

-- Returns dead letters of a queue, the first of them after the id `after`.
create or replace function tocsin.list_dead_letters(
    queue text, reason text default null, error text default null, older_than interval default null,
    max_letters integer default 100,
    after bigint default null
) returns setof tocsin.dead_letter_info
language sql
as $$
    select * from tocsin._describe_dead_letters(null, (tocsin.find_queue(queue)).id, reason, error,
                                                tocsin._cutoff(older_than), max_letters, after)
$$;

create or replace function tocsin.get_dead_letter(message_id bigint)
    returns setof tocsin.dead_letter_info
language sql
as $$ select *
    from tocsin._describe_dead_letters(array[message_id], null, null, null, null, 1, null) $$;

create or replace function tocsin._describe_dead_letters(
    ids bigint[], queue_id integer, reason text, error text, died_before timestamptz,
    max_letters integer, after bigint
) returns setof tocsin.dead_letter_info
language plpgsql stable
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_variable
begin
    return query
        select d.id, q.name, d.queue_id, d.payload::text, d.headers::text, d.priority, d.key,
            d.enqueued_at, d.dequeued_at, d.read_ct,
               d.max_deliveries, d.producer_worker_id, d.consumer_worker_id, d.history::text,
               d.died_at, d.reason, d.error, d.traceback
        from tocsin.dead_letters d
        join tocsin.queues q on q.id = d.queue_id
        where tocsin._matches_filter(d, ids, queue_id, reason, error, died_before)
            and (after is null or d.id > after)
        order by d.id limit max_letters;
end
$$;

-- Locks the chosen dead letters, at most max_letters of them, the oldest first, and
-- returns their ids.
create or replace function tocsin._lock_dead_letters(
    ids bigint[], queue text, reason text, error text, older_than interval, max_letters integer
) returns bigint[]
language plpgsql
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
    queue_id integer := tocsin._resolve_queue(ids, queue);
    died_before timestamptz := tocsin._cutoff(older_than);
begin
    if ids is not null then
        return array(select d.id from tocsin.dead_letters d
                     where tocsin._matches_filter(d, ids, queue_id, reason, error, died_before)
                     order by d.id limit max_letters for update);
    end if;
    return array(select d.id from tocsin.dead_letters d
                 where tocsin._matches_filter(d, ids, queue_id, reason, error, died_before)
                 order by d.id limit max_letters for update skip locked);
end
$$;

-- Returns the id of the named queue; null: the call names only ids.
create or replace function tocsin._resolve_queue(ids bigint[], queue text) returns integer
language plpgsql stable
as $$
begin
    if queue is not null then
        return (tocsin.find_queue(queue)).id;
    elsif ids is null then
        perform tocsin._raise_error('TC022', 'name dead letters by ids or by a queue',
                                    '{"argument": "queue"}');
    end if;
    return null;
end
$$;

-- Makes dead letters messages again, due now or after the delay, and returns their ids,
-- which stay the same. The replay is one INSERT, and its trigger rings.
create or replace function tocsin.replay(
    ids bigint[] default null, queue text default null, reason text default null,
    error text default null,
    older_than interval default null, max_letters integer default null, delay interval default null
) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    taken bigint[];
    replayed bigint[];
    flows bigint[];
    held_up bigint[];
    t timestamptz;
begin
    perform tocsin._check_due(delay, null);
    -- The rows of flows are locked before those of their jobs; a call by queue waits for
    -- neither.
    perform tocsin._reopen_flows(array(select d.flow_id from tocsin.dead_letters d
                                       where d.id = any (ids) and d.flow_id is not null));
    taken := tocsin._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    flows := array(select f.id from tocsin.flows f
                   where f.id in (select d.flow_id from tocsin.dead_letters d
                                  where d.id = any (taken) and d.flow_id is not null)
                   for update skip locked);
    taken := array(select d.id from tocsin.dead_letters d
                   where d.id = any (taken) and (d.flow_id is null or d.flow_id = any (flows)));
    perform tocsin._reopen_flows(flows);
    t := tocsin._later(tocsin._clock(), coalesce(delay, '0 s'));
    with added as (
        insert into tocsin.messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     dequeued_at, lease, producer_worker_id,
                                     consumer_worker_id, max_deliveries, key, payload, headers,
                                     last_error, history, task, options, flow_id)
        select d.id, d.queue_id, d.priority,
            (case when delay > '0 s' then 'delayed' else 'ready' end)::tocsin.message_state, t, t,
               d.enqueued_at, d.dequeued_at, d.lease, d.producer_worker_id, d.consumer_worker_id,
               d.max_deliveries, d.key, d.payload,
               d.headers, d.error, d.history, d.task, d.options, d.flow_id
        from tocsin.dead_letters d
        where d.id = any (taken)
        order by d.id
        on conflict (queue_id, key) where key is not null do nothing
        returning id
    ), removed as (
        delete from tocsin.dead_letters d using added a where d.id = any (taken) and d.id = a.id
    )
    select coalesce(array_agg(a.id order by a.id), '{}') into replayed from added a;
    if ids is not null and cardinality(replayed) < cardinality(taken) then
        held_up := array(select x.id from unnest(taken) as x (id) where x.id <> all (replayed)
                         order by x.id);
        perform tocsin._raise_error('TC014',
            format('dead letter %s cannot be replayed: another unfinished message has its key',
                   array_to_string(held_up, ', ')),
            jsonb_build_object('ids', held_up),
            'Wait until that message is finished, or archive or purge the dead letter.');
    end if;
    return replayed;
end
$$;

-- Moves dead letters to the archive, if their queue keeps one, and returns how many.
create or replace function tocsin.archive_dead_letters(
    ids bigint[] default null, queue text default null, reason text default null,
    error text default null,
    older_than interval default null, max_letters integer default null
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    taken bigint[] := tocsin._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    t timestamptz := tocsin._clock();
begin
    with removed as (
        delete from tocsin.dead_letters d where d.id = any (taken) returning d.*
    ), shelved as (
        select a.queue_id, k.until, tocsin._partition_span_for(a, k.until) as span
        from tocsin.archive_policies a
        cross join lateral (select tocsin._keep_until(a.retention, t)) k (until)
    ), kept as (
        insert into tocsin.archive (id, queue_id, priority, read_ct, span, enqueued_at, dequeued_at,
                                    archived_at, keep_until,
                                    producer_worker_id, consumer_worker_id, key, payload, headers,
                                    last_error, history, task, options, outcome)
        select d.id, d.queue_id, d.priority, d.read_ct, s.span, d.enqueued_at, d.dequeued_at, t,
            s.until, d.producer_worker_id,
               d.consumer_worker_id, d.key, d.payload, d.headers, coalesce(d.error, d.reason),
               d.history, d.task, d.options, case when d.task is not null then 'failed' end
        from removed d join shelved s on s.queue_id = d.queue_id
        where s.span is not null
    )
    insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
    select s.queue_id, s.span, s.until, t, count(*)
    from removed d join shelved s on s.queue_id = d.queue_id
    group by s.queue_id, s.span, s.until;
    perform tocsin._give_up(taken);
    return cardinality(taken);
end
$$;

-- Deletes dead letters, and returns how many were deleted, or would be (dry_run).
create or replace function tocsin.purge_dead_letters(
    ids bigint[] default null, queue text default null, reason text default null,
    error text default null,
    older_than interval default null, max_letters integer default null,
    dry_run boolean default false
) returns bigint
language plpgsql
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
    taken bigint[];
    queue_id integer;
    died_before timestamptz;
begin
    if dry_run then
        queue_id := tocsin._resolve_queue(ids, queue);
        died_before := tocsin._cutoff(older_than);
        return (select count(*)
                from (select from tocsin.dead_letters d
                      where tocsin._matches_filter(d, ids, queue_id, reason, error, died_before)
                      limit max_letters) meant);
    end if;
    taken := tocsin._lock_dead_letters(ids, queue, reason, error, older_than, max_letters);
    delete from tocsin.dead_letters d where d.id = any (taken);
    perform tocsin._give_up(taken);
    return cardinality(taken);
end
$$;
