"""Settling a message in the caller's transaction: committed with the caller's rows, or
rolled back with them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import psycopg
import pytest
import trio
import trio.testing

import tocsin
from tests.support import PATIENCE, Handled, move_clock, open_connection, query, until_query
from tests.support.child import run_script
from tests.support.runs import running
from tocsin.driver import TrioConnection

Connection: TypeAlias = Any
Open: TypeAlias = Callable[[tocsin.Store], AbstractAsyncContextManager[Connection]]


@asynccontextmanager
async def on_the_pool(store: tocsin.Store) -> AsyncIterator[Connection]:
    async with store.transaction() as connection:
        yield connection


@asynccontextmanager
async def on_trio(store: tocsin.Store) -> AsyncIterator[Connection]:
    connection: TrioConnection[Any] = await TrioConnection.connect(await dsn_of(store))
    try:
        yield connection
        await connection.commit()
    finally:
        await connection.close()


@asynccontextmanager
async def blocking(store: tocsin.Store) -> AsyncIterator[Connection]:
    with psycopg.connect(await dsn_of(store)) as connection:
        yield connection


async def dsn_of(store: tocsin.Store) -> str:
    async with store.transaction() as connection:
        info = connection.info
        return psycopg.conninfo.make_conninfo(info.dsn, password=info.password)


WAYS = {"pool": on_the_pool, "trio": on_trio, "blocking": blocking}


@pytest.fixture(params=WAYS)
def transaction(request: pytest.FixtureRequest) -> Open:
    """A transaction on each kind of connection: committed at the end of the block, or
    rolled back when that raises."""
    way: Open = WAYS[request.param]
    return way


async def execute(connection: Connection, statement: str, *parameters: object) -> None:
    result = connection.execute(statement.encode(), parameters)
    if isinstance(result, Awaitable):
        await result


@pytest.fixture
async def effects(store: tocsin.Store, store_dsn: str) -> Callable[[], Awaitable[list[int]]]:
    """A queue, and a table of the user's; gives the messages that are in the table."""
    await store.queues.ensure("q", retry_base=0, retry_jitter=0, vt=3600)
    await query(
        store_dsn, "create table effects (message_id bigint not null, delivery integer not null)"
    )

    async def read() -> list[int]:
        return [
            row[0]
            for row in await query(
                store_dsn, "select message_id from effects order by message_id, delivery"
            )
        ]

    return read


EFFECT = "insert into effects values (%s, %s)"
Effects: TypeAlias = Callable[[], Awaitable[list[int]]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("operation", ["archive", "delete", "release"])
async def test_a_message_is_settled_with_the_callers_rows_and_counted_once(
    store: tocsin.Store,
    effects: Effects,
    transaction: Open,
    operation: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = await store.produce_many("q", range(3))

    async def handle(message: tocsin.Message) -> None:
        async with transaction(store) as connection:
            await execute(connection, EFFECT, message.id, message.read_ct)
            if operation == "release":
                await message.release(delay=3600, connection=connection)
            else:
                await getattr(message, operation)(connection=connection)
            assert (await store.messages.get(message.id)).state == "leased"

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert (suspended.value.handled, suspended.value.released) == (3, 0)
    assert await effects() == ids
    for message_id in ids:
        if operation == "delete":
            with pytest.raises(tocsin.MessageNotFound):
                await store.messages.get(message_id)
        else:
            assert (await store.messages.get(message_id)).state == {
                "archive": "archived",
                "release": "delayed",
            }[operation]
    assert warnings(caplog) == []


async def test_after_a_rollback_the_message_fails_with_the_handlers_error(
    store: tocsin.Store, effects: Effects, transaction: Open
) -> None:
    (message_id,) = await store.produce_many("q", [1])

    async def handle(message: tocsin.Message) -> None:
        async with transaction(store) as connection:
            await execute(connection, EFFECT, message.id, message.read_ct)
            await message.archive(connection=connection)
            if message.read_ct == 1:
                raise LookupError("not this time")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handle, once=True)
    found = await store.messages.get(message_id)
    assert (found.state, found.read_ct, found.last_error) == (
        "archived",
        2,
        "LookupError: not this time",
    )
    assert await effects() == [message_id]


async def test_a_handler_that_returns_after_a_rollback_has_failed(
    store: tocsin.Store, effects: Effects, transaction: Open
) -> None:
    """Otherwise its effect would be lost, and the message finished."""
    (message_id,) = await store.produce_many("q", [1])

    async def handle(message: tocsin.Message) -> None:
        try:
            async with transaction(store) as connection:
                await execute(connection, EFFECT, message.id, message.read_ct)
                await message.archive(connection=connection)
                if message.read_ct == 1:
                    raise LookupError
        except LookupError:
            pass

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended):
            await consumer.handle(handle, once=True)
    found = await store.messages.get(message_id)
    assert (found.state, found.read_ct, [d.delivery for d in found.history]) == ("archived", 2, [1])
    assert "in a transaction that was rolled back" in str(found.last_error)
    assert await effects() == [message_id]


