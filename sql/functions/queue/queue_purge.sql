-- Purge a queue: delete its waiting messages, its archived messages or its dead
-- letters. The queue, its workers and the messages that they hold stay.

-- Deletes messages of the given kinds, or only counts them (dry_run). `ready` are
-- messages that can be claimed now, `delayed` messages that are due later, `held`
-- messages that wait for other messages, `archived` archived messages, and `dead` dead
-- letters. With `older_than`, only messages that
-- were enqueued, were archived or became dead letters longer ago than this are deleted.
-- A message that a claim has locked is skipped, as if it had been claimed already. A
-- message whose lease has expired belongs to its worker until a claim makes it ready. A
-- locked dead letter is skipped (see dead_letters.sql).
create or replace function tocsin.purge_queue(
    queue text, ready boolean default false, delayed boolean default false,
    held boolean default false, archived boolean default false, dead boolean default false,
    older_than interval default null, dry_run boolean default false
) returns table (ready_count bigint, delayed_count bigint, held_count bigint, archived_count bigint,
           dead_count bigint)
language plpgsql
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
    q tocsin.queues := tocsin.find_queue(queue);
    t timestamptz := tocsin._clock();
    before timestamptz := coalesce(tocsin._later(t, -older_than), 'infinity');
    -- whether a deleted message kept its place, and so held up the queue: see order.sql
    held_up boolean;
    parents jsonb;  -- jobs of flows
begin
    if (ready or delayed or held or archived or dead) is not true then
        perform tocsin._raise_error('TC022', 'say what to purge: ready, delayed, held, archived or dead',
                                    '{"argument": "ready"}');
    elsif older_than < '0 s' then
        perform tocsin._raise_error('TC022', 'older_than must not be negative',
                                    '{"argument": "older_than"}');
    end if;
    -- Each ready message is due. A message that is due and still delayed counts as
    -- ready.
    if dry_run then
        select count(*) filter (where not w.held and w.vt <= t),
               count(*) filter (where not w.held and w.vt > t), count(*) filter (where w.held)
        into ready_count, delayed_count, held_count
        from (select m.vt, false as held from tocsin.messages m
              where m.queue_id = q.id and m.state = 'ready' and purge_queue.ready
                  and m.enqueued_at < before
              union all
              select m.vt, false from tocsin.messages m
              where m.queue_id = q.id and m.state = 'delayed' and case when m.vt > t then delayed
                  else purge_queue.ready end
                and m.enqueued_at < before
              union all
              select m.vt, true from tocsin.messages m
              where m.queue_id = q.id and m.state = 'held' and purge_queue.held
                  and m.enqueued_at < before) w;
    else
        with waiting as (
            select r.id from (select m.id from tocsin.messages m
                              where m.queue_id = q.id and m.state = 'ready' and purge_queue.ready
                                  and m.enqueued_at < before
                              for update skip locked) r
            union all
            select s.id from (select m.id from tocsin.messages m
                              where m.queue_id = q.id and m.state = 'delayed'
                                and case when m.vt > t then delayed
                                    else purge_queue.ready end and m.enqueued_at < before
                              for update skip locked) s
            union all
            select h.id from (select m.id from tocsin.messages m
                              where m.queue_id = q.id and m.state = 'held' and purge_queue.held
                                  and m.enqueued_at < before
                              for update skip locked) h
        ), gone as (
            delete from tocsin.messages m using waiting w where m.id = w.id
            returning m.id, m.flow_id, m.due, m.vt, m.state = 'held' as held
        )
        select count(*) filter (where not g.held and g.vt <= t),
               count(*) filter (where not g.held and g.vt > t), count(*) filter (where g.held),
               bool_or(g.due < g.vt),
               jsonb_object_agg(g.id, null) filter (where g.flow_id is not null)
        into ready_count, delayed_count, held_count, held_up, parents
        from gone g;
        if parents is not null then
            perform tocsin._end_parents(parents, succeeded => false, gone => true);
        end if;
        if held_up then
            perform tocsin._ring(q.id);
        end if;
    end if;
    dead_count := case when dead
        then tocsin.purge_dead_letters(queue => queue, older_than => older_than, dry_run => dry_run)
            else 0 end;
    archived_count := case when archived then tocsin.purge_archive(q.id, older_than, dry_run)
        else 0 end;
    return next;
end
$$;
