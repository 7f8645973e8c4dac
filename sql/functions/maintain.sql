-- Maintenance: what is done now and then, by whoever is there. Any consumer's process does it, as its heartbeat tells it to: once a minute in the
-- whole database, whoever comes first; so it costs no statement while it is not due. Or a cron job does, by `tocsin admin maintain`.
--
-- It keeps nobody waiting for much longer than a tenth of a second. Dropping a partition takes a lock that no user of the archive may hold,
-- and while it waits for that, all who come later wait behind it. So it gives up soon (`lock_timeout`), and tries again the next time; a
-- report that reads the archive for an hour keeps what has expired there for an hour. It is the last thing that is done before the commit.
-- So all goes in batches, and `more` says that there is more to do now; also when a partition was made, which is used only after the next call.

-- One call's part of the work. A second caller while it is under way has nothing done (`elected` is false).
create or replace function tocsin.maintain(
    out elected boolean, out partitions_created integer, out partitions_dropped integer, out archived_deleted bigint,
    out dead_letters_purged bigint, out orphans_deleted bigint, out more boolean
)
language plpgsql
as $$
declare
    rows constant integer := 10000;
    tables constant integer := 10;
begin
    elected := pg_try_advisory_xact_lock(tocsin.lock_key('maintain', 0));
    partitions_created := 0;
    partitions_dropped := 0;
    archived_deleted := 0;
    dead_letters_purged := 0;
    orphans_deleted := 0;
    more := false;
    if elected then
        perform tocsin.cover_archive();
        partitions_created := tocsin.add_partitions();
        archived_deleted := tocsin.delete_expired(rows);
        dead_letters_purged := tocsin.purge_expired_dead_letters(rows);
        orphans_deleted := tocsin.sweep_orphans(rows);
        perform tocsin.roll_up_tallies();
        partitions_dropped := tocsin.drop_expired_partitions(tables);
        more := partitions_created > 0 or archived_deleted >= rows or dead_letters_purged >= rows or orphans_deleted >= rows
                or partitions_dropped >= tables;
    end if;
end
$$;

-- Whether maintenance is due and this process, which consumes, is the one to do it.
create or replace function tocsin.take_maintenance(process_id bigint) returns boolean
language plpgsql
as $$
declare
    t timestamptz := tocsin.clock();
begin
    perform from tocsin.maintenance m where m.due_at <= t for update skip locked;
    if not found then
        return false;
    end if;
    update tocsin.maintenance m set due_at = t + interval '1 minute'
    where exists (select from tocsin.workers w where w.process_id = take_maintenance.process_id and w.kind = 'consumer');
    return found;
end
$$;

-- The partitions that there are, beside archive_rest; their names say what they are for.
create or replace function tocsin.archive_partitions() returns table (name text, span integer, starts_at timestamptz, ends_at timestamptz)
language sql stable
as $$
    select p.relname, p.span, p.starts_at, p.starts_at + make_interval(hours => p.span)
    from (select c.relname::text, n[1]::integer as span,
                 make_timestamptz(n[2]::integer, n[3]::integer, n[4]::integer, n[5]::integer, 0, 0, 'UTC') as starts_at
          from pg_catalog.pg_inherits i
          join pg_catalog.pg_class c on c.oid = i.inhrelid
          cross join lateral regexp_match(c.relname, '^archive_([0-9]+)h_([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})$') n
          where i.inhparent = 'tocsin.archive'::regclass and n is not null) p
$$;

-- The two partitions that each queue needs: that which takes what is archived now, and the next.
create or replace function tocsin.wanted_partitions() returns table (queue_id integer, span integer, starts_at timestamptz)
language sql volatile
as $$
    select a.queue_id, a.span, tocsin.archive_slot(a.span, a.keep_until) + make_interval(hours => ahead * a.span)
    from (select x.queue_id, tocsin.archive_span(x.retention) as span, tocsin.keep_until(x.retention, tocsin.clock()) as keep_until
          from tocsin.archiving x where x.retention > '0 s') a
    cross join generate_series(0, 1) ahead
    where a.span > 0
$$;

-- Says which partitions may be used: those that are there already, so that they were committed before this statement.
create or replace function tocsin.cover_archive() returns void
language sql
as $$
    with there as (
        select w.queue_id, w.span, tstzrange(min(p.starts_at), max(p.ends_at)) as times
        from tocsin.wanted_partitions() w
        join tocsin.archive_partitions() p on p.span = w.span and p.starts_at = w.starts_at
        group by w.queue_id, w.span
    )
    update tocsin.archiving a
    set span = coalesce(n.span, 0), covered = coalesce(n.times, 'empty'), since = pg_catalog.clock_timestamp()
    from (select x.queue_id, t.span, t.times from tocsin.archiving x left join there t on t.queue_id = x.queue_id
          for update of x skip locked) n
    where a.queue_id = n.queue_id and (a.span, a.covered) is distinct from (coalesce(n.span, 0), coalesce(n.times, 'empty'))
$$;

-- Makes the partitions that are missing; returns how many.
create or replace function tocsin.add_partitions() returns integer
language plpgsql
as $$
declare
    missing record;
    added integer := 0;
