-- Queues and their settings. A setting that is null or not given: the column's default
-- (create_queue), or no change.

create or replace function tocsin.find_queue(queue text) returns tocsin.queues
language plpgsql stable
as $$
declare
    found_queue tocsin.queues;
begin
    select q.* into found_queue from tocsin.queues q where q.name = queue;
    if not found then
        perform tocsin._refuse_missing(queue);
    end if;
    return found_queue;
end
$$;

create or replace function tocsin._refuse_missing(queue text) returns void
language plpgsql stable
as $$
begin
    perform tocsin._raise_error('TC001', format('queue "%s" does not exist', queue), jsonb_build_object('queue', queue),
                          'Create it first, for example with ensure_queue.');
end
$$;

-- Creates a queue with the default settings; returns its id, or null when it exists. No
-- trigger does the part of the archive: triggers may be off.
create or replace function tocsin._add_queue(queue text) returns integer
language sql
as $$
    with added as (
        insert into tocsin.queues (name, created_at, channel) values (queue, tocsin._clock(), tocsin.queue_channel(queue))
        on conflict (name) do nothing
        returning id, retention
    ), noted as (
        insert into tocsin.archive_policies (queue_id, retention) select a.id, a.retention from added a
    )
    select a.id from added a
$$;

create or replace function tocsin._change_queue(
    queue_id integer, vt interval, max_deliveries integer, retry_base interval, retry_factor float8, retry_max interval,
    retry_jitter float8, max_payload integer, max_string integer, max_depth integer, required_keys text[], forbidden_keys text[],
    retention interval, dead_letter_retention interval, notify text
) returns tocsin.queues
language plpgsql
as $$
#variable_conflict use_column
declare
    changed tocsin.queues;
begin
    update tocsin.queues q
        set vt = coalesce(_change_queue.vt, q.vt),
            max_deliveries = coalesce(_change_queue.max_deliveries, q.max_deliveries),
            retry_base = coalesce(_change_queue.retry_base, q.retry_base),
            retry_factor = coalesce(_change_queue.retry_factor, q.retry_factor),
            retry_max = coalesce(_change_queue.retry_max, q.retry_max),
            retry_jitter = coalesce(_change_queue.retry_jitter, q.retry_jitter),
            max_payload = coalesce(_change_queue.max_payload, q.max_payload),
            max_string = coalesce(_change_queue.max_string, q.max_string),
            max_depth = coalesce(_change_queue.max_depth, q.max_depth),
            required_keys = coalesce(_change_queue.required_keys, q.required_keys),
            forbidden_keys = coalesce(_change_queue.forbidden_keys, q.forbidden_keys),
            retention = coalesce(_change_queue.retention, q.retention),
            dead_letter_retention = coalesce(_change_queue.dead_letter_retention, q.dead_letter_retention),
            notify = coalesce(_change_queue.notify, q.notify)
    where q.id = queue_id
    returning q.* into changed;
    update tocsin.archive_policies a set retention = changed.retention where a.queue_id = changed.id and a.retention <> changed.retention;
    return changed;
end
$$;

create or replace function tocsin.create_queue(
    queue text, vt interval default null, max_deliveries integer default null, retry_base interval default null,
    retry_factor float8 default null, retry_max interval default null, retry_jitter float8 default null, max_payload integer default null,
    max_string integer default null, max_depth integer default null, required_keys text[] default null,
    forbidden_keys text[] default null, retention interval default null, dead_letter_retention interval default null,
    notify text default null
) returns tocsin.queues
language plpgsql
as $$
declare
    queue_id integer := tocsin._add_queue(queue);
begin
    if queue_id is null then
        perform tocsin._raise_error('TC002', format('queue "%s" exists already', queue), jsonb_build_object('queue', queue),
                              'Use ensure_queue if that is fine.');
    end if;
    return tocsin._change_queue(
        queue_id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string, max_depth,
        required_keys, forbidden_keys, retention, dead_letter_retention, notify);
end
$$;

-- Creates the queue or, when it exists, changes the settings that were given.
create or replace function tocsin.ensure_queue(
    queue text, vt interval default null, max_deliveries integer default null, retry_base interval default null,
    retry_factor float8 default null, retry_max interval default null, retry_jitter float8 default null, max_payload integer default null,
    max_string integer default null, max_depth integer default null, required_keys text[] default null,
    forbidden_keys text[] default null, retention interval default null, dead_letter_retention interval default null,
    notify text default null
) returns tocsin.queues
language plpgsql
as $$
declare
    ensured tocsin.queues;
    queue_id integer;
begin
    -- Statements of their own, each with a snapshot of its own: adding waits for
    -- another that creates the queue, and what that has committed is to be seen. Again
    -- when the queue is deleted in between.
    while ensured.id is null loop
        queue_id := tocsin._add_queue(queue);
        if queue_id is null then
            select q.id into queue_id from tocsin.queues q where q.name = queue;
        end if;
        ensured := tocsin._change_queue(
            queue_id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string, max_depth,
            required_keys, forbidden_keys, retention, dead_letter_retention, notify);
    end loop;
    return ensured;
end
$$;

-- Changes the settings that were given; they count from now on, for every process.
create or replace function tocsin.update_queue(
    queue text, vt interval default null, max_deliveries integer default null, retry_base interval default null,
    retry_factor float8 default null, retry_max interval default null, retry_jitter float8 default null, max_payload integer default null,
    max_string integer default null, max_depth integer default null, required_keys text[] default null,
    forbidden_keys text[] default null, retention interval default null, dead_letter_retention interval default null,
    notify text default null
) returns tocsin.queues
language plpgsql
as $$
begin
    return tocsin._change_queue(
        (tocsin.find_queue(queue)).id, vt, max_deliveries, retry_base, retry_factor, retry_max, retry_jitter, max_payload, max_string,
        max_depth, required_keys, forbidden_keys, retention, dead_letter_retention, notify);
end
$$;

create or replace function tocsin.list_queues() returns setof tocsin.queues
language sql stable
as $$ select q.* from tocsin.queues q order by q.name $$;

-- Consumers stop claiming at once, in every process, since each claim looks here;
-- enqueueing goes on.
create or replace function tocsin.pause_queue(queue text) returns tocsin.queues
language plpgsql
as $$
declare
    paused tocsin.queues := tocsin.find_queue(queue);
begin
    update tocsin.queues q set paused_at = coalesce(q.paused_at, tocsin._clock()) where q.id = paused.id returning q.* into paused;
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
    perform tocsin._ring(resumed.id);
    return resumed;
end
$$;
