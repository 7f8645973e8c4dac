-- Ringing while the message is on its way to the disk.
--
-- A commit makes its rows visible, and sends its notifications, only when the disk has them. To wait for that takes as long as half of a wake-up
-- or more. So a call that is a transaction of its own may do both at the same time (enqueue_alone): when it rings for somebody, it commits
-- without waiting for the disk, which wakes them; then it waits, by a second transaction; and then it returns. When nobody is to be woken
-- there is one transaction, as ever.
--
-- What becomes of it when the server crashes in between:
-- - The caller has not been told that the message is enqueued. A CALL is one request, to one session; so a crash is a lost connection, also
--   behind a pooler, and its outcome is unknown, as that of any statement on such a connection.
-- - The log is written in one order. So whatever a handler has done to this database because of the message, its archiving as well, is
--   on disk only if the message is: after the crash both are there, or neither.
-- - What a handler has done elsewhere, for a message that is gone, stays done; so it does for a message that is delivered again. Those who
--   go by the message's id, or its lease, are not misled: neither comes again. A lease is a time (0001_tables.sql). For the ids, see below.
-- Nor does it matter to the bell's protocol (ring.sql): rows become visible, locks are released and notifications sent in the same order.
--
-- The ids
-- =======
-- A sequence notes in the log how far it may go, some dozens of numbers ahead, and after a crash goes on from there. If a commit that does not
-- wait takes the first of these, log and note may both be lost, and the number be given out again. So `ids_on_disk` says how far the ids go
-- whose note is on disk: last_id was read from the sequence before written_at was read from the log, and the log is on disk up to there when
-- pg_current_wal_flush_lsn() says so, whoever wrote the row, and whether or not that transaction waited. An id beyond is not rung for first; instead,
-- its transaction renews the row, unless another is at it. That is one call in some dozens.
-- The row means this sequence of this server: a copy of it, by a dump or a template or an upgrade, is told by what else is in the row.
--
-- With notify = 'always' nothing of this happens: there is a ring for each message, not only when somebody sleeps, and two transactions for each
-- are half as fast.

-- Enqueues one message, as tocsin.enqueue does, in a transaction of its own. In one of the caller's it fails (2D000). If it fails with 08007, the
-- message is enqueued, and others may have it already, but it is not known whether it is on disk. `rang`: somebody slept.
create or replace procedure tocsin.enqueue_alone(
    queue text, payload jsonb, delay interval default null, at timestamptz default null, priority integer default 0,
    headers jsonb default null, key text default null, expires_in interval default null, max_deliveries integer default null,
    worker_id bigint default null, inout message_id bigint default null, inout rang boolean default null
)
language plpgsql
as $$
-- Runs as its caller, and with the caller's path, for PostgreSQL lets no other procedure commit: each name has its schema, each operator too.
begin
    message_id := tocsin.enqueue(queue, payload, delay, at, priority, headers, key, expires_in, max_deliveries, worker_id);
    rang := (pg_catalog.current_setting('bell.rung', true) operator(pg_catalog.=) 'asleep') is true;
    if (case when rang then tocsin.ring_first(message_id) else false end) then  -- a CASE, since that promises the order, and no AND does
        commit;
        begin
            perform tocsin.reach_disk();
        exception when others or query_canceled then
            raise sqlstate '08007' using message = pg_catalog.concat('the message is enqueued, but may not be on disk: ', sqlerrm);
        end;
    else
        commit;  -- which fails within a transaction of the caller's: always, and not only when somebody sleeps
    end if;
end
$$;

-- Whether this transaction may be committed before the disk has it, for all that is known of the id; then it will be.
create or replace function tocsin.ring_first(message_id bigint) returns boolean
language plpgsql
as $$
declare
    logged bigint;
begin
    -- Under the other levels the row would be one more thing to fail for, when another transaction renews it.
    if current_setting('synchronous_commit') = 'off' or current_setting('transaction_isolation') <> 'read committed' then
        return false;
    end if;
    perform from tocsin.ids_on_disk d
    where message_id <= d.last_id and d.written_at <= pg_current_wal_flush_lsn() and d.server_started_at = pg_postmaster_start_time()
      and d.sequence = 'tocsin.messages_id_seq'::regclass and d.database = current_database();
    if found then
        return set_config('synchronous_commit', 'off', true) is not null;
    end if;
    select s.last_value + s.log_cnt into logged from tocsin.messages_id_seq s;
    perform from tocsin.ids_on_disk for update skip locked;
    if found then
        update tocsin.ids_on_disk d
        set last_id = logged, written_at = pg_current_wal_insert_lsn(), server_started_at = pg_postmaster_start_time(),
            sequence = 'tocsin.messages_id_seq'::regclass, database = current_database();
    end if;
    return false;
end
$$;

-- Its transaction commits when all that was committed before is on disk, and at the standbys that are waited for. Any commit does that which has
-- written something; what is written here takes no room, and does not appear in logical decoding.
create or replace function tocsin.reach_disk() returns void
language plpgsql
as $$
begin
    perform setval('tocsin.disk', 1);
end
$$;
