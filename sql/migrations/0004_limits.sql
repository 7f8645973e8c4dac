-- The tables of limits and rates; sql/functions/queue/limits.sql uses them.

create table tocsin.limits (
    id      bigint   primary key,
    name    text     not null check (name <> ''),
    n       integer  not null check (n > 0),
    set_n   integer  check (set_n > 0),
    per     interval check (per > '0 s'),
    burst   integer  not null default 1 check (burst > 0),
    ordered boolean  not null default false check (not ordered or per is null)
);
comment on table tocsin.limits is
    'Limits (at most n messages of a key at a time) and rates (n messages of a key per interval).';
create index limits_name on tocsin.limits (name);
comment on column tocsin.limits.id is 'A digest of the name and the kind.';
comment on column tocsin.limits.n is 'What the tasks say; see set_n.';
comment on column tocsin.limits.set_n is 'What an operator has set instead of n; null: nothing.';
comment on column tocsin.limits.per is 'Of a rate: its interval; null: a limit.';
comment on column tocsin.limits.burst is
    'Of a rate: how many messages may come at once after a pause.';
comment on column tocsin.limits.ordered is
    'Whether a key has one message at a time, in the order of enqueueing.';

create table tocsin.limit_queues (
    limit_id bigint  not null references tocsin.limits on delete cascade,
    queue_id integer not null,
    added    xid8    not null,
    since    xid8,
    primary key (limit_id, queue_id)
);
comment on table tocsin.limit_queues is 'The queues whose messages name a limit.';
comment on column tocsin.limit_queues.added is 'The transaction that has added the row.';
comment on column tocsin.limit_queues.since is
    'A transaction id: all transactions from it on see the row; null: no scan has seen it.';
create index limit_queues_queue on tocsin.limit_queues (queue_id);

create table tocsin.slots (
    message_id bigint      not null,
    limit_id   bigint      not null,
    key        text        not null,
    queue_id   integer     not null,
    line       integer     not null,
    stage      integer     not null,
    priority   integer     not null,
    due        timestamptz not null,
    slot       integer,
    paid       boolean     not null default false,
    waits      boolean     not null default false,
    primary key (message_id, limit_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
comment on table tocsin.slots is
    'The limits of each held, ready or leased message: the slot that it has, or its line.';
comment on column tocsin.slots.key is 'The key; empty: the limit has no keys.';
comment on column tocsin.slots.line is
    'The line that the row waits in: that of its queue, or 0, that of all queues (ordered).';
comment on column tocsin.slots.stage is
    'In which order a message takes what it needs: 0 rates, 1 ordered limits, 2 limits with '
    'a key, 3 limits without.';
comment on column tocsin.slots.slot is 'The slot that the message holds; null: none.';
comment on column tocsin.slots.paid is 'Of a rate: the message has its due time.';
comment on column tocsin.slots.waits is 'Whether the message waits in the line of this key.';
-- The judge of all limits: a slot of a key has one holder.
create unique index slots_held on tocsin.slots (limit_id, key, slot) where slot is not null;
create index slots_line on tocsin.slots (limit_id, key, line, priority, due, message_id)
    where waits;

create table tocsin.limit_checks (
    queue_id integer not null,
    limit_id bigint  not null,
    key      text    not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
alter table tocsin.limit_checks replica identity full;
comment on table tocsin.limit_checks is
    'The keys whose lines the next full scan of the queue looks at.';
create index limit_checks_key on tocsin.limit_checks (queue_id, limit_id, key);

create table tocsin.rates (
    limit_id bigint      not null references tocsin.limits on delete cascade,
    key      text        not null,
    next_at  timestamptz not null,
    primary key (limit_id, key)
);
create index rates_past on tocsin.rates (limit_id, next_at);
comment on column tocsin.rates.next_at is
    'The theoretical arrival time: when the next message is due if the key has no burst.';
