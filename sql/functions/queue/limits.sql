-- Limits: at most n messages of a key run at a time, over all processes and queues. This
-- file says which messages wait, and when a scan must look at them again; slots.sql
-- grants the slots.
--
-- A message with limits is inserted as `held`. It waits in the *line* of a key, by its row
-- in `slots`, until a full scan of its queue grants it all its slots and makes it ready.
-- A row of `slots` with a slot is a holder, and the unique index slots_held is the judge:
-- a slot of a key has one holder. The message keeps its slots until it is settled,
-- requeued or deleted. So a claim of messages without limits is as before, and blocked
-- messages stand in no index that it reads.
--
-- Only a scan grants, never an enqueue or a settlement. Each of these may run in a
-- transaction of the user, which may stay open for long, and a slot that it has taken or
-- would have to wait for would block all messages of the key.
--
-- Two events may let a message run: it joins a line (T1), or a slot becomes free (T2).
-- Each transaction that causes one:
--   1. Inserts a row into `limit_checks` for each queue that may have a message in the
--      line: T1 for the message's queue, T2 for each queue in `limit_queues`.
--   2. Rings these queues, as for a message that it inserts (ring.sql).
--
-- A full scan of a queue, which is a short transaction (slots.sql):
--   1. Deletes the rows of `limit_checks` that it sees and that are not locked.
--   2. Looks at the lines that these rows and the locked ones name, in new snapshots.
--
-- No message is stranded. Let a line have a message and a free slot. The later of the
-- commits of T1 and T2 has made that so, and its row in `limit_checks` was visible with
-- it. A scan that deletes the row looks at the line afterwards, so it sees both. A scan
-- comes: the bell wakes a consumer of the queue for that row as for a message. After a
-- rollback the event has not happened.
--
-- An event needs no row of its own when one is there (_note_check). It then shares the
-- lock of that row until it ends, so no scan deletes the row before. A scan looks at the
-- lines of locked rows, too, and skips no event of a transaction that has ended.
--
-- T2 must know each queue with a message in the line, also when T1 is not committed. So
-- T1 inserts the queue into `limit_queues`, usually a worker long before. A T2 that runs
-- at this moment does not see the row. The first scan that sees it notes its own
-- transaction id in `since`. Until all older transactions have ended, scans keep the rows
-- in `limit_checks`; a scan tests that before it looks. A transaction of a stricter
-- isolation level may have an older snapshot than its id, so it notes all queues, and it
-- takes no part in scans.
--
-- A message takes what it needs in stages: the due times of its rates, each ordered limit
-- in the order of ids, and at last all other limits at once or none. A holder of an
-- ordered limit may wait for later stages, and a holder of the last stage waits for
-- nothing, so no two messages wait for each other. It waits in one line at a time, that of
-- the first key without a free slot, keys before limits without keys: so a line without a
-- key holds few messages that wait for their own key (slots.sql).
--
-- tests/model/limits.pml is this protocol as a model that Spin searches exhaustively.

-- Refuses limits that _line_up could not read.
create or replace function tocsin._check_limits(limits jsonb) returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    fault text;
begin
    if jsonb_typeof(limits) <> 'array' then
        fault := 'limits must be an array';
    else
        select case
            when jsonb_typeof(x.l) <> 'object' or x.l - '{name,n,per,burst,key,ordered}'::text[] <> '{}'
                then 'a limit must be an object with name, n, per, burst, key and ordered'
            when x.l ->> 'name' = '' or octet_length(x.l ->> 'name') > 255
                then 'the name of a limit must have between 1 and 255 bytes'
            when x.l -> 'name' is null and x.l -> 'ordered' is distinct from 'true'
                then 'a limit must have a name'
            when octet_length(x.l ->> 'key') > 1024 then 'a key must have at most 1,024 bytes'
            when (x.l ->> 'n')::numeric not between 1 and 1000000
                or (x.l ->> 'burst')::numeric not between 1 and 1000000
                then 'the n and the burst of a limit must be at least 1'
            when (x.l ->> 'per')::numeric not between 0.000001 and 31536000000
                then 'the interval of a rate must be positive, and at most a thousand years'
            when count(*) over (partition by x.l ->> 'name') > 1
                then format('limit "%s" is named twice', x.l ->> 'name')
            end into fault
        from jsonb_array_elements(limits) x (l)
        order by 1 limit 1;
    end if;
    if fault is not null then
        perform tocsin._raise_error('TC022', fault, '{"argument": "limits"}');
    end if;
