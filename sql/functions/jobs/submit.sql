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
    insert into tocsin.tasks as x (name, queue_id, max_deliveries, priority, timeout, description,
                                   registered_at)
    select t.name, (tocsin.find_queue(t.queue)).id, t.max_deliveries, t.priority, t.timeout,
           t.description, tocsin._clock()
    from jsonb_to_recordset(tasks) as t (name text, queue text, max_deliveries integer,
                                         priority integer, timeout float8, description text)
    order by t.name
    on conflict (name) do update
    set queue_id = excluded.queue_id, max_deliveries = excluded.max_deliveries,
        priority = excluded.priority, timeout = excluded.timeout,
        description = excluded.description, registered_at = excluded.registered_at
    where (x.queue_id, x.max_deliveries, x.priority, x.timeout, x.description)
        is distinct from (excluded.queue_id, excluded.max_deliveries, excluded.priority,
                          excluded.timeout, excluded.description);
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
begin
    if coalesce(jsonb_typeof(arguments), '') not in ('array', 'object') then
        perform tocsin._raise_error('TC022',
            'arguments must be a JSON array or object, with the arguments by position or name',
            '{"argument": "arguments"}');
    end if;
    select x.* into t from tocsin.tasks x where x.name = submit.task;
    if not found then
        perform tocsin._raise_error('TC041',
            format('no worker has registered a task "%s"', submit.task),
            jsonb_build_object('task', submit.task),
            'Start a worker that runs the task, once, or correct the name.');
    end if;
    return tocsin.enqueue(
        (select q.name from tocsin.queues q where q.id = t.queue_id), arguments, delay, at,
        coalesce(submit.priority, t.priority), headers, key, expires_in,
        coalesce(max_attempts, t.max_deliveries),
        task => t.name,
        options => case when submit.timeout is not null
            then jsonb_build_object('timeout', extract(epoch from submit.timeout)) end);
end
$$;
