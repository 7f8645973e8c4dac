"""``python -m tools.snapshot``: dump this version's schema into ``sql/snapshots/``.

The dump has messages in every state. It is taken from the oldest PostgreSQL that Tocsin
supports, because later versions can load it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import trio

import tocsin
from tocsin._database.schema import migrations

from .scratch import SQL, database

SNAPSHOTS: Final = SQL / "snapshots"
INSTALLATION: Final = Path("/usr/lib/postgresql/15")


def digest_migrations() -> str:
    """Return a digest of the migrations without comments."""
    text = "\n".join(m.text for m in migrations())
    text = re.sub(r"--.*|^comment on (?s:.*?)';$", "", text, flags=re.MULTILINE)
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def describe(path: Path) -> str:
    """Return the digest of the migrations from which a snapshot was made."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("-- migrations ").strip()


FAIL: Final = """
select tocsin.fail(array_agg(m.id), array_agg(m.lease), array_agg(text 'boom'),
                   array_agg(null::text))
from tocsin.messages m where m.state = 'leased' and m.payload in ('"fails"', '"dead"')
"""
LONG: Final = timedelta(days=350_000)


async def fill(store: tocsin.Store, consumer: tocsin.Consumer) -> None:
    """Put messages in every state into the queue ``work``."""
    await store.produce("work", "archived")
    await store.produce("work", "deleted")
    await store.produce("work", "leased", priority=-1)
    for message in await consumer.dequeue(3):
        if message.payload == "archived":
            await message.archive()
        elif message.payload == "deleted":
            await message.delete()
    await store.produce("work", "fails")
    await consumer.dequeue()
    await store.produce("work", "dead", max_deliveries=1)
    await consumer.dequeue()
    async with store.transaction() as connection:
        await connection.execute(FAIL)
    await store.produce_many("work", ["ready", {"number": 1}, [None, True], 2.5, ""])
    await store.produce("work", "important", priority=-5, headers={"trace": "x"}, key="one")
    await store.produce("work", "soon", delay=1)
    await store.produce("work", "expires", delay=1, expires_in=0.5)
    await store.produce("work", "in a thousand years", delay=LONG)
    await store.produce("paused", "waits")


async def populate(dsn: str, dump: Path, installation: Path) -> None:
    """Install Tocsin, fill the queue, and dump while a consumer holds messages."""
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("work", retention=LONG, vt=2)
        await store.queues.create("short", retention=timedelta(days=1))
        await store.queues.create("paused")
        await store.maintain()
        async with store.consumer("short", name="short") as consumer:
            await store.produce("short", "archived for a day")
            for message in await consumer.dequeue():
                await message.archive()
        async with store.producer("work", name="p"), store.consumer("work", name="c") as consumer:
            await fill(store, consumer)
            await store.queues.pause("paused")
            options = ["--inserts", "--no-owner", "--schema=tocsin"]
            command = [str(installation / "bin" / "pg_dump"), *options, dsn]
            ended = await trio.run_process(command, capture_stdout=True)
    # Leave out psql commands and comments, which contain the versions of server and
    # pg_dump.
    lines = [
        line for line in ended.stdout.decode().splitlines() if not line.startswith(("\\", "--"))
    ]
    text = "\n".join([f"-- migrations {digest_migrations()}", *lines, ""])
    await trio.Path(dump).write_text(text, encoding="utf-8")


def is_released() -> bool:
    """Return whether this version has a tag."""
    command = ["git", "-C", str(SQL), "tag", "--list", f"v{tocsin.__version__}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return bool(listed.stdout.strip())


async def write(installation: Path) -> None:
    """Write the file of this version, unless it is released."""
    if is_released():
        sys.exit(f"version {tocsin.__version__} is released: its snapshot is not changed")
    path = SNAPSHOTS / f"{tocsin.__version__}.sql"
    async with database("UTF8", installation) as dsn:
        await populate(dsn, path, installation)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--installation", type=Path, default=INSTALLATION)
    trio.run(partial(write, parser.parse_args().installation))
