"""A soak test under chaos: ``uv run python -m bench.soak [--minutes M] [--seed S]``.

Consumers and producers of every kind work on one queue, each in a separate process,
while a seeded schedule of faults runs. Processes are killed, stopped for longer than a
lease lasts, or told to drain. Sessions are terminated. The server is restarted, cleanly
or not. Workers are suspended, resumed and interrupted. Then the faults end, all
consumers drain, and the test compares the database with the answers that the producers
received.

An enqueue whose answer was lost may or may not have happened. Each message has an id
that its producer chose, so the test can tell. The seed determines the schedule but not
the interleavings, so a second run with the same seed may differ.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import attrs
import psycopg
import trio

import tocsin
from tocsin.driver import TrioConnection
from tocsin.embedded import EmbeddedServer, serve

CHILDREN = Path(__file__).parents[1] / "tests" / "support" / "children"
KINDS = ("async", "async", "thread", "batches", "stream", "hand")
PRODUCERS = 3
COMMANDS = (
    "suspend(%s)",
    "suspend(%s, release => true)",
    "suspend(%s, drain => true)",
    "resume(%s)",
    "interrupt(%s, '0.3 s')",
)
DRAIN_WITHIN = 90.0
"""Maximum number of seconds until the system is at rest after the faults."""
EXIT_WITHIN = 30.0
"""Maximum number of seconds until a process ends after SIGTERM."""
RESTART_EVERY = 20.0
"""Seconds between two restarts of the server."""

TABLES = """
create schema soak;
create table soak.effects (n bigserial primary key, message_id bigint not null,
    lease bigint not null, pid integer not null);
