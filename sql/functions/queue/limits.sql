-- Limits: at most n messages of a key run at a time, over all processes and queues. This
-- file has the protocol, and puts the messages into lines; slots.sql grants the slots.
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
-- T1 writes no row that another transaction may write, or two user transactions could
-- wait for each other: the id of a limit is a digest of its name, and `limits` and
-- `limit_queues` are written under the lock `grant` only, by scans and by workers that
-- register tasks (_declare_limits).
--
-- T2 must know each queue with a message in the line: `limit_queues` has these queues.
-- The first scan that looks at a line of the limit for its queue adds the row, if no
-- worker has. A T2 that runs at this moment does not see the row. So the next scan notes
-- in `since` a transaction id that is later than all of the transactions that have begun
-- by then. Until these have ended, scans keep the rows in `limit_checks`; a scan tests
-- that before it looks. A transaction of a stricter isolation level may have an older
-- snapshot than its id, so it notes all queues, and it takes no part in scans.
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
            when jsonb_typeof(x.l) <> 'object' then 'a limit must be an object'
            when x.l - '{name,n,per,burst,key,ordered}'::text[] <> '{}'
                then 'a limit must be an object with name, n, per, burst, key and ordered'
            when x.l ->> 'name' = '' or octet_length(x.l ->> 'name') > 255
                then 'the name of a limit must have between 1 and 255 bytes'
            when x.l ->> 'name' is null and x.l -> 'ordered' is distinct from 'true'
                then 'a limit must have a name'
            when octet_length(x.l ->> 'key') > 1024 then 'a key must have at most 1,024 bytes'
            when jsonb_typeof(x.l -> 'n') <> 'number' or jsonb_typeof(x.l -> 'burst') <> 'number'
                or x.l ->> 'n' !~ '^[0-9]{1,7}$' or x.l ->> 'burst' !~ '^[0-9]{1,7}$'
                or (x.l ->> 'n')::numeric not between 1 and 1000000
                or (x.l ->> 'burst')::numeric not between 1 and 1000000
                then 'the n and the burst of a limit must be integers from 1 to a million'
            when jsonb_typeof(x.l -> 'per') <> 'number'
                or (x.l ->> 'per')::numeric not between 0.000001 and 31536000000
                then 'the interval of a rate must be positive, and at most a thousand years'
            when jsonb_typeof(x.l -> 'ordered') <> 'boolean'
                then 'ordered must be true or false'
            when (x.l ->> 'ordered')::boolean
                and (x.l ->> 'n' <> '1' or x.l ? 'per' or x.l ? 'burst')
                then 'an ordered limit has n = 1, and no interval'
            when count(*) over (partition by x.l ->> 'name') > 1
                then format('limit "%s" is named twice', x.l ->> 'name')
            else tocsin._find_other_kind(tocsin._describe_limit(x.l, null))
            end into fault
        from jsonb_array_elements(limits) x (l)
        order by 1 limit 1;
    end if;
    if fault is not null then
        perform tocsin._raise_error('TC022', fault, '{"argument": "limits"}');
    end if;
end
$$;

-- Returns what the limits of this name are when none is of the same kind.
create or replace function tocsin._find_other_kind(l tocsin.limits) returns text
language sql stable
as $$
    select format('limit "%s" is %s', l.name,
                  case when x.per is not null then 'a rate' when x.ordered then 'ordered'
                  else 'neither a rate nor ordered' end)
    from tocsin.limits x
    where x.name = l.name and x.id <> l.id
        and not exists (select from tocsin.limits y where y.id = l.id)
    limit 1
$$;

-- Returns the limit that a message or a task of the queue describes, whether or not the
-- table has it. A limit, a rate and an ordered limit of one name are three limits, so
-- that each message has a line also when two transactions at once give the name to two of
-- them. Usually _check_limits refuses one of the two.
create or replace function tocsin._describe_limit(spec jsonb, queue_id integer)
    returns tocsin.limits
language plpgsql stable
as $$
declare
    l tocsin.limits;
