-- Find a worker, and refuse what it cannot do.

-- Raises unless the worker exists; returns it.
create or replace function tocsin._find_worker(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    select x.* into w from tocsin.workers x where x.id = worker_id;
    if not found then
        perform tocsin._raise_error('TC004', format('worker %s does not exist', worker_id),
                                    jsonb_build_object('worker_id', worker_id),
                              'It may have been purged; list the workers.');
    end if;
    return w;
end
$$;

-- Refuses a change of state. `target`: the state that was wanted; null: none. `code` is
-- for programs, `reason` for people.
create or replace function tocsin._refuse_transition(w tocsin.workers, target text, code text,
                                                     reason text) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error(case w.status when 'stopped' then 'TC006' else 'TC005' end,
        format('worker %s ("%s") is %s: %s', w.id, w.name, w.status, reason),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', target, 'code', code,
                           'reason', reason),
        case when code = 'not_stopped' then 'Stop it first.'
             when w.status = 'suspended' then 'Resume it, or shut it down.'
             when w.status = 'stopped' then 'Register it again by its name.'
             else 'Wait until it is in another state, or suspend it.' end);
end
$$;

create or replace function tocsin._refuse_ended(w tocsin.workers) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error('TC006',
                                format('worker %s ("%s") has been registered by process %s on '
                                       '%s since', w.id, w.name, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', 'stopped', 'to', w.status, 'code',
                           'registration_ended', 'reason', 'its registration has ended'),
        'It was declared dead; register it again, by its name or another.');
end
$$;

-- Like _find_worker, for the owner of a registration, which has ended when the worker
-- is gone.
create or replace function tocsin._find_own_worker(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    select x.* into w from tocsin.workers x where x.id = worker_id;
    if not found then
        perform tocsin._raise_error('TC006',
                                    format('worker %s is not registered: it has been purged, '
                                           'or its queue deleted', worker_id),
            jsonb_build_object('worker_id', worker_id, 'from', 'stopped', 'to', 'polling', 'code',
                               'registration_ended', 'reason',
                               'it has been purged, or its queue deleted'),
            'Register it again, by its name or another.');
    end if;
    return tocsin._check_own(w);
end
$$;

-- Raises unless the worker may take work.
create or replace function tocsin._check_active(worker_id bigint, doing text) returns tocsin.workers
language plpgsql
as $$
declare
    w tocsin.workers := tocsin._find_own_worker(worker_id);
begin
    if w.status not in ('ready', 'polling') then
        perform tocsin._refuse_transition(w, 'polling', 'not_active',
                                          'only a ready or polling worker may ' || doing);
    end if;
    return w;
end
$$;

-- The queue that a consumer may claim from now.
create or replace function tocsin._check_claim(worker_id bigint, registration bigint)
    returns tocsin.queues
language plpgsql
as $$
declare
    q tocsin.queues;
begin
    select x.* into q
    from tocsin.workers w join tocsin.queues x on x.id = w.queue_id
    where w.id = worker_id and w.registration = _check_claim.registration
        and w.status in ('ready', 'polling') and tocsin._acts_for(w.role);
    if not found then
        perform tocsin._refuse_ended(tocsin._check_active(worker_id, 'claim'));
    end if;
    return q;
end
$$;

-- The queue of a worker. Volatile, so that it sees a worker that the same statement has
-- registered.
create or replace function tocsin.queue_of(worker_id bigint) returns tocsin.queues
language sql volatile
as $$
    select q.* from tocsin.workers w join tocsin.queues q on q.id = w.queue_id
    where w.id = queue_of.worker_id and tocsin._acts_for(w.role)
$$;