"""

ENDS = (
    "(select id, payload, 'archive' as place from tocsin.archive union all select id, payload,"
    " 'dead' from tocsin.dead_letters)"
)

AT_REST = {
    "messages that are not finished": "select count(*) from tocsin.messages",
    "worker rows left active": "select count(*) from tocsin.workers where status <> 'stopped'",
    "process rows left": "select count(*) from tocsin.processes",
    "sessions left": "select count(*) from pg_stat_activity where application_name = 'tocsin'",
    "ids that ended twice": f"select count(*) - count(distinct id) from {ENDS} e",
    "client ids that ended twice": (
        f"select count(*) - count(distinct payload->>'cid') from {ENDS} e"
    ),
    "always failing messages that were archived": (
        "select count(*) from tocsin.archive where payload->>'mode' = 'fails'"
    ),
    "quick messages among the dead letters": (
        "select count(*) from tocsin.dead_letters where payload->>'mode' = 'quick'"
    ),
    "effects of an older lease after those of a newer one": (
        "select count(*) from (select lease, max(lease) over (partition by message_id order by n)"
        " as newest from soak.effects) e where lease < newest"
    ),
    "leases that two processes had": (
        "select count(*) from (select from soak.effects group by message_id, lease having"
        " count(distinct pid) > 1) e"
    ),
    "archived messages without an effect": (
        "select count(*) from tocsin.archive a where not exists (select from soak.effects e where"
        " e.message_id = a.id)"
    ),
}


@attrs.frozen
class Report:
    """The result of a soak test."""

    struck: Counter[str]
    """How often each fault occurred."""
    counts: dict[str, int]
    """Numbers of messages and events, by name."""
    violations: list[str]
    """Violated invariants."""


@attrs.define(eq=False)
class Child:
    """A process of the soak test, and its output."""

    arguments: list[str]
    process: trio.Process
    errors: Path
    to_be_replaced: bool = True
    expected_to_end: bool = False
    stopped: bool = False


class Soak:
    """One soak test on one server."""

    def __init__(self, server: EmbeddedServer, directory: Path, seed: int) -> None:
        self._server = server
        self._directory = directory
        self._dice = random.Random(seed)
        self._nursery: trio.Nursery
        self._children: list[Child] = []
        self._number = 0
        self._sent = set[str]()
        self._keyed = set[str]()
        self._committed = dict[str, int]()
        self._rolled_back = set[str]()
        self._said = Counter[str]()
        self.struck = Counter[str]()
        self.violations = list[str]()

    async def run(self, seconds: float) -> Report:
        async with tocsin.connect(self._server.dsn) as store:
            await store.install()
            await store.queues.ensure(
                "soak", vt=1, max_deliveries=1000, retry_base=0.02, retry_max=0.2
            )
        await self._execute(TABLES)
        # A message that always fails would be delivered a thousand times, so such
        # messages have a lower limit.
        await self._execute(
            "create function soak.limit_failing() returns trigger language plpgsql as $$ begin if"
            " new.payload->>'mode' = 'fails' then new.max_deliveries := 3; end if; return new; end"
            " $$; create trigger limit_failing before insert on tocsin.messages for each row"
            " execute function soak.limit_failing()"
        )
        async with trio.open_nursery() as self._nursery:
            for number, kind in enumerate(KINDS):
                await self._spawn(
                    ["soak_consumer.py", f"fixed-{number}" if number % 2 else "-", kind]
                )
            for number in range(PRODUCERS):
                await self._spawn(["soak_producer.py", f"p{number}"])
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as chaos:
                    chaos.start_soon(self._restart_server)
                    chaos.start_soon(self._strike)
            await self._server.start()
            await self._come_to_rest()
        return await self._judge()

    # Processes

    async def _spawn(self, arguments: list[str]) -> None:
        self._number += 1
        errors = self._directory / f"{self._number:03}-{arguments[0]}-{'-'.join(arguments[1:])}.err"
        script, *rest = arguments
        with errors.open("wb") as file:
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    str(CHILDREN / script),
                    self._server.dsn,
                    *rest,
                    str(self._dice.randrange(10**9)),
                ],
                stdout=subprocess.PIPE,
                stderr=file.fileno(),
            )
        child = Child(arguments, process, errors)
        self._children.append(child)
        self._nursery.start_soon(self._attend, child)

    async def _attend(self, child: Child) -> None:
        """Read a process's output, check how it ended, and start a new process."""
        assert child.process.stdout is not None
        rest = b""
        async for chunk in child.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._on_notification(child, line.decode())
        code = await child.process.wait()
        self._children.remove(child)
        if code != 0 and not child.expected_to_end:
            last = child.errors.read_text().splitlines()[-1:]
            self.violations.append(f"{child.errors.name} ended with {code}: {''.join(last)[:200]}")
        if child.to_be_replaced:
            await self._spawn(child.arguments)

    def _on_notification(self, child: Child, line: str) -> None:
        kind, *words = line.split()
        match kind:
            case "sent":
                self._sent.update(words)
            case "keyed":
                self._keyed.update(words)
            case "committed":
                self._committed.update(
                    (cid, int(number)) for cid, number in (word.split(":") for word in words)
                )
            case "rolledback":
                self._rolled_back.update(words)
            case "suspended":
                self._said["handled"] += int(words[1])
            case "ended" | "silent":
                self.violations.append(f"{child.errors.name}: {line}")

    def _pick(self, script: str) -> Child | None:
        candidates = [
            c
            for c in self._children
            if c.arguments[0] == script and not c.stopped and not c.expected_to_end
        ]
        return self._dice.choice(candidates) if candidates else None

    # Faults

    async def _restart_server(self) -> None:
        while True:
            await trio.sleep(self._dice.uniform(0.5, 1.5) * RESTART_EVERY)
            modes: list[Literal["fast", "immediate"]] = ["fast", "immediate"]
            mode = self._dice.choice(modes)
            self.struck[f"server restarted, {mode}"] += 1
            await self._server.restart(mode)

    async def _strike(self) -> None:
        blows = [
            self._kill,
            self._drain,
            self._stop,
            self._terminate,
            self._terminate,
            self._command,
            self._command,
        ]
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._dice.expovariate(2))
                nursery.start_soon(self._dice.choice(blows))

    async def _kill(self) -> None:
        if child := self._pick(
            self._dice.choice(["soak_consumer.py", "soak_consumer.py", "soak_producer.py"])
        ):
            self.struck["SIGKILL"] += 1
            child.expected_to_end = True
            child.process.kill()

    async def _drain(self) -> None:
        if child := self._pick("soak_consumer.py"):
            self.struck["SIGTERM or SIGINT"] += 1
            await self._end(child, self._dice.choice([signal.SIGTERM, signal.SIGINT]))

    async def _end(self, child: Child, number: signal.Signals) -> None:
        child.expected_to_end = True
        with suppress(ProcessLookupError):
            child.process.send_signal(number)
        with trio.move_on_after(EXIT_WITHIN) as patience:
            await child.process.wait()
        if patience.cancelled_caught:
            self.violations.append(
                f"{child.errors.name} did not end within {EXIT_WITHIN:.0f} s of {number.name}"
            )
            child.process.kill()

    async def _stop(self) -> None:
        if child := self._pick("soak_consumer.py"):
            self.struck["SIGSTOP for longer than a lease"] += 1
            child.stopped = True
            try:
                child.process.send_signal(signal.SIGSTOP)
                await trio.sleep(self._dice.uniform(1.2, 6))
            finally:
                child.process.send_signal(signal.SIGCONT)
                child.stopped = False

    async def _terminate(self) -> None:
        self.struck["session terminated"] += 1
        await self._try(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name ="
            " 'tocsin' order by random() limit 1"
        )

    async def _command(self) -> None:
        name = self._dice.choice(COMMANDS)
        rows = await self._try(
            "select id from tocsin.workers where status <> 'stopped' and kind = 'consumer' order"
            " by id"
        )
        if not rows:
            return
        (worker_id,) = self._dice.choice(rows)
        self.struck[f"command {name.partition('(')[0]}"] += 1
        await self._try(f"select tocsin.{name}", worker_id)
        if name.startswith("suspend"):
            await trio.sleep(self._dice.uniform(0, 3))
            await self._try("select tocsin.resume(%s)", worker_id)

    # The database

    async def _execute(self, statement: str, *parameters: object) -> list[Any]:
        connection: TrioConnection[Any] = await TrioConnection.connect(
            self._server.dsn, autocommit=True, application_name="soak"
        )
        try:
            cursor = await connection.execute(statement.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []
        finally:
            await connection.close()

    async def _try(self, statement: str, *parameters: object) -> list[Any]:
        """Run a statement that may be refused, or that may find no server."""
        try:
            return await self._execute(statement, *parameters)
        except psycopg.Error:
            return []

    async def _count(self, statement: str) -> int:
        ((count,),) = await self._execute(statement)
        return int(count)

    # The end

    async def _come_to_rest(self) -> None:
        async with trio.open_nursery() as nursery:
            for child in [c for c in self._children if c.arguments[0] == "soak_producer.py"]:
                child.to_be_replaced = False
                nursery.start_soon(self._end, child, signal.SIGTERM)
        # Consumers that the last faults have ended are still replaced, because a
        # process has to drain the queue and reap dead processes.
        busy = "select count(*) from tocsin.messages"
        ghosts = "select count(*) from tocsin.processes where not pid = any (%s)"
        with trio.move_on_after(DRAIN_WITHIN) as patience:
            while (
                await self._count(busy)
                or (await self._execute(ghosts, [c.process.pid for c in self._children]))[0][0]
            ):
                for (worker_id,) in await self._try(
                    "select id from tocsin.workers where status = 'suspended'"
                ):
                    await self._try("select tocsin.resume(%s)", worker_id)
                await trio.sleep(0.2)
        if patience.cancelled_caught:
            stuck = await self._execute(
                "select id, state::text, lease, consumer_worker_id, vt - now() from tocsin.messages"
                " order by id limit 5"
            )
            left = await self._execute(
                "select p.id, p.pid, p.lifeline, now() - p.heartbeat_at from tocsin.processes p"
            )
            self.violations.append(
                f"not at rest {DRAIN_WITHIN:.0f} s after the chaos: messages {stuck}, processes"
                f" {left}"
            )
        async with trio.open_nursery() as nursery:
            for child in list(self._children):
                child.to_be_replaced = False
                nursery.start_soon(self._end, child, signal.SIGTERM)

    async def _judge(self) -> Report:
        with trio.move_on_after(5):
            # The server sends no event when a session ends.
            while await self._count(AT_REST["sessions left"]):  # noqa: ASYNC110
                await trio.sleep(0.1)
        for what, statement in AT_REST.items():
            if number := await self._count(statement):
                self.violations.append(f"{number} {what}")
        ended = {
            number: (payload["cid"], place)
            for number, payload, place in await self._execute(f"select * from {ENDS} e")
        }
        cids = {cid for cid, _ in ended.values()}
        lost = {cid: number for cid, number in self._committed.items() if number not in ended}
        wrong = [
            cid
            for cid, number in self._committed.items()
            if number in ended and ended[number][0] != cid and cid not in self._keyed
        ]
        unexpected = self._rolled_back & cids
        unknown = self._sent - self._committed.keys() - self._rolled_back
        for number, what in (
            (len(lost), f"messages lost: {sorted(lost.items())[:5]}"),
            (len(wrong), f"ids that are another message's: {wrong[:5]}"),
            (
                len(unexpected),
                f"messages that were rolled back and are there: {sorted(unexpected)[:5]}",
            ),
            (len(cids - self._sent), "messages that no producer sent"),
        ):
            if number:
                self.violations.append(f"{number} {what}")
        counts = {
            "enqueued for sure": len(self._committed),
            "rolled back": len(self._rolled_back),
            "answers lost": len(unknown),
            "of these enqueued": len(unknown & cids),
            "archived": await self._count("select count(*) from tocsin.archive"),
            "dead letters": await self._count("select count(*) from tocsin.dead_letters"),
            "redelivered": await self._count(
                "select coalesce(sum(read_ct - 1), 0) from tocsin.archive"
            ),
            "processes begun": self._number,
        }
        return Report(self.struck, counts, self.violations)


async def soak(directory: Path, seconds: float, seed: int, installation: Path | None) -> Report:
    """Run one soak test on a new server.

    Cancellation:
        All processes and the server have ended.
    """
    settings = {"fsync": "off", "max_connections": "200"}
    async with serve(directory / "server", settings=settings, installation=installation) as server:
        return await Soak(server, directory, seed).run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--installation",
        type=Path,
        help="directory of the PostgreSQL to run on; default: the embedded one",
    )
    options = parser.parse_args()
    # SIGINT cancels the run, so that the server and all processes end.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = Path(tempfile.mkdtemp(prefix="tocsin-soak-"))
    directory.chmod(0o711)
    sys.stdout.write(f"seed {options.seed}, {options.minutes} min, logs in {directory}\n")
    report = trio.run(soak, directory, options.minutes * 60, options.seed, options.installation)
    for title, numbers in (("struck", report.struck), ("counted", report.counts)):
        sys.stdout.write(
            f"{title}:\n"
            + "".join(f"  {number:>8} {what}\n" for what, number in sorted(numbers.items()))
        )
    sys.stdout.write(
        "".join(f"VIOLATION: {violation}\n" for violation in report.violations) or "no violations\n"
    )
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