end
$$;

-- Returns the limit of this description, which it creates if there is none, and notes
-- that messages of the queue name it.
create or replace function tocsin._find_limit(spec jsonb, queue_id integer) returns tocsin.limits
language plpgsql
as $$
#variable_conflict use_column
declare
    called text := coalesce(spec ->> 'name',
                            (select 'queue ' || q.name from tocsin.queues q where q.id = queue_id));
    l tocsin.limits;
begin
    loop
        select x.* into l from tocsin.limits x where x.name = called;
        exit when found;
        insert into tocsin.limits (name, n, per, burst, ordered)
        values (called, coalesce((spec ->> 'n')::integer, 1),
                make_interval(secs => (spec ->> 'per')::float8),
                coalesce((spec ->> 'burst')::integer, 1),
                coalesce((spec ->> 'ordered')::boolean, false))
        on conflict (name) do nothing;
        if not found and current_setting('transaction_isolation') <> 'read committed' then
            raise serialization_failure
                using message = format('limit "%s" was created by a transaction that this one '
                                       'cannot see', called),
                hint = 'Try the transaction again.';
        end if;
    end loop;
    if (l.per is null) <> (spec ->> 'per' is null)
        or l.ordered <> coalesce((spec ->> 'ordered')::boolean, false) then
        perform tocsin._raise_error('TC022',
            format('limit "%s" is %s', called, case when l.per is not null then 'a rate'
                   when l.ordered then 'ordered' else 'neither a rate nor ordered' end),
            '{"argument": "limits"}', 'Give one of the two another name.');
    end if;
    if not exists (select from tocsin.limit_queues x
                   where x.limit_id = l.id and x.queue_id = _find_limit.queue_id) then
        insert into tocsin.limit_queues (limit_id, queue_id) values (l.id, queue_id)
        on conflict do nothing;
    end if;
    return l;
end
$$;

-- Creates a limit that a task names, or gives it what the task says.
create or replace function tocsin._declare_limit(spec jsonb, queue_id integer) returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    l tocsin.limits := tocsin._find_limit(spec, queue_id);
begin
    update tocsin.limits x
    set n = (spec ->> 'n')::integer, burst = coalesce((spec ->> 'burst')::integer, 1),
        per = make_interval(secs => (spec ->> 'per')::float8)
    where x.id = l.id and tocsin._may_consume()
        and (x.n, x.burst, x.per) is distinct from
            ((spec ->> 'n')::integer, coalesce((spec ->> 'burst')::integer, 1),
             make_interval(secs => (spec ->> 'per')::float8));
    perform tocsin._note_waiting(l.id) where found;
end
$$;

-- Notes that scans must look at all lines of a limit, which has changed.
create or replace function tocsin._note_waiting(limit_id integer) returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    perform tocsin._note_free(_note_waiting.limit_id, s.key)
    from (select distinct x.key from tocsin.slots x
          where x.limit_id = _note_waiting.limit_id and x.waits) s;
end
$$;

-- Notes that scans of these queues must look at the line of the key, and rings.
create or replace function tocsin._note_check(queue_ids integer[], limit_id integer, key text)
    returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    q integer;
begin
    foreach q in array queue_ids loop
        -- a row that another transaction has deleted would fail at a stricter level
        if current_setting('transaction_isolation') = 'read committed' then
            perform from tocsin.limit_checks c
            where c.queue_id = q and c.limit_id = _note_check.limit_id
                and c.key = _note_check.key
            limit 1 for share skip locked;
        end if;
        if current_setting('transaction_isolation') <> 'read committed' or not found then
            insert into tocsin.limit_checks (queue_id, limit_id, key) values (q, limit_id, key);
        end if;
        perform tocsin._ring(q);
    end loop;
end
$$;

-- Notes that a message has left the line of a key, or has left its slot.
create or replace function tocsin._note_free(limit_id integer, key text) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    perform tocsin._note_check(
        case when current_setting('transaction_isolation') = 'read committed' then
            array(select x.queue_id from tocsin.limit_queues x
                  where x.limit_id = _note_free.limit_id order by 1)
        else array(select q.id from tocsin.queues q order by 1) end, limit_id, key);
