"""``tocsin worker``: control the workers of every process, and run a worker."""

from __future__ import annotations

import shlex
from datetime import timedelta

import click

from tocsin import QueueHealth, Store
from tocsin._queue.workers.health import MAX_AGE

from .options import (
    DURATION,
    after_option,
    confirm,
    dry_run_option,
    id_argument,
    limit_option,
    queue_option,
    yes_option,
)
from .program import ExitCode, Group, on_store
from .render import Column, Screen, write_age
from .run_worker import run
from .tables import MESSAGES, WORKERS

_HEALTH: list[Column[QueueHealth]] = [
    Column("QUEUE", lambda h: h.queue, "name", narrow=True),
    Column("HEALTHY", lambda h: h.healthy, narrow=True),
    Column("CONSUMERS", lambda h: h.consumers, "number", narrow=True),
    Column("READY", lambda h: h.ready, "number", narrow=True),
    Column("OLDEST", lambda h: write_age(h.oldest_ready_age), "number", narrow=True),
    Column("RUNNING", lambda h: write_age(h.running_for), "number"),
    Column("PAUSED", lambda h: write_age(h.paused_for), "number"),
    Column("UNHEALTHY", lambda h: h.unhealthy_workers),
    Column("SUSPENDED", lambda h: h.suspended_workers),
    Column("PROBLEMS", lambda h: "; ".join(h.problems) or None, "prose", narrow=True),
]


@click.group(cls=Group)
def worker() -> None:
    """Run workers; show, suspend, drain and stop workers of any process and host.

    \b
    interrupt  claims no more; its run ends, and usually its process
    suspend    claims no more until it is resumed; its process stays
    shutdown   stops a suspended worker permanently
    stop       suspends and shuts down, from any state
    """


worker.add_command(run)


@worker.command(
    "list", examples=["tocsin worker list", "tocsin worker list --queue emails --format json"]
)
@queue_option
@on_store
async def list_workers(store: Store, screen: Screen, queue: str | None) -> None:
    """Show workers, in the order of their ids."""
    if queue is not None:
        await store.queues.get(queue)
    screen.table(await store.workers.list(queue), WORKERS, empty="no workers")


@worker.command(examples=["tocsin worker get 42"])
@id_argument("worker")
@on_store
async def get(store: Store, screen: Screen, id: int) -> None:
    """Show a worker's entry in the registry."""
    screen.record(await (await store.workers.get(id)).info())


@worker.command(examples=["tocsin worker messages 42"])
@id_argument("worker")
@limit_option
@after_option
@on_store
async def messages(store: Store, screen: Screen, id: int, limit: int, after: int | None) -> None:
    """Show the messages that a worker holds."""
    info = await (await store.workers.get(id)).info()
    found = await store.messages.list(
        info.queue, state="leased", worker=id, limit=limit, after=after
    )
    screen.table(found, MESSAGES, empty=f"worker {id} holds no messages")


@worker.command("release-messages", examples=["tocsin worker release-messages 42"])
@id_argument("worker")
@on_store
async def release_messages(store: Store, screen: Screen, id: int) -> None:
    """Requeue the messages that a worker holds, and cancel their handlers.

    The worker continues, and may claim these messages again; suspend --release prevents
    this.
    """
    released = await store.workers.release_messages(id)
    screen.say(f"worker {id} has released {released} messages", {"id": id, "released": released})


@worker.command(examples=["tocsin worker suspend 42 --drain", "tocsin worker suspend 42 --release"])
@id_argument("worker")
@click.option("--drain", is_flag=True, help="Let the worker finish the messages that it holds.")
@click.option(
    "--release",
    is_flag=True,
    help="Cancel its handlers, and release its messages at once.",
)
@on_store
async def suspend(store: Store, screen: Screen, id: int, *, drain: bool, release: bool) -> None:
    """Stop a worker from claiming until it is resumed; its process continues.

    The command is refused while the worker holds messages, except with --drain or
    --release.
    """
    handle = await store.workers.get(id)
    await handle.suspend(release=release, drain=drain)
    await _show_state(screen, store, id)


@worker.command(examples=["tocsin worker resume 42"])
@id_argument("worker")
@on_store
async def resume(store: Store, screen: Screen, id: int) -> None:
    """End the suspension of a worker."""
    await (await store.workers.get(id)).resume()
    await _show_state(screen, store, id)


@worker.command(examples=["tocsin worker interrupt 42", "tocsin worker interrupt 42 --grace 30s"])
@id_argument("worker")
@click.option(
    "--grace",
    type=DURATION,
    help="Cancel handlers that still run after this time; by default there is no limit.",
)
@on_store
async def interrupt(store: Store, screen: Screen, id: int, grace: timedelta | None) -> None:
    """End the run of a worker: it claims no more messages, and its handlers finish.

    After that, `tocsin worker run` ends.
    """
    await (await store.workers.get(id)).interrupt(grace=grace)
    await _show_state(screen, store, id)


