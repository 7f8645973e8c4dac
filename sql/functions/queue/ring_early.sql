-- Waking who sleeps before the disk has the message.
--
-- A commit shows its rows to others, and sends its notifications, when the disk has
-- them. And who has slept for a while is slow to get up, for the processor's caches are
-- cold by then. Both cost about as much as all the rest of a wake-up. So a producer
-- that finds a queue at rest, on which somebody slept the last time, sends three
-- transactions in one request (outbox.py):
--
--   pg_notify                      rings before there is anything to find: who sleeps gets up and looks while the message is being written
--   enqueue(ring_early => true)    if it rings, its commit does not wait for the disk: who looks just now finds the message
--   wait_for_flush                     waits for the disk; then the producer is told the id
--
-- (When the sleepers have got up meanwhile, the first rings in vain, once, since the
-- second tells the producer.) To the bell's protocol (ring.sql) the first is a ring for
-- no reason, and the second is any producer: in its commit rows become visible, locks
-- are released and notifications sent in the same order, whether it waits for the disk
-- or not. When nobody sleeps it waits, and the third does nothing.
--
-- What becomes of it when the server crashes before the disk has the message:
-- - The producer has not been told that it is enqueued. One session answers the whole
--   request, so a crash is a lost connection, and the outcome unknown, as that of any
--   statement on such a connection. (Hence not through a pooler, which may answer by
--   several sessions.)
-- - The log is written in one order. So whatever a handler has done to this database
--   because of the message, its archiving as well, is on disk only if the message is:
--   after the crash both are there, or neither.
-- - What a handler has done elsewhere, for a message that is gone, stays done; so it
--   does for a message that is delivered again. Those who go by the message's id, or
--   its lease, are not misled, for neither comes again. A lease is a time
--   (0001_tables.sql). For the ids, see below.
--
-- No id comes again ================= A sequence notes in the log how far it may go,
-- some dozens of numbers ahead, and after a crash goes on from there. It writes a note
-- when it comes to the end of the last one, and with its first number after a
-- checkpoint has begun. If a commit that does not wait had taken that number, the note
-- and the number could be lost together, and the number be given out again. So only a
-- commit whose number is covered by a note that is on disk does not wait. That can be
-- seen without reading the note:
--
--   1. Nothing was written to the log while the number was drawn. Then it is covered by
--      a note that was there before.
--   2. Before that everything was on disk; or all but less than a note's length, 99
--      bytes, such as the commit that has rung first. Then the note is on disk. (The
--      disk has whole records, or whole pages; at the end of a page it might have half
--      a note, and so counts for nothing.)
--   3. After the INSERT the number is still the sequence's last one. Then triggers have
--      drawn none, and enqueued no more. (A deferred trigger that enqueues comes after
--      this: what it enqueues in such a transaction is the one exception.)
--
-- A message with a key waits for the disk, as ever: whoever enqueues the key next is
-- told its id. What standbys have is not known here, so where commits wait for some,
-- they do.
--
-- With notify = 'always' nothing of this happens: there is a ring for each message, not
-- only when somebody sleeps, and three transactions for each are a third as fast.

-- Its transaction commits when all that this session has committed before is on disk;
-- it does nothing if that is so already. Any commit waits for the disk that has written
-- something; what is written here takes no room, and does not appear in logical
-- decoding. If it fails, the message is enqueued, and others may have it already, but
-- it is not known whether it is on disk.
create or replace function tocsin.wait_for_flush() returns void
language plpgsql
as $$
begin
    if current_setting('bell.unflushed', true) = 'yes' then
        perform set_config('bell.unflushed', '', false), setval('tocsin.flush_marker', 1);
    end if;
end
$$;
