-- Delete a queue with its messages, workers, archive and dead letters, in one
-- transaction.
--
-- During the deletion no message may be inserted into the queue, and no worker may
-- begin to work for it. For workers this is simple: a registration locks the queue's
-- row (register_worker), a claim takes its worker's advisory lock, and a deletion takes
-- both. For messages it is not: no producer locks anything of the queue before its
-- INSERT has seen the queue's row, because every producer would pay for such a lock.
-- But after its INSERT each producer tests whether a consumer waits (ring.sql). So a
-- deletion registers as a waiter:
--
--   1. It takes `waiting`, as a consumer does, and waits until no transaction is left
--      that may have inserted messages into the queue without ringing. From here on
--      each producer rings.
--   2. It takes `rung` exclusively. Each producer that rings takes `rung` in shared
--      mode (_try_ring), until its transaction ends. So the deletion sees every message
--      that was inserted, and is then refused unless it is forced. A later producer
--      waits for the end of the deletion, looks for the queue again, and is refused.
--      Producers do not wait for each other.
--
-- The deletion yields to other sessions. A transaction may settle, claim or replay
-- messages of the queue and then enqueue to it, so that it waits for `rung`; or it may
-- enqueue first and settle afterwards. So no order in which a deletion takes `rung` and
-- the other locks excludes a deadlock. Instead:
--
--   - While it waits for transactions that have not rung, or for `rung`, it holds
--     nothing that another session waits for except its place in the wait queue of
--     `rung`. PostgreSQL reorders that wait queue before it reports a deadlock. The
--     deletion keeps its place for a quarter of a second at most.
--   - Once it has `rung`, it waits for no session. It tries again to lock workers,
--     messages and dead letters that are locked, for a quarter of a second from the
--     first one on: as long as a claim or a settlement may take, and less than
--     PostgreSQL's deadlock timeout. Then it releases all of its locks, so that waiting
--     sessions can continue, and begins again. (`lock_timeout` covers rows that are
--     rarely locked: rows of the archive that another transaction purges before it
--     enqueues.)
--   - After ten seconds, checked between two attempts, it is refused (TC011). The
--     refusal also ends a cycle that PostgreSQL cannot detect: the deletion waits for a
--     producer, and the producer waits for an earlier lock of the deletion's
--     transaction, for example of another queue's deletion.
--
-- So producers wait for a failing deletion for a quarter of a second at a time, and for
-- a successful one while it deletes. No other session gets an error, unless the
-- deletion's transaction holds earlier locks that another session waits for: then
-- PostgreSQL may detect the cycle first, and abort either session.
--
-- Two kinds of enqueue do not see the deletion. The first kind finds the queue before
-- the commit of the deletion and takes the lock after it: these are two steps of one
-- statement, with the end of the deletion between them. The second kind uses the
-- snapshot of the start of its transaction (repeatable read; a deletion at that level
-- would overlook more messages, and is refused). The message then belongs to no queue.
-- No consumer can claim it, because the id of a queue is never used again.
-- _sweep_orphans, which maintenance calls, deletes the message.
--
-- A message that changes its state during the deletion is in one of the states at each
-- moment. The deletion continues until one statement, and so one snapshot, finds no
-- message in any state. Then it deletes the archive.

-- Counts the unfinished messages of a queue: ready, delayed, held or
-- leased.
create or replace function tocsin._count_unfinished(queue_id integer) returns bigint
language sql stable
set enable_seqscan = off set jit = off
as $$
    select (select count(*) from tocsin.messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'ready')
         + (select count(*) from tocsin.messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'delayed')
         + (select count(*) from tocsin.messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'held')
         + (select count(*) from tocsin.messages m
            where m.queue_id = _count_unfinished.queue_id and m.state = 'leased')
$$;

create or replace function tocsin._refuse_deletion(q tocsin.queues) returns void
language plpgsql
as $$
declare
    active bigint := (select count(*) from tocsin.workers w
                      where w.queue_id = q.id and w.status <> 'stopped');
    unfinished bigint := tocsin._count_unfinished(q.id);
begin
    if active > 0 or unfinished > 0 then
        perform tocsin._raise_error('TC010',
            format('queue "%s" has %s worker(s) that are not stopped and %s unfinished message(s)',
                   q.name, active, unfinished),
            jsonb_build_object('queue', q.name, 'workers', active, 'messages', unfinished),
            'Stop the workers and purge the messages first, or delete the queue with force.');
    end if;
end
$$;

