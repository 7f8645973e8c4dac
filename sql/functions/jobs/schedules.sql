-- Schedules: set, read, pause and delete them. ticks.sql says how they tick.
--
-- PostgreSQL does not compute the ticks of a cron expression. A caller may give the next
-- tick, which it has computed from the time that server_time returns. Otherwise the
-- next worker of the queue computes it.
--
-- A role may change the schedules of the queues that it may enqueue to, and read those
-- of the queues whose outcomes it may read.

-- Returns the time by which schedules tick.
create or replace function tocsin.server_time() returns timestamptz
language sql volatile
as $$ select tocsin._clock() $$;

-- Locks the named schedule and returns it. Raises an error unless the caller may change
-- it.
create or replace function tocsin._lock_schedule(name text) returns tocsin.schedules
language plpgsql
as $$
#variable_conflict use_column
declare
    s tocsin.schedules;
begin
    select x.* into s from tocsin.schedules x where x.name = _lock_schedule.name for update;
    if not found then
        perform tocsin._raise_error('TC046', format('there is no schedule "%s"', name),
                                    jsonb_build_object('schedule', name));
    end if;
    perform tocsin._check_change(s.queue_id);
    return s;
end
$$;

-- Refuses a schedule that could never tick, or whose values are out of range.
create or replace function tocsin._check_schedule(s tocsin.schedules) returns void
language plpgsql
as $$
declare
    argument text := case
        when coalesce(s.name, '') = '' or octet_length(s.name) > 255 then 'name'
        when (s.cron is null) = (s.every is null) then 'every'
        when s.every not between '1 ms' and '1000 years' then 'every'
        when s.cron not like '@%' and cardinality(regexp_split_to_array(btrim(s.cron), '[[:space:]]+')) <> 5
            then 'cron'
        when s.start is not null and s.every is null then 'start'
        when s.missed is null or s.missed < 0 then 'missed'
        when s.overlap is null or s.overlap not in ('allow', 'skip') then 'overlap'
        when s.max_attempts <= 0 then 'max_attempts'
        when s.timeout not between 0.000001 and 31536000000 then 'timeout'
        when s.expires_in not between '1 us' and '1000 years' then 'expires_in'
        when coalesce(jsonb_typeof(s.arguments), '') not in ('array', 'object') then 'arguments'
        when s.zone is null then 'zone' end;
    problem text := case argument
        when 'name' then 'the name of a schedule must have between 1 and 255 bytes'
        when 'every' then 'give cron or every, not both; every is at least a millisecond'
        when 'cron' then 'cron must have five fields: minute, hour, day, month, weekday'
        when 'start' then 'start is the first tick of every'
        when 'missed' then 'missed is the number of missed ticks to make up for'
        when 'overlap' then 'overlap must be allow or skip'
        when 'arguments' then
            'arguments must be a JSON array or object, with the arguments by position or name'
        else argument || ' must be positive, and at most a thousand years' end;
begin
    if argument is null then
        begin
            perform s.anchor at time zone s.zone;
            return;
        exception when invalid_parameter_value then
            argument := 'zone';
            problem := format('there is no time zone "%s"', s.zone);
        end;
    end if;
    perform tocsin._raise_error('TC022', problem, jsonb_build_object('argument', argument));
end
$$;

-- Refuses a time that no client could read, such as infinity.
create or replace function tocsin._check_time(at timestamptz, argument text) returns void
language plpgsql
as $$
begin
    if at not between '0002-01-01 UTC' and '9999-12-30 UTC' then
        perform tocsin._raise_error('TC022',
                                    format('%s must be within the years 2 to 9999', argument),
                                    jsonb_build_object('argument', argument));
    end if;
end
$$;