begin
    l.name := coalesce(spec ->> 'name',
                       (select 'queue ' || q.name from tocsin.queues q where q.id = queue_id));
    l.n := coalesce((spec ->> 'n')::integer, 1);
    l.per := make_interval(secs => (spec ->> 'per')::float8);
    l.burst := coalesce((spec ->> 'burst')::integer, 1);
    l.ordered := coalesce((spec ->> 'ordered')::boolean, false);
    l.id := ('x' || left(encode(sha256(convert_to(
        case when l.per is not null then 'rate ' when l.ordered then 'ordered ' else 'limit ' end
        || l.name, 'UTF8')), 'hex'), 16))::bit(64)::bigint;
    return l;
end
$$;

-- Creates the limits of the tasks that a worker registers, or gives them what the tasks
-- say. Rows are locked in the order of ids. The lock `grant`, without which no scan
-- grants, is taken for new rows only, and after the wait for a transaction that has set
-- a limit.
create or replace function tocsin._declare_limits(tasks jsonb) returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    declared tocsin.limits[];
    uses tocsin.limit_queues[];
begin
    select array_agg(distinct x.l), array_agg(distinct row(
               (x.l).id, x.queue_id, pg_current_xact_id(), null)::tocsin.limit_queues)
    into declared, uses
    from (select first_value(l) over (partition by l.id order by t.name desc) as l, q.id as queue_id
          from jsonb_to_recordset(tasks) t (name text, queue text, limits jsonb)
          cross join lateral (select (tocsin.find_queue(t.queue)).id) q
          cross join lateral jsonb_array_elements(t.limits) s (spec)
          cross join lateral tocsin._describe_limit(s.spec, q.id) l) x;
    if declared is null then
        return;
    elsif (select count(distinct d.name) from unnest(declared) d) < cardinality(declared) then
        perform tocsin._raise_error('TC022',
            format('limit "%s" is of two kinds: a limit, a rate or an ordered limit', d.name),
            '{"argument": "tasks"}')
        from unnest(declared) d group by d.name having count(*) > 1;
    end if;
    perform tocsin._update_limits(declared);
    if not exists (select from unnest(uses) u
                   left join tocsin.limit_queues x using (limit_id, queue_id)
                   where x.limit_id is null) then
        return;
    end if;
    perform pg_advisory_xact_lock(tocsin._lock_key('grant', 0));
    insert into tocsin.limits select d.* from unnest(declared) d on conflict (id) do nothing;
    insert into tocsin.limit_queues select u.* from unnest(uses) u on conflict do nothing;
    perform tocsin._update_limits(declared);  -- those that a scan has created since
end
$$;

-- Gives limits that exist the numbers of these, which are in the order of ids.
create or replace function tocsin._update_limits(declared tocsin.limits[]) returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    d tocsin.limits;
begin
    foreach d in array declared loop
        update tocsin.limits x set n = d.n, burst = d.burst, per = d.per
        where x.id = d.id and tocsin._may_consume()
            and (x.n, x.burst, x.per) is distinct from (d.n, d.burst, d.per);
        perform tocsin._note_waiting(d.id) where found;
    end loop;
end
$$;

-- Notes that scans must look at all lines of a limit, which has changed.
create or replace function tocsin._note_waiting(limit_id bigint) returns void
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
create or replace function tocsin._note_check(queue_ids integer[], limit_id bigint, key text)
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
create or replace function tocsin._note_free(limit_id bigint, key text) returns void
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
    first tocsin.slots;
begin
    insert into tocsin.slots (message_id, limit_id, key, queue_id, line, stage, priority, due)
    select m.id, l.id, coalesce(x.spec ->> 'key', ''), m.queue_id,
           case when l.ordered then 0 else m.queue_id end,
           case when l.per is not null then 0 when l.ordered then 1
           when x.spec ->> 'key' <> '' then 2 else 3 end,
           case when l.ordered then 0 else m.priority end, m.due
    from jsonb_array_elements(m.options -> 'limits') x (spec)
    cross join lateral tocsin._describe_limit(x.spec, m.queue_id) l
    on conflict (message_id, limit_id) do update
    set priority = excluded.priority, due = excluded.due, waits = false;
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
        -- behind it may be a message of another queue, which is now the first of the line
        perform tocsin._note_free(s.limit_id, s.key) from tocsin.slots s
        where old.state = 'held' and s.message_id = m.id and s.line = 0 and s.waits;
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
