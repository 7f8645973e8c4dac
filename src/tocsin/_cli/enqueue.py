"""``tocsin enqueue``: enqueue messages from the command line or from standard input.

Standard input has one JSON value on each line, and is one transaction: all lines are
enqueued, or none. The command sends the lines while it reads them, a few thousand at a
time, so their number has no limit. No message is delivered before the input has ended.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click
import trio

from tocsin import PayloadInvalid, PayloadTooLarge, Store

from .options import COUNT, DURATION, JSON, MOMENT, PRIORITY, Json, queue_argument
from .program import Command, on_store
from .render import Screen
from .streams import input_number, is_terminal

_LINES = 2000
"""Lines in one statement."""
_READ = 1 << 18
"""Bytes in one read."""


class _Enqueue(Command):
    """A command whose arguments may be negative numbers, which are not options."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        A blank before a negative number keeps click from reading it as an option.
        """
        takes_value = {
            name
            for p in self.params
            if isinstance(p, click.Option) and not p.is_flag
            for name in p.opts
        }
        before = ["", *args[:-1]]
        args = [
            f" {a}" if re.match(r"-\.?[0-9]", a) and b not in takes_value else a
            for a, b in zip(args, before, strict=True)
        ]
        return super().parse_args(context, args)


@click.command(
    cls=_Enqueue,
    examples=[
        'tocsin enqueue emails \'{"to": "ada@example.org"}\'',
        'tocsin enqueue emails \'{"to": "ada@example.org"}\' --delay 10m --key welcome-ada',
        "tocsin enqueue emails < emails.jsonl",
    ],
)
@queue_argument
@click.argument("payloads", nargs=-1, type=JSON, metavar="[PAYLOAD]...")
@click.option("--delay", type=DURATION, help="Deliver the message only after this time.")
@click.option(
    "--at", type=MOMENT, help="Deliver the message at this time, such as 2030-01-31T08:00:00Z."
)
@click.option(
    "--priority",
    type=PRIORITY,
    default=0,
    show_default=True,
    help="Messages with smaller numbers are delivered first.",
)
@click.option(
    "--key",
    metavar="TEXT",
    help="If an unfinished message has this key, show its id and enqueue nothing.",
)
@click.option("--headers", type=JSON, help="A JSON value in addition to the payload, for tracing.")
@click.option(
    "--expires-in",
    type=DURATION,
    help="Make the message a dead letter if it is not delivered within this time.",
)
@click.option(
    "--max-deliveries",
    type=COUNT,
    help=(
        "Make the message a dead letter after this many failed deliveries; overrides the queue's"
        " setting."
    ),
)
@on_store
async def enqueue(
    store: Store,
    screen: Screen,
    queue: str,
    payloads: tuple[Json, ...],
    key: str | None,
    headers: Json | None,
    **options: Any,
) -> None:
    """Enqueue each PAYLOAD, a JSON value, and show the ids of the messages.

    Without a PAYLOAD, each line of standard input that is not empty is a payload.

    All messages are enqueued in one transaction, or none. With standard input no
    message is delivered before the input has ended, and an error names the line.
    """
    context = click.get_current_context()
    options["headers"] = headers and headers.value
    if key is not None:
        if len(payloads) != 1:
            raise click.UsageError("a --key is for one message: give one payload", context)
        ids = [await store.produce(queue, payloads[0].value, key=key, **options)]
    elif payloads:
        ids = await store.produce_many(queue, [p.value for p in payloads], **options)
    elif is_terminal():
        raise click.UsageError(
            "nothing to enqueue: give a payload, or JSON lines on standard input", context
        )
    else:
        ids = await _enqueue_lines(store, queue, options)
        if not screen.json:
            click.echo(
                f"enqueued {len(ids)}"
                f" messages{f', with ids from {ids[0]} to {ids[-1]}' if ids else ''}"
            )
            return
    screen.say("\n".join(map(str, ids)), {"queue": queue, "ids": ids})


async def _enqueue_lines(store: Store, queue: str, options: dict[str, Any]) -> list[int]:
    await store.produce_many(queue, [])  # raises a refusal even when there is no line
    ids: list[int] = []
    async with store.transaction() as connection, aclosing(_batches()) as batches:
        async for numbers, payloads in batches:
            try:
                ids += await store.produce_many(queue, payloads, connection=connection, **options)
            except PayloadInvalid as error:
                raise click.ClickException(
                    f"line {_number(numbers, error.index)}, at {error.path}: {error.reason}"
                ) from error
            except PayloadTooLarge as error:
                raise click.ClickException(
                    f"line {_number(numbers, error.index)}: {error.actual} bytes of JSON, the limit"
                    f" of the queue is {error.maximum}"
                ) from error
    return ids


def _number(numbers: list[int], index: int | None) -> object:
    return "?" if index is None else numbers[index]


async def _batches() -> AsyncGenerator[tuple[list[int], list[object]], None]:
    """Yield the values of the lines, with the numbers of the lines."""
    numbers: list[int] = []
    payloads: list[object] = []
    number = 0
    async with aclosing(_lines()) as lines:
        async for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                payloads.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise click.UsageError(
                    f"line {number} is not JSON: {error}", click.get_current_context()
                ) from error
            numbers.append(number)
            if len(numbers) == _LINES:
                yield numbers, payloads
                numbers, payloads = [], []
    if numbers:
        yield numbers, payloads


async def _lines() -> AsyncGenerator[bytes, None]:
    parts: list[bytes] = []
    standard_input = input_number()
    # An abandoned thread in os.read holds no lock that Python needs at exit. An
    # abandoned thread in sys.stdin would hold one.
    while chunk := await trio.to_thread.run_sync(
        os.read, standard_input, _READ, abandon_on_cancel=True
    ):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            parts.append(line)
            yield b"".join(parts)
            parts.clear()
        parts.append(rest)
    yield b"".join(parts)
