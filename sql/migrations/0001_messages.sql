-- Tocsin: a message queue in PostgreSQL. The tables of queues and messages.
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
-- A message that waits for other messages is `held`, in no index that a claim reads, until
-- tocsin._admit makes it ready or delayed (sql/functions/queue/held.sql).
--
-- `messages` holds only unfinished messages, so it stays small. A finished message
-- moves to `archive` or `dead_letters`. One partial index holds the ready messages;
-- another holds the delayed and leased ones, whose state changes with time. So a claim
-- reads the front of the first index, whatever the size of the backlog and the number
-- of delayed messages.
--
-- Each delivery has a *lease token*, which the claim writes to the message's row. The
-- token grows with each delivery of the message, so it is a fencing token. Each
-- statement that settles a message names the token, and changes nothing when the row
-- has another one. So a worker that has lost its lease cannot settle the message. The
-- token is the time of the claim in microseconds, or the message's previous token plus
-- one if that is larger. A sequence could repeat a token after a server crash that
-- loses the latest claims; the time does not.
--
-- Every timestamp in these tables comes from tocsin._clock(), never from the clock of a
-- client.
--
-- These files write `tocsin.` before each object of the schema and nowhere else. An
-- installation into another schema replaces this prefix by that schema's quoted name
-- and a dot, also inside string constants. So (parse_ident('tocsin.contract'))[1] is
-- the schema's name as text.

create table tocsin.migrations (
    number     integer     primary key,
    name       text        not null,
    applied_at timestamptz not null default now()
);
comment on table tocsin.migrations is 'The files of sql/migrations that have been applied.';

create table tocsin.contract (
    only_row boolean primary key default true check (only_row),
    version  integer not null,
    serves   integer not null check (serves <= version),
    digest   text    not null
);
comment on table tocsin.contract is
    'The installed version of the SQL contract: tables, functions, and the privileges on them.';
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
    'The number of deliveries after which a failed message becomes a dead letter.';
comment on column tocsin.queues.retry_base is
    'Delay after the first failure. After the n-th failure the delay is least(retry_max, '
    'retry_base * retry_factor^(n-1)), plus or minus a random fraction of up to retry_jitter.';
comment on column tocsin.queues.channel is 'Notification channel of the queue, for LISTEN.';
comment on column tocsin.queues.max_payload is
    'Maximum size of a payload, in bytes of its JSON text. The same maximum applies to headers.';
comment on column tocsin.queues.max_string is
    'Maximum number of characters in a string or key of a payload; 0: no limit.';
comment on column tocsin.queues.max_depth is
    'Maximum nesting depth of arrays and objects in a payload. A larger value than 256 counts as '
    '256; 0: no limit, or 256 if keys or strings have rules.';
comment on column tocsin.queues.required_keys is 'Keys that each payload must have, as an object.';
comment on column tocsin.queues.forbidden_keys is 'Keys that no object in a payload may have.';
comment on column tocsin.queues.ruled is
    'Whether the queue has any rule for payloads; see payload_rules.sql.';
comment on column tocsin.queues.retention is
    'How long archived messages are kept; 0: not at all. A thousand years mean forever.';
comment on column tocsin.queues.dead_letter_retention is
    'How long dead letters are kept. A thousand years mean forever.';
comment on column tocsin.queues.notify is
    'When an insert notifies the channel: on_demand, while a consumer of Tocsin waits; always, for '
    'programs that LISTEN themselves. See ring.sql.';

create table tocsin.roles (
    kind text    primary key check (kind in ('producer', 'consumer', 'admin')),
    role regrole not null
);
comment on table tocsin.roles is
    'The roles that may use Tocsin, in addition to its owner; see sql/security/access.sql.';

create table tocsin.queue_grants (
    queue_id integer not null references tocsin.queues on delete cascade,
    role     regrole not null,
    primary key (queue_id, role)
);
comment on table tocsin.queue_grants is
    'The roles that may enqueue to a queue, in addition to the owner and administrators.';

create type tocsin.message_state as enum ('held', 'ready', 'delayed', 'leased');

