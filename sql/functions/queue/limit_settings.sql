-- Show limits and rates, and change their numbers while workers run.

-- Returns each key of all limits, or of one, that has messages: how many hold a slot, and
-- how many held messages wait in its line. A limit without such keys has one row without
-- a key.
create or replace function tocsin.list_limits(limit_name text default null) returns table (
    name text, key text, n integer, per float8, ordered boolean, holders bigint, waiting bigint
)
language plpgsql stable
as $$
#variable_conflict use_column
begin
    if limit_name is not null then
        perform tocsin._check_limit(limit_name);
    end if;
    return query
        select l.name, s.key, coalesce(l.set_n, l.n), extract(epoch from l.per)::float8, l.ordered,
               count(*) filter (where s.slot is not null), count(*) filter (where s.waits)
        from tocsin.limits l left join tocsin.slots s on s.limit_id = l.id
        where limit_name is null or l.name = limit_name
        group by l.id, s.key
        order by l.name, s.key;
end
$$;

-- Raises an error if there is no limit of this name.
create or replace function tocsin._check_limit(name text) returns void
language plpgsql stable
as $$
begin
    if not exists (select from tocsin.limits x where x.name = _check_limit.name) then
        perform tocsin._raise_error('TC047', format('there is no limit "%s"', _check_limit.name),
                                    jsonb_build_object('limit', _check_limit.name),
                                    'A limit exists from the first worker whose tasks name it, '
                                    'or the first claim of a message that names it.');
    end if;
end
$$;

-- Sets how many messages of each key run at a time (of a rate: are due in its interval),
-- whatever the tasks say; null: what the tasks say. Messages that run go on.
create or replace function tocsin.set_limit(name text, n integer) returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    ids bigint[];
    only_one boolean;
begin
    select array_agg(x.id order by x.id), bool_or(x.ordered) into ids, only_one
    from tocsin.limits x where x.name = set_limit.name;
    perform tocsin._check_limit(set_limit.name);
    if set_limit.n < 1 or set_limit.n > 1000000 or only_one and set_limit.n <> 1 then
        perform tocsin._raise_error('TC022',
            case when only_one then 'an ordered limit has n = 1'
            else 'n must be at least 1, and at most a million' end, '{"argument": "n"}');
    end if;
    update tocsin.limits x set set_n = set_limit.n where x.id = any (ids);
    perform tocsin._note_waiting(i) from unnest(ids) i;
end
$$;
