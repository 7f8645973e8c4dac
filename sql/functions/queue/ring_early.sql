-- Notify a waiting consumer before the message is durable.
--
-- A commit shows its rows to other sessions, and sends its notifications, when it is
-- flushed. A consumer that has been idle resumes slowly, because its CPU caches are
-- cold. So a producer that finds its queue at rest, with a consumer that waited the
-- last time, sends three transactions in one request (batcher.py):
--
--   pg_notify                      the consumer resumes and claims while the message is
--                                  being written
--   enqueue(ring_early => true)    if it rings, its commit does not wait for the flush:
--                                  a claim at this moment finds the message
--   wait_for_flush                 waits for the flush; then the producer returns the id
--
-- To the protocol of the bell (ring.sql) the first is a ring without a reason, and the
-- second is any producer. When no consumer waits, the second waits for its flush, and
-- the third does nothing.
--
-- docs/explanation/notifications.md says what a crash before the flush leaves behind,
-- and why no id is used twice. A commit may skip the wait only when its id is covered
-- by a record of the sequence that is flushed already. That holds when:
--
--   1. Nothing was written to the log while the id was drawn: an older record covers
--      it.
--   2. Before that all was flushed, or all but less than the length of such a record:
--      the older record is flushed. (Whole records are flushed, or whole pages. Half a
--      record at the end of a page counts for nothing.)
--   3. After the INSERT the id is still the sequence's last one: no trigger has drawn
--      another. (A deferred trigger that enqueues comes later. What it enqueues in such
--      a transaction is the one exception.)
--
-- A message with a key waits for the flush, because the next caller with that key is
-- told its id. Where commits wait for standbys, all do: what those have is not known
-- here. With notify = 'always' nothing of this happens, because three transactions for
-- each message would cost throughput.

-- Has this transaction commit when all that the session has committed before is
-- flushed; does nothing if it is. Any commit that has written something waits for its
-- flush. What this one writes takes no room, and does not appear in logical decoding.
-- If it fails, the message is enqueued and may have been claimed, but may not be
-- durable.
create or replace function tocsin.wait_for_flush() returns void
language plpgsql
as $$
begin
    if current_setting('bell.unflushed', true) = 'yes' then
        perform set_config('bell.unflushed', '', false), setval('tocsin.flush_marker', 1);
    end if;
end
$$;