-- Makes a schedule that submits a job of the task at each tick, or changes the schedule
-- that has the name. Returns whether anything was changed: setting the same again
-- changes nothing, so that each process may do it at its start. A change takes effect at
-- once; a schedule that is paused stays so.
--
-- The ticks are those of `cron` in the zone, or come after each interval `every`, the
-- first one at `start`, or else an interval from now. Ticks count from `since` on, or
-- else from now on. Missed ticks are made up for, `missed` at most, the latest ones.
-- With the overlap rule `skip`, a tick submits nothing while an earlier job of the
-- schedule is unfinished.
--
-- The task must be registered. `definition` registers it, an object as
-- tocsin.register_tasks takes it, if it is not.
create or replace function tocsin.set_schedule(
    name text, task text, arguments jsonb default '[]', cron text default null,
    every interval default null, start timestamptz default null, zone text default 'UTC',
    missed integer default 1, overlap text default 'allow', queue text default null,
    priority integer default null, headers jsonb default null,
    max_attempts integer default null, timeout interval default null,
    expires_in interval default null, next_tick timestamptz default null,
    since timestamptz default null, definition jsonb default null
) returns boolean
language plpgsql
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    k tocsin.tasks;
    q tocsin.queues;
    old tocsin.schedules;
    s tocsin.schedules;
    made boolean;
begin
    if definition is not null
        and not exists (select from tocsin.tasks x where x.name = set_schedule.task) then
        perform tocsin._check_change((tocsin.find_queue(definition ->> 'queue')).id);
        perform tocsin.register_tasks(jsonb_build_array(definition));
    end if;
    select x.* into k from tocsin.tasks x where x.name = set_schedule.task;
    if not found then
        perform tocsin._refuse_task(set_schedule.task);
    end if;
    q := tocsin.find_queue(coalesce(
        queue, (select x.name from tocsin.queues x where x.id = k.queue_id)));
    perform tocsin._check_change(q.id);
    s.name := name;
    s.queue_id := q.id;
    s.task := task;
    s.arguments := arguments;
    s.headers := headers;
    s.priority := priority;
    s.max_attempts := max_attempts;
    s.timeout := extract(epoch from timeout);
    s.expires_in := expires_in;
    s.cron := cron;
    s.every := every;
    s.start := start;
    s.zone := zone;
    s.missed := missed;
    s.overlap := overlap;
    s.anchor := coalesce(start, since, t);
    s.handled_to := coalesce(since, t);
    perform tocsin._check_time(start, 'start');
    perform tocsin._check_time(since, 'since');
    perform tocsin._check_time(next_tick, 'next_tick');
    perform tocsin._check_schedule(s);
    perform tocsin._check_payloads(q, jsonb_build_array(arguments), null);
    perform tocsin._check_headers(q, headers);
    perform tocsin._limits_of(k, arguments);  -- or refuses them
    loop
        insert into tocsin.schedules as x (name, queue_id, task, arguments, headers, priority,
                                           max_attempts, timeout, expires_in, cron, every, start, zone,
                                           missed, overlap, anchor, handled_to, next_tick, created_at)
        values (s.name, s.queue_id, s.task, s.arguments, s.headers, s.priority, s.max_attempts,
                s.timeout, s.expires_in, s.cron, s.every, s.start, s.zone, s.missed, s.overlap,
                s.anchor, s.handled_to, next_tick, t)
        on conflict (name) do nothing
        returning true into made;
        exit when made;
        perform from tocsin.schedules x where x.name = s.name for update;
        exit when found;  -- otherwise it was deleted at this moment
    end loop;
    old := tocsin._lock_schedule(name);
    if made then
        perform tocsin._enqueue_tick(old);
        return true;
    elsif (old.queue_id, old.task, old.arguments, old.headers, old.priority, old.max_attempts,
           old.timeout, old.expires_in, old.cron, old.every, old.start, old.zone, old.missed,
           old.overlap)
        is not distinct from
          (s.queue_id, s.task, s.arguments, s.headers, s.priority, s.max_attempts, s.timeout,
           s.expires_in, s.cron, s.every, s.start, s.zone, s.missed, s.overlap) then
        return false;
    end if;
    update tocsin.schedules x
    set queue_id = s.queue_id, task = s.task, arguments = s.arguments, headers = s.headers,
        priority = s.priority, max_attempts = s.max_attempts, timeout = s.timeout,
        expires_in = s.expires_in, cron = s.cron, every = s.every, start = s.start,
        zone = s.zone, missed = s.missed, overlap = s.overlap
    where x.id = old.id;
    if old.queue_id <> s.queue_id then
        delete from tocsin.messages m
        where m.queue_id = old.queue_id and m.key = tocsin._tick_key(old.id)
            and m.task = '$tick';
    end if;
    s.id := old.id;
    s.generation := old.generation;
    s.paused_at := old.paused_at;
    if (old.cron, old.every, old.start, old.zone)
        is not distinct from (s.cron, s.every, s.start, s.zone) then
        -- the same ticks as before: also those that are due are still to be handled
        s.anchor := old.anchor;
        s.handled_to := old.handled_to;
        next_tick := old.next_tick;
    end if;
    perform tocsin._replace_tick(s, next_tick);
    return true;
