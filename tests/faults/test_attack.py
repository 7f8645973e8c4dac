"""Races found by reading the code as an attacker would: two processes between two
lines, a late answer, locks in another order.

Each test forces one interleaving with locks of its own, so it does not depend on luck.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import (
    PATIENCE,
    Handled,
    move_clock,
    open_connection,
    query,
    run_until_suspended,
    until,
    until_asleep,
    until_blocked,
)
from tocsin._queue.consuming.run import Run
from tocsin.driver import TrioConnection
from tocsin.embedded import EmbeddedServer

pytestmark = pytest.mark.fault

SOON = 5
"""Seconds for what should happen at once: a net for tests that show that something
never happens."""


@asynccontextmanager
async def holding(
    dsn: str, statement: str, *parameters: object
) -> AsyncIterator[TrioConnection[Any]]:
    """Hold the locks that a statement takes for as long as the block lasts."""
    async with open_connection(dsn) as connection, connection.transaction():
        await connection.execute(statement.encode(), parameters or None)
        yield connection


async def hang(_: object) -> None:
    await trio.sleep_forever()


async def bury_all(dsn: str) -> None:
    """What other processes do to one that they take for dead."""
    await query(dsn, "select tocsin.unregister_process(id, true) from tocsin.processes")


# Locks in another order


async def test_suspend_with_release_against_a_claim_that_archives(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A claim that archives locks message rows and the worker; suspend, complete_poll,
    unregister lock the worker and then the rows."""
    await store.queues.ensure("q")
    suspended = list[tocsin.Suspended]()
    first, go_on = trio.Event(), trio.Event()

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            first.set()
            await go_on.wait()

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        await store.produce("q", 1)
        nursery.start_soon(functools.partial(run_until_suspended, consumer, handle, suspended))
        await first.wait()
        await store.produce("q", 2)
        async with holding(
            store_dsn,
            "select pg_advisory_xact_lock(tocsin._lock_key('worker', %s))",
            consumer.worker_id,
        ) as other:
            go_on.set()
            await until_blocked(store_dsn, "tocsin%.claim(")
            await other.execute("select tocsin.suspend(%s, release => true)", [consumer.worker_id])
        await consumer.resume()
        await until(lambda: query(store_dsn, "select 1 from tocsin.archive having count(*) = 2"))
        await consumer.interrupt()


