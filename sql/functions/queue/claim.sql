-- Claim: ready messages become leased to one worker.
--
-- Order is (priority, due, id), which is exactly the index messages_ready, so a claim
-- reads the front of that index and sorts nothing. Rows that another claim has locked
-- are skipped, never waited for. The planner settings pin that plan: a session keeps
-- the plan it made when the table was empty, and must not scan it when it has grown.

-- The first part of a full scan. Messages that were not delivered in time become dead
-- letters; delayed ones whose time has come, and leased ones whose lease has expired,
-- become ready (or dead letters, when there are no deliveries left). This goes in
-- batches and begins none after 20 ms, so that a claim stays short after a long outage,
-- and also succeeds under a short statement_timeout.
create or replace function tocsin._make_due_ready(queue_id integer) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    batch constant integer := 250;
    t timestamptz := tocsin._clock();
    stop_at timestamptz := t + interval '20 ms';
    over boolean := false;
    rows_due tid[];
    ids bigint[];
    expired bigint[];
begin
    while not over and exists (
        select from tocsin.messages m
        where m.queue_id = _make_due_ready.queue_id and m.state <> 'leased'
            and m.expires_at is not null and m.expires_at <= t)
    loop
        select array_agg(d.id) into ids
        from (select m.id from tocsin.messages m
              where m.queue_id = _make_due_ready.queue_id and m.state <> 'leased'
                  and m.expires_at is not null and m.expires_at <= t
              order by m.expires_at limit batch for update skip locked) d;
        exit when ids is null;
        perform tocsin._move_to_dead_letters(ids, 'expired');
        over := tocsin._clock() >= stop_at;
    end loop;

    while not over and exists (
        select from tocsin.messages m
            where m.queue_id = _make_due_ready.queue_id and m.state = 'delayed' and m.vt <= t)
    loop
        select array_agg(d.ctid) into rows_due
        from (select m.ctid from tocsin.messages m
              where m.queue_id = _make_due_ready.queue_id and m.state = 'delayed' and m.vt <= t
              order by m.vt limit 4 * batch for update skip locked) d;
        exit when rows_due is null;
        update tocsin.messages m set state = 'ready' where m.ctid = any (rows_due);
        over := tocsin._clock() >= stop_at;
    end loop;

    while not over and exists (
        select from tocsin.messages m
            where m.queue_id = _make_due_ready.queue_id and m.state = 'leased' and m.vt <= t)
    loop
        select array_agg(d.id), array_agg(d.lease) into ids, expired
        from (select m.id, m.lease from tocsin.messages m
              where m.queue_id = _make_due_ready.queue_id and m.state = 'leased' and m.vt <= t
              order by m.vt limit batch for update skip locked) d;
        exit when ids is null;
        perform tocsin._requeue(ids, expired, '0 s', true, 'lease_expired');
        over := tocsin._clock() >= stop_at;
    end loop;
end
$$;

-- Claims up to max_messages of the worker's queue, each with a fresh lease of vt (null:
-- the queue's visibility timeout), in order, and archives what is finished, in one
-- statement and one commit. Refused for a worker that is neither ready nor polling, and
-- for a registration that has ended. Claims nothing while the queue is paused.
--
-- A claim makes a *full scan* or a *resumed scan*. A full scan first makes ready what
-- is due, and reads the ready messages from the start; when they were fewer than asked
-- for, a last row tells in how many seconds the next one is due (null: none is known),
-- for a consumer that begins to wait. A resumed scan (from_priority, from_due and
-- from_id are given) reads them from that position on, and does nothing else. It is for
-- a consumer that has just claimed what came before: dead index entries, which vacuum
-- cannot remove for as long as some transaction is older than they are, accumulate
-- before the first message that is ready, and a full scan walks over all of them. What
-- has come before that position since (a message that was requeued, one of a smaller
-- priority, one whose transaction committed late) waits for the next full scan.
-- `or_full_scan`: a resumed scan that finds nothing becomes a full one.
--
-- Each row has a kind: `lost`, an id whose lease was lost, so that it was not archived;
-- `message`, a claimed message; `end`, the last row of a full scan that found fewer
-- messages than asked for; `held_up`, the same for an ordered claim when messages are
-- ready behind one that is not finished.
--
-- max_deliveries is the message's own maximum or else its queue's: the delivery whose
-- read_ct it is, is the last one.
--
-- `ordered`: the claim is a full scan, and claims nothing while an earlier message of
-- the queue is not finished: see order.sql.
--
-- Not `durable`: the transaction's commit does not wait until it is flushed. A server
-- that crashes in the next moment has then forgotten the claim, and the message is
-- delivered again; its former holder is fenced as after any redelivery.
create or replace function tocsin.claim(
    worker_id bigint, registration bigint, max_messages integer, vt interval default null,
    from_priority integer default null, from_due timestamptz default null,
    from_id bigint default null, or_full_scan boolean default true,
    finished_ids bigint[] default null, finished_leases bigint[] default null,
    durable boolean default true,
    ordered boolean default false
) returns table (
    kind text, id bigint, lease bigint, priority integer, read_ct integer, due timestamptz,
    enqueued_at timestamptz, vt_at timestamptz,
    dequeued_at timestamptz, producer_worker_id bigint, headers text, last_error text,
    max_deliveries integer, key text, payload text,
    next_due float8
)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    worker_lock bigint := tocsin._lock_key('worker', worker_id);
    q tocsin.queues;
    archived boolean[];
    t timestamptz;
    token bigint;
    found_rows bigint;
    ignored text;
