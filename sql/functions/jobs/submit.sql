-- Submit jobs. A job is a message with the name of a task: its payload has the
-- arguments for the task's function, an object by name or an array by position. So all
-- that the queue promises holds for it.
--
-- A worker registers the tasks that it runs. So a program in any language names a task,
-- and the job goes to the task's queue with the task's options.

-- Registers tasks, a JSON array of objects with the columns of the table, under a queue
-- by name. A task that is registered already takes the new options.
create or replace function tocsin.register_tasks(tasks jsonb) returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    perform tocsin._check_limits(coalesce(
        (select jsonb_agg(case when jsonb_typeof(l.spec) = 'object'
                          then l.spec - '{parameter,position,default,computed}'::text[]
                          else l.spec end)
         from jsonb_array_elements(t.limits) l (spec)), '[]'))
    from jsonb_to_recordset(tasks) as t (limits jsonb);
    insert into tocsin.tasks as x (name, queue_id, max_deliveries, priority, timeout, limits,
                                   description, registered_at)
    select t.name, (tocsin.find_queue(t.queue)).id, t.max_deliveries, t.priority, t.timeout,
           coalesce(t.limits, '[]'), t.description, tocsin._clock()
    from jsonb_to_recordset(tasks) as t (name text, queue text, max_deliveries integer,
                                         priority integer, timeout float8, limits jsonb,
                                         description text)
    order by t.name
    on conflict (name) do update
    set queue_id = excluded.queue_id, max_deliveries = excluded.max_deliveries,
        priority = excluded.priority, timeout = excluded.timeout,
        limits = excluded.limits, description = excluded.description,
        registered_at = excluded.registered_at
    where (x.queue_id, x.max_deliveries, x.priority, x.timeout, x.limits, x.description)
        is distinct from (excluded.queue_id, excluded.max_deliveries, excluded.priority,
                          excluded.timeout, excluded.limits, excluded.description);
    perform tocsin._declare_limits(tasks);
end
$$;

-- Returns the registered tasks, by name.
create or replace function tocsin.list_tasks() returns table (
    name text, queue text, max_deliveries integer, priority integer, timeout float8,
    description text, registered_at timestamptz
)
language sql stable
as $$
    select t.name, q.name, t.max_deliveries, t.priority, t.timeout, t.description, t.registered_at
    from tocsin.tasks t join tocsin.queues q on q.id = t.queue_id
    order by t.name
$$;

-- Raises an error if the message that has the key is of another task than the new one, or
-- only one of the two is a job: the caller would take the outcome of the first for that
-- of the new job.
create or replace function tocsin._check_key_holder(message_id bigint, key text, task text)
    returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    holder text;
begin
    select m.task into holder from tocsin.messages m where m.id = message_id;
    if found and holder is distinct from _check_key_holder.task then
        perform tocsin._raise_error('TC040',
            format('%s %s, which is not finished, has the key "%s"',
                   case when holder is null then 'message'
                       else format('a job of task "%s",', holder) end, message_id,
                   _check_key_holder.key),
            jsonb_build_object('key', _check_key_holder.key, 'message_id', message_id,
                               'task', holder),
            'Choose keys that begin with the name of the task.');
    end if;
end
$$;

create or replace function tocsin._refuse_task(task text) returns void
language plpgsql
as $$
begin
    perform tocsin._check_any_grant();
    perform tocsin._raise_error('TC041', format('no worker has registered a task "%s"', task),
                                jsonb_build_object('task', task),
                                'Start a worker that runs the task, once, or correct the name.');
end
$$;

create or replace function tocsin._check_arguments(arguments jsonb) returns void
language plpgsql
as $$
begin
    if coalesce(jsonb_typeof(arguments), '') not in ('array', 'object') then
        perform tocsin._raise_error('TC022',
            'arguments must be a JSON array or object, with the arguments by position or name',
            '{"argument": "arguments"}');
    end if;
end
$$;

-- Submits a job of a registered task and returns its id. What is not given is as the
-- task says. `timeout`: how long an attempt may take.
create or replace function tocsin.submit(
    task text, arguments jsonb default '[]', delay interval default null,
    at timestamptz default null, priority integer default null, headers jsonb default null,
    key text default null, expires_in interval default null, max_attempts integer default null,
    timeout interval default null
) returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    t tocsin.tasks;
    options jsonb;
