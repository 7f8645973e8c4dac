-- Tocsin: a message queue in PostgreSQL. The tables.
--
-- The life of a message =====================
--
--                  delay                       due
--    enqueue ---------------> delayed ------------------+
--       |                         ^                      v
--       +--------------------------------------------> ready <------------+
--                                 |                      | claim          | lease expired,
--                 release, fail   |                      v                | worker died
--                 (with a delay)  +------------------- leased ------------+
--                                                        |
--                             archive <-- handled -------+---- too many deliveries, or expired
--                                                        |     --> dead_letters -- replay --> ready
--                                                        +---- delete --> nothing is kept
--
-- `messages` holds only unfinished messages, so it stays small; a finished one moves to
-- `archive` or `dead_letters`. What a claim looks for (`ready`) is never mixed with
-- what changes by time (`delayed`, `leased`): there is a partial index for each of the
-- two. So a claim reads the front of one index, whatever the backlog and however many
-- messages are delayed.
--
-- A delivery is a *lease*: a token that grows with each delivery of the message (a
-- fencing token), written to the row by the claim. Each statement that settles a
-- message names the token, and does nothing when the row carries another. So a worker
-- that lost its message cannot settle it. The token is the time of the claim in
-- microseconds, or one more than the message's last one if that is larger: unlike a
-- sequence's, it does not come again after a crash of the server that has forgotten the
-- last claims.
--
-- Every time in these tables comes from one clock, tocsin._clock(); no client's clock
-- counts.
--
-- These files write `tocsin.` before each name of the schema, and nowhere else. An
-- installation into another schema replaces this one spelling by the schema's name in
-- quotes and a dot, inside string constants too: (parse_ident('tocsin.contract'))[1] is
-- the schema's name as text.

create table tocsin.migrations (
    number     integer     primary key,
    name       text        not null,
    applied_at timestamptz not null default now()
);
comment on table tocsin.migrations is 'Which files of sql/migrations have been applied.';

create table tocsin.contract (
    only_row boolean primary key default true check (only_row),
    version  integer not null,
    serves   integer not null check (serves <= version),
    digest   text    not null
);
comment on table tocsin.contract is
    'Which version of the SQL contract is installed: tables, functions, and the rights to them.';
comment on column tocsin.contract.serves is
    'The oldest version whose clients the installed functions serve.';
comment on column tocsin.contract.digest is 'Digest of the SQL that was last installed.';

create table tocsin.queues (
    id             integer     generated always as identity primary key,
    name           text        not null unique check (name <> '' and octet_length(name) <= 255),
    vt             interval    not null default '30 s' check (vt > '0 s' and vt <= '1000 years'),
    max_deliveries integer     not null default 5 check (max_deliveries > 0),
    retry_base     interval    not null default '1 s' check (retry_base >= '0 s'
        and retry_base <= '1000 years'),
    retry_factor   float8      not null default 2 check (retry_factor >= 1),
    retry_max      interval    not null default '1 h' check (retry_max >= '0 s'
        and retry_max <= '1000 years'),
    retry_jitter   float8      not null default 0.2 check (retry_jitter between 0 and 1),
    max_payload    integer     not null default 1048576 check (max_payload > 0),
    max_string     integer     not null default 0 check (max_string >= 0),
    max_depth      integer     not null default 0 check (max_depth >= 0),
    required_keys  text[]      not null default '{}',
    forbidden_keys text[]      not null default '{}',
    ruled          boolean     not null generated always as
                   (max_string > 0 or max_depth > 0 or required_keys <> '{}'
                    or forbidden_keys <> '{}') stored,
    retention      interval    not null default '30 days' check (retention >= '0 s'),
    dead_letter_retention interval not null default '1000 years'
        check (dead_letter_retention > '0 s'),
    notify         text        not null default 'on_demand'
        check (notify in ('on_demand', 'always')),
    paused_at      timestamptz,
    created_at     timestamptz not null,
    channel        text        not null
);
comment on column tocsin.queues.vt is
    'Visibility timeout: how long a lease lasts unless it is extended.';
