"""``tocsin demo``: real work on a real queue, its figures, and a check of its outcome.

Each file below a directory becomes a message; two consumers compute the files' SHA-256
and put it into a table. A third of the way, one consumer is interrupted, and the other
does the rest.

What the figures mean:

* *Wake-up* is the time from just before the enqueue statement, in another process, to
  the handler's first line here. The messages come one by one, the queue is idle before
  each, and both processes read the same clock (`time.monotonic_ns`, which is one for
  the entire system).
* *Seconds* are those of the work alone, from the first claim until the last message is
  settled, not of starting a server or enqueueing.
* *Lost* and *duplicates* come from the database: the table of enqueued files, written
  in the transaction that enqueued their messages, is held against the queue's archive
  and the table of digests. No count made by the handlers has a part in it.

By file: ``act`` is the course of it, ``files`` finds the files, ``wakeup`` measures,
``work`` is what the consumers do, ``tables`` has the demo's SQL, ``view`` shows it all.
"""