begin
    perform tocsin._check_arguments(arguments);
    select x.* into t from tocsin.tasks x where x.name = submit.task;
    if not found then
        perform tocsin._refuse_task(submit.task);
    end if;
    if submit.timeout is not null then
        options := jsonb_build_object('timeout', extract(epoch from submit.timeout));
    end if;
    if t.limits <> '[]' then
        options := coalesce(options, '{}')
            || jsonb_build_object('limits', tocsin._limits_of(t, arguments));
    end if;
    return tocsin.enqueue(
        (select q.name from tocsin.queues q where q.id = t.queue_id), arguments, delay, at,
        coalesce(submit.priority, t.priority), headers, key, expires_in,
        coalesce(max_attempts, t.max_deliveries),
        task => t.name,
        options => options);
end
$$;

-- Returns the limits of a job with these arguments, with their keys. A limit whose key is
-- null does not concern the job.
create or replace function tocsin._limits_of(t tocsin.tasks, arguments jsonb) returns jsonb
language plpgsql
as $$
declare
    computed text;
    limits jsonb;
begin
    select x.l ->> 'name' into computed from jsonb_array_elements(t.limits) x (l)
    where x.l ? 'computed' limit 1;
    if computed is not null then
        perform tocsin._raise_error('TC022',
            format('the key of limit "%s" is computed by the task''s program', computed),
            '{"argument": "task"}',
            'Submit the job from Python, or make the key a parameter of the task.');
    end if;
    select coalesce(jsonb_agg(k.l - '{parameter,position,default}'::text[]
                              || case when k.l ? 'parameter' then jsonb_build_object('key', k.key)
                                 else '{}' end), '[]')
    into limits
    from (select x.l, case
                     when not x.l ? 'parameter' then null
                     when jsonb_typeof(arguments) = 'object' and arguments ? (x.l ->> 'parameter')
                         then arguments ->> (x.l ->> 'parameter')
                     when jsonb_typeof(arguments) = 'array'
                         and jsonb_array_length(arguments) > (x.l ->> 'position')::integer
                         then arguments ->> (x.l ->> 'position')::integer
                     else x.l ->> 'default' end as key
          from jsonb_array_elements(t.limits) x (l)) k
    where k.key is not null or not k.l ? 'parameter';
    return limits;
end
$$;

-- Submits all jobs of a JSON array, or none if one is refused; returns the ids in the
-- order of the jobs. A job is an object with its queue and its task, and with the
-- arguments of tocsin.enqueue that it chooses. `first_index` is the index of the call's
-- first job, so that an error names the caller's index.
create or replace function tocsin.enqueue_jobs(jobs jsonb, first_index integer default 0)
    returns bigint[]
language plpgsql
as $$
declare
    ids bigint[] := array_fill(null::bigint, array[jsonb_array_length(jobs)]);
    given bigint[];
    part record;
begin
    -- A job with a key may find another one, so it goes alone.
    for part in
        select j.job ->> 'queue' as queue, jsonb_agg(j.job order by j.n) as messages,
               array_agg(j.n::integer order by j.n) as places
        from jsonb_array_elements(jobs) with ordinality j (job, n)
        where j.job ->> 'key' is null
        group by 1 order by 1
    loop
        given := tocsin.enqueue_each(part.queue, part.messages);
        for i in 1 .. cardinality(given) loop
            ids[part.places[i]] := given[i];
        end loop;
    end loop;
    -- enqueue_each leaves out what may not be enqueued; tocsin.enqueue raises the reason.
    -- Jobs with keys come in the order of keys, because two calls with the same keys wait
    -- for each other's. So the ids of these jobs are in that order.
    for part in
        select j.n::integer as place, x.*
        from jsonb_array_elements(jobs) with ordinality j (job, n)
        cross join lateral jsonb_to_record(j.job) as x (
            queue text, payload jsonb, delay interval, at timestamptz, priority integer,
            headers jsonb, key text, expires_in interval, max_deliveries integer,
            worker_id bigint, task text, options jsonb)
        where ids[j.n] is null
        order by x.queue, x.key, j.n
    loop
        perform tocsin._check_payloads(
            tocsin._check_enqueue_options(part.queue, part.delay, part.at, part.expires_in,
                                          part.max_deliveries, part.worker_id),
            jsonb_build_array(coalesce(part.payload, 'null')), first_index + part.place - 1);
        ids[part.place] := tocsin.enqueue(
            part.queue, coalesce(part.payload, 'null'), part.delay, part.at, part.priority,
            part.headers, part.key, part.expires_in, part.max_deliveries,
            worker_id => part.worker_id, task => part.task, options => part.options);
    end loop;
    return ids;
end
$$;
