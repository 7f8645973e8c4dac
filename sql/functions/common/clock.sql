-- The one clock: every function of the schema takes the time from here. Tests replace
-- this function to move time.
create or replace function tocsin._clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;

-- Returns the moment that is this much later (or, negative, earlier). It is the only
-- way to add a caller's or a setting's interval to a time: the operator reads an
-- interval of days as calendar days in the session's time zone, which have 23 or 25
-- hours where the clocks change. Here a day has 24 hours, and a month 30 days. The
-- planner inlines it.
create or replace function tocsin._later(moment timestamptz, length interval) returns timestamptz
language sql stable parallel safe
as $$ select moment + make_interval(secs => extract(epoch from length)::float8) $$;