async def test_extend_waits_for_no_message_that_another_transaction_has_locked(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many([1, 2, 3])
        one, two, three = await consumer.dequeue(3)
        await three.archive()
        async with holding(
            store_dsn, "select 1 from tocsin.messages where id = %s for update", two.id
        ):
            with trio.fail_after(PATIENCE):
                assert await consumer._parts.keeper.extend([one, two, three], 30) == [
                    True,
                    None,
                    False,
                ]
        assert await consumer.extend_many([one, two, three], 30) == [True, True, False]


# Who is who


async def test_a_process_declared_dead_does_not_stop_its_successor(
    store: tocsin.Store, store_dsn: str
) -> None:
    """A worker's id is taken over with its name, so what the former holder says about
    "its" worker must not count."""
    await store.queues.ensure("q", vt=3600)
    async with tocsin.connect(store_dsn, heartbeat=3600) as zombie_store:
        async with zombie_store.consumer("q", name="w") as zombie:
            await bury_all(store_dsn)
            successor_context = store.consumer("q", name="w")
            successor = await successor_context.__aenter__()
            assert successor.worker_id == zombie.worker_id
            await store.produce("q", 1)
            assert len(await successor.dequeue()) == 1
        assert await successor.status() == "ready"
        assert (await successor.info()).held == 1
        await successor_context.__aexit__(None, None, None)


async def test_a_process_declared_dead_cannot_claim_as_its_successor(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as zombie_store,
        zombie_store.consumer("q", name="w") as zombie,
    ):
        await bury_all(store_dsn)
        async with store.consumer("q", name="w"):
            await store.produce("q", 1)
            with pytest.raises(tocsin.StateTransitionError):
                await zombie.dequeue()


async def test_registering_with_a_process_that_was_declared_dead(store_dsn: str) -> None:
    """The process has not heard of its death yet; the new worker must not hang on a
    process that does not exist."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.producer("q"):
            await bury_all(store_dsn)
            async with store.consumer("q", name="w") as consumer, trio.open_nursery() as nursery:
                nursery.start_soon(run_until_suspended, consumer, handled, suspended)
                orphans = (
                    "select id from tocsin.workers w where status <> 'stopped' "
                    "and not exists (select from tocsin.processes p where p.id = w.process_id)"
                )
                store._process.request_heartbeat()
                await until(
                    lambda: query(
                        store_dsn,
                        "select 1 from tocsin.workers where name = 'w' and status = 'polling'",
                    )
                )
                assert await query(store_dsn, orphans) == []
                await store.produce("q", 1)
                with trio.move_on_after(SOON):
                    await handled.wait(1)
                assert not suspended
                await consumer.interrupt()


async def test_a_suspended_worker_stays_suspended_when_its_process_rises_again(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=0.2) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.consumer("q", name="w") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await until(
                lambda: query(store_dsn, "select 1 from tocsin.workers where status = 'polling'")
            )
            await (await store.workers.get(consumer.worker_id)).suspend()
            await until_asleep(store)
            before = store._process._membership.process.id
            await bury_all(store_dsn)
            risen = (
                "select 1 from tocsin.workers w join tocsin.processes p on p.id = w.process_id and"
                " p.id <> %s"
            )
            await until(lambda: query(store_dsn, risen, before))
            assert await consumer.status() == "suspended"
            nursery.cancel_scope.cancel()


async def test_a_connection_lost_while_rising_again_costs_no_worker(store_dsn: str) -> None:
    """Two workers; the connection breaks while the second registers anew."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        for queue in ("q", "r"):
            await store.queues.ensure(queue)
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with (
            store.consumer("q") as a,
            store.consumer("r") as b,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(run_until_suspended, a, handled, suspended)
            nursery.start_soon(run_until_suspended, b, handled, suspended)
            await until(
                lambda: query(
                    store_dsn,
                    "select 1 from tocsin.workers where status = 'polling' having count(*) = 2",
                )
            )
            await until_asleep(store)
            await bury_all(store_dsn)
            async with holding(
                store_dsn, "select 1 from tocsin.workers where id = %s for update", b.worker_id
            ):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, "register_worker")
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                    " 'Lock'",
                )
            await until(
                lambda: query(
                    store_dsn,
                    "select 1 from tocsin.workers where status <> 'stopped' having count(*) = 2",
                )
            )
            await store.produce("r", 1)
            with trio.fail_after(SOON):
                await handled.wait(1)
            assert not suspended
            nursery.cancel_scope.cancel()


