-- Enqueueing: from any language, with any driver, in any transaction. The insert trigger on messages rings.

-- The one INSERT. Returns the ids in the order of the payloads; fewer when the key is taken.
create or replace function tocsin.insert_messages(
    queue tocsin.queues, payloads jsonb[], delay interval, at timestamptz, priority integer, headers jsonb, key text,
    expires_in interval, max_deliveries integer, worker_id bigint
) returns bigint[]
language plpgsql
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin.clock();
    due_at timestamptz := coalesce(at, t + delay, t);
    inserted bigint[];
begin
    with added as (
        insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, expires_at, producer_worker_id,
                                     max_deliveries, key, payload, headers)
        select queue.id, coalesce(insert_messages.priority, 0),
               (case when due_at > t then 'scheduled' else 'ready' end)::tocsin.message_state,
               due_at, due_at, t, t + expires_in, worker_id,
               insert_messages.max_deliveries, insert_messages.key, p.payload, insert_messages.headers
        from unnest(payloads) with ordinality as p (payload, n)
        order by p.n
        on conflict (queue_id, key) where key is not null do nothing
        returning id
    )
    select array_agg(id order by id) into inserted from added;
    return inserted;
end
$$;

-- Refuses what can be refused before a row is written, and returns the queue.
create or replace function tocsin.admit(
    queue text, payloads jsonb[], delay interval, at timestamptz, expires_in interval, max_deliveries integer, worker_id bigint
) returns tocsin.queues
language plpgsql
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
    large record;
begin
    if worker_id is not null then
        perform tocsin.check_active(worker_id, 'enqueue');
    end if;
    if delay < '0 s' then
        perform tocsin.refuse('TC022', 'delay must not be negative', '{"argument": "delay"}');
    elsif delay is not null and at is not null then
        perform tocsin.refuse('TC022', 'give delay or at, not both', '{"argument": "at"}');
    elsif expires_in <= '0 s' then
        perform tocsin.refuse('TC022', 'expires_in must be positive', '{"argument": "expires_in"}');
    elsif max_deliveries <= 0 then
        perform tocsin.refuse('TC022', 'max_deliveries must be positive', '{"argument": "max_deliveries"}');
    end if;
    -- The text of the whole array, with its quotes and escapes, is longer than any of its elements.
    if octet_length(payloads::text) > q.max_payload then
        select p.n - 1 as index, octet_length(p.payload::text) as actual into large
        from unnest(payloads) with ordinality as p (payload, n)
        where octet_length(p.payload::text) > q.max_payload
        order by p.n limit 1;
        if found then
            perform tocsin.refuse('TC003',
                format('payload %s of %s bytes exceeds the limit of queue "%s", %s bytes', large.index, large.actual, queue, q.max_payload),
                jsonb_build_object('actual', large.actual, 'maximum', q.max_payload, 'index', large.index),
                'Store the data elsewhere and enqueue a reference, or raise the queue''s max_payload.');
        end if;
    end if;
    return q;
end
$$;

-- Enqueues one message and returns its id. With a key: at most one unfinished message per key; a second enqueue returns the first one's id.
create or replace function tocsin.enqueue(
    queue text, payload jsonb, delay interval default null, at timestamptz default null, priority integer default 0,
    headers jsonb default null, key text default null, expires_in interval default null, max_deliveries integer default null,
    worker_id bigint default null
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin.admit(queue, array[payload], delay, at, expires_in, max_deliveries, worker_id);
    message_id bigint;
begin
    -- The holder of the key may finish between our two statements: then the key is free, and the insert is tried again.
    loop
        message_id := (tocsin.insert_messages(q, array[payload], delay, at, priority, headers, key, expires_in, max_deliveries, worker_id))[1];
        exit when message_id is not null;
        select m.id into message_id from tocsin.messages m where m.queue_id = q.id and m.key = enqueue.key;
        exit when found;
        if current_setting('transaction_isolation') <> 'read committed' then
            raise serialization_failure using message = format('key "%s" was taken by a transaction that this one cannot see', enqueue.key),
                hint = 'Try the transaction again.';
        end if;
    end loop;
    return message_id;
end
$$;

-- Enqueues all of the payloads or, on any refusal, none; returns the ids in their order.
create or replace function tocsin.enqueue_many(
    queue text, payloads jsonb[], delay interval default null, at timestamptz default null, priority integer default 0,
    headers jsonb default null, expires_in interval default null, max_deliveries integer default null, worker_id bigint default null
) returns bigint[]
language plpgsql
as $$
declare
    q tocsin.queues := tocsin.admit(queue, payloads, delay, at, expires_in, max_deliveries, worker_id);
begin
    return coalesce(tocsin.insert_messages(q, payloads, delay, at, priority, headers, null, expires_in, max_deliveries, worker_id), '{}');
end
$$;
