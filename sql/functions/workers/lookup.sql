-- Find a worker, and raise the errors about its state.

-- Returns the worker; raises an error if it does not exist.
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
                              'It may have been purged. List the workers.');
    end if;
    return w;
end
$$;

-- Locks the worker and returns it. Raises an error unless the worker exists and the
-- caller may act for it.
create or replace function tocsin._lock_own_worker(worker_id bigint) returns tocsin.workers
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    return tocsin._check_own(tocsin._find_worker(worker_id));
end
$$;

-- Raises the error for a refused change of state. `target` is the requested state;
-- null: none. `code` is for programs, `reason` for people.
create or replace function tocsin._refuse_transition(w tocsin.workers, target text, code text,
                                                     reason text) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error(case w.status when 'stopped' then 'TC006' else 'TC005' end,
        format('worker %s ("%s") is %s: %s', w.id, w.name, w.status, reason),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', target, 'code', code,
                           'reason', reason),
        case when code = 'not_stopped' then 'Stop the worker first.'
             when w.status = 'suspended' then 'Resume the worker, or shut it down.'
             when w.status = 'stopped' then 'Register the worker again by its name.'
             else 'Wait until the worker is in another state, or suspend it.' end);
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
        'It was declared dead. Register it again, under its name or another.');
end
$$;

-- Returns the worker of a registration. If the worker does not exist, raises the error
-- that the registration has ended.
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
            'Register it again, under its name or another.');
    end if;
    return tocsin._check_own(w);
end
$$;

-- Returns the worker; raises an error unless it is ready or polling.
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

-- Returns the queue of a consumer; raises an error unless it may claim now.
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

-- Returns the queue of a worker. The function is volatile, so that it sees a worker
-- that the same statement has registered.
create or replace function tocsin.queue_of(worker_id bigint) returns tocsin.queues
language sql volatile
as $$
    select q.* from tocsin.workers w join tocsin.queues q on q.id = w.queue_id
    where w.id = queue_of.worker_id and tocsin._acts_for(w.role)
$$;
