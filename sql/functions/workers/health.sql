-- Show workers and the health of queues. These functions change nothing and count no
-- whole table. They count messages by the index entries of one state, and count a
-- backlog only up to a limit.

-- Returns the workers that hold messages of a queue: how many messages each one holds,
-- which message for longest, and since when. With `until`, only leases that end after
-- that time count.
create or replace function tocsin._holders(queue_id integer, until timestamptz default '-infinity')
returns table (worker_id bigint, held bigint, message_id bigint, since timestamptz)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
begin
    -- The smallest pair of time and id is the message held for longest; min() needs no
    -- sort.
    return query
        select m.consumer_worker_id, count(*),
            (min(array[extract(epoch from m.dequeued_at), m.id]))[2]::bigint, min(m.dequeued_at)
        from tocsin.messages m
        where m.queue_id = _holders.queue_id and m.state = 'leased' and m.vt > until
        group by m.consumer_worker_id;
end
$$;

-- Returns workers as users see them. A worker's heartbeat is its own or that of its
-- process, whichever is later. The message that a worker has held for longest, and for
-- how many seconds, tells whether its handler hangs.
create or replace function tocsin.list_workers(queue text default null,
                                               worker_id bigint default null)
returns table (
    id bigint, name text, kind text, queue_id integer, queue text, status text, hostname text,
    pid integer, version text,
    started_at timestamptz, heartbeat_at timestamptz, heartbeat_age float8, shutdown_at timestamptz,
    ended text, held bigint,
    running_message_id bigint, running_for float8, tasks text[]
)
language sql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
    with shown as materialized (
        select w.*, q.name as queue_name
        from tocsin.workers w join tocsin.queues q on q.id = w.queue_id
        where (list_workers.queue is null or q.name = list_workers.queue)
          and (list_workers.worker_id is null or w.id = list_workers.worker_id)
          and tocsin._acts_for(w.role)
    ), holders as (
        select h.worker_id, h.held, h.message_id, h.since
        from (select distinct s.queue_id from shown s where s.status <> 'stopped') s
        cross join lateral tocsin._holders(s.queue_id) h
    )
    select s.id, s.name, s.kind, s.queue_id, s.queue_name, s.status, s.hostname, s.pid, s.version,
        s.started_at, beat.at,
           extract(epoch from tocsin._clock() - beat.at)::float8, s.shutdown_at, s.ended,
           coalesce(h.held, 0),
           h.message_id, case when h.since is not null
               then greatest(0, extract(epoch from tocsin._clock() - h.since)) end::float8,
           s.tasks
    from shown s
    left join tocsin.processes p on p.id = s.process_id
    left join holders h on h.worker_id = s.id
    cross join lateral (select greatest(s.heartbeat_at, p.heartbeat_at)) beat (at)
    order by s.id
$$;

-- Counts workers (of one queue) by status and by kind, and the messages that they hold.
-- The age is that of the oldest heartbeat of a worker that is not stopped; null: there
-- is no such worker.
create or replace function tocsin.worker_stats(queue text default null)
returns table (total bigint, by_status jsonb, by_kind jsonb, held bigint,
               oldest_heartbeat_age float8)
language plpgsql stable
as $$
#variable_conflict use_column
begin
    if worker_stats.queue is not null then
        perform tocsin.find_queue(worker_stats.queue);
    end if;
    return query
        select count(*),
               jsonb_build_object(
                   'ready', count(*) filter (where w.status = 'ready'),
                   'polling', count(*) filter (where w.status = 'polling'),
                   'interrupted', count(*) filter (where w.status = 'interrupted'),
                   'suspended', count(*) filter (where w.status = 'suspended'),
                   'stopped', count(*) filter (where w.status = 'stopped')),
               jsonb_build_object(
                   'producer', count(*) filter (where w.kind = 'producer'),
                   'consumer', count(*) filter (where w.kind = 'consumer')),
               coalesce(sum(w.held), 0)::bigint,
               max(w.heartbeat_age) filter (where w.status <> 'stopped')
        from tocsin.list_workers(worker_stats.queue) w;
end
$$;

-- Reports the problems of all queues, or of one, as text. A queue without a problem is
-- healthy. `max_age` is how long a worker may be silent. It is also how long a message
-- may wait while the queue has no consumer, because between two versions of a service,
-- or between two runs of a cron job, there is briefly none. The waiting messages of a
-- paused queue are no problem; the report says for how long the queue has been paused.
-- A suspended worker is no problem either. The report names it, because it may be the
-- cause of one.
--
-- A task whose jobs wait while no worker runs it is a problem; see unserved.sql. It is
-- looked for if each active consumer is a worker with tasks.
--
-- A worker that has held one message for longer than `max_running` is a problem: its
-- handler may hang. Null means ten times the queue's visibility timeout, but at least
-- five minutes and at most an hour.
create or replace function tocsin.queue_health(queue text default null,
                                               max_age interval default '30 s',
                                               max_running interval default null)
