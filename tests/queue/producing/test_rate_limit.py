"""Producers with a rate limit: what they refuse, and when they enqueue. Time is trio's,
and no test waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

import tocsin
from tests.support import query, until_query

# Enqueueing


@pytest.fixture
async def store(store_dsn: str, mock_clock: trio.testing.MockClock) -> AsyncIterator[tocsin.Store]:
    """A store whose time stands still; a heartbeat, were there one, would be under way
    when it jumps."""
    async with tocsin.connect(store_dsn, heartbeat=3600) as store:
        yield store


@pytest.fixture
async def limited(store: tocsin.Store) -> AsyncIterator[tocsin.Producer]:
    """A producer of one message in a thousand seconds, five at once."""
    await store.queues.ensure("q", max_payload=20)
    async with store.producer("q", rate_limit=tocsin.RateLimit(0.001, burst=5)) as producer:
        yield producer


COUNT = "select count(*)::int from tocsin.messages"


async def test_rate_limit_refuses_with_a_true_retry_after_and_sends_nothing(
    limited: tocsin.Producer,
    store: tocsin.Store,
    store_dsn: str,
    mock_clock: trio.testing.MockClock,
) -> None:
    await limited.enqueue_many([1] * 3)
    with pytest.raises(tocsin.RateLimited) as refused:
        await limited.enqueue_many([1] * 3)
    assert refused.value.retry_after == pytest.approx(1000)
    async with store.transaction() as connection:
        for _ in range(2):
            await limited.enqueue(1, connection=connection)
        with pytest.raises(tocsin.RateLimited) as refused:
            await limited.enqueue(1, connection=connection)
    assert refused.value.retry_after == pytest.approx(1000)
    assert await query(store_dsn, COUNT) == [(5,)]
    mock_clock.jump(refused.value.retry_after)
    await limited.enqueue(1)
    # has a bucket of its own
    async with store.producer("q", rate_limit=tocsin.RateLimit(0.001)) as other:
        await other.enqueue(1)
    await store.produce("q", 1)
    assert await query(store_dsn, COUNT) == [(8,)]


async def test_a_batch_over_the_burst_is_enqueued_when_the_bucket_is_full(
    limited: tocsin.Producer, store_dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    def payloads() -> Iterator[int]:
        # five statements; how many these are is not known when the first is sent
        yield from range(10_000)

    await limited.enqueue_many(payloads())
    assert await query(store_dsn, COUNT) == [(10_000,)]
    with pytest.raises(tocsin.RateLimited) as refused:
        await limited.enqueue(1)
    assert refused.value.retry_after == pytest.approx((10_000 - 5 + 1) * 1000)
    mock_clock.jump(refused.value.retry_after)
    await limited.enqueue(1)


async def test_what_is_never_sent_takes_no_tokens(limited: tocsin.Producer) -> None:
    for _ in range(10):
        with pytest.raises(tocsin.PayloadInvalid):
            await limited.enqueue({1})
        with pytest.raises(tocsin.PayloadInvalid):
            await limited.enqueue_many([1, 2, {3}])
        with pytest.raises(ValueError, match="delay"):
            await limited.enqueue(1, delay=-1)
        assert await limited.enqueue_many([]) == []
    await limited.enqueue_many([1] * 5)


async def test_what_the_database_refuses_has_taken_its_tokens(limited: tocsin.Producer) -> None:
    with pytest.raises(tocsin.PayloadTooLarge):
        await limited.enqueue_many(["x" * 30] * 5)
    with pytest.raises(tocsin.RateLimited):
        await limited.enqueue(1)


async def test_rate_limit_waits_if_asked_to(
    store: tocsin.Store, store_dsn: str, mock_clock: trio.testing.MockClock
) -> None:
    await store.queues.ensure("q")
    async with (
        store.producer("q", rate_limit=tocsin.RateLimit(0.001, wait=True)) as producer,
        trio.open_nursery() as nursery,
    ):
        await producer.enqueue(0)
        for n in (1, 2, 3):
            nursery.start_soon(producer.enqueue, n)
            await trio.testing.wait_all_tasks_blocked()
        assert await query(store_dsn, COUNT) == [(1,)]
        mock_clock.jump(1500)
        await until_query(store_dsn, COUNT, gives=[(2,)])
        mock_clock.jump(10_000)
        await until_query(store_dsn, COUNT, gives=[(3,)])
        mock_clock.jump(1000)
    assert await query(store_dsn, "select payload from tocsin.messages order by id") == [
        (n,) for n in range(4)
    ]
