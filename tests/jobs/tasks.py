"""Tasks for tests, as a program defines them: at the top of a module."""

from __future__ import annotations

import attrs
import trio

import tocsin
from tocsin import current_job, task


@attrs.frozen
class Order:
    id: int
    total: float = 0.0


@task
async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


@task
def halve(number: float) -> float:
    return number / 2


@task
async def nothing() -> None:
    await trio.lowlevel.checkpoint()


@task
async def ship(order: Order) -> Order:
    await trio.lowlevel.checkpoint()
    return attrs.evolve(order, total=order.total + 5)


@task(max_attempts=3, retry=0)
async def fail_until(attempt: int) -> int:
    """Fail before this attempt."""
    await trio.lowlevel.checkpoint()
    if current_job().attempt < attempt:
        raise OSError(f"attempt {current_job().attempt}")
    return current_job().attempt


@task(max_attempts=2, retry=3600)
async def fail_slowly() -> None:
    await trio.lowlevel.checkpoint()
    raise OSError("try again in an hour")


@task(retry=tocsin.exponential(0, never=KeyError))
async def fail_with(error: str) -> None:
    await trio.lowlevel.checkpoint()
    raise KeyError("k") if error == "KeyError" else ValueError("v")


@task(max_attempts=2, retry=0)
def leave(code: int) -> None:
    raise SystemExit(code)


@task(max_attempts=2, retry=0, timeout=0.05)
async def hang() -> None:
    await trio.sleep_forever()


@task
async def wait_forever() -> None:
    await trio.sleep_forever()


@task
async def decide(verdict: str) -> str:
    await trio.lowlevel.checkpoint()
    job = current_job()
    if job.attempt == 1 and verdict == "retry":
        raise tocsin.Retry(0)
    if verdict == "reject":
        raise tocsin.Reject("not like this")
    return f"attempt {job.attempt}"


@task
async def return_set() -> object:
    await trio.lowlevel.checkpoint()
    return {"a", object()}


@task(queue="other")
async def elsewhere(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return -number


@task(limits=[tocsin.Limit("smtp", 2), tocsin.Limit("host", key="host")])
async def fetch(host: str, page: int = 1) -> int:
    await trio.lowlevel.checkpoint()
    return page


@task(limits=[tocsin.Limit("customer", key=lambda order: str(order.id), ordered=True)])
async def bill(order: Order) -> int:
    await trio.lowlevel.checkpoint()
    return order.id