end
$$;

-- Puts a held message that is due into the line of the first key that it needs. A
-- message that needs nothing becomes ready.
create or replace function tocsin._line_up(m tocsin.messages) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    spec jsonb;
    l tocsin.limits;
    first tocsin.slots;
begin
    for spec in select x from jsonb_array_elements(m.options -> 'limits') x order by x ->> 'name'
    loop
        l := tocsin._find_limit(spec, m.queue_id);
        insert into tocsin.slots (message_id, limit_id, key, queue_id, line, stage, priority, due)
        values (m.id, l.id, coalesce(spec ->> 'key', ''), m.queue_id,
                case when l.ordered then 0 else m.queue_id end,
                case when l.per is not null then 0 when l.ordered then 1
                when spec ->> 'key' <> '' then 2 else 3 end,
                case when l.ordered then 0 else m.priority end, m.due)
        on conflict (message_id, limit_id) do update
        set priority = excluded.priority, due = excluded.due, waits = false;
    end loop;
    select s.* into first from tocsin.slots s
    where s.message_id = m.id and s.slot is null and not s.paid
    order by s.stage, s.limit_id limit 1;
    if found then
        update tocsin.slots s set waits = true
        where s.message_id = m.id and s.limit_id = first.limit_id;
        perform tocsin._note_check(array[m.queue_id], first.limit_id, first.key);
    else
        update tocsin.messages x set state = 'ready' where x.id = m.id;
        perform tocsin._ring(m.queue_id);
    end if;
end
$$;

-- Frees the slots of a message, and takes it out of lines. A message that is only
-- delayed keeps its ordered slots. With `keep_paid` it keeps the times of its rates, too.
create or replace function tocsin._free(message_id bigint, keep_ordered boolean default false,
                                             keep_paid boolean default false) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    g tocsin.slots;
begin
    for g in
        delete from tocsin.slots s
        where s.message_id = _free.message_id
            and not (keep_ordered and s.stage = 1 and s.slot is not null)
            and not (keep_paid and s.paid)
        returning s.*
    loop
        if g.stage > 0 then
            perform tocsin._note_free(g.limit_id, g.key);
        end if;
    end loop;
end
$$;

-- A message with limits is never inserted as ready, whatever inserts it.
create or replace function tocsin._hold_limited() returns trigger
language plpgsql
as $$
begin
    if new.state = 'ready' then
        new.state := 'held';
    end if;
    return new;
end
$$;

create or replace trigger hold_limited before insert on tocsin.messages
    for each row when (new.options ? 'limits')
    execute function tocsin._hold_limited();

create or replace function tocsin._follow_limited() returns trigger
language plpgsql
as $$
declare
    m tocsin.messages := new;
begin
    if tg_op = 'DELETE' then
        perform tocsin._free(old.id);
        return null;
    elsif tg_op = 'INSERT' then
        if m.state = 'held' and m.waits_for is null then
            perform tocsin._line_up(m);
        end if;
        return null;
    end if;
    if m.waits_for is not null or m.state = 'leased' or m.state = 'ready' and old.state = 'ready'
    then
        return null;
    end if;
    if old.state in ('ready', 'leased') then
        perform tocsin._free(m.id, keep_ordered => true);
    end if;
    if m.state in ('ready', 'held') then
        m.state := (case when m.due > tocsin._clock() then 'delayed' else 'held' end);
        update tocsin.messages x set state = m.state
        where x.id = m.id and x.state is distinct from m.state;
    end if;
    if m.state = 'held' then
        perform tocsin._line_up(m);
    elsif old.state = 'held' then
        perform tocsin._free(m.id, keep_ordered => true, keep_paid => true);
    end if;
    return null;
end
$$;

-- Whatever settles, requeues, changes or deletes a message with limits: its slots follow.
-- A claim changes neither due nor priority, so this trigger does not concern it.
create or replace trigger follow_limited after update of due, priority on tocsin.messages
    for each row when (new.options ? 'limits')
    execute function tocsin._follow_limited();
create or replace trigger line_up_limited after insert on tocsin.messages
    for each row when (new.options ? 'limits')
    execute function tocsin._follow_limited();
create or replace trigger free_limited after delete on tocsin.messages
    for each row when (old.options ? 'limits')
    execute function tocsin._follow_limited();
