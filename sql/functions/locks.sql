-- Advisory locks of Tocsin's own, by kind and number. The schema's name is part of the key, so two installations in one database do not meet.
--
--   install   0            one installation at a time
--   worker    worker id    shared: a claim; exclusive: a change of the worker's state. So a suspension never overlooks a claim under way.
--   lifeline  a number     held by a process's LISTEN connection for as long as that connection lives
create or replace function tocsin.lock_key(kind text, number bigint) returns bigint
language sql immutable parallel safe
as $$ select pg_catalog.hashtextextended('tocsin' || ':' || kind || ':' || number, 0) $$;
