"""Commands to a worker in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import tocsin
from tests.support import ENDS_WITHIN, PATIENCE, query, until
from tests.support.child import run_script
from tests.support.commands import line_with, started


async def test_commands_to_a_worker_in_another_process(store: tocsin.Store, store_dsn: str) -> None:
    """The benchmark ``commands`` measures that they take effect within 100 ms."""
    await store.queues.ensure("tasks")
    async with run_script("consume.py", store_dsn, "tasks", "remote", "go") as child:
        remote = await store.workers.get(int((await child.words("worker"))[0]))
        await store.produce("tasks", 1)
        await child.words("handling")
        await _settled(remote)
        await remote.suspend()
        assert await remote.status() == "suspended"
        second = await store.produce("tasks", 2)
        with pytest.raises(tocsin.StateTransitionError):
            await remote.suspend()
        await remote.resume()
        assert await child.words("handling") == [str(second)]
        await _settled(remote)
        await remote.suspend()
        await remote.shutdown()
        assert await child.words("suspended") == ["stopped", "by", "a", "command"]
        with trio.fail_after(PATIENCE):
            assert await child.process.wait() == 0
        assert await remote.status() == "stopped"
        with pytest.raises(tocsin.WorkerStopped):
            await remote.resume()


async def test_interrupt_with_grace_from_another_process(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks", vt=3600)
    async with run_script("consume.py", store_dsn, "tasks", "remote", "hold") as child:
        remote = await store.workers.get(int((await child.words("worker"))[0]))
        await store.produce("tasks", 1)
        await child.words("handling")
        await remote.interrupt(grace=0)
        assert await child.words("suspended") == ["interrupted"]
        with trio.fail_after(PATIENCE):
            await child.process.wait()
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]


@pytest.mark.slow
def test_from_the_command_line(store_dsn: str, tmp_path: Path) -> None:
    """Each command, and the worker, is a process of its own."""
    (tmp_path / "service.py").write_text(
        "import logging\nasync def send(message):\n    logging.info('sent %s', message.payload)\n"
    )

    def tocsin(*words: str) -> str:
        command = [sys.executable, "-m", "tocsin", *words, "--dsn", store_dsn]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=ENDS_WITHIN)
        assert (ended.returncode, ended.stderr) == (0, ""), words
        return ended.stdout

    def status() -> str:
        return str(json.loads(tocsin("worker", "get", "1", "--format", "json"))["status"])

    tocsin("queue", "create", "q")
    with started(store_dsn, "worker", "run", "q", "service:send", folder=tmp_path) as process:
        tocsin("enqueue", "q", "1")
        line_with(process, "sent 1")
        tocsin("worker", "suspend", "1", "--drain")
        assert status() == "suspended"
        tocsin("enqueue", "q", "2")
        (waiting,) = json.loads(tocsin("queue", "messages", "q", "--format", "json"))
        assert (waiting["payload"], waiting["state"]) == (2, "ready")
        tocsin("worker", "resume", "1")
        line_with(process, "sent 2")
        tocsin("worker", "suspend", "1", "--drain")
        tocsin("worker", "shutdown", "1")
        assert process.wait(ENDS_WITHIN) == 0
    assert status() == "stopped"


async def _settled(worker: tocsin.WorkerHandle) -> None:
    async def holds_nothing() -> bool:
        return not (await worker.info()).held

    await until(holds_nothing)
