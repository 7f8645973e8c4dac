-- Queues and their settings. A setting that is null or not given has the column's
-- default in a new queue, and is unchanged in an existing queue.

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
    perform tocsin._raise_error('TC001', format('queue "%s" does not exist', queue),
                                jsonb_build_object('queue', queue),
                          'Create the queue first, for example with ensure_queue.');
end
$$;

-- Creates a queue with the default settings; returns its id, or null when the queue
-- exists. The function also writes the queue's row of archive_policies. A trigger for
-- that could be off.
create or replace function tocsin._add_queue(queue text) returns integer
language sql
as $$
    with added as (
        insert into tocsin.queues (name, created_at, channel)
            values (queue, tocsin._clock(), tocsin.queue_channel(queue))
        on conflict (name) do nothing
        returning id, retention
    ), noted as (
        insert into tocsin.archive_policies (queue_id, retention) select a.id, a.retention
            from added a
    )
    select a.id from added a
$$;

-- The settings of a queue are columns of the table queues, and no other SQL lists them:
-- this block creates the four functions that take each setting by name.
do $do$
declare
    parameters text;
    arguments text;
    assignments text;
begin
    select string_agg(format('%I %s default null', s.name, s.type), ', ' order by s.n),
           string_agg(format('%I', s.name), ', ' order by s.n),
           string_agg(format('%1$I = coalesce(_change_queue.%1$I, q.%1$I)', s.name), ', '
                      order by s.n)
    into parameters, arguments, assignments
    from (select a.attname, format_type(a.atttypid, a.atttypmod), a.attnum
          from pg_catalog.pg_attribute a
          where a.attrelid = 'tocsin.queues'::regclass and a.attnum > 0 and not a.attisdropped
              and a.attgenerated = ''
            and a.attname not in ('id', 'name', 'paused_at', 'created_at', 'channel')) s (name,
                type, n);

    -- Changes the settings that are not null. They apply from now on, in every process.
    execute format($f$
create or replace function tocsin.%s(queue_id integer, %s) returns tocsin.queues
language plpgsql
as $$
#variable_conflict use_column
declare
    changed tocsin.queues;
begin
    update tocsin.queues q set %s where q.id = queue_id returning q.* into changed;
    update tocsin.archive_policies a set retention = changed.retention
        where a.queue_id = changed.id and a.retention <> changed.retention;
    return changed;
end
$$
    $f$, '_change_queue', parameters, assignments);

    -- Creates a queue.
    execute format($f$
create or replace function tocsin.%s(queue text, %s) returns tocsin.queues
language plpgsql
as $$
declare
    queue_id integer := tocsin._add_queue(queue);
begin
    if queue_id is null then
        perform tocsin._raise_error('TC002', format('queue "%%s" exists already', queue),
                                    jsonb_build_object('queue', queue),
                              'ensure_queue accepts an existing queue.');
    end if;
    return tocsin._change_queue(queue_id, %s);
end
$$
    $f$, 'create_queue', parameters, arguments);

    -- Creates a queue or, when it exists, changes the settings that are given. Each
    -- statement has its own snapshot: the insert waits for a concurrent creation, and
    -- the next statement sees that queue. Both are repeated when the queue is deleted
    -- in between.
    execute format($f$
create or replace function tocsin.%s(queue text, %s) returns tocsin.queues
language plpgsql
as $$
declare
    ensured tocsin.queues;
    queue_id integer;
begin
    while ensured.id is null loop
        queue_id := tocsin._add_queue(queue);
        if queue_id is null then
            select q.id into queue_id from tocsin.queues q where q.name = queue;
        end if;
        ensured := tocsin._change_queue(queue_id, %s);
    end loop;
    return ensured;
end
$$
    $f$, 'ensure_queue', parameters, arguments);

    -- Changes settings of a queue.
    execute format($f$
create or replace function tocsin.%s(queue text, %s) returns tocsin.queues
language plpgsql
as $$
begin
    return tocsin._change_queue((tocsin.find_queue(queue)).id, %s);
end
$$
    $f$, 'update_queue', parameters, arguments);
end
$do$;

create or replace function tocsin.list_queues() returns setof tocsin.queues
language sql stable
as $$ select q.* from tocsin.queues q order by q.name $$;

-- Pauses a queue. Consumers of every process stop claiming at once, because each claim
-- reads the column `paused_at`. Enqueueing continues.
create or replace function tocsin.pause_queue(queue text) returns tocsin.queues
language plpgsql
as $$
declare
    paused tocsin.queues := tocsin.find_queue(queue);
begin
    update tocsin.queues q set paused_at = coalesce(q.paused_at, tocsin._clock())
        where q.id = paused.id returning q.* into paused;
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
