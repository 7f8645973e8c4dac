-- The bell: what wakes a sleeping consumer. This file is the only place that decides whether to NOTIFY about messages.

-- A NOTIFY channel's name is cut at 63 bytes, so a longer one is replaced by a digest of it.
create or replace function tocsin.channel(path text) returns text
language sql immutable parallel safe
as $$
    select case when octet_length(c) <= 63 then c else 'tocsin_' || md5(c) end
    from (select 'tocsin' || path) as full_name (c)
$$;

-- The channel to LISTEN on for a queue: the schema's name, a dot, the queue's name.
create or replace function tocsin.queue_channel(queue text) returns text
language sql immutable parallel safe
as $$ select tocsin.channel('.' || queue) $$;

-- The channel on which a process is told to look at its workers.
create or replace function tocsin.process_channel(process_id bigint) returns text
language sql immutable parallel safe
as $$ select tocsin.channel('/process/' || process_id) $$;

-- Messages of this queue may have become due earlier than sleepers think. PostgreSQL sends equal notifications of one transaction once.
create or replace function tocsin.ring(queue_id integer) returns void
language sql
as $$ select pg_notify(q.channel, '') from tocsin.queues q where q.id = queue_id $$;

create or replace function tocsin.ring_inserted() returns trigger
language plpgsql
as $$
begin
    perform pg_notify(q.channel, '') from tocsin.queues q where q.id in (select n.queue_id from inserted n);
    return null;
end
$$;

create or replace trigger ring after insert on tocsin.messages
    referencing new table as inserted for each statement execute function tocsin.ring_inserted();
