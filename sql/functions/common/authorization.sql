-- Find out which role calls, and check what it may do. sql/security/access.sql says
-- which role may call which function. The functions of this file check whether the
-- caller may use a certain queue or act for a certain worker.
--
-- Functions that other roles may call run as their owner, so `current_user` is the
-- owner there. The caller is the role that SET ROLE has set, or else the role that
-- logged in. (A user's function that runs as its owner does not change the caller.)
-- Members that inherit from a role may do what the role may, as with any privilege.
--
--   owner      owns the schema's functions; may do everything, as may a superuser and a
--              role that inherits from the owner
--   admin      calls everything except installation, acts for every worker, reads every
--              table
--   consumer   claims from every queue and settles; acts for the workers that it has
--              registered
--   producer   acts for the workers that it has registered
--   granted    a role in queue_grants, or a role that inherits from it; may enqueue to
--              that queue
--
-- An enqueue checks in a separate statement whether the caller is the owner. As a
-- condition of the INSERT, the check would be set up for each INSERT.

create or replace function tocsin._caller() returns name
language sql stable
as $$ select case current_setting('role') when 'none' then session_user
    else current_setting('role')::name end $$;

-- Whether the caller is the owner; for functions that run as their owner.
create or replace function tocsin._is_owner() returns boolean
language sql stable
as $$ select pg_has_role(tocsin._caller(), current_user, 'usage') $$;

-- Whether the caller is an administrator. The function is in plpgsql so that it is not
-- inlined: a statement whose caller acts for its own worker does not call it, and so
-- does not set up its subquery.
create or replace function tocsin._is_admin() returns boolean
language plpgsql stable
as $$
begin
    return tocsin._is_owner()
        or exists (select from tocsin.roles r
                   where r.kind = 'admin' and pg_has_role(tocsin._caller(), r.role, 'usage'));
end
$$;

create or replace function tocsin._may_consume() returns boolean
language sql stable
as $$
    select tocsin._is_owner()
        or exists (select from tocsin.roles r
                   where r.kind in ('consumer', 'admin')
                       and pg_has_role(tocsin._caller(), r.role, 'usage'))
$$;

-- Whether the caller may act for the processes and workers that this role has
-- registered.
create or replace function tocsin._acts_for(role name) returns boolean
language sql stable
as $$ select role = tocsin._caller() or tocsin._is_admin() $$;

-- Whether the caller may enqueue to the queue as this worker (null: without a worker).
create or replace function tocsin._may_enqueue(queue_id integer, worker_id bigint) returns boolean
language sql stable
as $$
    select tocsin._is_admin()
        or exists (select from tocsin.queue_grants g
                   where g.queue_id = _may_enqueue.queue_id
                       and pg_has_role(tocsin._caller(), g.role, 'usage'))
           and (worker_id is null
                or exists (select from tocsin.workers w
                           where w.id = worker_id and w.role = tocsin._caller()))
$$;

-- Whether the caller may see what jobs of the queue have come to: it may submit them, or
-- run them.
create or replace function tocsin._may_read_outcomes(queue_id integer) returns boolean
language sql stable
as $$ select tocsin._may_consume() or tocsin._may_enqueue(queue_id, null) $$;

create or replace function tocsin._refuse_caller(doing text, hint text) returns void
language plpgsql
as $$
begin
    perform tocsin._raise_error('TC030', format('role "%s" may not %s', tocsin._caller(), doing),
                                jsonb_build_object('role', tocsin._caller()),
                          hint);
end
$$;

-- Raises an error unless the caller may enqueue to the queue as this worker.
create or replace function tocsin._check_enqueue(q tocsin.queues, worker_id bigint) returns void
language plpgsql
as $$
begin
    if tocsin._may_enqueue(q.id, worker_id) then
        return;
    elsif not tocsin._may_enqueue(q.id, null) then
        perform tocsin._refuse_caller(format('enqueue to queue "%s"', q.name),
                                      'Grant the queue to the role with grant_queue.');
    end if;
    perform tocsin._refuse_caller(format('enqueue as worker %s', worker_id),
                                  'This role has not registered that worker.');
end
$$;

-- Raises an error unless the caller may enqueue to some queue, and so may know which
-- tasks there are.
create or replace function tocsin._check_any_grant() returns void
language plpgsql
as $$
begin
    if not (tocsin._is_admin()
            or exists (select from tocsin.queue_grants g
                       where pg_has_role(tocsin._caller(), g.role, 'usage'))) then
        perform tocsin._refuse_caller('submit jobs', 'Grant a queue to the role with grant_queue.');
    end if;
end
$$;

-- Raises an error unless the caller may register workers of this kind on the queue.
create or replace function tocsin._check_register(q tocsin.queues, kind text) returns void
language plpgsql
as $$
begin
    if kind = 'producer' then
        perform tocsin._check_enqueue(q, null);
    elsif not tocsin._may_consume() then
        perform tocsin._refuse_caller('consume',
                                      'Make the role a member of the role for consumers.');
    end if;
end
$$;

-- Raises an error unless the caller may act for the worker; returns the worker.
create or replace function tocsin._check_own(w tocsin.workers) returns tocsin.workers
language plpgsql
as $$
begin
    if not tocsin._acts_for(w.role) then
        perform tocsin._refuse_caller(format('act for worker %s', w.id),
                                      'Only its own role and administrators may act for it.');
    end if;
    return w;
end
$$;

-- Allows a role, and roles that inherit from it, to enqueue to the queue. The role also
-- needs the privilege to call enqueue. A second call changes nothing.
create or replace function tocsin.grant_queue(queue text, role text) returns void
language plpgsql
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
begin
    insert into tocsin.queue_grants (queue_id, role)
        values (q.id, tocsin._find_role(role)) on conflict do nothing;
end
$$;

-- Revokes the grant of a queue from a role, for every later statement. A second call
-- changes nothing.
create or replace function tocsin.revoke_queue(queue text, role text) returns void
language plpgsql
as $$
declare
    q tocsin.queues := tocsin.find_queue(queue);
begin
    delete from tocsin.queue_grants g
        where g.queue_id = q.id and g.role = tocsin._find_role(revoke_queue.role);
end
$$;

create or replace function tocsin._find_role(role text) returns regrole
language plpgsql stable
as $$
declare
    found_role regrole := (select r.oid from pg_roles r where r.rolname = role);
begin
    if found_role is null then
        perform tocsin._raise_error('TC023', format('role "%s" does not exist', role),
                                    jsonb_build_object('role', role),
                              'Create the role first, with create role.');
    end if;
    return found_role;
end
$$;
