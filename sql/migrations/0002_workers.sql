-- The tables of processes and their workers; sql/functions/workers uses them.

create table tocsin.processes (
    id           bigint      generated always as identity primary key,
    hostname     text        not null,
    pid          integer     not null,
    version      text        not null,
    role         name        not null default current_user,
    every        interval    not null check (every > '0 s' and every <= '1 hour'),
    lifeline     bigint,
    detached     boolean     not null default false,
    started_at   timestamptz not null,
    heartbeat_at timestamptz not null
) with (fillfactor = 50);
comment on column tocsin.processes.role is
    'The role that registered the process and may act for it; see '
    'sql/functions/common/authorization.sql.';
comment on column tocsin.processes.every is 'Interval between its heartbeats.';
comment on column tocsin.processes.lifeline is
    'Number of the advisory lock that the LISTEN connection of the process holds while it is '
    'open; null: the process has no such connection.';
comment on column tocsin.processes.detached is
    'The process works without a lifeline, because its LISTEN connection cannot be opened or '
    'does not work.';

create sequence tocsin.lifelines;
create sequence tocsin.registrations;

create table tocsin.workers (
    id           bigint      generated always as identity primary key,
    queue_id     integer     not null references tocsin.queues,
    kind         text        not null check (kind in ('producer', 'consumer')),
    name         text        not null check (name <> ''),
    status       text        not null check (status in ('ready', 'polling', 'interrupted',
                                                        'suspended', 'stopped')),
    grace        interval,
    status_before_death    text,
    ended        text        check (ended in ('left', 'stopped', 'shut_down', 'died')),
    registration bigint      not null,
    role         name        not null default current_user,
    process_id   bigint,
    hostname     text        not null,
    pid          integer     not null,
    version      text        not null,
    started_at   timestamptz not null,
    heartbeat_at timestamptz not null,
    shutdown_at  timestamptz,
    tasks        text[],
    unique (queue_id, kind, name)
);
comment on column tocsin.workers.status_before_death is
    'Status of the worker when its process was declared dead.';
comment on column tocsin.workers.ended is
    'How a stopped worker ended: its own process left, stop or shutdown was called, or its '
    'process died.';
comment on column tocsin.workers.registration is
    'Token of the current registration; earlier registrations of the name cannot act for it.';
comment on column tocsin.workers.role is 'The role that registered the worker and may act for it.';
comment on column tocsin.workers.grace is
    'How long the handlers of an interrupted worker may still run; null: until they end.';
comment on column tocsin.workers.tasks is
    'The tasks whose jobs a consumer runs; null: it handles every message of its queue.';
create index workers_process on tocsin.workers (process_id) where process_id is not null;

-- The table is unlogged, so crash recovery and the promotion of a standby empty it. Its
-- row says since when this server has been up without interruption.
create unlogged table tocsin.uptime (
    only_row boolean primary key default true check (only_row),
    since    timestamptz not null
);
