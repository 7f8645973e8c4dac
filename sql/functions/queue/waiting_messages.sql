-- Change a message that waits: cancel, reschedule or reprioritise it. A call names the
-- message by its id, or by its queue and its key.
--
-- The change of a leased or finished message is refused (TC015), and the error names
-- the state of the message. A claim skips locked rows, and these functions lock the row
-- and read its state again. So a concurrent claim and change happen one after the
-- other, and the second sees the effect of the first.
--
-- A message whose lease has expired waits. If it has deliveries left, it is first
-- requeued, as by a claim. Otherwise its row is not changed first, and the next claim
-- would make the message a dead letter. A cancellation archives the message instead,
-- and a reschedule gives it one more delivery.
--
-- A held message waits, too. A reschedule changes when it is due, and it stays held.
--
-- A job that runs can be cancelled, too. Its row gets a mark, and its holder's process is
-- notified. The process ends the attempt, and the job is archived as cancelled by
-- whatever ends its lease: a settlement other than a delete, the lease's expiry, or the
-- death of the worker (_archive, _requeue). Each of them locks the row and reads the
-- mark. So the statement that comes first, the mark or the settlement, decides; a marked
-- job is never run again, and its key stays taken until the attempt has ended. A process
-- that misses the notification reads the mark when it extends the lease (cancel_reasons).
--
-- In a transaction of the caller, the change takes effect at the commit. Until then no
-- consumer can claim the message.
--
-- A role may change the messages of the queues that it may enqueue to, also those of
-- other producers: messages do not record the role that has enqueued them. The
-- functions return only the message's id, because such a role may not read messages.

-- Locks the named message and returns it. Raises an error unless the message waits or,
-- with `or_running`, is a job that a worker holds.
create or replace function tocsin._lock_waiting(message_id bigint, queue text, key text,
                                                or_running boolean default false)
    returns tocsin.messages
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    q tocsin.queues;
    wanted bigint := message_id;
    m tocsin.messages;
begin
    if (wanted is null) = (_lock_waiting.key is null)
        or (_lock_waiting.queue is null) <> (_lock_waiting.key is null) then
        perform tocsin._raise_error('TC022', 'name a message by its id, or by its queue and key',
                                    '{"argument": "message_id"}');
    elsif wanted is null then
        q := tocsin.find_queue(queue);
        perform tocsin._check_change(q.id);
        wanted := tocsin._find_key(q.id, key);
    end if;
    loop
        select x.* into m from tocsin.messages x where x.id = wanted;
        exit when not found;
        perform tocsin._check_change(m.queue_id);
        if m.task = '$tick' then
            perform tocsin._raise_error('TC022',
                format('message %s is the next tick of schedule "%s"', m.id, m.payload ->> 'name'),
                '{"argument": "message_id"}', 'Pause, change or delete the schedule.');
        end if;
        or_running := or_running and m.task is not null;
        exit when m.state = 'leased' and not or_running
            and (m.vt > tocsin._clock() or m.cancel_reason is not null);
        select x.* into m from tocsin.messages x
        where x.id = wanted and (x.state <> 'leased' or or_running or x.vt <= tocsin._clock())
        for update;
        continue when not found;
        return case when m.state = 'leased' and not or_running
            then tocsin._end_expired_lease(m) else m end;
    end loop;
    perform tocsin._refuse_change(wanted, queue, key);
end
$$;

-- Ends the expired lease of a locked message, and returns the message with that change.
-- If the message has no deliveries left, its row is unchanged, and only the returned
-- history has the delivery.
create or replace function tocsin._end_expired_lease(m tocsin.messages) returns tocsin.messages
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
begin
    if m.read_ct >= coalesce(m.max_deliveries,
                             (select q.max_deliveries from tocsin.queues q
                              where q.id = m.queue_id)) then
        m.history := tocsin._add_delivery(m.history,
                                          tocsin._describe_delivery(m, tocsin._clock(),
                                              'lease_expired', null));
        return m;
    end if;
    perform tocsin._requeue(array[m.id], array[m.lease], '0 s', true, 'lease_expired');
    select x.* into m from tocsin.messages x where x.id = m.id;
    return m;
end
$$;