begin
    for missing in
        select w.span, w.starts_at from tocsin.wanted_partitions() w
        except select p.span, p.starts_at from tocsin.archive_partitions() p
        order by 1, 2
    loop
        added := added + tocsin.add_partition(missing.span, missing.starts_at)::integer;
    end loop;
    return added;
end
$$;

-- Whether it could be made: not while somebody else changes the archive, nor when there is another table of its name.
create or replace function tocsin.add_partition(span integer, starts_at timestamptz) returns boolean
language plpgsql
set lock_timeout = '100ms' set timezone = 'UTC' set datestyle = 'ISO'
as $$
declare
    name text := format('archive_%sh_%s', span, to_char(starts_at, 'YYYYMMDDHH24'));
begin
    -- Made by itself and then attached, which waits for nobody who reads or writes the archive, and nobody for it.
    execute format('create table tocsin.%I (like tocsin.archive including indexes)', name);
    execute format('alter table tocsin.%I replica identity full', name);
    perform tocsin.apply_privileges(only_table => format('tocsin.%I', name)::regclass);
    execute format('alter table tocsin.archive attach partition tocsin.%I for values from (%s, %L) to (%s, %L)',
                   name, span, starts_at, span, starts_at + make_interval(hours => span));
    return true;
exception when lock_not_available or duplicate_table then
    return false;
end
$$;

-- Drops the partitions whose time is over, with what was counted there; returns how many.
create or replace function tocsin.drop_expired_partitions(most integer) returns integer
language plpgsql
set lock_timeout = '100ms'
as $$
declare
    over_at timestamptz := tocsin.clock() - interval '1 minute';  -- for those that looked for their partition before, and write to it now
    expired record;
    dropped integer := 0;
begin
    if not exists (select from tocsin.archive_partitions() p where p.ends_at <= over_at) then
        return 0;
    end if;
    begin
        lock table only tocsin.archive in access exclusive mode;  -- from here on nobody uses it, nor counts what is in it
    exception when lock_not_available then
        return 0;
    end;
    for expired in select p.* from tocsin.archive_partitions() p where p.ends_at <= over_at order by p.ends_at limit most loop
        begin
            execute format('lock table tocsin.%I in access exclusive mode nowait', expired.name);  -- somebody may vacuum it
            execute format('drop table tocsin.%I', expired.name);
            delete from tocsin.archived_counts c where c.span = expired.span and c.starts_at = expired.starts_at;
            delete from tocsin.tallies y
            where y.span = expired.span and tocsin.archive_slot(y.span, y.keep_until) = expired.starts_at;
            dropped := dropped + 1;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return dropped;
end
$$;

-- Deletes from archive_rest what may go; returns how many messages that were.
create or replace function tocsin.delete_expired(most integer) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
    t timestamptz := tocsin.clock();
    expired tid[];
    gone bigint;
begin
    select array_agg(x.ctid) into expired
    from (select r.ctid from tocsin.archive_rest r where r.keep_until < '9999-01-01+00' and r.keep_until <= t
          order by r.keep_until limit most for update skip locked) x;
    with deleted as (
        delete from tocsin.archive_rest r where r.ctid = any (expired) returning r.queue_id
    ), counted as (
        insert into tocsin.tallies (queue_id, span, keep_until, archived_at, n)
        select d.queue_id, 0, t, t, -count(*) from deleted d group by d.queue_id
    )
    select count(*) into gone from deleted;
    return gone;
end
$$;

-- Deletes the dead letters whose queue keeps them no longer; returns how many.
create or replace function tocsin.purge_expired_dead_letters(most integer) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
    t timestamptz := tocsin.clock();
    queue record;
    purged bigint := 0;
    n bigint;
begin
    for queue in select q.id, tocsin.later(t, -q.dead_letter_retention) as before from tocsin.queues q where q.dead_letter_retention < '1000 years' loop
        delete from tocsin.dead_letters d
        where d.id = any (array(
            select x.id from tocsin.dead_letters x where x.queue_id = queue.id and x.died_at <= queue.before
            order by x.died_at limit most - purged for update skip locked));
        get diagnostics n = row_count;
        purged := purged + n;
        exit when purged >= most;
    end loop;
    return purged;
end
$$;

-- Moves the tallies older than a minute, which settle_rate does not need any more, to archived_counts.
create or replace function tocsin.roll_up_tallies() returns void
language sql
as $$
    delete from tocsin.archived_counts c where not exists (select from tocsin.queues q where q.id = c.queue_id);
    with taken as (
        delete from tocsin.tallies y where y.archived_at <= tocsin.clock() - interval '1 minute' returning y.*
    )
    insert into tocsin.archived_counts as c (queue_id, span, starts_at, n)
    select y.queue_id, y.span, tocsin.archive_slot(y.span, y.keep_until), sum(y.n)
    from taken y join tocsin.queues q on q.id = y.queue_id
    where y.span is not null
    group by 1, 2, 3
    on conflict (queue_id, span, starts_at) do update set n = c.n + excluded.n
$$;
