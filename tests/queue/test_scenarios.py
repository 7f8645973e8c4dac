"""The scenarios that must pass, by their names. Each tells one story from beginning to
end, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import trio

import tocsin
from tests.support import (
    PATIENCE,
    Handled,
    move_clock,
    open_connection,
    query,
    run_until_suspended,
    since,
    statements,
    until_asleep,
    until_query,
)
from tests.support.child import running
from tests.support.commands import line_with, started


async def test_1_poll_interrupt_suspended_archived(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    message_id = await store.produce("tasks", {"n": 1})
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with store.consumer("tasks", name="a") as consumer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await handled.wait(1)
            await consumer.interrupt()
        assert suspended[0].handled == 1
        assert await consumer.status() == "suspended"
        assert await query(store_dsn, "select id, consumer_worker_id from tocsin.archive") == [
            (message_id, consumer.worker_id)
        ]


async def test_1_interrupt_ends_after_the_running_handler(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks")
    message_id = await store.produce("tasks", 1)
    go_on = trio.Event()
    handled, suspended = Handled(lambda _: go_on.wait()), list[tocsin.Suspended]()
    async with store.consumer("tasks") as consumer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await handled.wait(1)
            await consumer.interrupt()
            assert await consumer.status() == "interrupted"
            assert not suspended
            go_on.set()
        assert await query(store_dsn, "select id from tocsin.archive") == [(message_id,)]
        assert await consumer.status() == "suspended"


async def test_2_handoff(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    by_a, by_b, suspended = Handled(), Handled(), list[tocsin.Suspended]()
    async with (
        store.consumer("tasks", name="a") as a,
        store.consumer("tasks", name="b") as b,
        store.producer("tasks") as producer,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, a, by_a, suspended)
            first = await producer.enqueue("first")
            await by_a.wait(1)
            await a.interrupt()
        assert await a.status() == "suspended"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, b, by_b, suspended)
            second = await producer.enqueue("second")
            await by_b.wait(1)
            await b.interrupt()
        owners = await query(
            store_dsn, "select id, consumer_worker_id from tocsin.archive order by id"
        )
        assert owners == [(first, a.worker_id), (second, b.worker_id)]


async def test_3_two_consumers_drain_forty(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks")
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with (
        store.consumer("tasks") as a,
        store.consumer("tasks") as b,
        store.producer("tasks") as producer,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, a, handled, suspended)
            nursery.start_soon(run_until_suspended, b, handled, suspended)
            ids = [await producer.enqueue(n) for n in range(40)]
            await handled.wait(40)
            await a.interrupt()
            await b.interrupt()
        assert [await a.status(), await b.status()] == ["suspended", "suspended"]
        assert sorted(m.id for m in handled.messages) == ids
        assert sum(s.handled for s in suspended) == 40
        assert await query(
            store_dsn, "select count(*), count(distinct id) from tocsin.archive"
        ) == [(40, 40)]


async def test_4_expired_lease_goes_to_another_and_fences_the_first(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks")
    await store.produce("tasks", 1)
    async with store.consumer("tasks", name="a") as a, store.consumer("tasks", name="b") as b:
        (by_a,) = await a.dequeue(vt=1)
        assert await b.dequeue() == []
        await move_clock(store_dsn, 1.5)
        (by_b,) = await b.dequeue(wait=PATIENCE)
        assert (by_b.id, by_b.read_ct) == (by_a.id, 2)
        assert by_b.lease_token > by_a.lease_token
        for refused in (by_a.archive(), by_a.delete(), by_a.release(), by_a.extend(30)):
            with pytest.raises(tocsin.LeaseLost):
                await refused
        await by_b.archive()
        assert await query(store_dsn, "select consumer_worker_id, read_ct from tocsin.archive") == [
            (b.worker_id, 2)
        ]


async def test_5_shutdown_is_refused_while_messages_are_held(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks")
    async with store.producer("tasks") as producer, store.consumer("tasks") as consumer:
        await producer.enqueue_many([1, 2, 3])
        held = await consumer.dequeue(3)
        with pytest.raises(tocsin.PendingMessages) as pending:
            await consumer.suspend()
        assert pending.value.count == 3
        handle = await store.workers.get(consumer.worker_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: consumer.suspend(drain=True))
            with trio.fail_after(PATIENCE):
                while await consumer.status() != "suspended":
                    await trio.lowlevel.checkpoint()
            with pytest.raises(tocsin.PendingMessages) as pending:
                await handle.shutdown()
            assert pending.value.count == 3
            assert await consumer.release_many(held[:2]) == [True, True]
            with pytest.raises(tocsin.PendingMessages) as pending:
                await handle.shutdown()
            assert pending.value.count == 1
            await consumer.release(held[2])
        await handle.shutdown()
        info = await consumer.info()
        assert info.status == "stopped"
        assert info.shutdown_at is not None


async def test_6_handler_that_outlives_the_visibility_timeout_three_times(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks", vt=0.4)
    await store.produce("tasks", 1)
    leases = list[tuple[object, ...]]()

    async def handle(message: tocsin.Message) -> None:
        # Until the lease has been extended so often that it ends three visibility
        # timeouts after it began.
        async with open_connection(store_dsn) as connection:
            while not leases or leases[-1][0] < 3 * 0.4:  # type: ignore[operator]
                cursor = await connection.execute(
                    "select extract(epoch from vt - dequeued_at)::float8 - 0.4, read_ct from"
                    " tocsin.messages where id = %s",
                    [message.id],
                )
                leases.extend(await cursor.fetchall())

    handled, other, suspended = Handled(handle), Handled(), list[tocsin.Suspended]()
    async with (
        store.consumer("tasks") as a,
        store.consumer("tasks") as b,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_until_suspended, a, handled, suspended)
        await handled.wait(1)
        nursery.start_soon(run_until_suspended, b, other, suspended)
        await until_query(store_dsn, "select id from tocsin.archive")
        await a.interrupt()
        await b.interrupt()
    assert len(handled.messages) == 1
    assert other.messages == []
    assert {read_ct for _, read_ct in leases} == {1}


async def test_7_fails_twice_then_succeeds(store: tocsin.Store, store_dsn: str) -> None:
    await store.queues.ensure("tasks", retry_base=0.2, retry_factor=3, retry_jitter=0)

    async def handle(message: tocsin.Message) -> None:
        if message.payload == "difficult" and message.read_ct < 3:
            raise RuntimeError(f"attempt {message.read_ct}")

    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with (
        store.producer("tasks") as producer,
        store.consumer("tasks") as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        difficult = await producer.enqueue("difficult")
        await producer.enqueue_many(["easy"] * 5)
        await handled.wait(8)
        await consumer.interrupt()
    assert handled.payloads[-1] == "difficult"  # the others were not held up
    attempts = [m for m in handled.messages if m.id == difficult]
    assert [m.read_ct for m in attempts] == [1, 2, 3]
    assert [m.last_error for m in attempts] == [
        None,
        "RuntimeError: attempt 1",
        "RuntimeError: attempt 2",
    ]
    waits = [(b.dequeued_at - a.dequeued_at).total_seconds() for a, b in pairwise(attempts)]
    assert waits[0] >= 0.2
    assert waits[1] >= 0.6
    assert await query(
        store_dsn, "select read_ct from tocsin.archive where id = %s", difficult
    ) == [(3,)]


async def test_8_always_fails_dead_letter_replay_runs_again(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks", max_deliveries=3, retry_base=0, retry_jitter=0)
    repaired = False

    async def handle(message: tocsin.Message) -> None:
        if not repaired:
            raise RuntimeError(f"attempt {message.read_ct}")

    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with store.consumer("tasks", name="a") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        message_id = await store.produce("tasks", {"n": 1}, key="k")
        await handled.wait(3)
        with trio.fail_after(PATIENCE):
            while not (letters := await store.dead_letters.list("tasks")):
                await trio.lowlevel.checkpoint()
        (letter,) = letters
        assert (letter.id, letter.payload, letter.read_ct) == (message_id, {"n": 1}, 3)
        assert (letter.reason, letter.error) == ("handler_failed", "RuntimeError: attempt 3")
        assert letter.traceback is not None
        assert "raise RuntimeError" in letter.traceback
        assert [(d.delivery, d.worker, d.outcome, d.error) for d in letter.history] == [
            (n, "a", "handler_failed", f"RuntimeError: attempt {n}") for n in (1, 2, 3)
        ]
        await until_asleep(store)
        repaired = True
        assert await store.dead_letters.replay(message_id) == [message_id]
        await handled.wait(4)
        await consumer.interrupt()
    assert [(m.id, m.read_ct) for m in handled.messages] == [(message_id, n) for n in (1, 2, 3, 1)]
    message = await store.messages.get(message_id)
    assert (message.state, message.read_ct, message.history) == ("archived", 1, letter.history)
    assert await store.dead_letters.list("tasks") == []


async def test_9_delayed_message_on_a_silent_queue(dsn_of_quiet_store: str) -> None:
    """No statement runs in between. That it is handled within 50 ms of its time is what
    the benchmark ``delayed`` measures."""
    dsn, ran, looked = dsn_of_quiet_store, dict[str, int](), trio.Event()

    async def look(_: tocsin.Message) -> None:
        ran.update(since(before, await statements(dsn)))
        looked.set()

    async with tocsin.connect(dsn, heartbeat=3600) as store:
        await store.queues.ensure("tasks")
        handled, suspended = Handled(look), list[tocsin.Suspended]()
        async with store.consumer("tasks") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await until_asleep(store)
            await query(dsn, "select tocsin.enqueue('tasks', '1', delay => '2 s')")
            await until_asleep(store)
            before = await statements(dsn)
            # it is not yet its time
            assert await query(dsn, "select state::text from tocsin.messages") == [("delayed",)]
            with trio.fail_after(PATIENCE):
                await looked.wait()
            await consumer.interrupt()
        (message,) = handled.messages
    assert (message.dequeued_at - message.enqueued_at).total_seconds() >= 2
    # From the enqueueing to the handler's first line: the question above, and the claim
    # that brought the message.
    assert sorted(ran.values()) == [1, 1]
    assert [".claim(" in text for text in sorted(ran, key=len)] == [False, True]


async def test_10_killed_worker_is_replaced_long_before_the_visibility_timeout(
    store: tocsin.Store, store_dsn: str
) -> None:
    """That it takes less than five seconds is what the benchmark ``kill`` measures."""
    await store.queues.ensure("tasks", vt=3600)
    # else this server is too young
    await query(store_dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with running("consume.py", store_dsn, "tasks", "doomed", "hold") as doomed:
        doomed_id = int((await doomed.words("worker"))[0])
        message_id = await store.produce("tasks", 1)
        assert await doomed.words("handling") == [str(message_id)]
        async with store.consumer("tasks", name="heir") as heir, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, heir, handled, suspended)
            doomed.process.kill()
            await handled.wait(1)
            await heir.interrupt()
    (message,) = handled.messages
    assert (message.id, message.read_ct) == (message_id, 2)
    assert (await (await store.workers.get(doomed_id)).info()).status == "stopped"


async def test_11_enqueue_in_the_callers_transaction(store: tocsin.Store) -> None:
    await store.queues.ensure("tasks")
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with (
        store.producer("tasks") as producer,
        store.consumer("tasks") as consumer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as connection:
                await producer.enqueue("rolled back", connection=connection)
                await producer.enqueue_many(["rolled back"] * 3, connection=connection)
                raise ZeroDivisionError
        async with store.transaction() as connection:
            await producer.enqueue("committed", connection=connection)
            await producer.enqueue_many(["too"] * 2, connection=connection)
            assert handled.messages == []
        await handled.wait(3)
        await consumer.interrupt()
    assert handled.payloads == ["committed", "too", "too"]


async def test_12_commands_to_a_worker_in_another_process(
    store: tocsin.Store, store_dsn: str
) -> None:
    """That they take effect within 100 ms is what the benchmark ``commands`` measures."""
    await store.queues.ensure("tasks")
    async with running("consume.py", store_dsn, "tasks", "remote", "go") as child:
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


async def test_12_interrupt_with_grace_from_another_process(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("tasks", vt=3600)
    async with running("consume.py", store_dsn, "tasks", "remote", "hold") as child:
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


def test_12_from_the_command_line(store_dsn: str, tmp_path: Path) -> None:
    """Each command, and the worker, is a process of its own."""
    (tmp_path / "service.py").write_text(
        "import logging\nasync def send(message):\n    logging.info('sent %s', message.payload)\n"
    )

    def tocsin(*words: str) -> str:
        command = [sys.executable, "-m", "tocsin", *words, "--dsn", store_dsn]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
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
        assert process.wait(PATIENCE) == 0
    assert status() == "stopped"


async def _settled(worker: tocsin.WorkerHandle) -> None:
    with trio.fail_after(PATIENCE):
        while (await worker.info()).held:
            await trio.lowlevel.checkpoint()