begin
    if not durable then
        ignored := set_config('synchronous_commit', 'off', true);
    end if;
    -- First the worker, then its messages: the order in which a suspension locks them.
    -- It waits for claims under way by this lock, and the status is read after it was
    -- taken, in a statement of its own: so a claim either sees the suspension or is
    -- seen by it.
    if not pg_try_advisory_xact_lock_shared(worker_lock) then
        perform pg_advisory_xact_lock_shared(worker_lock);
    end if;
    if finished_ids is not null then
        -- as limit_lock_wait() does: see locks.sql
        ignored := set_config('lock_timeout', '250ms', true);
        archived := tocsin.archive(finished_ids, finished_leases);
        if not true = all (archived) then
            kind := 'lost';
            for id in
                select s.id from unnest(finished_ids, archived) s (id, archived)
                where not s.archived
            loop
                return next;
            end loop;
            id := null;
        end if;
    end if;
    t := tocsin._clock();
    token := extract(epoch from t) * 1000000;
    loop
        if from_due is null then
            q := tocsin._check_claim(worker_id, registration);
            perform tocsin._make_due_ready(q.id) where q.paused_at is null;
            if ordered then
                next_due := tocsin._order_kept_for(q.id);
                if next_due is not null then
                    kind := case
                        when exists (select from tocsin.messages m
                                     where m.queue_id = q.id and m.state = 'ready')
                            then 'held_up' else 'end' end;
                    return next;
                    return;
                end if;
            end if;
        end if;
        -- A nested loop from the worker to its queue to the queue's first messages, so
        -- these come in their order without a sort; test_claim.py holds it to
        -- that. One statement, since it is what an idle consumer's handler waits for.
        return query
            update tocsin.messages m
            set state = 'leased', lease = greatest(token, m.lease + 1),
                vt = tocsin._later(t, f.lease_length), read_ct = m.read_ct + 1,
                dequeued_at = t, consumer_worker_id = worker_id
            from (select r.ctid as found, coalesce(claim.vt, x.vt) as lease_length, x.max_deliveries
                  from tocsin.workers w
                  join tocsin.queues x on x.id = w.queue_id
                  cross join lateral (
                      select y.ctid from tocsin.messages y
                      where y.queue_id = x.id and y.state = 'ready'
                          and (y.expires_at is null or y.expires_at > t)
                        and (y.priority, y.due, y.id)
                            >= (coalesce(from_priority, -2147483648),
                                coalesce(from_due, '-infinity'), coalesce(from_id, 0))
                      order by y.priority, y.due, y.id limit max_messages for update skip locked) r
                  where w.id = worker_id and w.registration = claim.registration
                      and w.status in ('ready', 'polling')
                    and tocsin._acts_for(w.role)
                    and x.paused_at is null) f
            where m.ctid = f.found
            returning 'message', m.id, m.lease, m.priority, m.read_ct, m.due, m.enqueued_at, m.vt,
                t, m.producer_worker_id, m.headers::text,
                      m.last_error, coalesce(m.max_deliveries, f.max_deliveries), m.key,
                      m.payload::text, null::float8;
        get diagnostics found_rows = row_count;
        if found_rows = 0 and from_due is not null then
            q := tocsin._check_claim(worker_id, registration);  -- or is it refused?
        end if;
        exit when found_rows > 0 or from_due is null or not or_full_scan;
        from_priority := null;
        from_due := null;
        from_id := null;
    end loop;
    if from_due is null and found_rows < max_messages then
        -- What is due and was not taken is locked: for a moment by another claim, or
        -- for long by a transaction of its holder's that settles it. So the next full
        -- scan comes after a quarter of the time for which it has been due, a quarter
        -- of a second at most.
        next_due := tocsin._next_due(q.id, with_ready => false);
        if next_due < 0.01 then
            next_due := greatest(0.01, least(-next_due / 4, 0.25));
        end if;
        kind := 'end';
        return next;
    end if;
end
$$;

-- Seconds until the queue's next message is due (0: now), or null when there is none or
-- the queue is paused. Ready messages count unless told otherwise; then a negative
-- number says for how long the first of the delayed and leased ones has been due.
create or replace function tocsin._next_due(queue_id integer, with_ready boolean default true)
    returns float8
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off
set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    at timestamptz;
begin
    select least(
        case when with_ready then
            -- What is ready can be claimed now, also what was enqueued while the clock
            -- was ahead.
            (select least(m.due, tocsin._clock()) from tocsin.messages m
             where m.queue_id = q.id and m.state = 'ready' order by m.priority, m.due, m.id limit 1)
        end,
        (select m.vt from tocsin.messages m where m.queue_id = q.id and m.state = 'delayed'
         order by m.vt limit 1),
        (select m.vt from tocsin.messages m where m.queue_id = q.id and m.state = 'leased'
         order by m.vt limit 1)
    )
    into at
    from tocsin.queues q
    where q.id = _next_due.queue_id and q.paused_at is null;
    -- greatest() passes over null
    return greatest(case when with_ready and at is not null then 0 end,
                    extract(epoch from at - tocsin._clock()));
end
$$;
