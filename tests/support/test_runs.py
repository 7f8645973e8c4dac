import pytest
import trio

import tocsin
from tests.support import Handled, until
from tests.support.faults import hang
from tests.support.runs import running


async def test_a_run_is_interrupted_at_the_end_of_the_block(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        async with running(consumer) as run:
            assert await consumer.status() == "polling"
            await store.produce("q", 1)
            await run.settled(1, "archived")
            assert not run.ended
        assert run.ended
        assert (run.suspended.reason, run.suspended.handled) == ("interrupted", 1)


async def test_a_run_that_fails_cancels_the_block_and_raises_its_error_bare(
    store: tocsin.Store,
) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        with pytest.raises(SystemExit):
            async with running(consumer, exit_at_once):
                await store.produce("q", 1)
                await trio.sleep_forever()


async def exit_at_once(_: tocsin.Message) -> None:
    raise SystemExit


async def test_a_run_that_does_not_begin_raises_its_error(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer, running(consumer):
        with pytest.raises(RuntimeError, match="is running already"):
            async with running(consumer):
                pytest.fail("there is no second run")


async def test_what_the_block_raises_cancels_the_run(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    await store.produce("q", 1)
    handled = Handled(hang)
    async with store.consumer("q") as consumer:
        with pytest.raises(LookupError):
            async with running(consumer, handled) as run:
                await handled.wait(1)
                raise LookupError
        assert run.ended


async def test_a_run_that_the_test_ends_is_waited_for(store: tocsin.Store) -> None:
    await store.queues.ensure("q")
    async with store.consumer("q") as consumer:
        async with running(consumer) as run:
            await (await store.workers.get(consumer.worker_id)).interrupt()
        assert run.suspended.reason == "interrupted"
        await consumer.resume()
        async with running(consumer, hang) as run:
            await store.produce("q", 1)
            await run.handled.wait(1)
            run.cancel()
            await until(lambda: run.ended)
