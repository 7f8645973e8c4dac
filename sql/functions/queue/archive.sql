-- The archive: where a row goes, when it may go again, and how many there are.
--
-- Partitions ========== A row may go at keep_until = archived_at + its queue's
-- retention, and lies in the partition of that time. So retention is each queue's own,
-- and yet nothing is deleted row by row: when all of a partition's time is over, the
-- partition is dropped. A row stays for its retention, and at most the length of a
-- partition longer. What is kept a few hours should not stay for a month, and what is
-- kept for ten years should not take 3,650 partitions; so there are partitions of an
-- hour, a day, thirty and 360 days, for retentions from some of these to some dozens of
-- them (archive_span). The length, in hours, is the first column of the partition key:
-- so those of different lengths lie side by side, each on a grid that begins at the
-- epoch. A change of the retention counts for what is archived from then on.
--
-- There is no DEFAULT partition. To attach a partition beside one, PostgreSQL locks out
-- all who use it, and searches through it; and a row that is on its way into it at that
-- moment is refused. Instead, what is kept for ever, and what there is no partition
-- for, goes with the length 0 to archive_rest, from which maintenance deletes by an
-- index what may go. So archiving never fails for want of a partition, and attaching
-- one is nothing that anybody waits for, or that a long reader could hold up.
--
-- Which partitions there are, an archiving statement reads from `archive_policies`. It
-- must not believe in one that its session has not heard of: a transaction that has
-- used the archive before may know it only as it was then. So maintenance first
-- attaches partitions; its next run, which finds them committed, says so in
-- `archive_policies`, and `since` when; and a transaction that began before goes on as
-- if it had not been said. When the retention of a queue changes, or a queue is new,
-- its rows go to archive_rest until then, for a minute or two.
--
-- Counting ======== Each archiving statement adds one row to `archive_count_deltas`,
-- for each of its queues, and whatever takes rows out adds one with a negative number.
-- They only insert, so they do not wait for each other; being part of the same
-- transaction, the tallies are right whatever is rolled back. Maintenance adds them to
-- `archived_counts`, which nobody else writes: one row for each queue and partition,
-- that goes with the partition. So the count is a sum of a few rows, and exact in every
-- snapshot.

-- How many hours a partition takes, for a retention; 0: archive_rest.
create or replace function tocsin._archive_span(retention interval) returns integer
language sql immutable parallel safe
as $$
    select case when retention < '2 days' then 1
                when retention < '60 days' then 24
                when retention < '5 years' then 30 * 24
                when retention < '1000 years' then 360 * 24
                else 0 end
$$;

-- When the partition begins that a row is in.
create or replace function tocsin._archive_slot(span integer, keep_until timestamptz) returns timestamptz
language sql immutable parallel safe
as $$
    select case when span > 0 then date_bin(make_interval(hours => span), keep_until, timestamptz '1970-01-01+00') else '1970-01-01+00' end
$$;

-- Until when to keep what is archived at this time.
create or replace function tocsin._keep_until(retention interval, at timestamptz) returns timestamptz
language sql stable parallel safe
as $$ select case when retention < '1000 years' then tocsin._later(at, retention) else '9999-01-01+00' end $$;

-- The partitions that what is kept until then goes to, by their span; null: it is not
-- kept.
create or replace function tocsin._partition_span_for(a tocsin.archive_policies, keep_until timestamptz) returns integer
language sql stable parallel safe
as $$
    select case when a.retention > '0 s' then case when a.covered @> keep_until and a.since <= pg_catalog.now() then a.span else 0 end end
$$;

-- How many messages of a queue are archived: exact.
create or replace function tocsin.archived_count(queue_id integer) returns bigint
language sql stable
set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select coalesce((select sum(c.n) from tocsin.archived_counts c where c.queue_id = archived_count.queue_id), 0)::bigint
         + coalesce((select sum(y.n) from tocsin.archive_count_deltas y where y.queue_id = archived_count.queue_id and y.span is not null), 0)::bigint
$$;

-- How many messages are archived, of each queue of these ids that has any: exact.
create or replace function tocsin._archived_in_all(first_id integer, last_id integer) returns table (queue_id integer, n bigint)
language sql stable
as $$
    select x.queue_id, sum(x.n)::bigint
    from (select c.queue_id, c.n from tocsin.archived_counts c where c.queue_id between first_id and last_id
          union all
          select y.queue_id, y.n from tocsin.archive_count_deltas y where y.queue_id between first_id and last_id and y.span is not null) x
    join tocsin.queues q on q.id = x.queue_id
    group by x.queue_id
$$;

-- How many messages of a queue were archived per second, in the last minute; those that
-- are not kept count as well.
create or replace function tocsin.settle_rate(queue_id integer) returns float8
language sql volatile
set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select coalesce(sum(y.n), 0)::float8 / 60 from tocsin.archive_count_deltas y
    where y.queue_id = settle_rate.queue_id and y.archived_at > (select tocsin._clock() - interval '1 minute') and y.n > 0
$$;

-- Deletes what is archived of a queue, or what was archived longer ago than this;
-- returns how many messages that were, or would be.
create or replace function tocsin.purge_archive(queue_id integer, older_than interval default null, dry_run boolean default false)
returns bigint
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    before timestamptz := coalesce(tocsin._later(t, -older_than), 'infinity');
    purged bigint;
begin
    if dry_run and older_than is null then
        return tocsin.archived_count(queue_id);
    elsif dry_run then
        return (select count(*) from tocsin.archive a where a.queue_id = purge_archive.queue_id and a.archived_at < before);
    end if;
    with gone as (
        delete from tocsin.archive a where a.queue_id = purge_archive.queue_id and a.archived_at < before returning a.span, a.keep_until
    ), per_slot as (
        select g.span, tocsin._archive_slot(g.span, g.keep_until) as starts_at, count(*) as n from gone g group by 1, 2
    ), counted as (
        insert into tocsin.archive_count_deltas (queue_id, span, keep_until, archived_at, n)
        select purge_archive.queue_id, p.span, p.starts_at, t, -p.n from per_slot p
    )
    select coalesce(sum(p.n), 0) into purged from per_slot p;
    return purged;
end
$$;
