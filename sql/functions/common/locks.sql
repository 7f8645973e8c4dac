-- Tocsin's advisory locks, by kind and number. The schema's name is part of the key, so
-- two installations in one database do not meet.
--
--   install   0            one installation at a time
--   maintain  0            exclusive: maintenance, one at a time (see maintenance.sql);
--                          shared: the deletion of a queue
--   worker    worker id    shared: a claim; exclusive: a change of the worker's state.
--                          So a suspension never overlooks a claim under way.
--   order     queue id     exclusive: an ordered claim (see order.sql)
--   lifeline  a number     held by a process's LISTEN connection for as long as that
--                          connection lives
--   waiting   queue id     shared, by a process's LISTEN connection: consumers of the
--                          queue wait there, or are about to (see ring.sql)
--   unrung    queue id     shared, by a transaction: it has put messages into the
--                          queue, has not rung, and has not ended (see ring.sql)
--   rung      queue id     shared, by a transaction: it has put messages into the queue
--                          and has rung; exclusive: the queue is being deleted
--                          (see queue_deletion.sql)
--
-- With a constant kind, the planner reduces this to one call of a hash function whose
-- seed is the number.
create or replace function tocsin._lock_key(kind text, number bigint) returns bigint
language sql immutable parallel safe
as $$ select pg_catalog.hashtextextended('tocsin.' || kind, number) $$;

-- Whether another session holds this lock shared; for locks that are held exclusively
-- only here. When several sessions test at the same moment, the answer may be a wrong
-- yes, but never a wrong no.
--
-- A session's lock outlives an error, so nothing may come between taking it and
-- releasing it. Nothing can: they are steps of one expression, during which the server
-- handles no cancellation and no timeout. Taking may fail, for want of memory too, and
-- then nothing is held. Releasing a held lock cannot fail. A session that is killed
-- releases its locks by ending.
create or replace function tocsin._shared_elsewhere(key bigint) returns boolean
language sql
as $$ select case when pg_try_advisory_lock(key) then not pg_advisory_unlock(key)
    else tocsin._shared_after_all(key) end $$;

-- The exclusive lock can also be refused because another session is testing it. If a
-- shared lock cannot be taken either, it is held exclusively, so no session shares it.
-- Otherwise test once more. So a wrong yes takes two tests at the same moment.
create or replace function tocsin._shared_after_all(key bigint) returns boolean
-- not inlined: it is rarely called, and would make the expression above more expensive
language plpgsql
as $$
begin
    return case
        when not pg_try_advisory_lock_shared(key) then false
        when not pg_advisory_unlock_shared(key) then false
        when pg_try_advisory_lock(key) then not pg_advisory_unlock(key)
        else true
    end;
end
$$;

-- Limits how long the rest of the transaction waits for a lock. A run settles many
-- messages in one statement, which must not wait for one whose row another transaction
-- has locked. The statement then fails, and the run finds out which message it is and
-- settles that one later.
create or replace function tocsin.limit_lock_wait() returns boolean
language plpgsql
as $$ begin return set_config('lock_timeout', '250ms', true) is not null; end $$;

-- Returns those of these messages whose rows another transaction has locked.
create or replace function tocsin.locked_messages(ids bigint[]) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
    free bigint[];
    there bigint[];
begin
    select array_agg(x.id) into free
    from (select m.id from tocsin.messages m where m.id = any (ids) order by m.id
          for update skip locked) x;
    select array_agg(m.id) into there from tocsin.messages m
        where m.id = any (ids) and m.id <> all (coalesce(free, '{}'));
    return coalesce(there, '{}');
end
$$;
