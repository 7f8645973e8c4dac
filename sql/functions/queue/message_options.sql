-- The options of messages and jobs that a message keeps as JSON: the timeout of a job,
-- and limits (limits.sql).

-- Refuses a task's name and options that no worker could read. `options` is an object
-- with the timeout of an attempt in seconds.
create or replace function tocsin._check_job(task text, options jsonb) returns void
language plpgsql
as $$
declare
    timeout jsonb := options -> 'timeout';
begin
    if task = '' or octet_length(task) > 1024 then
        perform tocsin._raise_error('TC022',
                                    'the name of a task must have between 1 and 1,024 bytes',
                                    '{"argument": "task"}');
    elsif task = '$tick' then
        perform tocsin._raise_error('TC022', 'only schedules enqueue the task "$tick"',
                                    '{"argument": "task"}');
    elsif jsonb_typeof(options) <> 'object' or options - '{timeout,limits}'::text[] <> '{}'
        or jsonb_typeof(timeout) <> 'number' then
        perform tocsin._raise_error('TC022',
                                    'options must be an object with a timeout in seconds, '
                                    'and limits',
                                    '{"argument": "options"}');
    elsif timeout::numeric not between 0.000001 and 31536000000 then
        perform tocsin._raise_error('TC022',
                                    'timeout must be positive, and at most a thousand years',
                                    '{"argument": "timeout"}');
    elsif options ? 'limits' then
        perform tocsin._check_limits(options -> 'limits');
    end if;
end
$$;

-- Returns the options of a message with one that orders the messages of a key.
create or replace function tocsin._add_order(options jsonb, ordered_by text) returns jsonb
language sql immutable parallel safe
as $$
    select case when ordered_by is null then options
        else coalesce(options, '{}') || jsonb_build_object('limits',
            coalesce(options -> 'limits', '[]')
            || jsonb_build_object('key', ordered_by, 'ordered', true)) end
$$;
