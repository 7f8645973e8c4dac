-- The tables of tasks, flows and waits for outcomes; sql/functions/jobs uses them.

create table tocsin.tasks (
    name           text        primary key check (name <> ''),
    queue_id       integer     not null references tocsin.queues on delete cascade,
    max_deliveries integer     not null check (max_deliveries > 0),
    priority       integer     not null,
    timeout        float8      check (timeout > 0),
    limits         jsonb       not null default '[]',
    description    text        not null,
    registered_at  timestamptz not null
);
comment on table tocsin.tasks is
    'The tasks that workers have registered: where a job goes that SQL submits.';
comment on column tocsin.tasks.limits is
    'The limits of its jobs. A key has the name and the position of a parameter, and its default.';
comment on column tocsin.tasks.timeout is 'Seconds that an attempt may take; null: any number.';
create index tasks_queue on tocsin.tasks (queue_id);

create table tocsin.flows (
    id         bigint      generated always as identity primary key,
    name       text        not null check (name <> ''),
    created_at timestamptz not null,
    ended_at   timestamptz,
    keep_until timestamptz
);
comment on table tocsin.flows is
    'Graphs of jobs that were submitted together; see sql/functions/jobs/flows.sql.';
comment on column tocsin.flows.ended_at is
    'When maintenance found that no job of the flow is unfinished; null: it has not.';
comment on column tocsin.flows.keep_until is
    'When the flow may be deleted: ended_at plus the longest retention of its queues, or later '
    'if it has a dead letter.';
create index flows_unended on tocsin.flows (id) where ended_at is null;
create index flows_ending on tocsin.flows (keep_until) where keep_until is not null;

create table tocsin.flow_jobs (
    job_id   bigint  primary key,
    flow_id  bigint  not null,
    queue_id integer not null,
    task     text    not null,
    name     text    not null,
    unique (flow_id, name)
);
comment on table tocsin.flow_jobs is 'The jobs of each flow, with their names in it.';

create table tocsin.edges (
    parent     bigint  not null,
    child      bigint  not null,
    argument   text[]  not null default '{}',
    flow_id    bigint  not null,
    on_failure text    not null check (on_failure in ('cancel', 'run', 'hold')),
    done       boolean not null default false,
    value      jsonb,
    primary key (parent, child, argument)
);
comment on table tocsin.edges is 'Which job of a flow waits for which.';
comment on column tocsin.edges.argument is
    'Where in the child''s arguments the parent''s result goes; empty: nowhere.';
comment on column tocsin.edges.on_failure is
    'What becomes of the child when the parent does not succeed.';
comment on column tocsin.edges.done is 'Whether the child waits for the parent no more.';
comment on column tocsin.edges.value is 'The result of the parent, if the child takes it.';
create index edges_child on tocsin.edges (child);
create index edges_flow on tocsin.edges (flow_id);

-- Unlogged, so a crash empties it: the sessions that wait for an outcome have ended
-- with it, and register again.
create unlogged table tocsin.awaited (
    job_id     bigint not null,
    process_id bigint not null,
    primary key (job_id, process_id)
);
comment on table tocsin.awaited is
    'Which process waits for the outcome of which job; see sql/functions/jobs/outcomes.sql.';
comment on column tocsin.awaited.process_id is
    'A process; a negative number: a session, see sql/functions/jobs/session_waits.sql.';
create index awaited_sessions on tocsin.awaited (process_id) where process_id < 0;

create view tocsin.jobs as
select m.id, m.task, q.name as queue,
       case when m.state = 'leased' and m.vt > pg_catalog.clock_timestamp() then 'running'
           else 'waiting' end as state,
       m.priority, m.key, m.read_ct as attempts,
       coalesce(m.max_deliveries, q.max_deliveries) as max_attempts,
       m.enqueued_at as submitted_at, m.due, m.dequeued_at as began_at,
       null::timestamptz as ended_at, m.consumer_worker_id as worker_id, m.payload as arguments,
       m.options, null::jsonb as result, null::text as reason,
       coalesce(m.cancel_reason, m.last_error) as error, null::text as traceback, m.history,
       case when m.state = 'leased' and m.vt > pg_catalog.clock_timestamp()
           and (m.progress ->> 'lease')::bigint = m.lease then m.progress - 'lease' end as progress
from tocsin.messages m join tocsin.queues q on q.id = m.queue_id
where m.task <> '$tick'
union all
select d.id, d.task, q.name, 'failed', d.priority, d.key, d.read_ct,
       coalesce(d.max_deliveries, q.max_deliveries), d.enqueued_at, null, d.dequeued_at, d.died_at,
       d.consumer_worker_id, d.payload, d.options, null, d.reason, d.error, d.traceback, d.history, null
from tocsin.dead_letters d join tocsin.queues q on q.id = d.queue_id
where d.task <> '$tick'
union all
select a.id, a.task, q.name, a.outcome, a.priority, a.key, a.read_ct, null, a.enqueued_at, null,
       a.dequeued_at, a.archived_at, a.consumer_worker_id, a.payload, a.options, a.result, null,
       a.last_error, null, a.history, null
from tocsin.archive a join tocsin.queues q on q.id = a.queue_id
where a.task <> '$tick';
comment on view tocsin.jobs is
    'All jobs, for the owner and administrators; other roles call tocsin.list_jobs.';
