-- Claim messages: lease ready messages to one worker.
--
-- Messages are claimed in the order (priority, due, id), which is exactly that of the
-- index messages_ready. So a claim reads the front of that index and sorts nothing. It
-- skips rows that another claim has locked, and never waits for them. The planner
-- settings force this plan: a session keeps the plan that it made when the table was
-- empty, and must not scan the table when it has grown.

-- The first part of a full scan; slots.sql has the second. Expired messages become dead
-- letters. Delayed messages that are due become ready. Leased messages whose lease has
-- expired become ready, or dead letters when they have no deliveries left. The function
-- works in batches and begins none after 20 ms, so that a claim stays short after a long
-- outage, and also succeeds under a short statement_timeout. Returns the number of
-- expired leases that it has ended; null: the time was over before it came to the
-- leases.
create or replace function tocsin._make_due_ready(queue_id integer) returns bigint
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
    limited bigint[];
    ids bigint[];
    expired bigint[];
    ended bigint := 0;
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
        select array_agg(d.ctid), array_agg(d.id) filter (where d.limited) into rows_due, limited
        from (select m.ctid, m.id, m.options ? 'limits' as limited from tocsin.messages m
              where m.queue_id = _make_due_ready.queue_id and m.state = 'delayed' and m.vt <= t
              order by m.vt limit 4 * batch for update skip locked) d;
        exit when rows_due is null;
        update tocsin.messages m
        set state = (case when m.options ? 'limits' then 'held'
                     else 'ready' end)::tocsin.message_state
        where m.ctid = any (rows_due);
        if limited is not null then
            perform tocsin._line_up(m) from tocsin.messages m where m.id = any (limited);
        end if;
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
        ended := ended + cardinality(ids);
        over := tocsin._clock() >= stop_at;
    end loop;
    return case when ended > 0 or not over then ended end;
end
$$;

-- Claims up to max_messages of the worker's queue in order, each with a new lease of vt
-- (null: the queue's visibility timeout). The same statement, and so the same commit,
-- archives the finished messages that the caller names. The claim is refused for a
-- worker that is neither ready nor polling, and for a registration that has ended. It
-- claims nothing while the queue is paused.
--
-- A claim makes a *full scan* or a *resumed scan*. A full scan first makes due messages
-- ready, and then reads the ready messages from the front. When it finds fewer messages
-- than requested, a last row tells in how many seconds the next one is due (null: none
-- is known), for a consumer that begins to wait. A resumed scan (with from_priority,
-- from_due and from_id) reads the ready messages from that position on, and does
-- nothing else. It is for a consumer that has just claimed the messages before that
-- position. Dead index entries, which vacuum cannot remove while a transaction is open
-- that is older than they are, accumulate before the first ready message, and a full
-- scan walks over all of them. A message that has since come before the position (a
-- requeued message, one of a smaller priority, one whose transaction committed late)
-- waits for the next full scan. With `or_full_scan`, a resumed scan that finds nothing
-- becomes a full scan.
--
-- Each row has a kind. `lost` is a message that was not archived because its lease was
-- lost. `message` is a claimed message. `end` is the last row of a full scan that found
-- fewer messages than requested. `held_up` takes the place of `end` in an ordered claim
-- when ready messages wait behind an unfinished one.
--
-- max_deliveries is the maximum of the message, or else that of its queue. The delivery
-- whose read_ct equals it is the last one.
--
-- With `ordered`, the claim is a full scan, and claims nothing while an earlier message
-- of the queue is unfinished: see order.sql.
--
-- Without `durable`, the commit of the transaction does not wait for the flush. A crash
-- of the server in the next moment then loses the claim, and the message is delivered
-- again. Its former holder is fenced as after any redelivery.
create or replace function tocsin.claim(
    worker_id bigint, registration bigint, max_messages integer, vt interval default null,
    from_priority integer default null, from_due timestamptz default null,
    from_id bigint default null, or_full_scan boolean default true,
    finished_ids bigint[] default null, finished_leases bigint[] default null,
    durable boolean default true,
    ordered boolean default false,
    finished_results jsonb default null
) returns table (
    kind text, id bigint, lease bigint, priority integer, read_ct integer, due timestamptz,
    enqueued_at timestamptz, vt_at timestamptz,
    dequeued_at timestamptz, producer_worker_id bigint, headers text, last_error text,
    max_deliveries integer, key text, payload text, task text,
    options text,
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
    again float8;  -- seconds until a scan must grant slots
    ignored text;
begin
    if not durable then
        ignored := set_config('synchronous_commit', 'off', true);
    end if;
    -- Lock the worker before its messages, as a suspension does. A suspension waits for
    -- claims in progress by this lock. The claim reads the worker's status after it has
    -- taken the lock, in a separate statement. So either the claim sees the suspension,
    -- or the suspension sees the claim.
    if not pg_try_advisory_xact_lock_shared(worker_lock) then
        perform pg_advisory_xact_lock_shared(worker_lock);
    end if;
    if finished_ids is not null then
        -- as limit_lock_wait() does: see locks.sql
        ignored := set_config('lock_timeout', '250ms', true);
        archived := tocsin._archive(finished_ids, finished_leases, finished_results);
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
            if q.paused_at is null then
                perform tocsin._make_due_ready(q.id);
                again := tocsin._grant_slots(q.id);
            end if;
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
        -- The plan is a nested loop from the worker to its queue to the queue's first
        -- messages, so these are in order without a sort; test_claim.py checks the
        -- plan. It is one statement because the handler of an idle consumer waits for
        -- it.
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
                      m.payload::text, m.task, m.options::text, null::float8;
        get diagnostics found_rows = row_count;
        if found_rows = 0 and from_due is not null then
            q := tocsin._check_claim(worker_id, registration);  -- or raises an error
        end if;
        exit when found_rows > 0 or from_due is null or not or_full_scan;
        from_priority := null;
        from_due := null;
        from_id := null;
    end loop;
    if from_due is null and found_rows < max_messages then
        -- A message that is due and was not claimed is locked: for a moment by another
        -- claim, or for long by its holder's transaction that settles it. So the next
        -- full scan comes after a quarter of the time for which the message has been
        -- due, a quarter of a second at most.
        next_due := tocsin._next_due(q.id, with_ready => false);
        if next_due < 0.01 then
            next_due := greatest(0.01, least(-next_due / 4, 0.25));
        end if;
        next_due := least(next_due, again);
        kind := 'end';
        return next;
    end if;
end
$$;

-- Returns the seconds until the queue's next message is due (0: now), or null when
-- there is none or the queue is paused. Without `with_ready`, only delayed and leased
-- messages count, and a negative number says for how long the first of them has been
-- due.
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
            -- A ready message can be claimed now, also one that was enqueued while the
            -- clock was ahead.
            (select least(m.due, tocsin._clock()) from tocsin.messages m
             where m.queue_id = q.id and m.state = 'ready' order by m.priority, m.due, m.id limit 1)
        end,
        (select m.vt from tocsin.messages m where m.queue_id = q.id and m.state = 'delayed'
         order by m.vt limit 1),
        (select m.vt from tocsin.messages m where m.queue_id = q.id and m.state = 'leased'
         order by m.vt limit 1),
        case when with_ready then
            (select tocsin._clock() from tocsin.limit_checks c where c.queue_id = q.id limit 1)
        end
    )
    into at
    from tocsin.queues q
    where q.id = _next_due.queue_id and q.paused_at is null;
    -- greatest() ignores null
    return greatest(case when with_ready and at is not null then 0 end,
                    extract(epoch from at - tocsin._clock()));
end
$$;