comment on column tocsin.queues.max_deliveries is
    'After this many deliveries a message that fails again becomes a dead letter.';
comment on column tocsin.queues.retry_base is
    'Delay after the first failure; after the n-th: least(retry_max, retry_base * '
    'retry_factor^(n-1)), plus or minus up to the share retry_jitter of it.';
comment on column tocsin.queues.channel is 'Where its bell rings: LISTEN to it.';
comment on column tocsin.queues.max_payload is
    'Largest payload in bytes of its JSON text; headers may be as large.';
comment on column tocsin.queues.max_string is
    'Most characters of a string in a payload, a key too; 0: any number.';
comment on column tocsin.queues.max_depth is
    'Most levels of arrays and objects in a payload, 256 if it is more; 0: any number, or 256 '
    'where keys or strings have rules.';
comment on column tocsin.queues.required_keys is 'Keys that a payload, an object then, must have.';
comment on column tocsin.queues.forbidden_keys is 'Keys that no object in a payload may have.';
comment on column tocsin.queues.ruled is
    'Whether it has any of these rules; see payload_rules.sql.';
comment on column tocsin.queues.retention is
    'How long what is archived is kept; 0: not at all. A thousand years mean without end.';
comment on column tocsin.queues.dead_letter_retention is
    'How long dead letters are kept. A thousand years mean without end.';
comment on column tocsin.queues.notify is
    'When its channel is notified: on_demand, while a consumer of Tocsin waits; or always, for '
    'programs that LISTEN by hand. See ring.sql.';

create table tocsin.roles (
    kind text    primary key check (kind in ('producer', 'consumer', 'admin')),
    role regrole not null
);
comment on table tocsin.roles is
    'The roles that may use Tocsin apart from its owner; see sql/security/access.sql.';

create table tocsin.queue_grants (
    queue_id integer not null references tocsin.queues on delete cascade,
    role     regrole not null,
    primary key (queue_id, role)
);
comment on table tocsin.queue_grants is
    'Which role may enqueue to which queue, apart from the owner and administrators.';

create type tocsin.message_state as enum ('ready', 'delayed', 'leased');

