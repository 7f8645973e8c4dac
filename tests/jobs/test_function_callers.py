"""How functions are called: a limit for threads, and processes that end in time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import tocsin
from tests.support import ENDS_WITHIN, PATIENCE, until, until_idle
from tests.support.jobs import working
from tests.support.sweeps import sweep
from tocsin._jobs import worker

ERRORS: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt("pressed"),
    "CancelledError": asyncio.CancelledError("loop"),
    "GeneratorExit": GeneratorExit("gone"),
    "OSError": OSError("lost"),
}


left_behind = threading.Event()
"""Not set: what waits for it ends with its own time."""


@tocsin.task(runs="process", max_attempts=1)
def compute(number: int) -> list[int]:
    return [2 * number, os.getpid(), tocsin.current_job().attempt]


@tocsin.task(runs="process", max_attempts=1)
def announce_and_loop(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        pass


@tocsin.task(runs="process", max_attempts=1)
def raise_in_process(name: str) -> None:
    raise ERRORS[name]


@tocsin.task(runs="thread", max_attempts=1)
def raise_in_thread(name: str) -> None:
    raise ERRORS[name]


@tocsin.task(max_attempts=1)
async def raise_in_task(name: str) -> None:
    await trio.lowlevel.checkpoint()
    raise ERRORS[name]


@tocsin.task(max_attempts=1)
async def sleep_in_task(seconds: float) -> None:
    await trio.sleep(seconds)


@tocsin.task(runs="thread", max_attempts=1)
def sleep_in_thread(seconds: float) -> None:
    left_behind.wait(seconds)


@tocsin.task(runs="process", max_attempts=1)
def sleep_in_process(seconds: float) -> None:
    left_behind.wait(seconds)


@tocsin.task(runs="process", retry=tocsin.fixed(0, on=OSError), max_attempts=2)
def die_or_decide(what: str) -> str:
    job = tocsin.current_job()
    if what == "retry" and job.attempt == 1:
        raise tocsin.Retry(0)
    if what == "reject":
        raise tocsin.Reject("not like this")
    if what == "unlisted":
        raise KeyError("k")
    if what == "dies" and job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"attempt {job.attempt}"


@tocsin.task(runs="process", max_attempts=1)
def misuse() -> str:
    try:
        tocsin.current_job().transaction()
        tocsin.current_job()._completion._begin()
    except RuntimeError as refused:
        return str(refused)
    return ""


async def finished(job: tocsin.Job[Any]) -> tocsin.JobInfo:
    with suppress(tocsin.JobError):
        await job.result(timeout=PATIENCE)
    return await job.info()


# Processes


async def test_a_function_runs_in_another_process(store: tocsin.Store) -> None:
    async with working(store, compute, misuse):
        number, pid, attempt = await (await compute.submit(store, 21)).result(timeout=PATIENCE)
        assert (number, attempt) == (42, 1)
        assert pid != os.getpid()
        refused = await (await misuse.submit(store)).result(timeout=PATIENCE)
    assert "cannot settle or finish its job" in refused


@pytest.mark.slow
async def test_a_function_that_takes_too_long_is_killed_with_its_process(
    store: tocsin.Store, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    async with working(store, announce_and_loop, compute, processes=1):
        await (await compute.submit(store, 1)).result(timeout=PATIENCE)  # a process is warm
        job = await announce_and_loop.using(timeout=1).submit(store, str(path))
        with pytest.raises(tocsin.JobTimedOut):
            await job.result(timeout=PATIENCE)
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
        assert (await (await compute.submit(store, 2)).result(timeout=PATIENCE))[0] == 4


@pytest.mark.slow
async def test_a_worker_that_is_cancelled_kills_its_processes(
    store: tocsin.Store, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    await store.queues.ensure("default")
    job = await announce_and_loop.submit(store, str(path))
    async with store.worker([announce_and_loop]) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await until(lambda: path.exists() and path.read_text())
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
    assert (await job.info()).attempts == 0


@sweep(
    ("what", "state", "attempts", "error"),
    [
        ("retry", "succeeded", 2, None),
        ("reject", "failed", 1, "not like this"),
        ("unlisted", "failed", 1, "KeyError: 'k'"),
    ],
    quick=1,
)
async def test_verdicts_and_policies_hold_in_a_process(
    store: tocsin.Store, what: str, state: str, attempts: int, error: str | None
) -> None:
    async with working(store, die_or_decide):
        info = await finished(await die_or_decide.submit(store, what))
    assert (info.state, info.attempts) == (state, attempts)
    if error is not None:
        assert info.error == error


@pytest.mark.slow
async def test_a_process_that_dies_fails_one_attempt(store: tocsin.Store) -> None:
    task: Any = tocsin.task(name=die_or_decide.name, runs="process")(die_or_decide.function)
    async with working(store, task):
        info = await finished(await task.submit(store, "dies"))
        assert "BrokenWorker" in (info.error or "")
        assert (info.state, info.attempts) == ("succeeded", 2)


@pytest.mark.slow
def test_a_program_needs_no_more_than_a_guard(store_dsn: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, str(program), store_dsn],
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "program.square 49\n"), ended.stderr


PROGRAM = """
import sys, trio, tocsin

