#!/bin/sh
# Enqueue from psql, or from anything that speaks SQL.
#
#     sh examples/sign_up_psql.sh [DSN]
#
# Start welcome.py first: it makes the table and the queue.

sign_up() {
    "${PSQL:-psql}" "$dsn" --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set name="$1" >/dev/null <<'SQL'
begin;
select tocsin.enqueue('welcome', jsonb_build_object('name', :'name'));
insert into example_users (name) values (:'name');
commit;
SQL
}

dsn="${1:-postgresql:///}"
for name in Ada Ada; do
    if sign_up "$name" 2>/dev/null; then
        echo "signed up: $name"
    else
        echo "taken, rolled back: $name"
    fi
done
