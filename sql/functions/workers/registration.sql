-- Register workers, end their registrations, and delete workers that have stopped.

-- Registers a worker. The registration takes over the name and the id of a stopped
-- worker, also of a worker that this call finds dead. Any other name in use is refused;
-- the error has `retry_after` when its owner seems dead but may not be declared dead
-- yet. A null name is replaced by a generated one. `again` says that the process was
-- declared dead and is alive; a suspended worker then stays suspended. The registration
-- is refused with TC008 when the process has been declared dead. A null process_id
-- means no process; such a worker is never found dead. `tasks`: the only tasks whose jobs
-- a consumer runs; null: it handles every message.
create or replace function tocsin.register_worker(
    queue text, kind text, name text, process_id bigint, hostname text, pid integer, version text,
    again boolean default false, tasks text[] default null
) returns tocsin.workers
language plpgsql
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin.find_queue(queue);
    t timestamptz := tocsin._clock();
    w tocsin.workers;
    retry_after float8;
begin
    -- This lock is held until the transaction ends: a deletion of the queue waits for
    -- the registration, or the registration waits for the deletion.
    perform from tocsin.queues x where x.id = q.id for key share;
    if not found then
        perform tocsin._refuse_missing(queue);
    end if;
    perform tocsin._check_register(q, register_worker.kind);
    perform from tocsin.processes p
        where p.id = register_worker.process_id and tocsin._acts_for(p.role) for key share;
    if not found and process_id is not null then
        perform tocsin._raise_error('TC008', format('process %s was declared dead', process_id),
                                    jsonb_build_object('process_id', process_id));
    end if;
    for attempt in 1..2 loop
        insert into tocsin.workers as x
            (queue_id, kind, name, status, registration, role, process_id, hostname, pid, version,
             started_at, heartbeat_at, tasks)
        values (q.id, register_worker.kind,
                coalesce(register_worker.name,
                         format('%s-%s-%s', hostname, pid, substr(gen_random_uuid()::text, 1, 8))),
                'ready', nextval('tocsin.registrations'), tocsin._caller(),
                register_worker.process_id, register_worker.hostname,
                register_worker.pid, register_worker.version, t, t, register_worker.tasks)
        on conflict (queue_id, kind, name) do update
            set status = case when again and x.status_before_death in ('suspended', 'interrupted')
                then x.status_before_death else 'ready' end,
                grace = null, status_before_death = null, ended = null,
                registration = excluded.registration, role = excluded.role,
                process_id = excluded.process_id, hostname = excluded.hostname, pid = excluded.pid,
                version = excluded.version,
                started_at = t, heartbeat_at = t, shutdown_at = null, tasks = excluded.tasks
            where x.status = 'stopped'
        returning x.* into w;
        if found then
            return w;
        end if;
        -- The owner of the name may be dead, with no other process alive to declare it
        -- dead.
        retry_after := null;
        select tocsin._reap_if_dead(p, t, tocsin._record_uptime(t)) into retry_after
        from tocsin.workers x join tocsin.processes p on p.id = x.process_id
        where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name
          and p.id is distinct from register_worker.process_id;
    end loop;
    select x.* into w from tocsin.workers x
    where x.queue_id = q.id and x.kind = register_worker.kind and x.name = register_worker.name;
    perform tocsin._raise_error('TC005',
        format('worker %s ("%s") is %s: its name is in use by process %s on %s', w.id, w.name,
               w.status, w.pid, w.hostname),
        jsonb_build_object('worker_id', w.id, 'from', w.status, 'to', 'ready', 'retry_after',
                           retry_after, 'code', 'name_in_use',
                           'reason',
                           format('its name is in use by process %s on %s', w.pid, w.hostname)),
        'Choose another name, or end that worker first.');
end
$$;

-- Ends a registration in any state, and requeues the messages that the worker holds,
-- without counting the deliveries. Returns how many messages were requeued.
create or replace function tocsin.unregister_worker(worker_id bigint, registration bigint)
    returns bigint
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    perform pg_advisory_xact_lock(tocsin._lock_key('worker', worker_id));
    update tocsin.workers x set status = 'stopped', ended = 'left', grace = null,
        shutdown_at = tocsin._clock(), process_id = null
    where x.id = worker_id and x.registration = unregister_worker.registration
        and x.status <> 'stopped' and tocsin._acts_for(x.role)
    returning x.* into w;
    return case when found then tocsin._release_held(w, false, '') else 0 end;
end
$$;

create or replace function tocsin.worker_heartbeat(worker_id bigint) returns void
language plpgsql
as $$
declare
    w tocsin.workers;
begin
    update tocsin.workers x set heartbeat_at = tocsin._clock()
    where x.id = worker_id and x.status <> 'stopped' and tocsin._acts_for(x.role)
    returning x.* into w;
    if not found then
        w := tocsin._check_own(tocsin._find_worker(worker_id));
        perform tocsin._refuse_transition(w, null, 'registration_ended',
                                          'a stopped worker has no heartbeat');
    end if;
end
$$;

-- Deletes a stopped worker. Its name becomes free, and its id is not used again.
create or replace function tocsin.delete_worker(worker_id bigint) returns void
language plpgsql
as $$
begin
    delete from tocsin.workers x where x.id = worker_id and x.status = 'stopped';
    if not found then
        perform tocsin._refuse_transition(tocsin._find_worker(worker_id), null, 'not_stopped',
                                          'only a stopped worker may be deleted');
    end if;
end
$$;

-- Deletes workers (of one queue) that have been stopped for at least this long, and
-- returns them. A dry run only returns them. One statement does both, so it returns
-- exactly the deleted workers: a worker that is registered again at this moment is
-- neither deleted nor returned.
create or replace function tocsin.purge_workers(older_than interval, queue text default null,
                                                dry_run boolean default false)
returns table (
    id bigint, name text, kind text, queue_id integer, queue_name text, status text, hostname text,
    pid integer, version text,
    started_at timestamptz, heartbeat_at timestamptz, heartbeat_age float8, shutdown_at timestamptz,
    ended text, held bigint,
    running_message_id bigint, running_for float8, tasks text[]
)
language plpgsql
as $$
#variable_conflict use_column
declare
    only_queue integer := case when queue is not null then (tocsin.find_queue(queue)).id end;
    t timestamptz := tocsin._later(tocsin._clock(), -older_than);
begin
    return query
        with gone as (
            delete from tocsin.workers w
            where not dry_run and w.status = 'stopped' and w.shutdown_at <= t
                and (only_queue is null or w.queue_id = only_queue)
            returning w.id
        )
        select l.* from tocsin.list_workers(purge_workers.queue) l
        where case when dry_run then l.status = 'stopped' and l.shutdown_at <= t
            else l.id in (select g.id from gone g) end;
end
$$;
