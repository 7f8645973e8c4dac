-- Maintenance: the work that is done once a minute. The answer to a heartbeat elects
-- the process of one consumer to do it, so maintenance costs no statement while it is
-- not due. A cron job can do it with `tocsin admin maintain`.
--
-- Maintenance holds up no session that uses the archive for much longer than a tenth of
-- a second. To drop a partition, it waits until no session uses the archive, and
-- sessions that use the archive later wait behind it. So the drop gives up soon
-- (`lock_timeout`), and is tried again the next time: while a report reads the archive
-- for an hour, expired partitions stay for an hour. For the same reason the drop is the
-- last step before the commit. All work is done in batches. `more` says that there is
-- more to do now, also when a partition was created, which is used only after the next
-- call.
--
-- Each part is separate: a part that fails undoes no other part, and `problems` says
-- why it failed. In a user's database a tablespace may be full, an event trigger may
-- refuse a new table, or a trigger may refuse the deletion of a row. Rows without a
-- partition go to archive_rest.

-- Does one batch of each part. While another session does maintenance, the call does
-- nothing (`elected` is false).
create or replace function tocsin.maintain(
    out elected boolean, out partitions_created integer, out partitions_dropped integer,
    out archived_deleted bigint,
    out dead_letters_purged bigint, out orphans_deleted bigint, out workers_purged bigint,
    out more boolean, out problems text[]
)
language plpgsql
as $$
declare
    rows constant integer := 10000;
    tables constant integer := 10;
    problem text;
begin
    elected := pg_try_advisory_xact_lock(tocsin._lock_key('maintain', 0));
    partitions_created := 0;
    partitions_dropped := 0;
    archived_deleted := 0;
    dead_letters_purged := 0;
    orphans_deleted := 0;
    workers_purged := 0;
    more := false;
    problems := '{}';
    if not elected then
        return;
    end if;
    begin
        perform tocsin._correct_future_times();
    exception when others then
        problems := problems || format('times in the future are not corrected: %s', sqlerrm);
    end;
    begin
        perform tocsin._publish_partitions();
    exception when others then
        problems := problems || format('partitions of the archive are not published: %s', sqlerrm);
    end;
    begin
        select a.added, a.problem into partitions_created, problem from tocsin._add_partitions() a;
        if problem is not null then
            problems := problems
                || format('a partition of the archive cannot be created: %s', problem);
        end if;
    exception when others then
        problems := problems || format('partitions of the archive are not created: %s', sqlerrm);
    end;
    begin
        perform tocsin._end_flows(rows);
    exception when others then
        problems := problems || format('flows are not ended: %s', sqlerrm);
    end;
    begin
        archived_deleted := tocsin._delete_expired(rows);
    exception when others then
        problems := problems
            || format('expired messages of the archive are not deleted: %s', sqlerrm);
    end;
    begin
        dead_letters_purged := tocsin._purge_expired_dead_letters(rows);
    exception when others then
        problems := problems || format('expired dead letters are not deleted: %s', sqlerrm);
    end;
    begin
        orphans_deleted := tocsin._sweep_orphans(rows);
    exception when others then
        problems := problems || format('messages of deleted queues are not deleted: %s', sqlerrm);
    end;
    begin
        workers_purged := tocsin._purge_stopped_workers(rows);
    exception when others then
        problems := problems
            || format('workers that were stopped long ago are not deleted: %s', sqlerrm);
    end;
    begin
        perform tocsin._forget_ended_sessions();
    exception when others then
        problems := problems
            || format('waits of ended sessions are not deleted: %s', sqlerrm);
    end;
    begin
        perform tocsin._restore_ticks();
    exception when others then
        problems := problems || format('ticks of schedules are not enqueued: %s', sqlerrm);
    end;
    begin
        perform tocsin._roll_up_count_deltas();
    exception when others then
        problems := problems || format('counts of archived messages are not added up: %s', sqlerrm);
    end;
    begin
        select d.dropped, d.problem into partitions_dropped, problem
            from tocsin._drop_expired_partitions(tables) d;
        if problem is not null then
            problems := problems
                || format('a partition of the archive cannot be dropped: %s', problem);
        end if;
    exception when others then
        problems := problems
            || format('expired partitions of the archive are not dropped: %s', sqlerrm);
    end;
    more := partitions_created > 0 or archived_deleted >= rows or dead_letters_purged >= rows
        or orphans_deleted >= rows
            or workers_purged >= rows or partitions_dropped >= tables;
end
$$;

-- Returns whether maintenance is due and this process, which has consumers, is elected
-- to do it. Maintenance is due once a minute, so a due time further in the future was
-- written while the clock was ahead.
create or replace function tocsin._elect_maintainer(process_id bigint) returns boolean
language plpgsql
as $$
declare
    t timestamptz := tocsin._clock();