-- Locks producers out of the queue until the end of the transaction, and waits for
-- producers that are enqueueing.
create or replace function tocsin._close_queue(q tocsin.queues, deadline timestamptz) returns void
language plpgsql
set lock_timeout = '250ms'
as $$
begin
    perform pg_advisory_xact_lock_shared(tocsin._lock_key('waiting', q.id));
    while tocsin._shared_elsewhere(tocsin._lock_key('unrung', q.id)) loop
        if tocsin._clock() > deadline then
            raise lock_not_available;
        end if;
        -- Poll instead of waiting for the lock. A waiting session would make a test of
        -- the lock say that no session shares it.
        perform pg_sleep(0.01);
    end loop;
    perform pg_advisory_xact_lock(tocsin._lock_key('rung', q.id));
end
$$;

-- Locks consumers, registrations and maintenance, which counts the archive of each
-- queue, out of the queue. Returns whether it has taken all of these locks at once. It
-- keeps the locks that it has taken.
create or replace function tocsin._try_close_workers(q tocsin.queues) returns boolean
language plpgsql
as $$
begin
    perform from tocsin.queues x where x.id = q.id for update skip locked;
    if not found then
        if not exists (select from tocsin.queues x where x.id = q.id) then
            perform tocsin._refuse_missing(q.name);
        end if;
        return false;
    end if;
    -- shared: deletions do not exclude each other
    return pg_try_advisory_xact_lock_shared(tocsin._lock_key('maintain', 0))
        and (select coalesce(bool_and(pg_try_advisory_xact_lock(tocsin._lock_key('worker', w.id))),
                             true)
             from tocsin.workers w where w.queue_id = q.id)
        and (select count(*)
             from (select from tocsin.workers w where w.queue_id = q.id for update skip locked) had)
          = (select count(*) from tocsin.workers w where w.queue_id = q.id);
end
$$;

-- Deletes the unfinished messages and dead letters that are not locked, and returns
-- whether none is left. The kinds that are likely to be locked come first. While any
-- message of these kinds is left, the rest, which may be large, is not scanned again.
create or replace function tocsin._try_empty_queue(q tocsin.queues, inout messages bigint,
                                                   inout letters bigint, out emptied boolean)
language plpgsql
set enable_seqscan = off set jit = off
as $$
declare
    n bigint;
