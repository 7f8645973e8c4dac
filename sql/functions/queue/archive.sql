-- The archive: in which partition a row is, when it may be deleted, and how rows are
-- counted. docs/explanation/archive.md explains the layout.
--
-- A row may be deleted at keep_until = archived_at + its queue's retention, and is in
-- the partition of that time. A partition whose time is over is dropped. The first
-- column of the partition key is the length of the partition in hours (_archive_span),
-- so partitions of different lengths do not overlap. The partitions of one length are a
-- grid that begins at the epoch. Rows that are kept forever, and rows that have no
-- partition, have the length 0 and go to archive_rest. There is no DEFAULT partition:
-- with one, attaching another partition would lock out every user of the archive.
--
-- An archiving statement reads from `archive_policies` which partitions it may use. A
-- transaction that has used the archive before may not know of a later partition. So
-- maintenance attaches a partition in one run and publishes it in the next, with a time
-- (`since`); a transaction that began before that time does not use it.
--
-- Each archiving statement adds one row to `archive_count_deltas` for each of its
-- queues, and a statement that deletes rows adds one with a negative number. Both only
-- insert, so they do not wait for each other. Maintenance adds these rows up in
-- `archived_counts`, in one row for each queue and partition, which is deleted with the
-- partition. So a count is a sum of a few rows, and exact in every snapshot.

-- Returns how many hours a partition for this retention covers; 0: rows go to
-- archive_rest.
create or replace function tocsin._archive_span(retention interval) returns integer
language sql immutable parallel safe
as $$
    select case when retention < '2 days' then 1
                when retention < '60 days' then 24
                when retention < '5 years' then 30 * 24
                when retention < '1000 years' then 360 * 24
                else 0 end
$$;

-- Returns when the partition of a row begins.
create or replace function tocsin._archive_slot(span integer, keep_until timestamptz)
    returns timestamptz
language sql immutable parallel safe
as $$
    select case when span > 0
        then date_bin(make_interval(hours => span), keep_until, timestamptz '1970-01-01+00')
            else '1970-01-01+00' end
$$;

-- Returns until when to keep a message that is archived at this time.
create or replace function tocsin._keep_until(retention interval, at timestamptz)
    returns timestamptz
language sql stable parallel safe
as $$ select case when retention < '1000 years' then tocsin._later(at, retention)
    else '9999-01-01+00' end $$;

-- Returns the length of the partition for a row that is kept until this time; null: the
-- row is not kept.
create or replace function tocsin._partition_span_for(a tocsin.archive_policies,
                                                      keep_until timestamptz) returns integer
language sql stable parallel safe
as $$
    select case when a.retention > '0 s' then case
        when a.covered @> keep_until and a.since <= pg_catalog.now() then a.span else 0 end end
$$;

-- Returns the exact number of archived messages of a queue.
create or replace function tocsin.archived_count(queue_id integer) returns bigint
language sql stable
set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select coalesce((select sum(c.n) from tocsin.archived_counts c
                     where c.queue_id = archived_count.queue_id), 0)::bigint
         + coalesce((select sum(y.n) from tocsin.archive_count_deltas y
                     where y.queue_id = archived_count.queue_id and y.span is not null), 0)::bigint
$$;

-- Returns the exact number of archived messages of each queue in this range of ids that
-- has any.
create or replace function tocsin._archived_in_all(first_id integer, last_id integer)
    returns table (queue_id integer, n bigint)
language sql stable
as $$
    select x.queue_id, sum(x.n)::bigint
    from (select c.queue_id, c.n from tocsin.archived_counts c
          where c.queue_id between first_id and last_id
          union all
          select y.queue_id, y.n from tocsin.archive_count_deltas y
              where y.queue_id between first_id and last_id and y.span is not null) x
    join tocsin.queues q on q.id = x.queue_id
    group by x.queue_id
$$;

-- Returns how many messages of a queue were archived per second in the last minute,
-- including messages that are not kept.
create or replace function tocsin.settle_rate(queue_id integer) returns float8
language sql volatile
set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select coalesce(sum(y.n), 0)::float8 / 60 from tocsin.archive_count_deltas y
    where y.queue_id = settle_rate.queue_id
        and y.archived_at > (select tocsin._clock() - interval '1 minute') and y.n > 0
$$;

-- Deletes the archived messages of a queue, or with `older_than` only messages that
-- were archived longer ago. Returns how many were deleted, or would be (dry_run).
create or replace function tocsin.purge_archive(queue_id integer, older_than interval default null,
                                                dry_run boolean default false)
returns bigint
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    before timestamptz := coalesce(tocsin._later(t, -older_than), 'infinity');
    purged bigint;
    given_up bigint[];  -- jobs that can no longer be requeued
begin
    if dry_run and older_than is null then
        return tocsin.archived_count(queue_id);
    elsif dry_run then
        return (select count(*) from tocsin.archive a
                where a.queue_id = purge_archive.queue_id and a.archived_at < before);
    end if;
    with gone as (
        delete from tocsin.archive a
            where a.queue_id = purge_archive.queue_id and a.archived_at < before
                returning a.span, a.keep_until, a.id, a.outcome
    ), per_slot as (
        select g.span, tocsin._archive_slot(g.span, g.keep_until) as starts_at, count(*) as n
            from gone g group by 1, 2
    ), counted as (
        insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select purge_archive.queue_id, p.span, p.starts_at, t, -p.n from per_slot p
    )
    select coalesce((select sum(p.n) from per_slot p), 0),
        array(select g.id from gone g where g.outcome <> 'succeeded')
    into purged, given_up;
    perform tocsin._give_up(given_up) where given_up <> '{}';
    return purged;
end
$$;
