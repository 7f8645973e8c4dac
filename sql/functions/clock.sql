-- The one clock. Tests replace this function to move time; nothing else in the schema asks what time it is.
create or replace function tocsin.clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;
