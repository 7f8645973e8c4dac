"""Which calls share a statement."""

from __future__ import annotations

import trio
import trio.testing

from tocsin._queue.producing.batcher import MAX_MESSAGES, MAX_SIZE, PendingBatch, PendingEnqueue
from tocsin._queue.producing.enqueue_request import EnqueueRequest


def request(payload: str = "1") -> EnqueueRequest:
    return EnqueueRequest(payload, None, None, "0", None, None, None, None, None, None)


async def gather(*items: PendingEnqueue) -> None:
    """Have a task wait for each of them."""
    for item in items:
        trio.lowlevel.spawn_system_task(item.result)
    await trio.testing.wait_all_tasks_blocked()


async def test_what_gathered_goes_together_in_order_and_within_bounds() -> None:
    pending = PendingBatch()
    assert pending.take() == []
    items = [PendingEnqueue(request()) for _ in range(MAX_MESSAGES + 2)]
    large = [PendingEnqueue(request("x" * (MAX_SIZE // 2))) for _ in range(3)]
    large[0].request = request()._replace(headers=large[0].request.payload)
    await gather(*items, *large)
    for item in [*items, *large]:
        pending.add(item)
    assert pending.take() == items[:MAX_MESSAGES]
    assert pending.take() == [*items[MAX_MESSAGES:], *large[:2]]
    assert pending.take() == large[2:]
    assert pending.take() == []
    for item in [*items, *large]:
        item.set_result(1)


async def test_what_was_refused_together_goes_alone_and_first() -> None:
    pending = PendingBatch()
    first, second, third, gone = items = [PendingEnqueue(request()) for _ in range(4)]
    await gather(*items)
    pending.add(third)
    pending.resend_alone([first, gone, second])
    gone.set_result(1)
    assert pending.take_all() == [first, gone, second, third]
    pending.add(third)
    pending.resend_alone([first, gone, second])
    assert [pending.take(), pending.take(), pending.take(), pending.take()] == [
        [first],
        [second],
        [third],
        [],
    ]
    for item in items:
        item.set_result(1)
