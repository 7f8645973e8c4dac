"""A process that is killed."""

from __future__ import annotations

import pytest

import tocsin
from tests.support import query
from tests.support.child import run_script
from tests.support.runs import running

pytestmark = pytest.mark.fault


@pytest.mark.slow
async def test_killed_worker_is_replaced_long_before_the_visibility_timeout(
    store: tocsin.Store, store_dsn: str
) -> None:
    """That it takes less than five seconds is what the benchmark ``kill`` measures."""
    await store.queues.ensure("tasks", vt=3600)
    # else this server is too young
    await query(store_dsn, "insert into tocsin.uptime (since) values (now() - interval '1 hour')")
    async with run_script("consume.py", store_dsn, "tasks", "doomed", "hold") as doomed:
        doomed_id = int((await doomed.words("worker"))[0])
        message_id = await store.produce("tasks", 1)
        assert await doomed.words("handling") == [str(message_id)]
        async with store.consumer("tasks", name="heir") as heir, running(heir) as run:
            doomed.process.kill()
            await run.handled.wait(1)
    (message,) = run.handled.messages
    assert (message.id, message.read_ct) == (message_id, 2)
    assert (await (await store.workers.get(doomed_id)).info()).status == "stopped"