@worker.command(examples=["tocsin worker shutdown 42"])
@id_argument("worker")
@on_store
async def shutdown(store: Store, screen: Screen, id: int) -> None:
    """Stop a suspended worker permanently.

    The command is refused in any other state, and while the worker holds messages; see
    stop.
    """
    await (await store.workers.get(id)).shutdown()
    await _show_state(screen, store, id)


@worker.command(examples=["tocsin worker stop --id 42"])
@id_argument("worker")
@on_store
async def stop(store: Store, screen: Screen, id: int) -> None:
    """Stop a worker permanently, in any state.

    Its handlers are cancelled, and the messages that it holds are requeued.
    """
    released = await (await store.workers.get(id)).stop()
    screen.say(
        f"worker {id} is stopped, and has released {released} messages",
        {"id": id, "released": released},
    )


@worker.command(
    examples=[
        "tocsin worker purge --older-than 7d --dry-run",
        "tocsin worker purge --older-than 7d --queue emails --yes",
    ]
)
@click.option(
    "--older-than",
    type=DURATION,
    required=True,
    help="Only workers that have been stopped for longer than this, such as 7d.",
)
@queue_option
@dry_run_option
@yes_option
@on_store
async def purge(
    store: Store,
    screen: Screen,
    older_than: timedelta,
    queue: str | None,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete workers that were stopped long ago.

    Messages, the archive and dead letters keep the ids of these workers.
    """
    if not dry_run and not yes:
        would = await store.workers.purge(older_than, queue=queue, dry_run=True)
        await confirm(f"Permanently delete {len(would)} stopped workers?", yes=yes)
    purged = await store.workers.purge(older_than, queue=queue, dry_run=dry_run)
    if dry_run or screen.json:
        screen.table(purged, WORKERS, empty="no workers found")
    else:
        screen.say(f"purged {len(purged)} workers", None)


@worker.command(examples=["tocsin worker delete 42 --yes"])
@id_argument("worker")
@yes_option
@on_store
async def delete(store: Store, screen: Screen, id: int, *, yes: bool) -> None:
    """Delete a worker, which must be stopped."""
    await confirm(f"Delete worker {id} for good?", yes=yes)
    await store.workers.delete(id)
    screen.say(f"worker {id} is deleted", {"id": id})


@worker.command(examples=["tocsin worker heartbeat 42"])
@id_argument("worker")
@on_store
async def heartbeat(store: Store, screen: Screen, id: int) -> None:
    """Record a heartbeat of a worker.

    Tocsin's automatic heartbeat makes this command unnecessary.
    """
    await (await store.workers.get(id)).heartbeat()
    await _show_state(screen, store, id)


@worker.command(
    examples=["tocsin worker stats", "tocsin worker stats --queue emails --format json"]
)
@queue_option
@on_store
async def stats(store: Store, screen: Screen, queue: str | None) -> None:
    """Count workers by state and kind, and the messages that they hold."""
    screen.record(await store.workers.stats(queue))


@worker.command(
    examples=[
        "tocsin worker health",
        "tocsin worker health --queue emails --max-age 300 --max-running 2h",
    ]
)
@queue_option
@click.option(
    "--max-age",
    type=DURATION,
    default=f"{MAX_AGE:g}s",
    show_default=True,
    help=(
        "The longest time without a heartbeat, and the longest wait of a message without a"
        " consumer."
    ),
)
@click.option(
    "--max-running",
    type=DURATION,
    help=(
        "The longest time that a worker may take for one message; by default ten times the queue's"
        " vt, but at least 5m and at most 1h."
    ),
)
@on_store
async def health(
    store: Store,
    screen: Screen,
    queue: str | None,
    max_age: timedelta,
    max_running: timedelta | None,
) -> ExitCode:
    """Find workers that are silent or may hang, and queues without consumers.

    A queue without a consumer is a problem if messages wait in it. A paused queue is
    not a problem, but a line says if messages wait in it.

    Exits with 4 if there is a problem.
    """
    found = await store.workers.health(queue, max_age=max_age, max_running=max_running)
    screen.table(found, _HEALTH, empty="no queues")
    for h in found:
        if h.paused_for is not None and h.ready:
            screen.remark(
                f"queue {h.queue!r} has been paused for {write_age(h.paused_for)}, and at least"
                f" {h.ready} messages wait; `tocsin queue resume {shlex.quote(h.queue)}` ends the"
                " pause"
            )
    return ExitCode.DONE if all(h.healthy for h in found) else ExitCode.UNHEALTHY


async def _show_state(screen: Screen, store: Store, worker_id: int) -> None:
    info = await (await store.workers.get(worker_id)).info()
    screen.say(
        f"worker {info.id} ({info.name!r}) is {info.status.value}, and holds {info.held} messages",
        info,
    )