begin
    perform from tocsin.maintenance m where m.due_at <= t or m.due_at > t + interval '2 minutes'
        for update skip locked;
    if not found then
        return false;
    end if;
    update tocsin.maintenance m
    set due_at = t + interval '1 minute', clock_was_ahead = m.clock_was_ahead
        or m.due_at > t + interval '2 minutes'
    where exists (select from tocsin.workers w
                  where w.process_id = _elect_maintainer.process_id and w.kind = 'consumer');
    return found;
end
$$;

-- Deletes workers that were stopped long ago, and returns how many. Producers, which
-- short jobs register and leave behind, are deleted after a day, consumers after thirty
-- days. Messages, dead letters and the archive keep the workers' ids, and a history
-- keeps their names.
create or replace function tocsin._purge_stopped_workers(most integer) returns bigint
language plpgsql
as $$
declare
    t timestamptz := tocsin._clock();
    purged bigint;
begin
    delete from tocsin.workers w
    where w.status = 'stopped' and w.id = any (array(
        select x.id from tocsin.workers x
        where x.status = 'stopped'
          and x.shutdown_at <= t - case x.kind when 'producer' then interval '24 hours'
              else interval '720 hours' end
        limit most for update skip locked));
    get diagnostics purged = row_count;
    return purged;
end
$$;

-- Returns the partitions that exist, except archive_rest. The name of a partition tells
-- its range.
create or replace function tocsin._archive_partitions()
    returns table (name text, span integer, starts_at timestamptz, ends_at timestamptz)
language sql stable
as $$
    select p.relname, p.span, p.starts_at, p.starts_at + make_interval(hours => p.span)
    from (select c.relname::text, n[1]::integer as span,
                 make_timestamptz(n[2]::integer, n[3]::integer, n[4]::integer, n[5]::integer, 0, 0,
                                  'UTC') as starts_at
          from pg_catalog.pg_inherits i
          join pg_catalog.pg_class c on c.oid = i.inhrelid
          cross join lateral regexp_match(
              c.relname, '^archive_([0-9]+)h_([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})$') n
          where i.inhparent = 'tocsin.archive'::regclass and n is not null) p
$$;

-- Returns the two partitions that each queue needs: the partition for messages that are
-- archived now, and the next one.
create or replace function tocsin._wanted_partitions()
    returns table (queue_id integer, span integer, starts_at timestamptz)
language sql volatile
as $$
    select a.queue_id, a.span,
        tocsin._archive_slot(a.span, a.keep_until) + make_interval(hours => ahead * a.span)
    from (select x.queue_id, tocsin._archive_span(x.retention) as span,
          tocsin._keep_until(x.retention, tocsin._clock()) as keep_until
          from tocsin.archive_policies x where x.retention > '0 s') a
    cross join generate_series(0, 1) ahead
    where a.span > 0
$$;

-- Publishes the partitions that may be used: the partitions that this statement sees,
-- because they were committed before it.
create or replace function tocsin._publish_partitions() returns void
language sql
as $$
    -- create_queue and update_queue write this row. A queue that was changed or
    -- restored by other means lacks it.
    insert into tocsin.archive_policies (queue_id, retention)
    select q.id, q.retention from tocsin.queues q
    where not exists (select from tocsin.archive_policies a where a.queue_id = q.id)
        on conflict (queue_id) do nothing;
    update tocsin.archive_policies a set retention = n.retention
    from (select x.queue_id, q.retention from tocsin.archive_policies x
          join tocsin.queues q on q.id = x.queue_id
          where x.retention <> q.retention for update of x skip locked) n
    where a.queue_id = n.queue_id;
    with there as (
        select w.queue_id, w.span, tstzrange(min(p.starts_at), max(p.ends_at)) as times
        from tocsin._wanted_partitions() w
        join tocsin._archive_partitions() p on p.span = w.span and p.starts_at = w.starts_at
        group by w.queue_id, w.span
    )
    update tocsin.archive_policies a
    set span = coalesce(n.span, 0), covered = coalesce(n.times, 'empty'),
        since = pg_catalog.clock_timestamp()
    from (select x.queue_id, t.span, t.times from tocsin.archive_policies x left
          join there t on t.queue_id = x.queue_id
          for update of x skip locked) n
    where a.queue_id = n.queue_id
      and ((a.span, a.covered) is distinct from (coalesce(n.span, 0), coalesce(n.times, 'empty'))
           or a.span > 0 and a.since > pg_catalog.clock_timestamp() + interval '1 s')
$$;

-- Creates the partitions that are missing. Returns how many, and why one could not be
-- created.
create or replace function tocsin._add_partitions(out added integer, out problem text)
language plpgsql
as $$
declare
    missing record;
    refusal text;
begin
    added := 0;
    for missing in
        select w.span, w.starts_at from tocsin._wanted_partitions() w
        except select p.span, p.starts_at from tocsin._archive_partitions() p
        order by 1, 2
    loop
        refusal := tocsin._add_partition(missing.span, missing.starts_at);
        added := added + (refusal is null)::integer;
        problem := coalesce(problem, nullif(refusal, ''));
    end loop;
end
$$;

