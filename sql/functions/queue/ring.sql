-- The bell: what wakes a sleeping consumer. This file is the only place that decides
-- whether to NOTIFY about messages.
--
-- Ring only when somebody sleeps ============================== Transactions that
-- NOTIFY commit one after the other: each holds a lock of the whole database until its
-- commit is on disk. A consumer that is busy needs no bell, for it looks again before
-- it sleeps. So a queue has two advisory locks (locks.sql):
--
--   asleep   shared by the processes that sleep on the queue, or are about to; held by the session that LISTENs
--   unrung   shared by the transactions that put messages into the queue and decided not to ring, until they end
--
-- A producer, with each statement that inserts (must_ring):
--   1. Does somebody sleep? Then ring.
--   2. Take `unrung`. Not to be had at once: ring.
--   3. Does somebody sleep now? Then ring. Otherwise do not.
--
-- A consumer that goes to sleep, with a LISTEN that was committed before
-- (begin_waiting):
--   1. Take `waiting`.
--   2. Does another session hold `unrung`? Then look for messages, wait a little, and
--      ask again (unrung_transactions). Asking takes a moment and makes nobody wait;
--      and no later producer stays unrung, since `waiting` is taken.
--   3. Look for messages, in a new transaction. Found one: work (end_waiting). None:
--      sleep until a notification or a known time. A notification that has come since
--      this look began counts.
--
-- Why no wake-up is lost ====================== A message that was not rung for comes
-- from a transaction that in its step 3 saw nobody asleep, while it held `unrung`. So
-- whoever sleeps has taken `waiting` after that, and found `unrung` free only when that
-- transaction had ended. PostgreSQL makes a transaction's rows visible before it
-- releases its locks: the look of step 3 saw the message.
--
-- A message that was rung for is visible before the notification is delivered, to every
-- session that LISTENs by then; one that LISTENs later looks later. Several may be
-- woken for it; each of them looks before it sleeps again.
--
-- - A yes for no reason rings once too often, or has a consumer ask once more.
-- - No deadlock, whatever queues a transaction inserts into and a process sleeps on:
--   only `waiting` is ever waited for, by a consumer while somebody asks, and who asks
--   waits for nothing. What is said above holds for each queue by itself. (Deleting a
--   queue, the one use of the lock `rung`, is another matter: delete_queue.sql.)
-- - Rolled back, also to a savepoint: with the rows of a statement go the locks and
--   notifications of that statement, and of no other.
-- - A connection that ends, by a crash or not, no longer holds `waiting`, so it is not
--   rung for. Its process LISTENs again and then goes through all the steps.
-- - A transaction prepared for two-phase commit keeps `unrung` until it is ended, also
--   over a restart of the server. (One that has rung cannot be prepared: PostgreSQL
--   refuses that.) As long as it, or any other transaction that did not ring, stays
--   open, consumers ask again.
-- - Isolation levels make no difference to a producer, for locks have no snapshots. Its
--   snapshot may show the queue's former setting of `notify`; consumers do the same
--   under both.
-- - No session sees its own locks. What the session that holds `waiting` puts in or
--   gives back itself, it has to look for itself; the heartbeat's answer says which of
--   its queues have something due.
--
-- When PostgreSQL's queue of notifications is full
-- ================================================ A session that LISTENs and stays in
-- a transaction keeps all notifications since then. When their queue is full, each
-- transaction that has one more fails at its COMMIT, and so would an enqueue. So
-- nothing is rung for from nine tenths on: consumers find the message by their next
-- heartbeat, and programs that LISTEN by hand by their own polling. To ask how full it
-- is also cleans it up, which PostgreSQL otherwise does only when a notification is
-- added; once full, it would stay so. What is left of it between asking and COMMIT
-- takes thousands of notifications; where others fill it in that moment, the
-- transaction fails, and Tocsin's own producers send it again (database.py).
--
-- That a producer may ring before there is a message, and before the disk has it, is in
-- ring_early.sql; nothing above depends on it.
--
-- tests/model/bell.pml is this as a model that is searched through; test_ring.py
-- and test_ring_schedules.py try it on a server.

-- A NOTIFY channel's name is cut at 63 bytes, so a longer one is replaced by a digest
-- of it. (Not by md5, which servers in FIPS mode refuse.)
create or replace function tocsin._channel(path text) returns text
language sql immutable parallel safe
as $$
    select case when octet_length(c) <= 63 then c else 'tocsin_' || left(encode(sha256(convert_to(c, 'UTF8')), 'hex'), 32) end
    from (select (parse_ident('tocsin.channel'))[1] || path) as full_name (c)
$$;

-- The channel to LISTEN on for a queue: the schema's name, a dot, the queue's name.
create or replace function tocsin.queue_channel(queue text) returns text
language sql immutable parallel safe
as $$ select tocsin._channel('.' || queue) $$;

-- The channel on which a process is told to look at its workers.
create or replace function tocsin.process_channel(process_id bigint) returns text
language sql immutable parallel safe
as $$ select tocsin._channel('/process/' || process_id) $$;

-- Whether to ring for what the statement before has put into the queue or made due
-- earlier. A CASE, since that promises the order.
create or replace function tocsin._must_ring(queue_id integer, notify text) returns boolean
language sql
as $$
    select case
        when notify = 'always' then true
        when tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id)) then true
        when not pg_try_advisory_xact_lock_shared(tocsin._lock_key('unrung', queue_id)) then true
        else tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id))
    end
