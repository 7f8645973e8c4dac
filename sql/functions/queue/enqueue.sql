-- Enqueue messages, from any language, with any driver, in any transaction. ring.sql
-- says when an enqueue rings.
--
-- The INSERT of a single message also checks whether the message may be enqueued. The
-- function looks for the reason of a refusal only when the INSERT has inserted nothing.
-- So the usual case is one statement. A batch is one JSON document, which PostgreSQL
-- parses several times as fast as an array of texts.

-- Whether a message has a valid size and valid options. The planner inlines this
-- function. The queue's rules are checked elsewhere (payload_rules.sql), because a
-- function for them in the INSERT would cost time even where it is not called.
create or replace function tocsin._is_valid(
    payload jsonb, max_payload integer, delay interval, at timestamptz, expires_in interval,
    max_deliveries integer
) returns boolean
language sql immutable parallel safe
as $$
    select (octet_length(payload::text) > max_payload) is not true
       and (delay not between '0 s' and '1000 years' or delay is not null and at is not null
            or at < '0002-01-01 UTC' or at > '9999-12-30 UTC'
            or expires_in <= '0 s' or expires_in > '1000 years' or max_deliveries <= 0) is not true
$$;

-- Raises an error if the headers are larger than a payload may be. The check is no
-- condition of the INSERT, so that a message without headers, the usual case, does not
-- pay for it.
create or replace function tocsin._check_headers(q tocsin.queues, headers jsonb) returns void
language plpgsql
as $$
begin
    if octet_length(headers::text) > q.max_payload then
        perform tocsin._refuse_large(q, 'headers of %s bytes exceed', octet_length(headers::text),
                                     null);
    end if;
end
$$;

-- Raises the error about a payload or headers of this many bytes. `index` is the index
-- of the payload in a batch; null: there is no batch.
create or replace function tocsin._refuse_large(q tocsin.queues, problem text, actual integer,
                                                index bigint) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error('TC003',
        format(problem || ' the limit of queue "%s", %s bytes', actual, q.name, q.max_payload),
        jsonb_build_object('actual', actual, 'maximum', q.max_payload, 'index', index),
        'Store the data elsewhere and enqueue a reference, or raise the queue''s max_payload.');
end
$$;

-- Whether the worker is active. The function is in plpgsql so that it is not inlined:
-- its subquery would be set up for each enqueue, also for one without a worker.
create or replace function tocsin._is_active(worker_id bigint) returns boolean
language plpgsql stable
as $$
begin
    return exists (select from tocsin.workers w
                   where w.id = worker_id and w.status in ('ready', 'polling'));
end
$$;

-- Raises an error if the delay or the due time is out of range.
create or replace function tocsin._check_due(delay interval, at timestamptz) returns void
language plpgsql
as $$
begin
    if delay not between '0 s' and '1000 years' then
        perform tocsin._raise_error('TC022',
                                    'delay must not be negative, nor longer than a thousand years',
                                    '{"argument": "delay"}');
    elsif delay is not null and at is not null then
        perform tocsin._raise_error('TC022', 'give delay or at, not both', '{"argument": "at"}');
    -- a client could not decode such a time, and could not claim messages behind it
    elsif at < '0002-01-01 UTC' or at > '9999-12-30 UTC' then
        perform tocsin._raise_error('TC022', 'at must be within the years 2 to 9999',
                                    '{"argument": "at"}');
    end if;
end
$$;

-- Raises an error if the queue, the worker or an option does not allow the enqueue;
-- returns the queue.
create or replace function tocsin._check_enqueue_options(
    queue text, delay interval, at timestamptz, expires_in interval, max_deliveries integer,
    worker_id bigint
) returns tocsin.queues
language plpgsql
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
begin
    if not tocsin._is_owner() then
        perform tocsin._check_enqueue(q, worker_id);
    end if;
    if worker_id is not null then
        perform tocsin._check_active(worker_id, 'enqueue');
    end if;
    perform tocsin._check_due(delay, at);
    if expires_in <= '0 s' or expires_in > '1000 years' then
        perform tocsin._raise_error('TC022',
                                    'expires_in must be positive, and at most a thousand years',
                                    '{"argument": "expires_in"}');
    elsif max_deliveries <= 0 then
        perform tocsin._raise_error('TC022', 'max_deliveries must be positive',
                                    '{"argument": "max_deliveries"}');
    end if;
    return q;
end
$$;

-- Raises an error if a payload of the JSON array is too large for the queue, or breaks
-- one of its rules. `first_index` is the caller's index of the first payload; null:
-- there is only one payload.
create or replace function tocsin._check_payloads(q tocsin.queues, payloads jsonb,
                                                  first_index integer) returns void
language plpgsql
as $$
declare
    large record;
begin
    -- The text of the whole array is longer than that of any of its elements.
    if octet_length(payloads::text) > q.max_payload then
        select first_index + p.n - 1 as index, octet_length(p.payload::text) as actual into large
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        where octet_length(p.payload::text) > q.max_payload
        order by p.n limit 1;
        if found then
            perform tocsin._refuse_large(
                q, concat_ws(' ', 'payload', large.index, 'of %s bytes exceeds'), large.actual,
                large.index);
        end if;
    end if;
    if q.ruled then
        perform tocsin._check_contents(q, payloads, first_index);
    end if;
