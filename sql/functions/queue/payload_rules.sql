-- The rules that a queue may have for payloads: max_string, max_depth, required_keys,
-- forbidden_keys. They hold for every producer, because the functions that enqueue
-- check them here. A queue without rules (see the column `ruled`) does not pay for the
-- check.

-- Returns a violation of the rules in a JSON array of payloads: {"path": [index of the
-- payload, then keys and indexes], "reason": ...}; null: there is none. Of several
-- violations, it returns one of those nearest to the root.
--
-- The function descends level by level, and holds only the arrays and objects of one
-- level. A recursive query would hold all levels, each a copy of everything below it,
-- which is gigabytes for a large payload with many levels. The function copies each
-- level, too, so a payload that it has to search may have at most 256 levels. Tocsin's
-- own producers have the same limit (payload.py).
create or replace function tocsin._find_violation(payloads jsonb, q tocsin.queues) returns jsonb
language plpgsql immutable parallel safe
as $$
#variable_conflict use_column
declare
    fault jsonb;
    level jsonb[] := array[payloads];
    paths jsonb[] := array['[]'::jsonb];
    depth integer := 0;  -- number of arrays and objects around a member of this level
    deepest integer := least(nullif(q.max_depth, 0), 256);
begin
    if q.required_keys <> '{}' then
        select jsonb_build_object('path', jsonb_build_array(p.n - 1), 'reason', case
                   when jsonb_typeof(p.payload) <> 'object'
                   then format('not an object, which must have the keys %s',
                               to_json(q.required_keys))
                   else (select format('the key %s is missing', to_json(k))
                         from unnest(q.required_keys) k where not p.payload ? k limit 1)
               end)
        into fault
        from jsonb_array_elements(payloads) with ordinality as p (payload, n)
        where jsonb_typeof(p.payload) <> 'object' or not p.payload ?& q.required_keys
        order by p.n limit 1;
    end if;
    while fault is null and level is not null
        and (q.max_string > 0 or q.max_depth > 0 or q.forbidden_keys <> '{}') loop
        with members as (
            select l.path, m.step, m.value, jsonb_typeof(m.value) as kind, m.key
            from unnest(level, paths) as l (value, path)
            cross join lateral (
                select o.key, to_jsonb(o.key), o.value
                from jsonb_each(case jsonb_typeof(l.value) when 'object' then l.value
                                else '{}' end) o
                union all
                select null, to_jsonb(a.n - 1), a.value
                from jsonb_array_elements(case jsonb_typeof(l.value) when 'array' then l.value
                                          else '[]' end) with ordinality a (value, n)
            ) m (key, step, value)
        ), judged as (
            select m.*, case
                when m.key = any (q.forbidden_keys)
                    then format('the key %s is forbidden', to_json(m.key))
                when q.max_string > 0 and length(m.key) > q.max_string
                    then format('a key of %s characters, the limit is %s', length(m.key),
                                q.max_string)
                when q.max_string > 0 and m.kind = 'string'
                    and length(m.value #>> '{}') > q.max_string
                    then format('a string of %s characters, the limit is %s',
                                length(m.value #>> '{}'), q.max_string)
                when m.kind in ('array', 'object') and depth >= deepest
                    then format('nested deeper than %s levels', deepest)
            end as reason
            from members m
        )
        -- a key that is too long is not part of the path
        select (select jsonb_build_object('reason', j.reason, 'path',
                                          case when q.max_string > 0
                                              and length(j.key) > q.max_string then j.path
                                                  else j.path || j.step end)
                from judged j where j.reason is not null limit 1),
               array_agg(j.value) filter (where j.kind in ('array', 'object')),
               array_agg(j.path || j.step) filter (where j.kind in ('array', 'object'))
        into fault, level, paths
        from judged j;
        depth := depth + 1;
    end loop;
    return fault;
end
$$;

-- Returns a path as text for people, such as $.items[3].when.
create or replace function tocsin._describe_path(path jsonb) returns text
language sql immutable parallel safe
as $$
    select '$'
        || coalesce(string_agg(case when s.name ~ '^[[:alpha:]_][[:alnum:]_]*$' then '.' || s.name
                               else format('[%s]', s.step) end, ''
                                      order by s.n), '')
    from (select e.step, e.step #>> '{}', e.n
          from jsonb_array_elements(path) with ordinality e (step, n)) s (step, name, n)
$$;

-- Raises an error if a payload of the JSON array breaks a rule of the queue.
-- `first_index` is the caller's index of the first payload; null: there is only one
-- payload.
create or replace function tocsin._check_contents(q tocsin.queues, payloads jsonb,
                                                  first_index integer) returns void
language plpgsql
as $$
declare
    fault jsonb;
    index integer;
    path jsonb;
begin
    fault := tocsin._find_violation(payloads, q);
    if fault is not null then
        index := first_index + (fault -> 'path' ->> 0)::integer;
        path := (fault -> 'path') - 0;
        perform tocsin._raise_error('TC009',
            format('%s, at %s: %s', concat_ws(' ', 'payload', index), tocsin._describe_path(path),
                   fault ->> 'reason'),
            jsonb_build_object('path', path, 'reason', fault ->> 'reason', 'index', index),
            format('Queue "%s" has rules for payloads: max_string, max_depth, required_keys, '
                   'forbidden_keys.', q.name));
    end if;
end
$$;