returns table (
    name text, healthy boolean, problems text[], consumers bigint, unhealthy_workers bigint[],
    suspended_workers bigint[],
    ready bigint, oldest_ready_age float8, paused_for float8,
    running_worker_id bigint, running_message_id bigint, running_for float8,
    unserved_tasks text[]
)
language plpgsql stable
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    q tocsin.queues;
    exact boolean;
    only_tasks boolean;
    since timestamptz;
    suspended text;
    mute text := case when current_setting('session_replication_role') = 'replica' or not exists (
        select from pg_catalog.pg_trigger g
            where g.tgrelid = 'tocsin.messages'::regclass and g.tgname = 'ring'
                and g.tgenabled in ('O', 'A'))
        then 'the trigger that notifies consumers is off, so messages wait for a heartbeat' end;
begin
    if queue is not null then
        perform tocsin.find_queue(queue);
    end if;
    for q in
        select x.* from tocsin.queues x
            where queue_health.queue is null or x.name = queue_health.queue order by x.name
    loop
        name := q.name;
        select count(*) filter (where w.kind = 'consumer' and w.status in ('ready', 'polling')
                                and beat.age <= max_age),
               coalesce(bool_and(w.tasks is not null)
                   filter (where w.kind = 'consumer' and w.status in ('ready', 'polling')
                           and beat.age <= max_age), false),
               coalesce(array_agg(w.id order by w.id) filter (where beat.age > max_age), '{}'),
               coalesce(array_agg(format('worker %s ("%s") is %s but has sent no heartbeat '
                                         'for %s s', w.id, w.name, w.status,
                                         round(extract(epoch from beat.age)))
                                             order by w.id) filter (where beat.age > max_age),
                                                 '{}'),
               coalesce(array_agg(w.id order by w.id) filter (where on_hold), '{}'),
               string_agg(format('%s ("%s")', w.id, w.name), ', '
                          order by w.id) filter (where on_hold)
        into consumers, only_tasks, unhealthy_workers, problems, suspended_workers, suspended
        from tocsin.workers w
        left join tocsin.processes p on p.id = w.process_id
        cross join lateral (select t - greatest(w.heartbeat_at, p.heartbeat_at)) beat (age)
        cross join lateral (select w.kind = 'consumer'
                            and w.status in ('interrupted', 'suspended')) held_up (on_hold)
        where w.queue_id = q.id and w.status <> 'stopped';

        select c.ready, c.exact into ready, exact from tocsin._count_queues(q.id, q.id, t, 10000) c;
        since := case when ready > 0 then tocsin._oldest_ready(q.id, t) end;
        -- The due time of a message may be earlier than the creation of its queue.
        oldest_ready_age := case when since is not null
            then greatest(0, extract(epoch from t - greatest(since, q.created_at))) end;
        if consumers = 0 and q.paused_at is null
            and oldest_ready_age > extract(epoch from max_age) then
            problems := format('messages wait and no consumer is active: %s%s, the oldest for '
                               '%s s%s',
                               case when exact then ''
                                   else 'about ' end, ready, round(oldest_ready_age),
                                       '; suspended: ' || suspended)
                        || problems;
        end if;
        unserved_tasks := '{}';
        if only_tasks and q.paused_at is null then
            select coalesce(array_agg(u.task) filter (where u.task is not null), '{}'),
                problems || coalesce(array_agg(
                    case when u.task is null
                        then 'plain messages wait and no consumer handles them'
                        else format('jobs wait and no worker runs task "%s"', u.task) end
                    || format(': %s, the oldest for %s s', u.n,
                              round(extract(epoch from t - u.since)))), '{}')
            into unserved_tasks, problems
            from tocsin._unserved_tasks(q.id, t, max_age) u;
        end if;
        -- For each worker, the message that it has held for longest under a lease that
        -- has not expired.
        select (array_agg(w.id order by h.since))[1], (array_agg(h.message_id order by h.since))[1],
               case when min(h.since) is not null
                   then greatest(0, extract(epoch from t - min(h.since))) end,
               problems || coalesce(
                   array_agg(format('worker %s ("%s") has been at message %s for %s s', w.id,
                                    w.name, h.message_id,
                                    round(extract(epoch from t - h.since))) order by h.since)
                       filter (where t - h.since > coalesce(max_running,
                           greatest('5 min', least('1 h', 10 * q.vt)))), '{}')
        into running_worker_id, running_message_id, running_for, problems
        from tocsin._holders(q.id, t) h
        join tocsin.workers w on w.id = h.worker_id;
        paused_for := case when q.paused_at is not null
            then greatest(0, extract(epoch from t - q.paused_at)) end;
        if mute is not null then
            problems := problems || mute;
        end if;
        healthy := cardinality(problems) = 0;
        return next;
    end loop;
end
$$;