-- The table has no check constraints. PostgreSQL parses them again for each statement
-- that writes a row, which slows down each enqueue.
create table tocsin.messages (
    id                 bigint      generated by default as identity primary key,
    -- no foreign key, whose lock would serialise producers; the functions check the queue
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
    history            jsonb,
    cancel_reason      text,
    task               text,
    options            jsonb,
    waits_for          integer,
    flow_id            bigint,
    progress           jsonb
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
comment on column tocsin.messages.priority is 'Messages with smaller numbers are claimed first.';
comment on column tocsin.messages.read_ct is 'Number of deliveries so far.';
comment on column tocsin.messages.due is
    'Place in the queue among equal priorities; never in the future for a ready message.';
comment on column tocsin.messages.vt is
    'When the message can be claimed: usually its due time, or the end of its lease.';
comment on column tocsin.messages.lease is
    'Lease token of the current delivery, or of the last one when the message is not leased.';
comment on column tocsin.messages.history is
    'The last twenty deliveries that ended without success, as tocsin._requeue writes them; '
    'null: none.';

comment on column tocsin.messages.cancel_reason is
    'Of a job that was cancelled while a worker holds it: the reason. The end of the lease '
    'archives the job as cancelled; see waiting_messages.sql.';
comment on column tocsin.messages.task is
    'Of a job: the task whose function a worker calls; null: a plain message.';
comment on column tocsin.messages.options is
    'Of a job: what the call has chosen apart from the task''s options, such as timeout (seconds).';
comment on column tocsin.messages.waits_for is
    'Of a held message: how many unfinished messages it waits for; null: none.';
comment on column tocsin.messages.flow_id is 'Of a job: the flow that it belongs to; null: none.';
comment on column tocsin.messages.progress is
    'Of a job: what an attempt has reported, with the lease token of the attempt, which no other '
    'attempt has.';

-- A database with the encoding SQL_ASCII accepts any bytes as text. A session with the
-- client encoding UTF-8 cannot read bytes that are not UTF-8, so each claim of such a
-- message would fail. Every payload, header and key passes through this table, so no
-- other table needs a check.
do $$
begin
    if getdatabaseencoding() = 'SQL_ASCII' then
        alter table tocsin.messages add constraint messages_utf8 check (
            convert_from(convert_to(payload::text || coalesce(headers::text, '')
                                    || coalesce(key, '') || coalesce(task, ''),
                                    'SQL_ASCII'), 'UTF8') is not null);
    end if;
end
$$;

create index messages_ready on tocsin.messages (queue_id, priority, due, id) where state = 'ready';
create index messages_timed on tocsin.messages (queue_id, state, vt)
    where state in ('delayed', 'leased');
create index messages_held on tocsin.messages (queue_id, id) where state = 'held';
create index messages_expiring on tocsin.messages (queue_id, expires_at)
    where state <> 'leased' and expires_at is not null;
create unique index messages_key on tocsin.messages (queue_id, key) where key is not null;
-- For the estimates of metrics.sql: the states of messages depend on the queue. All
-- messages of one queue may be ready, and all messages of another may be delayed.
create statistics tocsin.messages_states (mcv) on queue_id, state from tocsin.messages;

-- functions/queue/archive.sql explains the layout of the archive.
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
    history            jsonb,
    task               text,
    options            jsonb,
    outcome            text,
    result             jsonb
) partition by range (span, keep_until);
comment on column tocsin.archive.keep_until is
    'When the row may be deleted: archived_at plus the retention that the queue had then. The '
    'year 9999 means never.';
comment on column tocsin.archive.outcome is
    'Of a job: succeeded, cancelled, or failed (a dead letter that was archived).';
comment on column tocsin.archive.result is
    'Of a job that has succeeded: what its function returned, as JSON.';
comment on column tocsin.archive.span is
    'Length of the row''s partition in hours of keep_until; 0: the row is in archive_rest.';
create index archive_queue on tocsin.archive (queue_id, id);
-- For lists and counts of jobs (functions/jobs/jobs.sql); plain messages are not in it.
create index archive_jobs on tocsin.archive (task, outcome, id) where task is not null;
-- With a publication of all tables, PostgreSQL refuses deletions from a table that has
-- neither a primary key nor a replica identity. A primary key would slow down each
-- archiving statement. The identity `full` has a cost only when rows are deleted from a
-- table that is replicated logically.
alter table tocsin.archive replica identity full;

create table tocsin.archive_rest partition of tocsin.archive for values
    from (0, minvalue) to (0, maxvalue);
alter table tocsin.archive_rest replica identity full;
comment on table tocsin.archive_rest is
    'Rows that are kept forever, and rows whose partition did not exist in time.';
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
    'For each queue, how long to keep archived messages, and which partitions a statement that '
    'archives may use.';
comment on column tocsin.archive_policies.retention is 'The retention of the queue.';
comment on column tocsin.archive_policies.covered is
    'The range of keep_until for which partitions of this span exist. Rows outside of it go to '
    'archive_rest.';
comment on column tocsin.archive_policies.since is
    'Transactions that began before this time do not use these partitions.';

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
    'Numbers of rows that were added to the archive (negative: deleted from it) and are not in '
    'archived_counts yet. A statement that changes the archive only inserts here.';
comment on column tocsin.archive_count_deltas.span is
    'As in the table archive; null: the queue keeps no archive.';
create index archive_count_deltas_queue on tocsin.archive_count_deltas (queue_id, archived_at);

create table tocsin.archived_counts (
    -- No foreign key, so that maintenance does not wait for the deletion of a queue.
    queue_id  integer     not null,
    span      integer     not null,
    starts_at timestamptz not null,
    n         bigint      not null,
    primary key (queue_id, span, starts_at)
);
comment on table tocsin.archived_counts is
    'Number of archived messages of each queue in each partition, without those in '
    'archive_count_deltas. Only maintenance writes to this table.';

create table tocsin.maintenance (
    only_row        boolean     primary key default true check (only_row),
    due_at          timestamptz not null,
    clock_was_ahead boolean     not null default false
);
comment on column tocsin.maintenance.clock_was_ahead is
    'Whether a timestamp in the future was found. Maintenance then corrects all such timestamps.';
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
    history            jsonb,
    task               text,
    options            jsonb,
    flow_id            bigint
);
comment on column tocsin.dead_letters.lease is
    'Lease token of the last delivery. Deliveries after a replay get larger tokens.';
create index dead_letters_queue on tocsin.dead_letters (queue_id, id);
create index dead_letters_died on tocsin.dead_letters (queue_id, died_at);
create index dead_letters_jobs on tocsin.dead_letters (task, id) where task is not null;

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
    'A message as messages.sql shows it, from any of the tables. JSON values are given as text.';

create type tocsin.dead_letter_info as (
    id bigint, queue text, queue_id integer, payload text, headers text, priority integer, key text,
    enqueued_at timestamptz,
    dequeued_at timestamptz, read_ct integer, max_deliveries integer, producer_worker_id bigint,
    consumer_worker_id bigint, history text,
    died_at timestamptz, reason text, error text, traceback text
);
comment on type tocsin.dead_letter_info is
    'A dead letter as dead_letters.sql shows it. JSON values are given as text.';

create sequence tocsin.flush_marker;
comment on sequence tocsin.flush_marker is
    'A write to this sequence makes a commit wait for the flush of the WAL; see '
    'sql/functions/queue/ring_early.sql.';