$$;

-- Messages of this queue may have become due earlier than sleepers think. PostgreSQL
-- sends equal notifications of one transaction once. (One expression, which becomes
-- part of the query that uses it.)
create or replace function tocsin._ring(q tocsin.queues) returns void
language sql
as $$
    select case when tocsin._must_ring(q.id, q.notify) then
        case when pg_notification_queue_usage() < 0.9 then pg_notify(q.channel, '') end
    end
$$;

create or replace function tocsin._ring(queue_id integer) returns void
language plpgsql
as $$
begin
    perform tocsin._ring(q) from tocsin.queues q where q.id = _ring.queue_id;
end
$$;

-- For a producer that could not ring at once, since its queue is being deleted, or
-- gone: waits until that has ended, and rings if the queue is still there
-- (delete_queue.sql has the argument).
create or replace function tocsin._ring_late(queue_id integer) returns void
language plpgsql
as $$
declare
    q tocsin.queues;
begin
    select x.* into q from tocsin.queues x where x.id = queue_id;
    perform pg_advisory_xact_lock_shared(tocsin._lock_key('rung', queue_id));
    perform from tocsin.queues x where x.id = queue_id for key share;  -- one that is gone fails here, whatever the snapshot shows
    if not found then
        perform tocsin._refuse_missing(coalesce(q.name, 'number ' || queue_id));  -- the INSERT has seen it, but this has not
    end if;
    perform pg_notify(q.channel, '') where pg_notification_queue_usage() < 0.9;
end
$$;

-- Rings for what a statement puts into this queue, if it must; false: it could not,
-- since the queue is being deleted (delete_queue.sql). One expression, which becomes
-- part of the query that uses it. There are only functions of PostgreSQL's in it: one
-- of ours would take a microsecond to be made ready for each insert, also of those that
-- do not call it. (set_config and pg_notify never give null.) Where it has rung because
-- somebody sleeps, it leaves in a setting for as long as the transaction lasts
-- (ring_early.sql).
create or replace function tocsin._rung(q tocsin.queues) returns boolean
language sql
as $$
    select case
        when not tocsin._must_ring(q.id, q.notify) then true
        when not pg_try_advisory_xact_lock_shared(tocsin._lock_key('rung', q.id)) then false
        when set_config('bell.rung', case when q.notify = 'on_demand' then q.channel else '' end, true) is null then false
        when pg_notification_queue_usage() >= 0.9 then true
        else pg_notify(q.channel, '') is not null
    end
$$;

-- As a rule all is for one queue: then there is no set of queues to be made, which
-- would take a quarter of the trigger's time. Otherwise each queue's row is looked up
-- by itself, however many there are: a join might read them all.
create or replace function tocsin._ring_inserted() returns trigger
language plpgsql
as $$
begin
    perform from (select min(n.queue_id) as first, max(n.queue_id) as last from inserted n) i
    where case when i.first = i.last then (select tocsin._rung(q) from tocsin.queues q where q.id = i.first) end is not true;
    if found then
        perform from (select distinct n.queue_id from inserted n) i
        where (select tocsin._rung(q) from tocsin.queues q where q.id = i.queue_id) is not true;
        if found then
            perform tocsin._ring_late(i.queue_id) from (select distinct n.queue_id from inserted n) i;
        end if;
    end if;
    return null;
end
$$;

-- Not for the INSERT of tocsin.enqueue, which rings itself where it reads the queue,
-- and says so by a setting for as long as that INSERT takes: the trigger's query takes
-- as long as the INSERT while the server's caches are cold, and they are when somebody
-- sleeps. What a trigger of somebody else's inserts meanwhile is told apart by its
-- depth.
create or replace trigger ring after insert on tocsin.messages
    referencing new table as inserted for each statement
    when (pg_trigger_depth() > 0 or current_setting('bell.rung_by', true) is distinct from 'tocsin.')
    execute function tocsin._ring_inserted();

-- Steps 1 and 2 of going to sleep on these queues, in the session that LISTENs; for
-- each queue once until end_waiting. Returns those of which to ask again in a little
-- (unrung_transactions); for the others step 3 may follow. Cut short, it may have taken
-- `waiting` of some: they are rung for until the session ends, which is more than
-- needed.
create or replace function tocsin.begin_waiting(queue_ids integer[]) returns integer[]
language plpgsql
as $$
begin
    perform pg_advisory_lock_shared(tocsin._lock_key('waiting', q)) from unnest(queue_ids) q;
    return tocsin.unrung_transactions(queue_ids);
end
$$;

-- Those of the queues that have messages coming from a transaction that may not ring.
create or replace function tocsin.unrung_transactions(queue_ids integer[]) returns integer[]
language sql
as $$
    select coalesce(array_agg(q) filter (where tocsin._shared_elsewhere(tocsin._lock_key('unrung', q))), '{}') from unnest(queue_ids) q
$$;

-- Nobody sleeps on these queues any more, in the process of this session.
create or replace function tocsin.end_waiting(queue_ids integer[]) returns void
language sql
as $$ select pg_advisory_unlock_shared(tocsin._lock_key('waiting', q)) from unnest(queue_ids) q $$;