-- Raises an error unless the caller may change messages of the queue.
create or replace function tocsin._check_change(queue_id integer) returns void
language plpgsql
as $$
begin
    if not tocsin._may_enqueue(queue_id, null) then
        perform tocsin._refuse_caller(format('change messages of queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.')
        from tocsin.queues q where q.id = _check_change.queue_id;
    end if;
end
$$;

-- Raises the error that says why a message cannot be changed.
create or replace function tocsin._refuse_change(message_id bigint, queue text, key text)
    returns void
language plpgsql
as $$
declare
    found_message tocsin.message_info;
begin
    select x.* into found_message from tocsin.get_message(message_id) x;
    if found then
        perform tocsin._check_change(found_message.queue_id);
        perform tocsin._raise_error('TC015',
            format('message %s cannot be changed: it is %s', message_id, found_message.state),
            jsonb_build_object('message_id', message_id, 'state', found_message.state),
            case found_message.state when 'leased'
                then 'A worker holds it: wait until the worker has settled it.'
                                     when 'dead'
                                         then 'Replay, archive or purge the dead letter.'
                                     when 'archived' then 'It is finished: enqueue another message.'
                                     else 'Another transaction has locked it: try again.' end);
    end if;
    perform tocsin._raise_error('TC016',
        case when key is null then format('message %s does not exist', message_id)
             else format('no unfinished message of queue "%s" has the key "%s"', queue, key) end,
        jsonb_build_object('message_id', message_id, 'key', key));
end
$$;

-- Cancels a message that waits, or a job that waits or runs, and returns its id. The
-- message is archived with the reason as its error, if its queue keeps an archive, and
-- its key becomes free; for a job that runs, when the attempt has ended. A second call
-- for a job that runs changes nothing.
create or replace function tocsin.cancel(message_id bigint default null, queue text default null,
                                         key text default null, reason text default 'cancelled')
    returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    m tocsin.messages := tocsin._lock_waiting(message_id, queue, key, or_running => true);
begin
    reason := coalesce(reason, 'cancelled');
    if m.state = 'leased' and m.task is not null then
        update tocsin.messages x set cancel_reason = cancel.reason
        where x.id = m.id and x.cancel_reason is null;
        if m.vt <= tocsin._clock() then
            perform tocsin._requeue(array[m.id], array[m.lease], '0 s', true, 'lease_expired');
        else
            perform tocsin._tell_process(w, leases_taken => true)
            from tocsin.workers w where w.id = m.consumer_worker_id;
        end if;
        return m.id;
    end if;
    -- Lease the message first, so that tocsin.archive accepts it like a handled
    -- message.
    update tocsin.messages x
    set state = 'leased', lease = coalesce(m.lease, 0) + 1, last_error = cancel.reason,
        history = m.history
    where x.id = m.id;
    perform tocsin._archive(array[m.id], array[coalesce(m.lease, 0) + 1], outcome => 'cancelled');
    if m.due < m.vt then  -- the message kept its place, and so held up the queue: see order.sql
        perform tocsin._ring(m.queue_id);
    end if;
    return m.id;
end
$$;

-- Gives a message that waits a new due time, after the delay or at the given time, and
-- returns its id. The new due time is also its place among equal priorities.
create or replace function tocsin.reschedule(
    message_id bigint default null, delay interval default null, at timestamptz default null,
    queue text default null, key text default null
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    m tocsin.messages;
    t timestamptz;
    due_at timestamptz;
begin
    perform tocsin._check_due(delay, at);
    if delay is null and at is null then
        perform tocsin._raise_error('TC022', 'give delay or at', '{"argument": "delay"}');
    end if;
    m := tocsin._lock_waiting(message_id, queue, key);
    t := tocsin._clock();
    due_at := coalesce(at, tocsin._later(t, delay));
    update tocsin.messages x
    set state = (case when m.state = 'held' then 'held' when due_at > t then 'delayed'
                 else 'ready' end)::tocsin.message_state,
        due = due_at, vt = due_at,
        history = m.history
    where x.id = m.id;
    -- the third condition: the message kept its place, and so held up the queue
    if m.state <> 'held' and (due_at <= t or due_at < m.vt or m.due < m.vt) then
        perform tocsin._ring(m.queue_id);
    end if;
    return m.id;
end
$$;

-- Gives a message that waits another priority, and returns its id.
create or replace function tocsin.reprioritise(
    message_id bigint default null, priority integer default null, queue text default null,
    key text default null
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    m tocsin.messages;
begin
    if reprioritise.priority is null then
        perform tocsin._raise_error('TC022', 'give a priority', '{"argument": "priority"}');
    end if;
    m := tocsin._lock_waiting(message_id, queue, key);
    update tocsin.messages x set priority = reprioritise.priority where x.id = m.id;
    if m.state not in ('delayed', 'held') then
        -- a consumer may have skipped the locked row, and may wait now
        perform tocsin._ring(m.queue_id);
    end if;
    return m.id;
end
$$;