end
$$;

-- Returns the unfinished message that has the key; null: this transaction sees none.
create or replace function tocsin._find_key(queue_id integer, key text) returns bigint
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    return (select m.id from tocsin.messages m
            where m.queue_id = _find_key.queue_id and m.key = _find_key.key);
end
$$;

-- Enqueues one message and returns its id. A queue has at most one unfinished message
-- per key; a second enqueue with the key returns the id of the first message. With
-- `ring_early`, the commit of a transaction that rings may be asynchronous, because
-- tocsin.wait_for_flush follows in the same session (ring_early.sql).
create or replace function tocsin.enqueue(
    queue text, payload jsonb, delay interval default null, at timestamptz default null,
    priority integer default 0,
    headers jsonb default null, key text default null, expires_in interval default null,
    max_deliveries integer default null, ordered_by text default null,
    worker_id bigint default null, task text default null, options jsonb default null,
    ring_early boolean default false
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    due_at timestamptz := coalesce(at, tocsin._later(t, delay), t);
    q tocsin.queues;
    new_id bigint;  -- drawn before the INSERT, or null
    message_id bigint;
    written pg_lsn;
    flushed pg_lsn;
    checked boolean;  -- whether the payload keeps the queue's rules
    -- Whether the INSERT itself rings (ring.sql). With a key, only the result of the
    -- INSERT shows whether there is a new message to ring for.
    rings boolean := key is null;
    ignored text;
begin
    if not tocsin._is_owner() then
        perform tocsin._check_enqueue(tocsin.find_queue(queue), worker_id);
    end if;
    if headers is not null then
        perform tocsin._check_headers(tocsin.find_queue(queue), headers);
    end if;
    if ordered_by is not null then
        options := tocsin._add_order(options, ordered_by);
    end if;
    if task is not null or options is not null then
        perform tocsin._check_job(task, options);
    end if;
    if rings then
        ignored := set_config('bell.rung_by', 'tocsin.', true);
    end if;
    -- Not with a key: the next enqueue with the key returns this message's id, and must
    -- not return it before the message is durable.
    ring_early := ring_early and key is null;
    if ring_early then
        -- The commit may be asynchronous only if the sequence's WAL record that covers
        -- the new id is flushed (ring_early.sql explains why). Such a record takes 99
        -- bytes, so fewer than 90 bytes that are not flushed cannot contain one. WAL
        -- pages are multiples of 1,024 bytes. A flush that ends at a page boundary may
        -- end within a record, so it proves nothing.
        written := pg_current_wal_insert_lsn();
        new_id := nextval('tocsin.messages_id_seq');
        flushed := pg_current_wal_flush_lsn();
        ring_early := written = pg_current_wal_insert_lsn()
            and (flushed >= written or written - flushed < 90 and (flushed - '0/0') % 1024 <> 0);
    end if;
    loop
        insert into tocsin.messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     expires_at, producer_worker_id, max_deliveries, key,
                                     payload, headers, task, options)
        select coalesce(new_id, nextval('tocsin.messages_id_seq')), x.id, coalesce(priority, 0),
               case when due_at > t then 'delayed'::tocsin.message_state
                   else 'ready' end, due_at, due_at, t,
               tocsin._later(t, expires_in), worker_id, enqueue.max_deliveries, key, payload,
               headers, task, options
        from tocsin.queues x
        where x.name = queue
            and tocsin._is_valid(payload, x.max_payload, delay, at, expires_in,
                                 enqueue.max_deliveries)
          and (not x.ruled or checked)
          and (worker_id is null or tocsin._is_active(worker_id))
          and (not rings or tocsin._try_ring(x))
        on conflict (queue_id, key) where key is not null do nothing
        returning id into message_id;
        exit when message_id is not null;
        -- Nothing was inserted: the message is refused, its key is taken, or the queue
        -- has rules or is being deleted. When no such reason is left, or the message
        -- keeps the rules, the INSERT is tried again.
        q := tocsin._check_enqueue_options(queue, delay, at, expires_in, max_deliveries, worker_id);
        perform tocsin._check_payloads(q, jsonb_build_array(payload), null);
        message_id := tocsin._find_key(q.id, key);
        if message_id is not null then
            perform tocsin._check_key_holder(message_id, key, task);
            exit;
        end if;
        if q.ruled and checked is not true then
            checked := true;
            continue;
        end if;
        if key is not null and current_setting('transaction_isolation') <> 'read committed' then
            raise serialization_failure
                using message = format('key "%s" was taken by a transaction that this one '
                                       'cannot see', key),
                hint = 'Try the transaction again.';
        end if;
        perform tocsin._ring_late(q.id);  -- waits for the end of a deletion
    end loop;
    if rings then
        ignored := set_config('bell.rung_by', '', true);
    end if;
    if ring_early and current_setting('bell.rung', true) <> ''
        and new_id = pg_sequence_last_value('tocsin.messages_id_seq')
       and current_setting('synchronous_commit') <> 'off'
           and current_setting('synchronous_standby_names') = '' then
        ignored := set_config('synchronous_commit', 'off', true);
        ignored := set_config('bell.unflushed', 'yes', false);
    end if;
    return message_id;
