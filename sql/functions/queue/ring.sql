-- The bell: the mechanism that wakes an idle consumer. This file is the only place that
-- decides whether to NOTIFY about messages.
--
-- Transactions that NOTIFY commit one after the other: each holds a lock of the whole
-- database until its commit is flushed. So producers ring only while a consumer waits.
-- A queue has two advisory locks for that (locks.sql):
--
--   waiting  shared by the processes whose consumers wait on the queue, or are about
--            to wait; held by the session that LISTENs
--   unrung   shared by the transactions that have inserted messages into the queue and
--            decided not to ring, until they end
--
-- A producer, with each statement that inserts (_decide_to_ring):
--   1. Test `waiting`. Held: ring.
--   2. Take `unrung`. Not available at once: ring.
--   3. Test `waiting` again. Held: ring. Free: do not ring.
--
-- A consumer that begins to wait, after it has committed its LISTEN (begin_waiting):
--   1. Take `waiting`.
--   2. Test whether another session holds `unrung`. Held: claim, pause, and test again
--      (unrung_transactions). A test takes a moment and makes no session wait, and no
--      later producer decides not to ring, because `waiting` is taken.
--   3. Claim in a new transaction. Found a message: work (end_waiting). Found none:
--      wait for a notification or for the next due time. A notification that has
--      arrived since this claim began counts.
--
-- docs/explanation/notifications.md shows why no wake-up is lost, and what happens with
-- rollbacks, lost connections, prepared transactions and isolation levels. The deletion
-- of a queue uses a third lock, `rung` (queue_deletion.sql). ring_early.sql rings
-- before the message is visible or flushed; the protocol does not depend on that.
--
-- A session does not see its own locks. So the session that holds `waiting` does not
-- ring for the messages that it inserts or requeues. The answer to its heartbeat names
-- the queues that have due messages.
--
-- When PostgreSQL's notification queue is full, each transaction that sends a
-- notification fails at its COMMIT, and so would an enqueue. So no function rings while
-- the queue is at least nine tenths full: consumers find the message by their next
-- heartbeat. The function that tells how full the queue is also cleans the queue up.
-- Otherwise PostgreSQL does so only when a notification is added, and a full queue
-- would stay full. The queue can still fill up between this check and the COMMIT. The
-- transaction then fails, and Tocsin's own producers send it again (client.py).
--
-- tests/model/bell.pml is a model of this protocol for an exhaustive search.
-- test_ring.py and test_ring_schedules.py test the protocol on a server.

-- PostgreSQL limits the name of a notification channel to 63 bytes, so a digest
-- replaces a longer name. (The digest is not MD5, which servers in FIPS mode refuse.)
create or replace function tocsin._channel(path text) returns text
language sql immutable parallel safe
as $$
    select case when octet_length(c) <= 63 then c
        else 'tocsin_' || left(encode(sha256(convert_to(c, 'UTF8')), 'hex'), 32) end
    from (select (parse_ident('tocsin.channel'))[1] || path) as full_name (c)
$$;

-- Returns the notification channel of a queue: the schema's name, a dot, the queue's
-- name.
create or replace function tocsin.queue_channel(queue text) returns text
language sql immutable parallel safe
as $$ select tocsin._channel('.' || queue) $$;

-- Returns the notification channel on which a process is told to read the state of its
-- workers.
create or replace function tocsin.process_channel(process_id bigint) returns text
language sql immutable parallel safe
as $$ select tocsin._channel('/process/' || process_id) $$;

-- Decides whether to ring for messages that the statement has inserted into the queue or
-- has made due earlier: takes `unrung`, and returns whether to ring. A CASE guarantees
-- the order of its conditions.
create or replace function tocsin._decide_to_ring(queue_id integer, notify text) returns boolean
language sql
as $$
    select case
        when notify = 'always' then true
        when tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id)) then true
        when not pg_try_advisory_xact_lock_shared(tocsin._lock_key('unrung', queue_id)) then true
        else tocsin._shared_elsewhere(tocsin._lock_key('waiting', queue_id))
    end
$$;

-- Rings if necessary, because messages of the queue may be due earlier than its idle
-- consumers expect. PostgreSQL sends equal notifications of one transaction only once.
-- The body is one expression, so that the planner inlines it.
create or replace function tocsin._ring(q tocsin.queues) returns void
language sql
as $$
    select case when tocsin._decide_to_ring(q.id, q.notify) then
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

