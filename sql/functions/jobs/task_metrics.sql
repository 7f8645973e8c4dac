-- Show the load of each task, for a screen that is refreshed each second. The numbers are
-- read from a bounded part of each table, so that a call costs the same whatever is
-- waiting or archived; job_stats counts more.

-- Returns for each task the jobs that wait (among the first `cap` unfinished messages, and
-- extrapolated if there are more), run and have failed (up to `cap`), and how many have
-- succeeded per second: over the last minute, or the time that the newest thousand took.
create or replace function tocsin.task_metrics(cap integer default 10000)
    returns table (task_name text, waiting bigint, running bigint, failed bigint,
                   success_rate float8, exact boolean)
language plpgsql
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    t timestamptz := tocsin._clock();
    minute timestamptz := t - interval '1 minute';
    sample constant integer := 1000;
    unfinished bigint;
    factor float8 := 1;
begin
    select count(*) into unfinished from (select from tocsin.messages m limit cap + 1) x;
    if unfinished > cap then
        factor := greatest(tocsin._estimate('select from tocsin.messages'), unfinished)::float8
            / cap;
    end if;
    return query
        with waits as (
            select x.task, (count(*) * factor)::bigint as n
            from (select m.task, m.state, m.vt from tocsin.messages m limit cap) x
            where x.task <> '$tick' and not (x.state = 'leased' and x.vt > t)
            group by x.task
        ), runs as (
            select m.task, count(*) as n
            from tocsin.queues q
            join tocsin.messages m on m.queue_id = q.id and m.state = 'leased' and m.vt > t
            where m.task <> '$tick' group by m.task
        ), ended as (
            select s.task,
                max(f.n) filter (where s.outcome is null) as failed,
                max(r.rate) filter (where s.outcome = 'succeeded') as rate
            from tocsin._job_shelves(null, null) s
            cross join lateral (
                select count(*) as n
                from (select from tocsin.dead_letters d
                      where s.outcome is null and d.task is not null and d.task = s.task
                      limit cap + 1) x) f
            cross join lateral (
                select count(*) filter (where x.archived_at > minute)::float8
                    / case when count(*) < sample then 60
                          else greatest(extract(epoch from t - greatest(min(x.archived_at), minute)),
                                        0.01) end as rate
                from (select a.archived_at from tocsin.archive a
                      where s.outcome = 'succeeded' and a.task is not null and a.task = s.task
                          and a.outcome = s.outcome
                      order by a.id desc limit sample) x) r
            where s.outcome is null or s.outcome = 'succeeded'
            group by s.task
        )
        select k.task, coalesce(w.n, 0), coalesce(r.n, 0), coalesce(e.failed, 0),
            coalesce(e.rate, 0), factor = 1 and coalesce(e.failed, 0) <= cap
        from (select x.task from waits x union select x.task from runs x
              union select x.task from ended x) k
        left join waits w on w.task = k.task
        left join runs r on r.task = k.task
        left join ended e on e.task = k.task
        order by k.task;
end
$$;