-- No check constraints: PostgreSQL parses them again for each statement that writes a
-- row, which was 5 % of the server's time for an enqueue.
create table tocsin.messages (
    id                 bigint      generated by default as identity primary key,
    -- no foreign key: its row lock would serialise producers; the functions check
    queue_id           integer     not null,
    priority           integer     not null default 0,
    state              tocsin.message_state not null default 'ready',
    read_ct            integer     not null default 0,
    due                timestamptz not null,
    vt                 timestamptz not null,
    enqueued_at        timestamptz not null,
    dequeued_at        timestamptz,
    expires_at         timestamptz,
    lease              bigint,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    max_deliveries     integer,
    key                text,
    payload            jsonb       not null,
    headers            jsonb,
    last_error         text,
    history            jsonb
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
comment on column tocsin.messages.priority is 'Smaller numbers first.';
comment on column tocsin.messages.read_ct is 'Deliveries so far.';
comment on column tocsin.messages.due is
    'Place in the queue among equal priorities; never in the future when ready.';
comment on column tocsin.messages.vt is
    'When it can be claimed (again): due while it waits, the end of the lease while it is leased.';
comment on column tocsin.messages.lease is
    'Token of the current delivery; when it is not leased, of the last one.';
comment on column tocsin.messages.history is
    'Its deliveries that failed, the last twenty of them, as tocsin._requeue writes them; null:'
    ' none.';

-- A database whose encoding is SQL_ASCII takes any bytes for text. A session in UTF-8
-- gets UTF-8 alone, so each claim of such a message would fail. No other place needs
-- a check of its own.
do $$
begin
    if getdatabaseencoding() = 'SQL_ASCII' then
        alter table tocsin.messages add constraint messages_utf8 check (
            convert_from(convert_to(payload::text || coalesce(headers::text, '')
                                    || coalesce(key, ''), 'SQL_ASCII'), 'UTF8') is not null);
    end if;
end
$$;

create index messages_ready on tocsin.messages (queue_id, priority, due, id) where state = 'ready';
create index messages_timed on tocsin.messages (queue_id, state, vt)
    where state in ('delayed', 'leased');
create index messages_expiring on tocsin.messages (queue_id, expires_at)
    where state <> 'leased' and expires_at is not null;
create unique index messages_key on tocsin.messages (queue_id, key) where key is not null;
-- For estimates (metrics.sql): one queue's messages may be ready, all of them, and
-- another's delayed.
create statistics tocsin.messages_states (mcv) on queue_id, state from tocsin.messages;

-- How the archive is laid out, and why, is told in functions/queue/archive.sql.
create table tocsin.archive (
    id                 bigint      not null,
    queue_id           integer     not null,
    priority           integer     not null,
    read_ct            integer     not null,
    span               integer     not null default 0,
    enqueued_at        timestamptz not null,
    dequeued_at        timestamptz,
    archived_at        timestamptz not null,
    keep_until         timestamptz not null default '9999-01-01+00',
    producer_worker_id bigint,
    consumer_worker_id bigint,
    key                text,
    payload            jsonb       not null,
    headers            jsonb,
    last_error         text,
    history            jsonb
) partition by range (span, keep_until);
comment on column tocsin.archive.keep_until is
    'When it may go: archived_at and the retention that the queue had then; in the year 9999: '
    'never.';
comment on column tocsin.archive.span is
    'How many hours of keep_until its partition takes; 0: it is in archive_rest.';
create index archive_queue on tocsin.archive (queue_id, id);
-- A publication of all tables refuses deletions from a table without a key or a replica
-- identity. A key would cost each archiving statement; `full` costs nothing but where
-- rows are deleted from a table that is replicated logically.
alter table tocsin.archive replica identity full;

create table tocsin.archive_rest partition of tocsin.archive for values
    from (0, minvalue) to (0, maxvalue);
alter table tocsin.archive_rest replica identity full;
comment on table tocsin.archive_rest is
    'Rows that are kept without end, and rows whose partition did not exist in time.';
create index archive_rest_ending on tocsin.archive_rest (keep_until)
    where keep_until < '9999-01-01+00';

create table tocsin.archive_policies (
    queue_id  integer     primary key references tocsin.queues on delete cascade,
    retention interval    not null,
    span      integer     not null default 0,
    covered   tstzrange   not null default 'empty',
    since     timestamptz not null default '9999-01-01+00'
);
comment on table tocsin.archive_policies is
    'What archiving needs of a queue: how long to keep its messages, and which partitions it '
    'may use.';
comment on column tocsin.archive_policies.retention is 'The queue''s own.';
comment on column tocsin.archive_policies.covered is
    'The times of keep_until that there are partitions of this span for; all else goes to '
    'archive_rest.';
comment on column tocsin.archive_policies.since is
    'Transactions that began before do not use them.';

create table tocsin.archive_count_deltas (
    queue_id    integer     not null,
    span        integer,
    keep_until  timestamptz not null,
    archived_at timestamptz not null,
    n           bigint      not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
alter table tocsin.archive_count_deltas replica identity full;
comment on table tocsin.archive_count_deltas is
    'What was added to the archive (or, negative, taken out of it) and is not in '
    'archived_counts yet; only inserted into.';
comment on column tocsin.archive_count_deltas.span is
    'As in the archive; null: the queue keeps nothing.';
create index archive_count_deltas_queue on tocsin.archive_count_deltas (queue_id, archived_at);

create table tocsin.archived_counts (
    -- no foreign key: maintenance does not wait for the deletion of a queue
    queue_id  integer     not null,
    span      integer     not null,
    starts_at timestamptz not null,
    n         bigint      not null,
    primary key (queue_id, span, starts_at)
);
comment on table tocsin.archived_counts is
    'How many messages of a queue are in a partition, apart from archive_count_deltas; only '
    'maintenance writes it.';

create table tocsin.maintenance (
    only_row        boolean     primary key default true check (only_row),
    due_at          timestamptz not null,
    clock_was_ahead boolean     not null default false
);
comment on column tocsin.maintenance.clock_was_ahead is
    'A time of the future was found, so maintenance corrects all of them.';
insert into tocsin.maintenance (due_at) values (pg_catalog.now() + interval '1 minute');

create table tocsin.dead_letters (
    id                 bigint      primary key,
    queue_id           integer     not null,
    priority           integer     not null,
    read_ct            integer     not null,
    enqueued_at        timestamptz not null,
    dequeued_at        timestamptz,
    died_at            timestamptz not null,
    lease              bigint,
    producer_worker_id bigint,
    consumer_worker_id bigint,
    max_deliveries     integer,
    key                text,
    payload            jsonb       not null,
    headers            jsonb,
    reason             text        not null,
    error              text,
    traceback          text,
    history            jsonb
);
comment on column tocsin.dead_letters.lease is
    'Token of its last delivery, so that those after a replay have larger ones.';
create index dead_letters_queue on tocsin.dead_letters (queue_id, id);
create index dead_letters_died on tocsin.dead_letters (queue_id, died_at);

create type tocsin.message_info as (
    id bigint, queue text, queue_id integer, payload text, headers text, priority integer, key text,
    enqueued_at timestamptz,
    dequeued_at timestamptz, read_ct integer, max_deliveries integer, producer_worker_id bigint,
    consumer_worker_id bigint, history text,
    state text, due timestamptz, vt timestamptz, expires_at timestamptz, archived_at timestamptz,
    died_at timestamptz, reason text,
    last_error text
);
comment on type tocsin.message_info is
    'A message as messages.sql shows it, in whichever table it is; what is JSON is its text.';

create type tocsin.dead_letter_info as (
    id bigint, queue text, queue_id integer, payload text, headers text, priority integer, key text,
    enqueued_at timestamptz,
    dequeued_at timestamptz, read_ct integer, max_deliveries integer, producer_worker_id bigint,
    consumer_worker_id bigint, history text,
    died_at timestamptz, reason text, error text, traceback text
);
comment on type tocsin.dead_letter_info is
    'A dead letter as dead_letters.sql shows it; what is JSON is its text.';

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
    'Role that registered it, and alone may act for it; see '
    'sql/functions/common/authorization.sql.';
comment on column tocsin.processes.every is 'Interval between its heartbeats.';
comment on column tocsin.processes.lifeline is
    'Number of the advisory lock that its LISTEN connection holds for as long as it lives; '
    'null: it has no such connection.';

comment on column tocsin.processes.detached is
    'It goes on without a lifeline, because its LISTEN connection cannot be made or does not work.';

create sequence tocsin.flush_marker;
comment on sequence tocsin.flush_marker is
    'A write to it makes a commit wait for the flush of the log; see '
    'sql/functions/queue/ring_early.sql.';
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
    unique (queue_id, kind, name)
);
comment on column tocsin.workers.status_before_death is
    'Its status when it was declared dead, for a process that was alive after all.';
comment on column tocsin.workers.ended is
    'Of a stopped worker, how that came: its own process left, stop or shutdown was called, or '
    'its process died.';
comment on column tocsin.workers.registration is
    'Token of the current registration; what was registered under the name before cannot act '
    'for it.';
comment on column tocsin.workers.role is 'Role that registered it, and alone may act for it.';
comment on column tocsin.workers.grace is
    'Of an interrupted worker: how long its handlers may still run; null: until they end.';
create index workers_process on tocsin.workers (process_id) where process_id is not null;

-- Unlogged, so crash recovery and the promotion of a standby empty it: its row says
-- since when this server has been up without a break.
create unlogged table tocsin.uptime (
    only_row boolean primary key default true check (only_row),
    since    timestamptz not null
);
