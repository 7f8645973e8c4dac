-- Deleting a queue, with all that is in it and behind it, in one transaction.
--
-- Nothing else may come into the queue meanwhile, and nobody else begin to work for it. Workers are easy: a registration locks the queue's
-- row (register_worker), a claim its worker's advisory lock, and a deletion takes both. Messages are not, for no producer locks anything of
-- the queue's before its INSERT has seen the queue's row, and none is to, since that would cost every one of them. But afterwards each asks
-- whether somebody sleeps (ring.sql), and so a deletion makes itself one of the sleepers:
--
--   1. It takes `asleep`, as a consumer does, and waits until no transaction is left that may have put messages into the queue without
--      ringing. From here on each producer rings.
--   2. It takes `rung` exclusively. Each producer that rings takes that too, shared (ring_inserted), until its transaction ends. So what was put
--      in is visible to the deletion: without force, that refuses it. And who comes later waits for the deletion's end, looks for the queue
--      again, and is refused. Producers do not wait for each other.
--
-- An enqueue does not see the deletion when it looked for the queue before the deletion's commit and takes its lock after it: two steps of
-- the insert trigger, with all of a deletion's end in between; or when its transaction keeps the snapshot of its start (repeatable read).
-- Its message then belongs to no queue. Nobody can claim it, since a queue's id is never used again; sweep_orphans, which the maintenance
-- calls, removes it.
--
-- A message that moves while the deletion goes on moves ahead of it: from leased to ready or scheduled, then to the dead letters, then to
-- the archive. Only a replay moves the other way, from the dead letters to the messages; one that the deletion does not see leaves an
-- orphan too.

-- The unfinished messages of a queue: ready, delayed or leased.
create or replace function tocsin.count_unfinished(queue_id integer) returns bigint
language sql stable
set enable_seqscan = off
as $$
    select (select count(*) from tocsin.messages m where m.queue_id = count_unfinished.queue_id and m.state = 'ready')
         + (select count(*) from tocsin.messages m where m.queue_id = count_unfinished.queue_id and m.state = 'scheduled')
         + (select count(*) from tocsin.messages m where m.queue_id = count_unfinished.queue_id and m.state = 'leased')
$$;

create or replace function tocsin.refuse_deletion(q tocsin.queues) returns void
language plpgsql
as $$
declare
    active bigint := (select count(*) from tocsin.workers w where w.queue_id = q.id and w.status <> 'stopped');
    unfinished bigint := tocsin.count_unfinished(q.id);
begin
    if active > 0 or unfinished > 0 then
        perform tocsin.refuse('TC010',
            format('queue "%s" has %s worker(s) that are not stopped and %s unfinished message(s)', q.name, active, unfinished),
            jsonb_build_object('queue', q.name, 'workers', active, 'messages', unfinished),
            'Stop the workers and purge the messages first, or delete it with force.');
    end if;
end
$$;

-- Keeps producers and consumers from the queue until the end of the transaction, and waits for those that are at it.
create or replace function tocsin.close_queue(q tocsin.queues) returns void
language plpgsql
as $$
declare
    worker_id bigint;
begin
    perform pg_advisory_xact_lock_shared(tocsin.lock_key('asleep', q.id));
    while tocsin.shared_elsewhere(tocsin.lock_key('unrung', q.id)) loop
        perform pg_sleep(0.01);  -- not in the queue for the lock: who asks would take that for nobody sharing it (shared_after_all)
    end loop;
    perform pg_advisory_xact_lock(tocsin.lock_key('rung', q.id));
    perform pg_advisory_xact_lock(tocsin.lock_key('maintain', 0));  -- which counts what is archived of each queue
    perform from tocsin.queues x where x.id = q.id for update;
    if not found then
        perform tocsin.refuse_missing(q.name);
    end if;
    for worker_id in select w.id from tocsin.workers w where w.queue_id = q.id order by w.id loop
        perform pg_advisory_xact_lock(tocsin.lock_key('worker', worker_id));
    end loop;
end
$$;

-- Deletes the queue and returns what went with it. Refused while it has workers that are not stopped or unfinished messages, unless by
-- force: then its workers are told, and their runs end. `dry_run` changes nothing and says what would go, or refuses. It waits for
-- transactions that have put messages into the queue.
create or replace function tocsin.delete_queue(queue text, force boolean default false, dry_run boolean default false)
returns table (worker_count bigint, message_count bigint, archived_count bigint, dead_letter_count bigint)
language plpgsql
set enable_seqscan = off
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
    n bigint;
begin
    if force is not true then
        perform tocsin.refuse_deletion(q);
    end if;
    if dry_run then
        worker_count := (select count(*) from tocsin.workers w where w.queue_id = q.id);
        message_count := tocsin.count_unfinished(q.id);
        dead_letter_count := (select count(*) from tocsin.dead_letters d where d.queue_id = q.id);
        archived_count := tocsin.purge_archive(q.id, null, true);
        return next;
        return;
    end if;
    perform tocsin.close_queue(q);
    if force is not true then
        perform tocsin.refuse_deletion(q);
    end if;
    -- In the order of ids, as those who settle them do.
    perform from tocsin.messages m where m.queue_id = q.id and m.state = 'leased' order by m.id for update;
    delete from tocsin.messages m where m.queue_id = q.id and m.state = 'leased';
    get diagnostics message_count = row_count;
    delete from tocsin.messages m where m.queue_id = q.id and m.state = 'scheduled';
    get diagnostics n = row_count;
    message_count := message_count + n;
    delete from tocsin.messages m where m.queue_id = q.id and m.state = 'ready';
    get diagnostics n = row_count;
    message_count := message_count + n;
    delete from tocsin.dead_letters d where d.queue_id = q.id;
    get diagnostics dead_letter_count = row_count;
    archived_count := tocsin.purge_archive(q.id, null, false);
    perform tocsin.tell_process(w) from tocsin.workers w where w.queue_id = q.id and w.status <> 'stopped';
    delete from tocsin.workers w where w.queue_id = q.id;
    get diagnostics worker_count = row_count;
    delete from tocsin.queues x where x.id = q.id;
    return next;
end
$$;

-- Removes messages whose queue is gone, at most so many, and returns how many that were. They are in the gaps between the ids of queues.
-- One statement, and so one snapshot: where it shows a message it also shows its queue, unless that was deleted.
create or replace function tocsin.sweep_orphans(most integer default 10000) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    swept bigint;
begin
    with gaps as (
        select coalesce(lag(q.id) over (order by q.id), 0) as above, q.id as below from tocsin.queues q
        union all
        select coalesce(max(q.id), 0), 2147483647 from tocsin.queues q
    ), orphans as (
        select o.id
        from gaps g
        cross join lateral (
            select m.id from tocsin.messages m where m.queue_id > g.above and m.queue_id < g.below and m.state = 'ready'
            union all
            select m.id from tocsin.messages m where m.queue_id > g.above and m.queue_id < g.below and m.state in ('scheduled', 'leased')
        ) o
        where g.below - g.above > 1
        limit most
    )
    delete from tocsin.messages m using orphans o where m.id = o.id;
    get diagnostics swept = row_count;
    return swept;
end
$$;
