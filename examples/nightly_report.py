"""Make a report each night, exactly once, also when the service restarts.

    uv run examples/nightly_report.py [DSN] [--now]

Each process sets the same schedule at its start, which changes nothing after the first
time. Start several: each night, one of them makes the report. If none runs at that
time, the next one that starts makes it. With --now, the program makes a report at once,
and ends.
"""

import argparse
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import trio

import tocsin

NAME, QUEUE, ZONE = "nightly report", "reports", "Europe/Vienna"
CREATE = """
create table if not exists sales (day date not null, amount integer not null);
create table if not exists reports (day date primary key, total bigint not null);
"""
REPORT = """
insert into reports select %(day)s, coalesce(sum(amount), 0) from sales where day = %(day)s
on conflict (day) do update set total = excluded.total returning total
"""


@tocsin.task(queue=QUEUE, max_attempts=5, retry=tocsin.exponential(60, cap=3600), timeout=600)
async def report() -> int:
    """Add up the sales of the day before; the report and the end of the job are one."""
    job = tocsin.current_job()
    tick = job.tick or datetime.now(UTC)  # a job that begins late reports on the same day
    day = tick.astimezone(ZoneInfo(ZONE)).date() - timedelta(days=1)
    async with job.transaction() as connection:
        [(total,)] = await (await connection.execute(REPORT, {"day": day})).fetchall()
        await job.done(total)
    print(f"sales of {day}: {total}", flush=True)
    return int(total)


async def main(dsn: str, *, now: bool) -> None:
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.ensure(QUEUE)
        async with store.transaction() as connection:
            await connection.execute(CREATE)
        await store.schedules.set(NAME, report.call(), cron="0 3 * * *", zone=ZONE, overlap="skip")
        [tick] = await store.schedules.next_ticks(NAME, 1)
        if now:
            await store.schedules.run_now(NAME)
        async with store.worker([report]) as worker, tocsin.drain_on_signals():
            print(f"next report at {tick:%H:%M} in {ZONE}; stop with Ctrl-C", flush=True)
            try:
                await worker.run(once=now)
            except tocsin.Suspended:
                print("stopped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dsn", nargs="?", default="postgresql:///")
    parser.add_argument("--now", action="store_true")
    options = parser.parse_args()
    trio.run(lambda: main(options.dsn, now=options.now))