end
$$;

-- Pauses a schedule; returns whether it was not paused before. Its ticks do not count
-- until it is resumed.
create or replace function tocsin.pause_schedule(name text) returns boolean
language plpgsql
as $$
declare
    s tocsin.schedules := tocsin._lock_schedule(name);
begin
    if s.paused_at is not null then
        return false;
    end if;
    s.paused_at := tocsin._clock();
    perform tocsin._replace_tick(s, null);
    return true;
end
$$;

-- Resumes a schedule; returns whether it was paused. Ticks count from `since` on, or
-- else from now on.
create or replace function tocsin.resume_schedule(name text, next_tick timestamptz default null,
                                                  since timestamptz default null) returns boolean
language plpgsql
as $$
declare
    s tocsin.schedules := tocsin._lock_schedule(name);
begin
    perform tocsin._check_time(since, 'since');
    perform tocsin._check_time(next_tick, 'next_tick');
    if s.paused_at is null then
        return false;
    end if;
    s.paused_at := null;
    s.handled_to := coalesce(since, tocsin._clock());
    perform tocsin._replace_tick(s, next_tick);
    return true;
end
$$;

-- Submits a job of a schedule now, also of one that is paused, and returns its id. The
-- next tick stays as it is. With the overlap rule `skip`, the id may be that of an
-- unfinished job.
create or replace function tocsin.run_schedule(name text) returns bigint
language plpgsql
as $$
declare
    s tocsin.schedules := tocsin._lock_schedule(name);
    job_id bigint;
begin
    loop
        job_id := tocsin._submit_scheduled(s, null);
        exit when job_id is not null;
        job_id := tocsin._find_key(s.queue_id, tocsin._scheduled_key(s, null));
        exit when job_id is not null;
    end loop;
    update tocsin.schedules x set last_job_id = job_id where x.id = s.id;
    return job_id;
end
$$;

-- Deletes a schedule with its tick message. Jobs that it has submitted stay.
create or replace function tocsin.delete_schedule(name text) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
    s tocsin.schedules := tocsin._lock_schedule(name);
begin
    delete from tocsin.schedules x where x.id = s.id;
    delete from tocsin.messages m
    where m.queue_id = s.queue_id and m.key = tocsin._tick_key(s.id) and m.task = '$tick';
end
$$;

-- Returns the schedules, by name; with a name, only that one. A role that may not consume
-- sees neither arguments nor headers, because it may not read payloads.
create or replace function tocsin.list_schedules(name text default null) returns table (
    schedule text, task text, queue text, arguments text, headers text, priority integer,
    max_attempts integer, timeout float8, expires_in interval, cron text, every interval,
    start timestamptz, zone text, missed integer, overlap text, anchor timestamptz,
    handled_to timestamptz, next_tick timestamptz, last_tick timestamptz, last_job_id bigint,
    paused_at timestamptz, created_at timestamptz
)
language sql stable
as $$
    select s.name, s.task, q.name,
           case when tocsin._may_consume() then s.arguments::text end,
           case when tocsin._may_consume() then s.headers::text end,
           s.priority, s.max_attempts, s.timeout, s.expires_in, s.cron, s.every, s.start,
           s.zone, s.missed, s.overlap, s.anchor, s.handled_to, s.next_tick, s.last_tick,
           s.last_job_id, s.paused_at,
           s.created_at
    from tocsin.schedules s join tocsin.queues q on q.id = s.queue_id
    where (list_schedules.name is null or s.name = list_schedules.name)
        and tocsin._may_read_outcomes(s.queue_id)
    order by s.name
$$;
