-- Notify a waiting consumer before the message is durable.
--
-- A commit shows its rows to other sessions, and sends its notifications, when it is
-- flushed. A consumer that has been idle resumes slowly, because its CPU caches are
-- cold. So a producer (batcher.py) sends three transactions in one request when its
-- last enqueue has rung for a waiting consumer, which may be idle again:
--
--   pg_notify                      the consumer resumes and claims while the message is
--                                  being written
--   enqueue(ring_early => true)    if it rings, its commit does not wait for the flush:
--                                  a claim at this moment finds the message
--   wait_for_flush                 waits for the flush; then the producer returns the id
--
-- For the protocol of the bell (ring.sql), the first transaction is a needless ring,
-- and the second an ordinary enqueue. When no consumer waits, the second transaction
-- waits for its flush, and the third does nothing.
--
-- docs/explanation/notifications.md says what a crash before the flush leaves behind,
-- and why no id is used twice. A commit may skip the wait only when a WAL record of the
-- sequence that is already flushed covers the message's id. That holds when:
--
--   1. Nothing was written to the WAL while the id was drawn. So an older record
--      covers the id.
--   2. Before that the whole WAL was flushed, except fewer bytes than such a record
--      has. So the older record is flushed. (PostgreSQL flushes whole records or whole
--      pages. A part of a record at the end of a page does not count.)
--   3. After the INSERT the id is still the last one of the sequence. So no trigger has
--      drawn another id. (A deferred trigger that enqueues runs later. The messages
--      that it enqueues are the one exception.)
--
-- A message with a key waits for the flush, because the next enqueue with that key
-- returns its id. Where commits wait for standbys, every message waits, because the
-- function does not know what the standbys have flushed. With notify = 'always' no
-- producer rings early, because three transactions for each message would cost
-- throughput.

-- Makes the commit of this transaction wait until all earlier commits of the session
-- are flushed; does nothing if they are. The commit of each transaction that has
-- written something waits for its flush. The write of this function takes no space, and
-- does not appear in logical decoding. If the call fails, the message is enqueued and
-- may have been claimed, but may not be durable.
create or replace function tocsin.wait_for_flush() returns void
language plpgsql
as $$
begin
    if current_setting('bell.unflushed', true) = 'yes' then
        perform set_config('bell.unflushed', '', false), setval('tocsin.flush_marker', 1);
    end if;
end
$$;