end
$$;

-- Enqueues all payloads of a JSON array, or none if one is refused; returns the ids in
-- the order of the payloads. When a batch is sent in several calls of one transaction,
-- `first_index` is the index of the call's first payload, so that an error names the
-- right payload.
create or replace function tocsin.enqueue_many(
    queue text, payloads jsonb, delay interval default null, at timestamptz default null,
    priority integer default 0,
    headers jsonb default null, expires_in interval default null,
    max_deliveries integer default null, ordered_by text default null,
    worker_id bigint default null, first_index integer default 0
) returns bigint[]
language plpgsql
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin._check_enqueue_options(queue, delay, at, expires_in, max_deliveries,
                                                     worker_id);
    t timestamptz := tocsin._clock();
    due_at timestamptz := coalesce(at, tocsin._later(t, delay), t);
    options jsonb := tocsin._add_order(null, ordered_by);
    ids bigint[];
begin
    perform tocsin._check_headers(q, headers);
    if options is not null then
        perform tocsin._check_job(null, options);
    end if;
    perform tocsin._check_payloads(q, payloads, first_index);
    with added as (
        insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, expires_at,
                                     producer_worker_id, max_deliveries,
                                     payload, headers, options)
        select q.id, coalesce(priority, 0), case when due_at > t
            then 'delayed'::tocsin.message_state else 'ready' end, due_at, due_at, t,
               tocsin._later(t, expires_in), worker_id, max_deliveries, p.payload, headers, options
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        order by p.n
        returning id
    )
    select array_agg(a.id order by a.id) into ids from added a;
    return coalesce(ids, '{}');
end
$$;

-- Enqueues each message that may be enqueued, and returns the ids in the order of the
-- messages; null stands for a message that was not enqueued (tocsin.enqueue raises the
-- reason). A role that may not enqueue to the queue is refused. The messages are a JSON
-- array of objects whose members are arguments of tocsin.enqueue, except key. A message
-- with a key may have to wait for the end of another transaction, and all messages of
-- the call would wait with it.
create or replace function tocsin.enqueue_each(queue text, messages jsonb) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin.find_queue(queue);
    t timestamptz := tocsin._clock();
    unfit jsonb[];  -- payloads that break a rule of the queue
    ids bigint[];
begin
    if not tocsin._is_owner() then
        perform tocsin._check_enqueue(q, m.worker_id)
        from (select distinct x.worker_id
              from jsonb_to_recordset(messages) as x (worker_id bigint)) m;
    end if;
    perform tocsin._check_job(m.task, tocsin._add_order(m.options, m.ordered_by))
    from jsonb_to_recordset(messages) as m (task text, options jsonb, ordered_by text)
    where m.task is not null or m.options is not null or m.ordered_by is not null;
    if q.ruled then
        select array_agg(p.payload) into unfit
        from jsonb_array_elements(messages) m
        cross join lateral (select coalesce(m -> 'payload', 'null')) p (payload)
        where tocsin._find_violation(jsonb_build_array(p.payload), q) is not null;
    end if;
    with given as materialized (
        select nextval('tocsin.messages_id_seq') as id, coalesce(m.payload, 'null') as payload,
            coalesce(m.at, tocsin._later(t, m.delay), t) as due_at,
               m.delay, m.at, m.priority, m.headers, m.expires_in, m.max_deliveries, m.worker_id,
               m.task, tocsin._add_order(m.options, m.ordered_by) as options
        from jsonb_to_recordset(messages) as m (payload jsonb, delay interval, at timestamptz,
                                                priority integer, headers jsonb,
                                                expires_in interval, max_deliveries integer,
                                                ordered_by text, worker_id bigint, task text,
                                                options jsonb)
    ), added as (
        insert into tocsin.messages (id, queue_id, priority, state, due, vt, enqueued_at,
                                     expires_at, producer_worker_id, max_deliveries,
                                     payload, headers, task, options)
        select g.id, q.id, coalesce(g.priority, 0), case when g.due_at > t
            then 'delayed'::tocsin.message_state else 'ready' end,
               g.due_at, g.due_at, t, tocsin._later(t, g.expires_in), g.worker_id, g.max_deliveries,
               g.payload, g.headers, g.task, g.options
        from given g
        where tocsin._is_valid(g.payload, q.max_payload, g.delay, g.at, g.expires_in,
                               g.max_deliveries)
          and (octet_length(g.headers::text) > q.max_payload) is not true
          and (unfit is null or g.payload <> all (unfit))
          and (g.worker_id is null or tocsin._is_active(g.worker_id))
        returning id
    )
    select array_agg(a.id order by g.id) into ids from given g left join added a on a.id = g.id;
    return coalesce(ids, '{}');
end
$$;