async def test_a_process_that_learned_of_its_death_rises_at_once(store_dsn: str) -> None:
    """And does not first wait for its next heartbeat."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q") as consumer:
            await until_asleep(store)
            await bury_all(store_dsn)
            store._process.request_heartbeat()
            await until(
                lambda: query(
                    store_dsn,
                    "select 1 from tocsin.workers where id = %s and status = 'ready'",
                    consumer.worker_id,
                )
            )


# Answers that come late


async def test_a_command_during_a_heartbeat_is_not_forgotten(store_dsn: str) -> None:
    """The heartbeat has read the workers already when the command comes; its
    notification comes with the heartbeat's answer."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await until(
                lambda: query(store_dsn, "select 1 from tocsin.workers where status = 'polling'")
            )
            await until_asleep(store)
            async with holding(store_dsn, "lock table tocsin.messages"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                await query(store_dsn, "select tocsin.interrupt(%s)", consumer.worker_id)
            with trio.move_on_after(SOON):
                await until(lambda: suspended)
            nursery.cancel_scope.cancel()
        assert suspended


async def test_a_look_during_a_heartbeat_is_not_forgotten(store_dsn: str) -> None:
    """Suspended and resumed, while a heartbeat that was sent before is under way: the
    claim that was refused must lead to another look."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        beats = store.statistics().heartbeats
        async with store.consumer("q"):
            await until_asleep(store)
            async with holding(store_dsn, "select from tocsin.processes for update"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                beats = store.statistics().heartbeats
                store._process.request_heartbeat()
            with trio.move_on_after(SOON):
                while store.statistics().heartbeats < beats + 2:
                    await query(store_dsn, "select")
            assert store.statistics().heartbeats >= beats + 2


async def test_a_heartbeat_that_was_sent_before_a_worker_was_registered(store_dsn: str) -> None:
    """Its answer does not know the worker; that does not mean that it was shut down."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.consumer("q") as sleeper, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, sleeper, handled, suspended)
            await until_asleep(store)
            async with holding(store_dsn, "lock table tocsin.messages"):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                context = store.consumer("q", name="late")
                late = await context.__aenter__()
                nursery.start_soon(run_until_suspended, late, handled, suspended)
                await until_blocked(store_dsn, ".claim(")
            await store.produce("q", 1)
            with trio.move_on_after(SOON):
                await handled.wait(1)
            assert not suspended
            nursery.cancel_scope.cancel()
        await context.__aexit__(None, None, None)


async def test_suspend_with_release_cancels_the_handlers_also_when_a_claim_noticed_first(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    cancelled = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(run_until_suspended, consumer, handled, suspended, concurrency=2)
        )
        await store.produce("q", 1)
        await handled.wait(1)
        await until_asleep(store)
        async with holding(store_dsn, "select from tocsin.processes for update"):
            await query(store_dsn, "select tocsin.suspend(%s, release => true)", consumer.worker_id)
            await until_blocked(store_dsn, ".heartbeat(")
            await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
            run = consumer._state.run
            assert isinstance(run, Run)
            with trio.fail_after(SOON):
                while run.may_claim:
                    await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
        with trio.move_on_after(SOON):
            await cancelled.wait()
        was_cancelled = cancelled.is_set()
        nursery.cancel_scope.cancel()
    assert was_cancelled


async def test_suspend_with_release_and_resume_at_once_cancels_the_handlers(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The process looks only after both; its leases are gone all the same."""
    await store.queues.ensure("q", vt=3600)
    cancelled = trio.Event()

    async def handle(_: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await store.produce("q", 1)
        await handled.wait(1)
        await until_asleep(store)
        await query(
            store_dsn,
            "select tocsin.suspend(%s, release => true), tocsin.resume(%s)",
            consumer.worker_id,
            consumer.worker_id,
        )
        with trio.move_on_after(SOON):
            await cancelled.wait()
        was_cancelled = cancelled.is_set()
        nursery.cancel_scope.cancel()
    assert was_cancelled


# Runs


async def test_a_run_that_could_not_give_back_does_not_keep_its_leases_in_the_next(
    own_server: EmbeddedServer,
) -> None:
    async with tocsin.connect(own_server.dsn) as store:
        await store.install()
        await store.queues.ensure("q", vt=4)
        await store.produce("q", 1)
        first, second = Handled(hang), Handled()
        async with store.consumer("q") as consumer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consumer.handle, first)
                await first.wait(1)
                await own_server.stop()
                nursery.cancel_scope.cancel()
            await own_server.start()
            async with trio.open_nursery() as nursery:
                suspended = list[tocsin.Suspended]()
                nursery.start_soon(run_until_suspended, consumer, second, suspended)
                with trio.move_on_after(2 * SOON):
                    await second.wait(1)
                nursery.cancel_scope.cancel()
    assert len(second.messages) == 1


async def test_a_consumer_has_one_run_at_a_time(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    refused = list[RuntimeError]()

    async def handle() -> None:
        try:
            await consumer.handle(hang)
        except RuntimeError as error:
            refused.append(error)

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(handle)
        nursery.start_soon(handle)
        await until_asleep(store)
        nursery.cancel_scope.cancel()
    assert len(refused) == 1


async def test_redelivered_to_the_same_consumer_the_former_handler_is_cancelled(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The lease ended while this process could not extend it (its event loop was
    blocked), and the next claim is its own."""
    await store.queues.ensure("q", vt=3600)
    cancelled = list[int]()

    async def handle(message: tocsin.Message) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if not ending:
                cancelled.append(message.read_ct)
            raise

    ending = False
    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(run_until_suspended, consumer, handled, suspended, concurrency=2)
        )
        await store.produce("q", 1)
        await handled.wait(1)
        await query(store_dsn, "update tocsin.messages set vt = now()")
        await query(store_dsn, "select tocsin._ring(id) from tocsin.queues")
        await handled.wait(2)
        with trio.move_on_after(SOON):
            while not cancelled:
                await query(store_dsn, "select")
        ending = True
        nursery.cancel_scope.cancel()
    assert cancelled == [1]


# Streams


async def test_a_stream_does_not_end_silently_when_a_lease_is_lost(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.5)
    went_on = error = None
    async with store.consumer("q") as consumer:
        await store.produce("q", 1)
        try:
            async with consumer.messages() as stream:
                async for _ in stream:
                    await query(store_dsn, "delete from tocsin.messages")
                    with trio.move_on_after(SOON):
                        await trio.sleep_forever()
                    went_on = True
                    break
        except tocsin.TocsinError as raised:
            error = raised
    assert went_on or error, "the block was left without a word"


async def test_a_stream_forgets_the_messages_it_has_settled(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.producer("q") as producer, store.consumer("q") as consumer:
        await producer.enqueue_many(range(20))
        async with consumer.messages() as stream:
            run = consumer._state.run
            assert isinstance(run, Run)
            async for message in stream:
                await message.archive()
                if message.payload == 19:
                    break
            assert sum(len(call.messages) for call in run._calls) <= 1


# By hand


async def test_draining_does_not_wait_for_leases_that_are_gone(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=0.1)
    await store.produce("q", 1)
    async with store.consumer("q") as consumer, store.consumer("q") as other:
        assert await consumer.dequeue()
        (message,) = await other.dequeue(wait=PATIENCE)
        await other.archive(message)
        with trio.fail_after(SOON):
            await consumer.suspend(drain=True)


# The line


async def test_a_blocked_loop_is_not_taken_for_a_deaf_line(
    store: tocsin.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._queue.process.listener.HEARD_WITHIN", 0.2)
    await store.queues.ensure("q")

    async def block() -> None:
        while not store._process._listener.proof._token:
            await trio.lowlevel.checkpoint()
        time.sleep(0.5)  # noqa: ASYNC251 - this is what is tested

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        async with store.consumer("q"):
            pass
    assert store.statistics().listen_works


async def test_a_row_locked_by_others_is_not_looked_for_without_pause(
    dsn_of_quiet_store: str,
) -> None:
    async with tocsin.connect(dsn_of_quiet_store, heartbeat=3600) as store:
        await store.queues.ensure("q")
        await store.produce("q", 1)
        async with (
            holding(dsn_of_quiet_store, "select from tocsin.messages for update"),
            store.consumer("q") as consumer,
        ):
            assert await consumer.dequeue(wait=1) == []
        (calls,) = await query(
            dsn_of_quiet_store,
            "select sum(calls)::int from pg_stat_statements s join pg_database d on d.oid = s.dbid "
            "where d.datname = current_database() and query like '%%claim(%%'",
        )
    assert calls[0] < 100


async def test_expired_messages_in_a_claim_do_not_hide_ready_ones(store_dsn: str) -> None:
    """A claim that finds expired messages among the first returns fewer than asked for,
    although more are ready."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.producer("q") as producer, store.consumer("q") as consumer:
            await producer.enqueue_many(range(9), expires_in=0.001)
            await producer.enqueue_many(range(21))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    functools.partial(
                        run_until_suspended, consumer, handled, suspended, concurrency=10
                    )
                )
                with trio.move_on_after(SOON):
                    await handled.wait(21)
                await consumer.interrupt()
    assert len(handled.messages) == 21


async def test_a_heartbeat_between_the_end_of_a_run_and_its_cleanup(store: tocsin.Store) -> None:
    """The run's nursery has closed, and its task has not gone on yet: what the registry
    says just then must not be an error."""
    await store.queues.ensure("q")
    errors = list[RuntimeError]()

    class Between(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            run = consumer._state.run
            if isinstance(run, Run) and run.nursery._closed:
                try:
                    consumer._state.on_worker_status("suspended", None)
                except RuntimeError as error:
                    errors.append(error)

    async with store.consumer("q") as consumer:
        between = Between()
        trio.lowlevel.add_instrument(between)
        with trio.move_on_after(0.2):
            await consumer.handle(hang)
        trio.lowlevel.remove_instrument(between)
    assert not errors


class AtStep(trio.abc.Instrument):
    """Calls a function when the tasks beside the test's own have made so many steps."""

    def __init__(self, steps: int, act: Callable[[], object]) -> None:
        self._mine = trio.lowlevel.current_task()
        self._left = steps
        self._act = act

    @property
    def acted(self) -> bool:
        return self._left == 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._mine and self._left:
            self._left -= 1
            if self.acted:
                self._act()


@pytest.mark.parametrize("how", ["end_run", "close"])
async def test_a_run_ended_at_any_step_of_a_wake_up_ends(store_dsn: str, how: str) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:  # which would wake it once more
        await store.queues.ensure("q", vt=3600)
        for step in itertools.count(1):
            await query(store_dsn, "truncate tocsin.messages, tocsin.archive")
            suspended = list[tocsin.Suspended]()
            async with store.consumer("q") as consumer:
                with trio.fail_after(PATIENCE):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(run_until_suspended, consumer, Handled(), suspended)
                        await until_asleep(store)
                        state = consumer._state
                        at_step = AtStep(
                            step,
                            (
                                state.end_run
                                if how == "end_run"
                                else functools.partial(state.close, store)
                            ),
                        )
                        trio.lowlevel.add_instrument(at_step)
                        await query(store_dsn, "select tocsin.enqueue('q', '1')")
                        async with open_connection(store_dsn) as observer:
                            while (
                                not at_step.acted
                                and not await (
                                    await observer.execute("select 1 from tocsin.archive")
                                ).fetchone()
                            ):
                                pass
                        trio.lowlevel.remove_instrument(at_step)
                        if not at_step.acted:
                            await consumer.interrupt()
            assert len(suspended) == 1
            state = (
                "select state::text from tocsin.messages union all select 'archived' from"
                " tocsin.archive"
            )
            assert await query(store_dsn, state) in ([("ready",)], [("archived",)])
            if not at_step.acted:
                break
    assert step > 5


async def test_a_process_that_rises_by_a_new_worker_has_a_lifeline(store_dsn: str) -> None:
    """Else its death would be noticed only fifteen heartbeats later."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        async with store.consumer("q"):
            await until_asleep(store)
            await bury_all(store_dsn)
            async with store.consumer("q"):
                await until(
                    lambda: query(
                        store_dsn, "select 1 from tocsin.processes where lifeline is not null"
                    )
                )


async def test_a_connection_lost_while_a_new_worker_makes_its_process_rise_costs_no_worker(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.consumer("q", name="first") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await until(
                lambda: query(store_dsn, "select 1 from tocsin.workers where status = 'polling'")
            )
            await until_asleep(store)
            await bury_all(store_dsn)

            async def register() -> None:
                async with store.consumer("q", name="second"):
                    pass

            locked = "select 1 from tocsin.workers where id = %s for update"
            async with (
                trio.open_nursery() as enrolling,
                holding(store_dsn, locked, consumer.worker_id),
            ):
                enrolling.start_soon(register)
                await until_blocked(store_dsn, "register_worker")
                await query(
                    store_dsn,
                    "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                    " 'Lock'",
                )
            store._process.request_heartbeat()
            await until(
                lambda: query(
                    store_dsn,
                    "select 1 from tocsin.workers where name = 'first' and status <> 'stopped'",
                )
            )
            await store.produce("q", 1)
            with trio.fail_after(SOON):
                await handled.wait(1)
            assert not suspended
            nursery.cancel_scope.cancel()


async def die_holding(dsn: str, payload: str) -> None:
    """What a process leaves behind that died long ago with a message of the queue q, on
    a server that has been up since."""
    await query(dsn, "insert into tocsin.uptime (since) values (now() - interval '1 day')")
    await move_clock(dsn, 3600)
    await query(
        dsn,
        "insert into tocsin.processes (hostname, pid, version, every, lifeline, started_at,"
        " heartbeat_at) values ('h', 1, 'v', '1 s', nextval('tocsin.lifelines'), now(), now())",
    )
    await query(
        dsn,
        "select tocsin.register_worker('q', 'consumer', 'dead', (select max(id) from"
        " tocsin.processes), 'h', 1, 'v')",
    )
    await query(dsn, "select tocsin.enqueue('q', %s)", payload)
    await query(dsn, "select tocsin.claim(id, registration, 1) from tocsin.workers")


# Claimed ahead, and woken


async def test_tasks_of_a_handler_that_raise_while_they_are_cancelled_do_not_end_the_loop(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q", vt=0.5)

    async def fail_to_clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the file is gone")

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_to_clean_up)
                nursery.start_soon(trio.sleep_forever)
                await query(store_dsn, "delete from tocsin.messages where id = %s", message.id)

    handled, suspended = Handled(handle), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await store.produce("q", 1)
        await handled.wait(1)
        await store.produce("q", 2)
        await handled.wait(2)
        await consumer.interrupt()
    assert "the file is gone" in caplog.text
    assert suspended[0].handled == 1


async def test_of_two_parcels_with_the_same_message_the_later_lease_is_kept(
    store: tocsin.Store, store_dsn: str
) -> None:
    """Both wait unopened when all leases are looked at."""
    await store.queues.ensure("q")
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        parts = consumer._parts
        first = await parts.claimer.claim(1, None)
        await query(
            store_dsn, "select tocsin.release(array[id], array[lease]) from tocsin.messages"
        )
        second = await parts.claimer.claim(1, None)
        parts.leases.messages()
        (former,), (message,) = first.batch.take_all(), second.batch.take_all()
        assert former.lease_token < message.lease_token
        assert parts.leases.find(message.id) is message


async def test_a_queue_made_anew_under_the_same_name_rings_for_its_own_consumers(
    store_dsn: str,
) -> None:
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with store.consumer("q", name="old"):
            await until_asleep(store)
            await query(store_dsn, "delete from tocsin.workers")
            await query(store_dsn, "delete from tocsin.queues")
            await store.queues.ensure("q")
            async with store.consumer("q", name="new") as consumer, trio.open_nursery() as nursery:
                nursery.start_soon(run_until_suspended, consumer, handled, suspended)
                await until_asleep(store)
                await query(store_dsn, "select tocsin.enqueue('q', '1')")
                with trio.move_on_after(SOON):
                    await handled.wait(1)
                nursery.cancel_scope.cancel()
    assert handled.payloads == [1]


async def test_what_the_line_itself_gives_back_is_seen_by_who_lay_down_meanwhile(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat buries a dead process. The session that does it does not see its
    own lock, so it does not ring for its own process."""
    monkeypatch.setattr("tocsin._queue.process.bell.LINGER", 3600)
    finish = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        if message.payload == 1:
            await finish.wait()

    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        queue = await store.queues.ensure("q", vt=36000)
        await die_holding(store_dsn, "2")
        handled, suspended = Handled(handle), list[tocsin.Suspended]()
        async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await until_asleep(store)
            await store.produce("q", 1)
            await handled.wait(1)
            async with holding(
                store_dsn, "select from tocsin.processes where hostname <> 'h' for update"
            ):
                store._process.request_heartbeat()
                await until_blocked(store_dsn, ".heartbeat(")
                finish.set()
                with trio.fail_after(SOON):
                    while store._process.bell.queues_waiting() != [queue.id]:
                        await trio.lowlevel.checkpoint()
            with trio.move_on_after(SOON):
                await handled.wait(2)
            nursery.cancel_scope.cancel()
    assert handled.payloads == [1, 2]


async def test_a_claim_that_is_called_off_hides_its_messages_from_nobody(store_dsn: str) -> None:
    """While it was under way another process looked, passed over the rows that it had
    locked, and went to sleep."""
    await query(
        store_dsn,
        "create function public.hold() returns trigger language plpgsql as $$ begin perform"
        " pg_advisory_xact_lock(new.consumer_worker_id); return new; end $$; create trigger hold"
        " before update on tocsin.messages for each row execute function public.hold()",
    )
    async with (
        tocsin.connect(store_dsn, heartbeat=3600) as store,
        tocsin.connect(store_dsn, heartbeat=3600) as other_store,
    ):
        await store.queues.ensure("q")
        handled, suspended = Handled(), list[tocsin.Suspended]()
        async with (
            store.consumer("q") as consumer,
            other_store.consumer("q") as other,
            trio.open_nursery() as nursery,
        ):
            async with holding(store_dsn, "select pg_advisory_xact_lock(%s)", consumer.worker_id):
                await store.produce("q", 1)
                called_off = trio.CancelScope()

                async def dequeue() -> None:
                    with called_off:
                        await consumer.dequeue()

                nursery.start_soon(dequeue)
                await until_blocked(store_dsn, "claim(")
                nursery.start_soon(run_until_suspended, other, handled, suspended)
                await until_asleep(other_store)
                called_off.cancel()
                with trio.move_on_after(SOON):
                    await handled.wait(1)
            nursery.cancel_scope.cancel()
    assert handled.payloads == [1]


@pytest.mark.parametrize("at", ["-infinity", "0044-03-15 BC", "infinity"])
async def test_a_time_that_python_does_not_know_stops_nobody(
    store: tocsin.Store, store_dsn: str, at: str
) -> None:
    await store.queues.ensure("q")
    with suppress(psycopg.Error):
        await query(store_dsn, "select tocsin.enqueue('q', '1', at => %s)", at)
    with suppress(psycopg.Error):
        await query(store_dsn, "select tocsin.enqueue_many('q', '[1]', at => %s)", at)
    await query(
        store_dsn,
        "select tocsin.enqueue_each('q', jsonb_build_array(jsonb_build_object('payload', 1, 'at',"
        " %s::text)))",
        at,
    )
    await store.produce("q", 2)
    async with store.consumer("q") as consumer:
        assert 2 in [m.payload for m in await consumer.dequeue(9)]


async def test_an_expired_message_that_cannot_be_buried_stops_nobody(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.queues.ensure("q")
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    handled, suspended = Handled(), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer:
        for payload in (12, 13, 14):
            await store.produce("q", payload, expires_in=0.000001)
        await store.produce("q", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_suspended, consumer, handled, suspended)
            await handled.wait(1)
            await until_asleep(store)
            await consumer.interrupt()
    assert handled.payloads == [1]
    assert await query(store_dsn, "select payload from tocsin.dead_letters order by id") == [
        (12,),
        (14,),
    ]


async def test_a_dead_workers_message_that_cannot_be_buried_ends_nobodys_heartbeat(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", max_deliveries=1)
    await query(store_dsn, "alter table tocsin.dead_letters add check (payload <> '13')")
    await die_holding(store_dsn, "13")
    async with store.consumer("q"):
        store._process.request_heartbeat()
        await until(lambda: query(store_dsn, "select 1 from tocsin.processes having count(*) = 1"))


async def test_a_thread_left_behind_costs_no_other_message_its_delivery(
    store: tocsin.Store,
) -> None:
    """A blocking handler that hangs is left behind at its timeout. The next message's
    time must not run out before it is handled."""
    await store.queues.ensure("q", max_deliveries=1)
    hung, handled = threading.Event(), list[object]()

    def handle(message: tocsin.Message) -> None:
        handled.append(message.payload)
        if message.payload == "hang":
            hung.wait()

    async with (
        store.producer("q") as producer,
        store.consumer("q") as consumer,
        trio.open_nursery() as nursery,
    ):
        await producer.enqueue_many(["hang", 1, 2])
        nursery.start_soon(functools.partial(consumer.handle, handle, timeout=0.2))
        with trio.move_on_after(SOON):
            while len(handled) < 3:
                await trio.lowlevel.checkpoint()
        hung.set()
        nursery.cancel_scope.cancel()
    assert handled == ["hang", 1, 2]


async def test_a_lease_that_its_handler_has_made_shorter_is_kept_all_the_same(
    store: tocsin.Store, store_dsn: str
) -> None:
    await store.queues.ensure("q", vt=3600)
    extended = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        await message.extend(1)
        extended.set()
        await trio.sleep_forever()

    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(consumer.handle, handle)
        await store.produce("q", 1)
        await extended.wait()
        await until(
            lambda: query(
                store_dsn,
                "select 1 from tocsin.messages where vt > tocsin._clock() + interval '30 min'",
            )
        )
        nursery.cancel_scope.cancel()


async def test_a_lease_that_a_statement_under_way_has_settled_is_not_taken_for_lost(
    store: tocsin.Store, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to an extension may come before that to the settlement that it found
    done."""
    await store.queues.ensure("q", vt=3600)
    await store.produce("q", 1)
    handled, suspended = Handled(hang), list[tocsin.Suspended]()
    async with store.consumer("q") as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(run_until_suspended, consumer, handled, suspended)
        await handled.wait(1)
        (message,) = handled.messages
        leases, keeper = consumer._parts.leases, consumer._parts.keeper
        with leases.settling([message]):
            await query(
                store_dsn,
                "select tocsin.archive(array[%s], array[%s])",
                message.id,
                message.lease_token,
            )
            await keeper.refresh()
            assert message in leases
            assert not caplog.records
        await keeper.refresh()  # it was somebody else
        assert message not in leases
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        nursery.cancel_scope.cancel()
