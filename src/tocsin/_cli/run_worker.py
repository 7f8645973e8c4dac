"""``tocsin worker run``: consume a queue with a handler, or run the jobs of tasks."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from tocsin import Consumer, Store, Suspended, Task, drain_on_signals
from tocsin._cli import handlers, logs
from tocsin._durations import to_timedelta
from tocsin._jobs.job_consumer import JobConsumer
from tocsin._jobs.worker_options import JobWorkerOptions

from .options import COUNT, DURATION
from .program import Command, Common, ExitCode, with_target
from .reload import run_and_restart

logger = logging.getLogger("tocsin.cli")


@click.command(
    cls=Command,
    examples=[
        "tocsin worker run emails my_service:send",
        (
            "tocsin worker run emails my_service.mail:Mailer.send --concurrency 10 --timeout 30s"
            " --grace 20s"
        ),
        "tocsin worker run emails my_service:send --once",
        "tocsin worker run emails my_service:send --reload --log-level debug",
        "tocsin worker run --tasks my_service.tasks --concurrency 10",
        "tocsin worker run --tasks my_service.tasks:send --tasks my_service.reports --once",
    ],
)
@click.argument("queue", metavar="[QUEUE]", required=False)
@click.argument("handler", metavar="[MODULE:HANDLER]", required=False)
@click.option(
    "--tasks",
    multiple=True,
    metavar="MODULE[:TASK]",
    help=(
        "Run the jobs of this task, or of all tasks of a module, in the place of a queue and a"
        " handler; may be repeated."
    ),
)
@click.option(
    "--concurrency",
    type=COUNT,
    default=1,
    show_default=True,
    help="Maximum number of concurrent handler calls.",
)
@click.option(
    "--threads",
    type=COUNT,
    help=(
        "With --tasks: maximum number of plain functions that run in threads at a time; by default"
        " the --concurrency, but at most 40."
    ),
)
@click.option(
    "--processes",
    type=COUNT,
    help=(
        "With --tasks: maximum number of functions that run in processes of their own at a time; by"
        " default the number of processors."
    ),
)
@click.option(
    "--batch", type=COUNT, help="Pass a list of at most this many messages to the handler."
)
@click.option(
    "--once", is_flag=True, help="End when no message is due and the last handler has ended."
)
@click.option(
    "--ordered",
    is_flag=True,
    help=(
        "Finish each message before the next one begins; a failed message delays all later"
        " messages."
    ),
)
@click.option(
    "--grace",
    type=DURATION,
    help="Cancel handlers that still run this long after a signal or an interrupt.",
)
@click.option(
    "--timeout",
    type=DURATION,
    help="Cancel a handler call that takes longer than this; the delivery has failed.",
)
@click.option(
    "--vt",
    type=DURATION,
    help="Length of the leases, which are extended while handlers run; by default the queue's.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name of the worker in the registry, unique in its queue; by default a generated name.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Restart when a Python file below the working directory changes; for development.",
)
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    help="Lowest level that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    show_default=True,
    help="Plain text, or a JSON object for each line.",
)
@with_target
async def run(
    common: Common,
    *,
    queue: str | None,
    handler: str | None,
    tasks: tuple[str, ...],
    concurrency: int,
    threads: int | None,
    processes: int | None,
    batch: int | None,
    once: bool,
    ordered: bool,
    grace: timedelta | None,
    timeout: timedelta | None,  # noqa: ASYNC109 - of each call of the handler
    vt: timedelta | None,
    name: str | None,
    reload: bool,
    log_level: str,
    log_format: str,
) -> int:
    """Consume a queue with a handler: a function of one message, async or plain.

    With --batch the handler is a function of a list of messages. With --tasks the
    worker serves the queues of the tasks, and each job has the timeout of its task.

    The command imports the module from the working directory. When the handler returns,
    its message is archived. When it raises, the message is delivered again later, or
    becomes a dead letter after its last delivery.

    SIGINT and SIGTERM drain the worker: it claims no more messages, and the process
    exits with 0 when the handlers have ended. A second signal, at least a second later,
    cancels the handlers and requeues their messages. `tocsin worker interrupt` also
    drains the worker, from any host. The log goes to standard error.
    """
    try:
        to_timedelta(vt, "--vt")
        to_timedelta(timeout, "--timeout")
        if name == "":
            raise ValueError("--name must not be empty")
        if ordered and (batch is not None or concurrency != 1):
            raise ValueError("--ordered takes neither --batch nor a --concurrency above 1")
        if tasks:
            refused = {
                "a queue and a handler": queue,
                "--batch": batch,
                "--ordered": ordered or None,
                "--timeout": timeout,
                "--vt": vt,
            }
            if given := [option for option, value in refused.items() if value is not None]:
                raise ValueError(f"--tasks does not take {', '.join(given)}")
        elif queue is None or handler is None:
            raise ValueError("expected QUEUE and MODULE:HANDLER, or --tasks")
        elif threads is not None or processes is not None:
            raise ValueError("--threads and --processes belong to --tasks")
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    if reload:
        command = [sys.executable, "-m", "tocsin", *(a for a in sys.argv[1:] if a != "--reload")]
        return await run_and_restart(command, Path.cwd())
    loaded = handlers.load_tasks(tasks) if handler is None else handlers.load(handler)
    logs.set_up(log_level, log_format)
    async with common.connect() as store:
        try:
            if isinstance(loaded, list):
                job_options: JobWorkerOptions = {
                    "concurrency": concurrency,
                    "threads": threads,
                    "processes": processes,
                    "name": name,
                }
                await _run_tasks(store, loaded, job_options, grace, once=once)
            else:
                options: dict[str, Any] = {
                    "concurrency": concurrency,
                    "vt": vt,
                    "timeout": timeout,
                    "once": once,
                }
                async with store.consumer(str(queue), name=name) as consumer:
                    _log_start(consumer, str(handler))
                    async with drain_on_signals(consumer, grace=grace):
                        if batch is None:
                            await consumer.handle(loaded, ordered=ordered, **options)
                        else:
                            await consumer.handle_batches(loaded, size=batch, **options)
        except Suspended as suspended:
            logger.info("%s", suspended)
    return ExitCode.DONE


async def _run_tasks(
    store: Store,
    tasks: list[Task[..., Any]],
    options: JobWorkerOptions,
    grace: timedelta | None,
    *,
    once: bool,
) -> None:
    names = ", ".join(task.name for task in tasks)
    async with store.worker(tasks, **options) as worker:
        for consumer in worker.consumers:
            _log_start(consumer, names)
        async with drain_on_signals(grace=grace):
            await worker.run(once=once)


def _log_start(consumer: Consumer | JobConsumer, work: str) -> None:
    logger.info(
        "worker %d (%s) consumes %r with %s",
        consumer.worker_id,
        consumer.name,
        consumer.queue,
        work,
    )