@tocsin.task(runs="process")
def square(number: int) -> int:
    return number * number

async def main():
    async with tocsin.connect(sys.argv[1]) as store:
        await store.queues.ensure("default")
        job = await square.submit(store, 7)
        async with store.worker([square]) as worker:
            await worker.process_one()
        print(square.name, await job.result(timeout=10))

if __name__ == "__main__":
    trio.run(main)
"""


async def test_a_program_can_bring_its_own_executor(store: tocsin.Store) -> None:
    calls: list[str] = []

    class Here:
        async def run_sync(self, function: Any, *args: Any) -> Any:
            calls.append(args[1])
            await trio.lowlevel.checkpoint()
            return function(*args)

    async with working(store, compute, executor=Here()):
        number, pid, _ = await (await compute.submit(store, 4)).result(timeout=PATIENCE)
    assert (number, pid, calls) == (8, os.getpid(), [compute.name])


# Whatever is raised


@pytest.mark.parametrize("name", [n for n in ERRORS if n != "OSError"])
@pytest.mark.parametrize("task", [raise_in_task, raise_in_thread], ids=["task", "thread"])
async def test_whatever_a_function_raises_fails_its_attempt_alone(
    store: tocsin.Store, task: tocsin.Task[[str], None], name: str
) -> None:
    async with working(store, task):
        info = await finished(await task.submit(store, name))
        assert (info.state, info.reason) == ("failed", "handler_failed")
        assert (info.error or "").startswith(name)
        again = await finished(await task.submit(store, "OSError"))
        assert again.error == "OSError: lost"


@pytest.mark.slow
async def test_whatever_a_function_raises_in_a_process_fails_its_attempt_alone(
    store: tocsin.Store,
) -> None:
    async with working(store, raise_in_process, concurrency=2):
        jobs = {name: await raise_in_process.submit(store, name) for name in ERRORS}
        for name, job in jobs.items():
            with pytest.raises(tocsin.JobFailed) as failed:
                await job.result(timeout=PATIENCE)
            assert failed.value.error.startswith(name)
            assert "in raise_in_process" in failed.value.traceback


# Threads


async def test_threads_have_a_limit_of_their_own(store: tocsin.Store) -> None:
    inside = most = 0
    lock, go_on = threading.Lock(), threading.Event()

    @tocsin.task(name="stays")
    def stay() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        go_on.wait(PATIENCE)
        with lock:
            inside -= 1

    try:
        async with working(store, stay, concurrency=8, threads=2):
            jobs = [await stay.submit(store) for _ in range(16)]
            await until(lambda: inside == 2)
            await until_idle(store)
            go_on.set()
            for job in jobs:
                await job.result(timeout=PATIENCE)
    finally:
        go_on.set()
    assert most == 2


@pytest.mark.parametrize(("concurrency", "most"), [(2, 2), (4, 3)])
async def test_by_default_there_are_as_many_threads_as_jobs_up_to_a_maximum(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch, concurrency: int, most: int
) -> None:
    assert worker.MOST_THREADS == 40
    monkeypatch.setattr(worker, "MOST_THREADS", 3)
    together = threading.Barrier(most)
    inside = 0

    @tocsin.task(name="meets")
    def meet() -> int:
        nonlocal inside
        inside += 1
        together.wait(PATIENCE)
        return inside

    async with working(store, meet, concurrency=concurrency):
        for _ in range(2):
            inside = 0
            jobs = [await meet.submit(store) for _ in range(most)]
            assert [await job.result(timeout=PATIENCE) for job in jobs] == [most] * most


async def test_by_default_there_are_as_many_processes_as_processors(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    inside: list[int] = []
    go_on = trio.Event()

    class Counting:
        async def run_sync(self, function: Any, *args: Any) -> Any:
            inside.append(len(inside))
            await go_on.wait()
            return function(*args)

    async with working(store, compute, concurrency=4, executor=Counting()):
        jobs = [await compute.submit(store, n) for n in range(4)]
        await until(lambda: len(inside) == 2)
        await until_idle(store)
        assert len(inside) == 2
        go_on.set()
        for job in jobs:
            await job.result(timeout=PATIENCE)


@pytest.mark.parametrize("runs", ["task", "thread", "process"])
async def test_a_timeout_ends_the_attempt_wherever_the_function_runs(
    store: tocsin.Store, runs: str
) -> None:
    """A process is killed, and a thread is left behind; the job fails in time."""
    task = {"task": sleep_in_task, "thread": sleep_in_thread, "process": sleep_in_process}[runs]
    async with working(store, task, concurrency=2):
        job = await task.using(timeout=0.1).submit(store, 5.0)
        with pytest.raises(tocsin.JobTimedOut):
            await job.result(timeout=PATIENCE)
        await (await task.submit(store, 0.0)).result(timeout=PATIENCE)


async def test_a_thread_that_is_left_behind_holds_no_place(store: tocsin.Store) -> None:
    go_on = threading.Event()

    @tocsin.task(name="hangs", max_attempts=1)
    def hang(number: int) -> int:
        if number == 0:
            go_on.wait(PATIENCE)
        return number

    try:
        async with working(store, hang, threads=1):
            stuck = await hang.using(timeout=0.05).submit(store, 0)
            assert (await finished(stuck)).reason == "timed_out"
            assert await (await hang.submit(store, 1)).result(timeout=PATIENCE) == 1
    finally:
        go_on.set()


async def test_what_a_function_raises_while_it_is_cancelled_is_kept(store: tocsin.Store) -> None:
    @tocsin.task(name="hangs", timeout=0.05, max_attempts=1)
    async def hang() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up)
            await trio.sleep_forever()

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("cannot clean up")

    async with working(store, hang):
        with pytest.raises(tocsin.JobTimedOut) as failed:
            await (await hang.submit(store)).result(timeout=PATIENCE)
    assert "cannot clean up" in failed.value.traceback


@pytest.mark.parametrize("option", ["threads", "processes"])
async def test_numbers_are_checked(store: tocsin.Store, option: str) -> None:
    await store.queues.ensure("default")
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        async with store.worker([compute], **{option: 0}):  # type: ignore[arg-type]
            pass


def test_only_a_plain_function_of_a_module_runs_in_a_process() -> None:
    async def asynchronous() -> None: ...

    def inner() -> None: ...

    with pytest.raises(TypeError, match="is async"):
        tocsin.task(name="a", runs="process")(asynchronous)
    with pytest.raises(TypeError, match="cannot import it"):
        tocsin.task(name="b", runs="process")(inner)
    with pytest.raises(ValueError, match="runs must be 'thread' or 'process'"):
        tocsin.task(runs="fork")(compute.function)  # type: ignore[call-overload]
