-- The one clock. Tests replace this function to move time; nothing else in the schema
-- asks what time it is.
create or replace function tocsin._clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;

-- The moment that is so many seconds later (or, negative, earlier). The only way to add
-- a caller's or a setting's interval to a time: the operator takes an interval of days
-- for calendar days in the session's time zone, which are 23 or 25 hours long where the
-- clocks change. Here a day has 24 hours, and a month 30 days. A query that uses it has
-- its text inlined.
create or replace function tocsin._later(moment timestamptz, length interval) returns timestamptz
language sql stable parallel safe
as $$ select moment + make_interval(secs => extract(epoch from length)::float8) $$;
