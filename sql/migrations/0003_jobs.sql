-- The tables of tasks and of waits for outcomes; sql/functions/jobs uses them.

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
