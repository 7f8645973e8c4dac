-- Tocsin's advisory locks, by kind and number. The schema's name is part of the key, so
-- two installations in one database do not share locks.
--
--   install   0            one installation at a time
--   maintain  0            exclusive: maintenance, one at a time (see maintenance.sql);
--                          shared: the deletion of a queue
--   worker    worker id    shared: a claim; exclusive: a change of the worker's state.
--                          So a suspension never overlooks a claim in progress.
--   order     queue id     exclusive: an ordered claim (see order.sql)
--   grant     0            exclusive: a scan that grants slots (see slots.sql), or a worker
--                          that registers tasks with limits (see limits.sql)
--   lifeline  a number     held by a process's LISTEN connection while it is open
--   waiting   queue id     shared, by a process's LISTEN connection: a consumer of the
--                          queue waits there, or is about to wait (see ring.sql)
--   unrung    queue id     shared, by a transaction until it ends: it has inserted
--                          messages into the queue without ringing (see ring.sql)
--   awaited   queue id     shared, by a process's LISTEN connection: the process waits for
--                          outcomes of jobs of the queue (see outcomes.sql)
--   unannounced
--             queue id     shared, by a transaction until it ends: it has finished jobs
--                          of the queue (see outcomes.sql)
--   rung      queue id     shared, by a transaction until it ends: it has inserted
--                          messages into the queue and has rung; exclusive: the queue
--                          is being deleted
--                          (see queue_deletion.sql)
--
-- With a constant kind, the planner reduces this to one call of a hash function whose
-- seed is the number.
create or replace function tocsin._lock_key(kind text, number bigint) returns bigint
language sql immutable parallel safe
as $$ select pg_catalog.hashtextextended('tocsin.' || kind, number) $$;

-- Whether another session holds this lock in shared mode. The test is for locks that no
-- other function takes exclusively. When several sessions test at the same moment, the
-- answer may be a wrong yes, but never a wrong no.
--
-- A session-level lock outlives an error, so no error may occur between taking and
-- releasing it. None can: both are steps of one expression, during which the server
-- handles no cancellation and no timeout. Taking the lock may fail, for example for
-- lack of memory, and then it is not held. Releasing a held lock cannot fail. The end
-- of a killed session releases its locks.
create or replace function tocsin._shared_elsewhere(key bigint) returns boolean
language sql
as $$ select case when pg_try_advisory_lock(key) then not pg_advisory_unlock(key)
    else tocsin._shared_after_all(key) end $$;

-- The exclusive lock can also be refused because another session is testing it. If the
-- shared lock is refused, too, the lock is held exclusively, so no session shares it.
-- Otherwise the function tests once more. So a wrong yes requires two tests at the same
-- moment.
create or replace function tocsin._shared_after_all(key bigint) returns boolean
-- In plpgsql so that it is not inlined: it is rarely called, and would make the
-- expression above more expensive.
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
-- messages in one statement, which must not wait long for a row that another
-- transaction has locked. After the limit the statement fails, and the run finds the
-- locked messages (locked_messages) and settles them later.
create or replace function tocsin.limit_lock_wait() returns boolean
language plpgsql
as $$ begin return set_config('lock_timeout', '250ms', true) is not null; end $$;

-- Returns the ids of the messages whose rows another transaction has locked.
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