begin
    emptied := false;
    delete from tocsin.messages m where m.ctid = any (array(
        select x.ctid from tocsin.messages x where x.queue_id = q.id and x.state = 'leased'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from tocsin.dead_letters d where d.ctid = any (array(
        select x.ctid from tocsin.dead_letters x where x.queue_id = q.id for update skip locked));
    get diagnostics n = row_count;
    letters := letters + n;
    if exists (select from tocsin.messages x where x.queue_id = q.id and x.state = 'leased')
       or exists (select from tocsin.dead_letters x where x.queue_id = q.id) then
        return;
    end if;
    delete from tocsin.messages m where m.ctid = any (array(
        select x.ctid from tocsin.messages x where x.queue_id = q.id and x.state = 'held'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from tocsin.messages m where m.ctid = any (array(
        select x.ctid from tocsin.messages x where x.queue_id = q.id and x.state = 'delayed'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    delete from tocsin.messages m where m.ctid = any (array(
        select x.ctid from tocsin.messages x where x.queue_id = q.id and x.state = 'ready'
            for update skip locked));
    get diagnostics n = row_count;
    messages := messages + n;
    emptied := not exists (select from tocsin.messages x
                           where x.queue_id = q.id and x.state = 'leased')
           and not exists (select from tocsin.messages x
                           where x.queue_id = q.id and x.state = 'held')
           and not exists (select from tocsin.messages x
                           where x.queue_id = q.id and x.state = 'delayed')
           and not exists (select from tocsin.messages x
                           where x.queue_id = q.id and x.state = 'ready')
           and not exists (select from tocsin.dead_letters x where x.queue_id = q.id);
end
$$;

-- Does the rest of the deletion while `rung` is held. Raises lock_not_available when
-- another session keeps a row of the queue locked.
create or replace function tocsin._remove_queue(
    q tocsin.queues, force boolean, out worker_count bigint, out message_count bigint,
    out archived_count bigint, out dead_letter_count bigint
)
language plpgsql
set lock_timeout = '100ms'
as $$
declare
    patience timestamptz;
    closed boolean := false;
    emptied boolean := false;
begin
    message_count := 0;
    dead_letter_count := 0;
    loop
        if not closed then
            closed := tocsin._try_close_workers(q);
            if closed and force is not true then
                perform tocsin._refuse_deletion(q);
            end if;
        end if;
        if closed then
            select t.* into message_count, dead_letter_count, emptied
                from tocsin._try_empty_queue(q, message_count, dead_letter_count) t;
        end if;
        exit when emptied;
        patience := coalesce(patience, tocsin._clock() + interval '250 ms');
        if tocsin._clock() > patience then
            raise lock_not_available;
        end if;
        perform pg_sleep(0.005);
    end loop;
    archived_count := tocsin.purge_archive(q.id, null, false);
    perform tocsin._end_parents(e.parents, succeeded => false, gone => true)
    from (select jsonb_object_agg(j.job_id, null) as parents from tocsin.flow_jobs j
          where j.queue_id = q.id) e
    where e.parents is not null;
    perform tocsin._tell_process(w) from tocsin.workers w
        where w.queue_id = q.id and w.status <> 'stopped';
    delete from tocsin.workers w where w.queue_id = q.id;
    get diagnostics worker_count = row_count;
    -- Delete these rows explicitly: foreign keys are triggers, and may be off.
    delete from tocsin.archive_policies a where a.queue_id = q.id;
    delete from tocsin.queue_grants g where g.queue_id = q.id;
    delete from tocsin.limit_queues l where l.queue_id = q.id;
    delete from tocsin.limit_checks c where c.ctid = any (array(
        select x.ctid from tocsin.limit_checks x where x.queue_id = q.id for update skip locked));
    delete from tocsin.schedules s where s.queue_id = q.id;
    delete from tocsin.tasks k where k.queue_id = q.id;
    delete from tocsin.queues x where x.id = q.id;
end
$$;

-- Deletes a queue, and returns how many workers, messages and dead letters it has
-- deleted. The deletion is refused while the queue has unfinished messages or workers
-- that are not stopped. With `force` it is not refused: the workers are notified, and
-- their runs end. A `dry_run` changes nothing, and returns the numbers that would be
-- deleted, or is refused. The deletion waits ten seconds for transactions that have
-- inserted messages into the queue or have locked rows of it; then it is refused.
create or replace function tocsin.delete_queue(queue text, force boolean default false,
                                               dry_run boolean default false)
returns table (worker_count bigint, message_count bigint, archived_count bigint,
               dead_letter_count bigint)
language plpgsql
set enable_seqscan = off set jit = off
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
    deadline timestamptz := tocsin._clock() + interval '10 s';
begin
    if not dry_run and current_setting('transaction_isolation') <> 'read committed' then
        perform tocsin._raise_error('TC022',
            format('a queue cannot be deleted at the isolation level %s, which hides later '
                   'messages',
                   current_setting('transaction_isolation')),
            '{"argument": "transaction"}',
            'Delete the queue in a transaction that is read committed.');
    end if;
    if force is not true then
        perform tocsin._refuse_deletion(q);
    end if;
    if dry_run then
        worker_count := (select count(*) from tocsin.workers w where w.queue_id = q.id);
        message_count := tocsin._count_unfinished(q.id);
        dead_letter_count := (select count(*) from tocsin.dead_letters d where d.queue_id = q.id);
        archived_count := tocsin.purge_archive(q.id, null, true);
        return next;
        return;
    end if;
    loop
        begin
            perform tocsin._close_queue(q, deadline);
            select r.* into worker_count, message_count, archived_count, dead_letter_count
                from tocsin._remove_queue(q, force) r;
            return next;
            return;
        exception  -- releases all locks of this attempt
            when lock_not_available or deadlock_detected then null;
        end;
        if tocsin._clock() > deadline then
            perform tocsin._raise_error('TC011',
                                        format('queue "%s" is in use by transactions that do '
                                               'not end', q.name),
                                  jsonb_build_object('queue', q.name),
                                  'Nothing was changed. Try again when they have ended, in a '
                                  'transaction that has done nothing else.');
        end if;
        perform pg_sleep(0.05);
    end loop;
end
$$;

-- Deletes messages of deleted queues, at most this many, and returns how many. Their
-- queue ids are in the gaps between the ids of queues. The deletion is one statement,
-- and so has one snapshot: a snapshot that shows a message also shows its queue, unless
-- the queue was deleted.
create or replace function tocsin._sweep_orphans(most integer default 10000) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
declare
    swept bigint;
begin
    with gaps as (
        select coalesce(lag(q.id) over (order by q.id), 0) as above, q.id as below
            from tocsin.queues q
        union all
        select coalesce(max(q.id), 0), 2147483647 from tocsin.queues q
    ), orphans as (
        select o.id
        from gaps g
        cross join lateral (
            select m.id from tocsin.messages m
                where m.queue_id > g.above and m.queue_id < g.below and m.state = 'ready'
            union all
            select m.id from tocsin.messages m
                where m.queue_id > g.above and m.queue_id < g.below and m.state = 'held'
            union all
            select m.id from tocsin.messages m
                where m.queue_id > g.above and m.queue_id < g.below
                    and m.state in ('delayed', 'leased')
        ) o
        where g.below - g.above > 1
        limit most
    )
    delete from tocsin.messages m using orphans o where m.id = o.id;
    get diagnostics swept = row_count;
    return swept;
end
$$;