-- Creates one partition. Returns null when it was created, '' when another session is
-- changing the archive, and otherwise the reason why it could not be created.
create or replace function tocsin._add_partition(span integer, starts_at timestamptz) returns text
language plpgsql
set lock_timeout = '100ms' set timezone = 'UTC' set datestyle = 'ISO'
as $$
declare
    name text := format('archive_%sh_%s', span, to_char(starts_at, 'YYYYMMDDHH24'));
begin
    -- The partition is created on its own and then attached. Neither step waits for a
    -- reader or writer of the archive, and no reader or writer waits for it.
    execute format('create table tocsin.%I (like tocsin.archive including indexes)', name);
    execute format('alter table tocsin.%I replica identity full', name);
    perform tocsin._apply_privileges(only_table => format('tocsin.%I', name)::regclass);
    execute format('alter table tocsin.archive attach partition tocsin.%I '
                   'for values from (%s, %L) to (%s, %L)',
                   name, span, starts_at, span, starts_at + make_interval(hours => span));
    return null;
exception
    when lock_not_available or duplicate_table then return '';
    when others then return sqlerrm;
end
$$;

-- Drops the partitions whose time is over, with their counts. Returns how many, and why
-- one could not be dropped.
create or replace function tocsin._drop_expired_partitions(most integer, out dropped integer,
                                                           out problem text)
language plpgsql
set lock_timeout = '100ms'
as $$
declare
    -- a transaction may have chosen its partition earlier, and write to it now
    over_at timestamptz := tocsin._clock() - interval '1 minute';
    expired record;
begin
    dropped := 0;
    if not exists (select from tocsin._archive_partitions() p where p.ends_at <= over_at) then
        return;
    end if;
    begin
        -- from here on no session uses the archive or counts its rows
        lock table only tocsin.archive in access exclusive mode;
    exception when lock_not_available then
        return;
    end;
    for expired in select p.* from tocsin._archive_partitions() p where p.ends_at <= over_at
        order by p.ends_at limit most loop
        begin
            -- vacuum may be processing the partition
            execute format('lock table tocsin.%I in access exclusive mode nowait', expired.name);
            execute format('drop table tocsin.%I', expired.name);
            delete from tocsin.archived_counts c
                where c.span = expired.span and c.starts_at = expired.starts_at;
            delete from tocsin.archive_count_deltas y
            where y.span = expired.span
                and tocsin._archive_slot(y.span, y.keep_until) = expired.starts_at;
            dropped := dropped + 1;
        exception
            when lock_not_available then null;
            when others then problem := coalesce(problem, sqlerrm);
        end;
    end loop;
end
$$;

-- Deletes expired rows from archive_rest; returns how many.
create or replace function tocsin._delete_expired(most integer) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
declare
    t timestamptz := tocsin._clock();
    expired tid[];
    gone bigint;
begin
    select array_agg(x.ctid) into expired
    from (select r.ctid from tocsin.archive_rest r
          where r.keep_until < '9999-01-01+00' and r.keep_until <= t
          order by r.keep_until limit most for update skip locked) x;
    with deleted as (
        delete from tocsin.archive_rest r where r.ctid = any (expired) returning r.queue_id
    ), counted as (
        insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select d.queue_id, 0, t, t, -count(*) from deleted d group by d.queue_id
    )
    select count(*) into gone from deleted;
    return gone;
end
$$;

-- Deletes the dead letters whose retention is over; returns how many.
create or replace function tocsin._purge_expired_dead_letters(most integer) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set jit = off
as $$
declare
    t timestamptz := tocsin._clock();
    queue record;
    purged bigint := 0;
    n bigint;
begin
    for queue in select q.id, tocsin._later(t, -q.dead_letter_retention) as before
        from tocsin.queues q where q.dead_letter_retention < '1000 years' loop
        delete from tocsin.dead_letters d
        where d.id = any (array(
            select x.id from tocsin.dead_letters x
                where x.queue_id = queue.id and x.died_at <= queue.before
                    and (x.flow_id is null or not exists (
                        select from tocsin.flows f where f.id = x.flow_id and f.ended_at is null))
            order by x.died_at limit most - purged for update skip locked));
        get diagnostics n = row_count;
        purged := purged + n;
        exit when purged >= most;
    end loop;
    return purged;
end
$$;

-- Adds the deltas that are older than a minute, which settle_rate no longer needs, to
-- archived_counts.
create or replace function tocsin._roll_up_count_deltas() returns void
language sql
as $$
    delete from tocsin.archived_counts c
        where not exists (select from tocsin.queues q where q.id = c.queue_id);
    with taken as (
        delete from tocsin.archive_count_deltas y
            where y.archived_at <= tocsin._clock() - interval '1 minute' returning y.*
    )
    insert into tocsin.archived_counts as c (queue_id, span, starts_at, n)
    select y.queue_id, y.span, tocsin._archive_slot(y.span, y.keep_until), sum(y.n)
    from taken y join tocsin.queues q on q.id = y.queue_id
    where y.span is not null
    group by 1, 2, 3
    on conflict (queue_id, span, starts_at) do update set n = c.n + excluded.n
$$;