-- Rings for a producer that could not ring at once because its queue is being deleted.
-- Waits for the deletion to end, and rings if the queue still exists
-- (queue_deletion.sql explains why).
create or replace function tocsin._ring_late(queue_id integer) returns void
language plpgsql
as $$
declare
    q tocsin.queues;
begin
    select x.* into q from tocsin.queues x where x.id = queue_id;
    perform pg_advisory_xact_lock_shared(tocsin._lock_key('rung', queue_id));
    -- finds no row or fails for a deleted queue, whatever the snapshot shows
    perform from tocsin.queues x where x.id = queue_id for key share;
    if not found then
        -- the INSERT saw the queue, this statement does not
        perform tocsin._refuse_missing(coalesce(q.name, 'number ' || queue_id));
    end if;
    perform pg_notify(q.channel, '') where pg_notification_queue_usage() < 0.9;
end
$$;

-- Rings if necessary for the messages that a statement inserts into this queue. Returns
-- false when it could not ring because the queue is being deleted (queue_deletion.sql).
-- The body is one expression of PostgreSQL's own functions, so that the planner inlines
-- it: a function of Tocsin would be set up for each insert, also where it is not
-- called. (set_config and pg_notify never return null.) After a ring on demand, the
-- channel is in the setting bell.rung until the transaction ends (ring_early.sql).
create or replace function tocsin._try_ring(q tocsin.queues) returns boolean
language sql
as $$
    select case
        when not tocsin._decide_to_ring(q.id, q.notify) then true
        when not pg_try_advisory_xact_lock_shared(tocsin._lock_key('rung', q.id)) then false
        when set_config('bell.rung', case when q.notify = 'on_demand' then q.channel
                        else '' end, true) is null then false
        when pg_notification_queue_usage() >= 0.9 then true
        else pg_notify(q.channel, '') is not null
    end
$$;

-- Rings for the messages of an insert. Most statements insert into one queue, so that
-- case needs no set of queues. Otherwise the function reads the row of each queue
-- separately, because a join might read all queues.
create or replace function tocsin._ring_inserted() returns trigger
language plpgsql
as $$
begin
    perform from (select min(n.queue_id) as first, max(n.queue_id) as last from inserted n) i
    where case when i.first = i.last
        then (select tocsin._try_ring(q) from tocsin.queues q where q.id = i.first) end is not true;
    if found then
        perform from (select distinct n.queue_id from inserted n) i
        where (select tocsin._try_ring(q) from tocsin.queues q where q.id = i.queue_id) is not true;
        if found then
            perform tocsin._ring_late(i.queue_id)
                from (select distinct n.queue_id from inserted n) i;
        end if;
    end if;
    return null;
end
$$;

-- The trigger does not run for the INSERT of tocsin.enqueue, which itself rings where
-- it reads the queue. The setting bell.rung_by says so during that INSERT. While a
-- consumer waits, the server's caches are cold, and the trigger's query would take as
-- long as the INSERT. The trigger depth shows that a trigger of the user makes an
-- insert during that INSERT.
create or replace trigger ring after insert on tocsin.messages
    referencing new table as inserted for each statement
    when (pg_trigger_depth() > 0 or current_setting('bell.rung_by', true) is distinct
          from 'tocsin.')
    execute function tocsin._ring_inserted();

-- Does steps 1 and 2 of a wait on these queues, in the session that LISTENs. It may be
-- called once for each queue before end_waiting. Returns the queues to test again after
-- a pause (unrung_transactions); for each other queue step 3 may follow. A cancelled
-- call may have taken `waiting` of some queues. Producers then ring for these queues
-- until the session ends, more often than necessary.
create or replace function tocsin.begin_waiting(queue_ids integer[]) returns integer[]
language plpgsql
as $$
begin
    perform pg_advisory_lock_shared(tocsin._lock_key('waiting', q)) from unnest(queue_ids) q;
    return tocsin.unrung_transactions(queue_ids);
end
$$;

-- Returns the queues for which an open transaction has decided not to ring.
create or replace function tocsin.unrung_transactions(queue_ids integer[]) returns integer[]
language sql
as $$
    select coalesce(array_agg(q) filter (where tocsin._shared_elsewhere(tocsin._lock_key('unrung',
        q))), '{}') from unnest(queue_ids) q
$$;

-- Ends the wait on these queues, in the session that began it.
create or replace function tocsin.end_waiting(queue_ids integer[]) returns void
language sql
as $$ select pg_advisory_unlock_shared(tocsin._lock_key('waiting', q)) from unnest(queue_ids) q $$;
