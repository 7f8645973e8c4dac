-- Correct timestamps that were written while the server's clock was ahead.

-- The server's clock may have been ahead for a while. Timestamps that were written then
-- are wrong until the clock reaches them: a lease does not end, a message is due too
-- late, or comes last among the ready ones. So when this function or a heartbeat has
-- found a timestamp in the future, each start time in the future becomes now, and the
-- end time that was computed from it is moved by the same amount. The start of a delay
-- is the latest of three times: when the message was enqueued, when it was claimed, and
-- when its last delivery that counts ended.
--
-- Some changes leave no start time in the row: a reschedule, the extension of a lease,
-- a replay, and a snooze or a release with a delay if the claim was before that time.
-- A time that such a change has set while the clock was ahead stays wrong until
-- `reschedule` or `release_messages` corrects it.
create or replace function tocsin._correct_future_times() returns void
language plpgsql
as $$
declare
    t timestamptz := tocsin._clock();
    -- leaves out a row that is being written at this moment
    beyond timestamptz := t + interval '1 s';
    found_some boolean := false;
begin
    update tocsin.workers w
    set heartbeat_at = least(w.heartbeat_at, t), shutdown_at = least(w.shutdown_at, t),
        started_at = least(w.started_at, t)
    from (select x.id from tocsin.workers x where x.heartbeat_at > beyond or x.shutdown_at > beyond
          for update skip locked) ahead
    where w.id = ahead.id;
    found_some := found;
    if exists (select from tocsin.processes p where p.heartbeat_at > beyond) then
        perform tocsin._correct_heartbeats(t);
        found_some := true;
    end if;
    update tocsin.maintenance m set clock_was_ahead = false,
        due_at = least(m.due_at, t + interval '1 minute')
    where m.clock_was_ahead or found_some or m.due_at > t + interval '2 minutes';
    if not found then
        return;
    end if;
    update tocsin.messages m
    set enqueued_at = least(m.enqueued_at, t),
        dequeued_at = least(m.dequeued_at, t),
        due = case when m.state not in ('delayed', 'held') then least(m.due, t)
                   when m.due > t and ahead.since > t then tocsin._later(m.due, t - ahead.since)
                   else m.due end,  -- a due time in the past is the place in the queue
        vt = case when m.state = 'ready' then least(m.vt, t)
                  when m.state = 'leased' and m.dequeued_at > t
                      then tocsin._later(m.vt, t - m.dequeued_at)
                  when m.state in ('delayed', 'held') and ahead.since > t
                      then tocsin._later(m.vt, t - ahead.since)
                  else m.vt end,
        expires_at = case when m.enqueued_at > t then tocsin._later(m.expires_at, t - m.enqueued_at)
            else m.expires_at end,
        history = tocsin._correct_history(m.history, t)
    from (select x.id, greatest(x.enqueued_at, x.dequeued_at, l.ended_at) as since
          from tocsin.messages x
          cross join lateral (select (x.history -> -1 ->> 'ended_at')::timestamptz) l (ended_at)
          where x.enqueued_at > beyond or x.dequeued_at > beyond or l.ended_at > beyond
              or x.state = 'ready' and x.due > beyond
          order by x.id for update of x skip locked) ahead
    where m.id = ahead.id;
    perform tocsin._correct_ticks(t);
    update tocsin.dead_letters d set died_at = t where d.died_at > beyond;
    update tocsin.archive_count_deltas y set archived_at = t where y.archived_at > beyond;
    perform tocsin._ring(q.id) from tocsin.queues q;
end
$$;

-- Returns a message's history without times in the future.
create or replace function tocsin._correct_history(history jsonb, t timestamptz) returns jsonb
language sql stable
as $$
    select jsonb_agg(
        d || case when (d ->> 'ended_at')::timestamptz > t
                  then jsonb_build_object('dequeued_at',
                                          least((d ->> 'dequeued_at')::timestamptz, t), 'ended_at',
                                          t)
                  else '{}' end
        order by n)
    from jsonb_array_elements(history) with ordinality h (d, n)
$$;
