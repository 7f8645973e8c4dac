-- The table of schedules; sql/functions/jobs/schedules.sql uses it.

create table tocsin.schedules (
    id           bigint      generated always as identity primary key,
    name         text        not null unique check (name <> '' and octet_length(name) <= 255),
    generation   bigint      not null default 1,
    queue_id     integer     not null references tocsin.queues on delete cascade,
    task         text        not null,
    arguments    jsonb       not null,
    headers      jsonb,
    priority     integer,
    max_attempts integer     check (max_attempts > 0),
    timeout      float8      check (timeout > 0),
    expires_in   interval    check (expires_in > '0 s'),
    cron         text,
    every        interval    check (every > '0 s'),
    start        timestamptz,
    zone         text        not null,
    missed       integer     not null check (missed >= 0),
    overlap      text        not null check (overlap in ('allow', 'skip')),
    anchor       timestamptz not null,
    handled_to   timestamptz not null,
    next_tick    timestamptz,
    last_tick    timestamptz,
    last_job_id  bigint,
    paused_at    timestamptz,
    created_at   timestamptz not null,
    check ((cron is null) <> (every is null))
) with (fillfactor = 70);
comment on table tocsin.schedules is
    'The schedules: at each tick a job of the task is submitted; see '
    'sql/functions/jobs/schedules.sql.';
comment on column tocsin.schedules.generation is
    'Grows with each change of the schedule. A tick message of another generation has no effect.';
comment on column tocsin.schedules.start is
    'The first tick of an interval as the caller has given it; null: not given.';
comment on column tocsin.schedules.missed is
    'How many missed ticks are made up for, the latest ones; 0: none.';
comment on column tocsin.schedules.overlap is
    'Whether a tick submits a job while the job of an earlier tick is unfinished.';
comment on column tocsin.schedules.anchor is
    'The ticks of an interval are the anchor and each time that is a multiple of it later.';
comment on column tocsin.schedules.handled_to is
    'Ticks up to this time, inclusive, have been handled or do not count.';
comment on column tocsin.schedules.next_tick is
    'When its tick message is due; null: the schedule is paused, or a worker has yet to compute it.';
comment on column tocsin.schedules.last_tick is 'The last tick that has submitted a job.';
comment on column tocsin.schedules.last_job_id is 'The last job that was submitted.';
create index schedules_queue on tocsin.schedules (queue_id);