async def test_after_a_rollback_a_handler_may_settle_in_another_way(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    ids = await store.produce_many("q", [1, 2])

    async def handle(message: tocsin.Message) -> None:
        async with store.transaction() as connection, connection.transaction(force_rollback=True):
            await message.archive(connection=connection)
        if message.payload == 1:
            await message.delete()
        else:
            async with store.transaction() as connection:
                await message.archive(connection=connection)

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert suspended.value.handled == 2
    assert await query(store_dsn, "select id from tocsin.archive") == [(ids[1],)]


async def test_a_message_whose_lease_is_gone_is_refused_and_the_rows_with_it(
    store: tocsin.Store, effects: Effects, store_dsn: str, transaction: Open
) -> None:
    await store.produce("q", 1)
    async with store.consumer("q") as a, store.consumer("q") as b:
        (old,) = await a.dequeue(vt=10)
        await move_clock(store_dsn, 11)
        (new,) = await b.dequeue()
        for operation in ("archive", "delete", "release"):
            with pytest.raises(tocsin.LeaseLost) as lost:
                async with transaction(store) as connection:
                    await execute(connection, EFFECT, old.id, old.read_ct)
                    await getattr(old, operation)(connection=connection)
            assert lost.value.operation == operation
        assert await effects() == []
        await new.archive()


async def test_a_handler_goes_on_after_the_commit_and_its_lease_is_not_missed(
    store: tocsin.Store, effects: Effects, caplog: pytest.LogCaptureFixture
) -> None:
    """It is neither cancelled nor warned of by the extension of its lease."""
    await store.produce_many("q", [1, 2])

    async def handle(message: tocsin.Message) -> None:
        async with store.transaction() as connection:
            await message.archive(connection=connection)
        await consumer._parts.keeper.refresh()
        assert message not in consumer._parts.leases
        with pytest.raises(tocsin.LeaseLost):
            await message.archive()
        if message.payload == 2:
            async with store.transaction() as connection:
                with pytest.raises(tocsin.LeaseLost):
                    await message.delete(connection=connection)
            raise LookupError("afterwards")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert suspended.value.handled == 2
    (warning,) = warnings(caplog)
    assert "afterwards" in warning


async def test_a_handler_that_fails_after_the_commit_has_handled_its_message(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    (message_id,) = await store.produce_many("q", [1])

    async def handle(message: tocsin.Message) -> None:
        async with store.transaction() as connection:
            await message.archive(connection=connection)
        raise LookupError

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert suspended.value.handled == 1
    assert await query(store_dsn, "select id, last_error from tocsin.archive") == [
        (message_id, None)
    ]


async def test_the_lease_is_kept_during_an_open_transaction_and_waits_for_nothing(
    store: tocsin.Store, effects: Effects, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other leases are extended; no consumer gets the message though its lease has
    ended; after a rollback it is extended again."""
    _first, second = await store.produce_many("q", [1, 2])
    in_transaction, roll_back = trio.Event(), trio.Event()

    async def handle(message: tocsin.Message) -> None:
        if message.id == second:
            await roll_back.wait()
            return
        async with store.transaction() as connection, connection.transaction(force_rollback=True):
            await message.archive(connection=connection)
            in_transaction.set()
            await roll_back.wait()
        await consumer._parts.keeper.refresh()
        assert message in consumer._parts.leases
        async with store.transaction() as connection:
            await message.archive(connection=connection)

    async with (
        store.consumer("q") as consumer,
        store.consumer("q") as other,
        running(consumer, handle, concurrency=2, once=True) as run,
    ):
        with trio.fail_after(PATIENCE):
            await in_transaction.wait()
            await move_clock(store_dsn, 3000)
            await consumer._parts.keeper.refresh()
            await move_clock(store_dsn, 5000)
            assert await other.dequeue(9) == []
            await move_clock(store_dsn, 0)  # else the lease may be taken over after the rollback
            roll_back.set()
        assert (await run.wait()).handled == 2
    assert warnings(caplog) == []


async def test_a_transaction_that_ends_after_the_handler_is_waited_for(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    returned = Handled()
    ids = await store.produce_many("q", [1, 2, 3])
    archived = "select id, read_ct from tocsin.archive order by id"
    with psycopg.connect(store_dsn) as connection:

        async def handle(message: tocsin.Message) -> None:
            if message.read_ct == 1:
                await message.archive(connection=connection)
            await returned(message)

        async with store.consumer("q") as consumer, running(consumer, handle):
            await returned.wait(3)
            assert await query(store_dsn, archived) == []
            connection.commit()
            last = await store.produce("q", 4)
            await returned.wait(4)
            connection.rollback()
            await returned.wait(5)
    assert await query(store_dsn, archived) == [*((i, 1) for i in ids), (last, 2)]


async def test_many_are_settled_in_one_statement(
    store: tocsin.Store, effects: Effects, store_dsn: str, transaction: Open
) -> None:
    await store.produce_many("q", range(6))
    async with store.consumer("q") as consumer:
        messages = await consumer.dequeue(6)
        await messages[5].delete()
        async with transaction(store) as connection:
            assert await consumer.archive_many(messages[4:], connection=connection) == [True, False]
            assert await consumer.delete_many(
                [m.id for m in messages[:2]], connection=connection
            ) == [True, True]
            assert await consumer.release_many(messages[2:3], delay=60, connection=connection) == [
                True
            ]
            await consumer.archive(messages[3].id, connection=connection)
        await consumer.suspend(drain=True)
    assert await query(store_dsn, "select payload from tocsin.archive order by id") == [(3,), (4,)]
    assert await query(store_dsn, "select payload, state::text from tocsin.messages") == [
        (2, "delayed")
    ]


async def test_a_batch_handler_settles_its_messages_with_its_rows(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    ids = await store.produce_many("q", range(10))

    async def handle(messages: list[tocsin.Message]) -> None:
        async with store.transaction() as connection:
            for message in messages:
                await execute(connection, EFFECT, message.id, message.read_ct)
            assert all(await consumer.archive_many(messages, connection=connection))

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle_batches(handle, size=4, once=True)
    assert suspended.value.handled == 10
    assert await effects() == ids


async def test_a_plain_function_settles_on_a_blocking_connection(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    (message_id,) = await store.produce_many("q", [1])

    def handle(message: tocsin.Message) -> None:
        with psycopg.connect(store_dsn) as connection:
            connection.execute(EFFECT, [message.id, message.read_ct])
            trio.from_thread.run(lambda: message.archive(connection=connection))

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert suspended.value.handled == 1
    assert await effects() == [message_id]


async def test_a_stream_settles_with_the_callers_rows(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    await store.produce_many("q", range(3))
    async with store.consumer("q") as consumer:
        async with consumer.messages() as stream:
            async for message in stream:
                async with (
                    store.transaction() as connection,
                    connection.transaction(force_rollback=message.payload == 1),
                ):
                    await message.archive(connection=connection)
                if message.payload == 2:
                    break
        assert consumer._parts.settler.handled == 2
    assert await query(store_dsn, "select payload from tocsin.archive order by id") == [(0,), (2,)]
    assert await query(store_dsn, "select payload, state::text, read_ct from tocsin.messages") == [
        (1, "ready", 0)
    ]


async def test_a_consumer_ends_while_the_transaction_is_open(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    """It does not wait for the row that its own caller has locked."""
    await store.produce_many("q", [1, 2])
    with trio.fail_after(PATIENCE):
        async with store.transaction() as connection:
            async with store.consumer("q") as consumer:
                first, second = await consumer.dequeue(2)
                await first.archive(connection=connection)
            assert (await store.messages.get(second.id)).state == "ready"  # that one was requeued
            assert (await store.messages.get(first.id)).state == "leased"
    assert (await store.messages.get(first.id)).state == "archived"


async def test_a_run_that_is_cancelled_in_the_transaction_gives_its_message_back(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    await store.produce("q", 1)
    in_transaction = trio.Event()

    async def handle(message: tocsin.Message) -> None:
        async with store.transaction() as connection:
            await execute(connection, EFFECT, message.id, message.read_ct)
            await message.archive(connection=connection)
            in_transaction.set()
            await trio.sleep_forever()

    async with store.consumer("q") as consumer:
        async with running(consumer, handle) as run:
            with trio.fail_after(PATIENCE):
                await in_transaction.wait()
            run.cancel()
        assert await query(store_dsn, "select state::text, read_ct from tocsin.messages") == [
            ("ready", 0)
        ]
    assert await effects() == []


async def test_what_cannot_be_used_as_a_connection_is_refused_and_the_message_stays(
    store: tocsin.Store, effects: Effects
) -> None:
    await store.produce("q", 1)
    async with store.consumer("q") as consumer:
        (message,) = await consumer.dequeue()
        not_connections: list[Any] = ["x", consumer, object.__new__(psycopg.AsyncConnection)]
        for connection in not_connections:
            with pytest.raises(TypeError, match="connection must be one of Tocsin's"):
                await message.archive(connection=connection)
        assert not consumer._parts.leases.is_in_transaction(message)
        await message.archive()


def test_from_asyncio_by_the_function_of_the_database(store_dsn: str) -> None:
    """What another program claimed, or this one's consumer in another loop, is settled
    by its id and its lease token."""
    token: list[int] = []

    async def claim() -> None:
        async with tocsin.connect(store_dsn) as store:
            await store.queues.ensure("q")
            await store.produce("q", 1)
        await query(
            store_dsn, "select tocsin.register_worker('q', 'consumer', 'w', null, 'h', 1, 'v')"
        )
        rows = await query(
            store_dsn,
            "select id, lease from tocsin.claim(1, (select registration from tocsin.workers), 1)",
        )
        token.extend(rows[0])

    async def settle() -> None:
        async with await psycopg.AsyncConnection.connect(store_dsn) as connection:
            for outcome in ([True], [False]):
                cursor = await connection.execute(
                    "select tocsin.archive(array[%s::bigint], array[%s::bigint])", token
                )
                assert await cursor.fetchone() == (outcome,)

    trio.run(claim)
    asyncio.run(settle())


async def test_the_outcome_of_a_commit_that_is_not_known_is_what_the_database_has(
    store: tocsin.Store, effects: Effects, store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit has happened and its answer is lost: the handler raises, and the
    message is not delivered again."""
    (message_id,) = await store.produce_many("q", [1])

    async def handle(message: tocsin.Message) -> None:
        async with open_connection(store_dsn) as connection:
            async with connection.transaction():
                await execute(connection, EFFECT, message.id, message.read_ct)
                await message.archive(connection=connection)
            raise tocsin.ConnectionLost("somewhere", "the answer to the commit is lost")

    async with store.consumer("q") as consumer:
        with pytest.raises(tocsin.Suspended) as suspended:
            await consumer.handle(handle, once=True)
    assert suspended.value.handled == 1
    assert await effects() == [message_id]


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_under_kills_each_message_has_its_effect_exactly_once(
    store: tocsin.Store, effects: Effects, store_dsn: str
) -> None:
    """Processes are killed at steps that chance chooses; the table has no constraint
    that would hide a second effect."""
    await store.queues.update("q", vt=1, max_deliveries=1000)
    ids = await store.produce_many("q", range(45))
    await query(store_dsn, "alter table effects alter delivery drop not null")
    dice = random.Random(4711)
    kills = 0

    async def kill_again_and_again() -> None:
        nonlocal kills
        while True:
            async with run_script("settle_in_transaction.py", store_dsn) as child:
                for _ in range(dice.randint(1, 25)):
                    await child.line()
            kills += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(kill_again_and_again)
        await until_query(
            store_dsn, "select 1 from tocsin.messages limit 1", gives=[], patience=240
        )
        nursery.cancel_scope.cancel()
    assert await effects() == ids
    assert kills > 5
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(30,)]
    assert await store.dead_letters.list("q") == []


async def test_a_run_does_not_wait_without_end_for_a_transaction_to_end(
    store: tocsin.Store, effects: Effects, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin._queue.consuming.dispatcher.OPEN_AT_THE_END", 0)
    (message_id,) = await store.produce_many("q", [1])
    returned = Handled()
    with psycopg.connect(store_dsn) as connection:

        async def handle(message: tocsin.Message) -> None:
            await message.archive(connection=connection)
            await returned(message)

        async with store.consumer("q") as consumer, running(consumer, handle) as run:
            await returned.wait(1)
        assert (run.suspended.handled, run.suspended.released) == (0, 0)
        assert (await store.messages.get(message_id)).state == "leased"
    assert (await store.messages.get(message_id)).state == "archived"


async def test_a_stream_keeps_what_a_long_transaction_settles(
    store: tocsin.Store, store_dsn: str
) -> None:
    """The lease of a message that the block has is over by the clock when the next one
    comes. It is not taken away for that."""
    await store.queues.ensure("q", vt=0.3)
    await store.produce_many("q", [1, 2, 3])
    with pytest.raises(tocsin.Suspended) as caught:
        async with store.consumer("q") as consumer, consumer.messages() as stream:
            first = await anext(stream)
            async with store.transaction() as connection:
                await first.archive(connection=connection)
                await until_query(
                    store_dsn,
                    "select id from tocsin.messages where state = 'leased'"
                    " and vt < tocsin._clock()",
                )
                second = await anext(stream)
            await second.archive()
            await (await anext(stream)).archive()
            await consumer.interrupt()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
    assert caught.value.handled == 3
    assert await query(store_dsn, "select count(*)::int from tocsin.archive") == [(3,)]
