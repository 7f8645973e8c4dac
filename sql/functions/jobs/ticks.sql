-- The ticks of schedules. No process leads, no timer runs and nothing polls: a schedule
-- that is not paused has one message in the queue of its jobs, which is due at the next
-- tick. A worker that serves the queue claims this *tick message* as any message, and
-- computes which ticks are due and which one is next. Then it calls tocsin.tick, which
-- does the rest in one transaction: it deletes the tick message, submits the jobs, and
-- enqueues the next tick message.
--
-- No tick is handled twice, and none is lost:
--
--   - The deletion is fenced by the lease token. A worker that has lost its lease
--     submits nothing, and the worker that has the message now does all.
--   - A worker that ends before the commit has done nothing. Its lease expires or its
--     death is noticed, and another worker gets the message. The message has no last
--     delivery.
--   - The key of the tick message is unique in the queue, so a schedule has one at most.
--   - tocsin.tick and each change of a schedule lock the schedule's row, and take its
--     message after that. A change raises the generation. A tick message of another
--     generation is deleted and has no other effect.
--   - The row says up to which time ticks are handled. An earlier tick submits nothing.
--   - A tick message that was deleted in another way (by a purge, or by a consumer that
--     has archived it) is enqueued again by maintenance.

-- The key of a schedule's tick message.
create or replace function tocsin._tick_key(schedule_id bigint) returns text
language sql immutable parallel safe
as $$ select '$schedule/' || schedule_id $$;

-- The key of a job that a schedule submits. With the overlap rule `skip` all its jobs
-- have one key, so that at most one is unfinished. Otherwise the key has the tick; a job
-- without a tick has no key then.
create or replace function tocsin._scheduled_key(s tocsin.schedules, tick timestamptz) returns text
language sql stable
as $$
    select tocsin._tick_key(s.id) || '/' || case when s.overlap = 'skip' then 'job'
        else to_char(tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') end
$$;

-- Enqueues the tick message of a schedule, unless there is one. It is due at the next
-- tick, or now if a worker has yet to compute that. It has what a worker needs to
-- compute ticks, and comes before all other messages that are ready.
create or replace function tocsin._enqueue_tick(s tocsin.schedules) returns void
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
    t timestamptz := tocsin._clock();
    due_at timestamptz := coalesce(s.next_tick, t);
begin
    insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, max_deliveries,
                                 key, payload, task)
    values (s.queue_id, -2147483648,
            case when due_at > t then 'delayed'::tocsin.message_state else 'ready' end,
            due_at, due_at, t, 2147483647, tocsin._tick_key(s.id),
            jsonb_build_object('schedule', s.id, 'name', s.name, 'generation', s.generation,
                               'handled_to', s.handled_to, 'cron', s.cron,
                               'every', extract(epoch from s.every)::float8, 'anchor', s.anchor,
                               'zone', s.zone, 'missed', s.missed),
            '$tick')
    on conflict (queue_id, key) where key is not null do nothing;
end
$$;

-- Submits a job of a schedule, and returns its id; null: the overlap rule or the tick's
-- earlier job does not allow it. What the schedule leaves open is as the task says.
create or replace function tocsin._submit_scheduled(s tocsin.schedules, tick timestamptz)
    returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    k tocsin.tasks;
    options jsonb;
    job_id bigint;
begin
    select x.* into k from tocsin.tasks x where x.name = s.task;
    options := jsonb_strip_nulls(jsonb_build_object('timeout', s.timeout, 'tick', tick));
    if k.limits <> '[]' then
        options := options || jsonb_build_object('limits', tocsin._limits_of(k, s.arguments));
    end if;
    insert into tocsin.messages (queue_id, priority, state, due, vt, enqueued_at, expires_at,
                                 max_deliveries, key, payload, headers, task, options)
    values (s.queue_id, coalesce(s.priority, k.priority, 0), 'ready', least(tick, t),
            least(tick, t), t, tocsin._later(t, s.expires_in),
            coalesce(s.max_attempts, k.max_deliveries), tocsin._scheduled_key(s, tick),
            s.arguments, s.headers, s.task,
            options)
    on conflict (queue_id, key) where key is not null do nothing
    returning id into job_id;
    return job_id;
