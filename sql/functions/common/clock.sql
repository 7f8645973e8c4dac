-- Returns the current time. Every function of the schema takes the time from here.
-- Tests replace this function to control the time.
create or replace function tocsin._clock() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() $$;

-- Returns the moment plus the interval, which may be negative. It is the only way to
-- add an interval of a caller or of a setting to a time. The operator `+` counts days
-- as calendar days in the session's time zone, which have 23 or 25 hours when the
-- clocks change. Here a day has 24 hours, and a month 30 days. The planner inlines this
-- function.
create or replace function tocsin._later(moment timestamptz, length interval) returns timestamptz
language sql stable parallel safe
as $$ select moment + make_interval(secs => extract(epoch from length)::float8) $$;
