-- Queues and their settings. A null setting means the column's default (create) or no change.

create or replace function tocsin.find_queue(queue text) returns tocsin.queues
language plpgsql stable
as $$
declare
    found_queue tocsin.queues;
begin
    select q.* into found_queue from tocsin.queues q where q.name = queue;
    if not found then
        perform tocsin.refuse('TC001', format('queue "%s" does not exist', queue), jsonb_build_object('queue', queue),
                              'Create it first, for example with ensure_queue.');
    end if;
    return found_queue;
end
$$;

-- Creates the queue, or returns null when it exists.
create or replace function tocsin.add_queue(
    queue text, vt interval, max_deliveries integer, retry_base interval, retry_factor float8, retry_max interval, retry_jitter float8,
    max_payload integer, notify text
) returns tocsin.queues
language sql
as $$
    insert into tocsin.queues (name, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, notify,
                               created_at, channel)
    values (queue, coalesce(vt, '30 s'), coalesce(max_deliveries, 5), coalesce(retry_base, '1 s'), coalesce(retry_factor, 2),
            coalesce(retry_max, '1 h'), coalesce(retry_jitter, 0.2), coalesce(max_payload, 1048576), coalesce(notify, 'asleep'),
            tocsin.clock(), tocsin.queue_channel(queue))
    on conflict (name) do nothing
    returning *
$$;

create or replace function tocsin.create_queue(
    queue text, vt interval default null, max_deliveries integer default null, retry_base interval default null,
    retry_factor float8 default null, retry_max interval default null, retry_jitter float8 default null, max_payload integer default null,
    notify text default null
) returns tocsin.queues
language plpgsql
as $$
declare
    created tocsin.queues;
begin
    created := tocsin.add_queue(queue, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, notify);
    if created.id is null then
        perform tocsin.refuse('TC002', format('queue "%s" exists already', queue), jsonb_build_object('queue', queue),
                              'Use ensure_queue if that is fine.');
    end if;
    return created;
end
$$;

-- Creates the queue or, when it exists, changes the settings that were given.
create or replace function tocsin.ensure_queue(
    queue text, vt interval default null, max_deliveries integer default null, retry_base interval default null,
    retry_factor float8 default null, retry_max interval default null, retry_jitter float8 default null, max_payload integer default null,
    notify text default null
) returns tocsin.queues
language plpgsql
as $$
#variable_conflict use_column
declare
    ensured tocsin.queues;
begin
    ensured := tocsin.add_queue(queue, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, notify);
    if ensured.id is null then
        update tocsin.queues q
        set vt = coalesce(ensure_queue.vt, q.vt),
            max_deliveries = coalesce(ensure_queue.max_deliveries, q.max_deliveries),
            retry_base = coalesce(ensure_queue.retry_base, q.retry_base),
            retry_factor = coalesce(ensure_queue.retry_factor, q.retry_factor),
            retry_max = coalesce(ensure_queue.retry_max, q.retry_max),
            retry_jitter = coalesce(ensure_queue.retry_jitter, q.retry_jitter),
            max_payload = coalesce(ensure_queue.max_payload, q.max_payload),
            notify = coalesce(ensure_queue.notify, q.notify)
        where q.name = queue
        returning q.* into ensured;
    end if;
    return ensured;
end
$$;

create or replace function tocsin.list_queues() returns setof tocsin.queues
language sql stable
as $$ select q.* from tocsin.queues q order by q.name $$;

-- Consumers stop claiming at once, in every process, since each claim looks here; enqueueing goes on.
create or replace function tocsin.pause_queue(queue text) returns tocsin.queues
language plpgsql
as $$
declare
    paused tocsin.queues := tocsin.find_queue(queue);
begin
    update tocsin.queues q set paused_at = coalesce(q.paused_at, tocsin.clock()) where q.id = paused.id returning q.* into paused;
    return paused;
end
$$;

create or replace function tocsin.resume_queue(queue text) returns tocsin.queues
language plpgsql
as $$
declare
    resumed tocsin.queues := tocsin.find_queue(queue);
begin
    update tocsin.queues q set paused_at = null where q.id = resumed.id returning q.* into resumed;
    perform tocsin.ring(resumed.id);
    return resumed;
end
$$;