end
$$;

-- Handles the tick message that has this lease token: submits a job for each of these
-- ticks, oldest first, and enqueues the message of the next tick. Returns whether the
-- lease was still the caller's; if not, nothing has changed. A message of a schedule
-- that was changed, paused or deleted has no effect.
create or replace function tocsin.tick(message_id bigint, lease bigint, ticks timestamptz[],
                                       next_tick timestamptz) returns boolean
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    about jsonb;
    s tocsin.schedules;
    at timestamptz;
    job_id bigint;
begin
    select m.payload into about from tocsin.messages m
    where m.id = message_id and m.lease = tick.lease and m.state is not distinct from 'leased'
        and m.task = '$tick';
    if not found then
        return false;
    end if;
    select x.* into s from tocsin.schedules x where x.id = (about ->> 'schedule')::bigint
        for update;
    delete from tocsin.messages m
    where m.id = message_id and m.lease = tick.lease and m.state is not distinct from 'leased';
    if not found then
        return false;
    elsif s.id is null or s.paused_at is not null
        or s.generation <> (about ->> 'generation')::bigint then
        return true;
    elsif tick.next_tick is null or tick.next_tick <= s.handled_to
        or tick.next_tick >= '9999-12-30 UTC' then
        perform tocsin._raise_error('TC022', 'the next tick must come after the ticks handled',
                                    '{"argument": "next_tick"}');
    end if;
    foreach at in array coalesce(ticks, '{}') loop
        continue when at <= s.handled_to;
        job_id := tocsin._submit_scheduled(s, at);
        s.handled_to := at;
        if job_id is not null then
            s.last_tick := at;
            s.last_job_id := job_id;
        end if;
    end loop;
    s.next_tick := tick.next_tick;
    update tocsin.schedules x
    set handled_to = s.handled_to, next_tick = s.next_tick, last_tick = s.last_tick,
        last_job_id = s.last_job_id
    where x.id = s.id;
    perform tocsin._enqueue_tick(s);
    return true;
end
$$;

-- Enqueues the tick messages that were deleted in another way; a part of maintenance.
create or replace function tocsin._restore_ticks() returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set jit = off
as $$
begin
    perform tocsin._enqueue_tick(missing.s)
    from (select x as s from tocsin.schedules x
          where x.paused_at is null
              and not exists (select from tocsin.messages m
                              where m.queue_id = x.queue_id and m.key = tocsin._tick_key(x.id))
          for update skip locked) missing;
end
$$;

-- Has ticks count again from now on, in schedules whose ticks were handled while the
-- server's clock was ahead; a part of maintenance. A clock that is put back by less than
-- a minute changes nothing.
create or replace function tocsin._correct_ticks(t timestamptz) returns void
language plpgsql
as $$
declare
    s tocsin.schedules;
begin
    for s in select x.* from tocsin.schedules x where x.handled_to > t + interval '1 minute'
        for update skip locked
    loop
        s.handled_to := t;
        s.anchor := least(s.anchor, coalesce(s.start, t));
        perform tocsin._replace_tick(s, null);
    end loop;
end
$$;

-- Stores the changed times of a locked schedule as its next generation, and replaces
-- its tick message. Without a next tick, a worker computes it.
create or replace function tocsin._replace_tick(s tocsin.schedules, next_tick timestamptz)
    returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
    s.generation := s.generation + 1;
    s.next_tick := case when s.paused_at is null then _replace_tick.next_tick end;
    update tocsin.schedules x
    set generation = s.generation, anchor = s.anchor, handled_to = s.handled_to,
        next_tick = s.next_tick, paused_at = s.paused_at
    where x.id = s.id;
    delete from tocsin.messages m
    where m.queue_id = s.queue_id and m.key = tocsin._tick_key(s.id) and m.task = '$tick';
    if s.paused_at is null then
        perform tocsin._enqueue_tick(s);
    end if;
end
$$;
