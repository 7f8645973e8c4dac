"""Services of two versions are restarted at random, across the upgrade, while messages
are produced and consumed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import tocsin
from tests.support import PATIENCE, query, until_query
from tests.support.newer import Folder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "children" / "rolling.py"

pytestmark = pytest.mark.fault


def build(folder: Path, target: Path) -> Path:
    """Put the package together as a wheel would, with this ``sql/``; return where."""
    shutil.copytree(ROOT / "src" / "tocsin", target / "tocsin")
    shutil.copytree(folder, target / "tocsin" / "sql")
    return target


class Service:
    """A process that produces or consumes, and is restarted."""

    def __init__(self, nursery: trio.Nursery, dsn: str, role: str) -> None:
        self.role = role
        self.lines: list[list[str]] = []
        self._nursery = nursery
        self._dsn = dsn
        self._process: trio.Process | None = None

    async def start(self, package: Path) -> None:
        """Start it with this package, and wait until it works."""
        command = [sys.executable, "-u", str(SCRIPT), self._dsn, self.role]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        self._process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, env=environment
        )
        works = trio.Event()
        self._nursery.start_soon(self._read, self._process, works)
        with trio.fail_after(PATIENCE):
            await works.wait()

    async def _read(self, process: trio.Process, works: trio.Event) -> None:
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.lines += [line.decode().split() for line in lines]
            works.set()

    async def stop(self, number: signal.Signals) -> None:
        """End it, and check that it has not ended by itself."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            with trio.fail_after(PATIENCE):
                assert await process.wait() == (0 if number == signal.SIGTERM else -number)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "rounds"), [(1, 7), (2, 30)])
async def test_nothing_is_lost_while_services_of_two_versions_are_restarted(
    dsn: str, tmp_path: Path, database_factory: Callable[[], str], seed: int, rounds: int
) -> None:
    folder = Folder.of_next_version(tmp_path / "sql")
    old = build(ROOT / "sql", tmp_path / "old")
    new = build(folder.path, tmp_path / "new")
    dice = random.Random(seed)
    kills = 0
    version = 0
    async with tocsin.connect(dsn) as store:
        await store.install()
        await store.queues.create("q", vt=10)
    async with trio.open_nursery() as nursery:
        services = [Service(nursery, dsn, role) for role in ("producer", "consumer") * 2]
        for service in services:
            await service.start(old)
        for number in range(rounds):
            chosen = dice.sample(services, dice.randint(1, 2))
            for service in chosen:
                how = dice.choice([signal.SIGTERM, signal.SIGKILL])
                kills += how == signal.SIGKILL and service.role == "consumer"
                await service.stop(how)
            async with trio.open_nursery() as starting:
                for service in chosen:
                    package = dice.choice([old, new]) if number > 1 else old
                    starting.start_soon(service.start, package)
            ((found,),) = await query(dsn, "select version from tocsin.contract")
            assert found >= version
            version = found
        if version < 2:
            await services[0].stop(signal.SIGTERM)
            await services[0].start(new)
        for service in services:
            if service.role == "producer":
                await service.stop(signal.SIGTERM)
        await until_query(dsn, "select count(*) from tocsin.messages", gives=[(0,)])
        for service in services:
            await service.stop(signal.SIGTERM)

    lines = [line for service in services for line in service.lines]
    archived = [payload for (payload,) in await query(dsn, "select payload from tocsin.archive")]
    assert {line[1] for line in lines if line[0] == "sent"} <= set(archived)
    assert len(set(archived)) == len(archived)
    assert await query(dsn, "select count(*) from tocsin.dead_letters") == [(0,)]
    handled = Counter(tuple(line[1:]) for line in lines if line[0] == "handled")
    assert set(handled.values()) == {1}  # each delivery
    messages = Counter(message_id for message_id, _ in handled)
    assert sum(messages.values()) - len(messages) <= 4 * kills  # what was held by one that died
    await folder.write_catalog(database_factory())
    with folder.in_use():
        async with tocsin.connect(dsn) as store:
            assert await store.verify() == ()
