"""Writes docs/cli.md from the command line itself: ``uv run python -m
tests.support.cli_manual``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from tocsin._cli import tocsin
from tocsin._cli.program import Command, Group

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

INTRODUCTION = """\
# The command line

The extra `cli` (`pip install '.[cli]'` in a checkout) installs the command `tocsin`, \
which `python -m tocsin` also runs.
`--help` explains each command.
This page is generated from the commands.

**Database.** `--dsn` and `--schema` may stand before or after the subcommand.
Without them the command takes the database from the [settings](settings.md).
The settings are `TOCSIN_DSN` and `TOCSIN_SCHEMA`, then `[tool.tocsin]` in \
`pyproject.toml`.
Without these settings, libpq finds the database by `PGHOST`, `PGSERVICE` or `~/.pgpass`.
All users of a machine can read the arguments of a process, so do not put a password \
into `--dsn`.
Put it into `TOCSIN_DSN`, or into the file that `PGPASSFILE` names.
No error and no log line shows a password.

**Output for programs.** `--format json` (before or after the subcommand) prints one \
JSON document on standard output.
The document uses the field names of the Python classes, which are stable.
Times are ISO 8601 in UTC, durations are numbers of seconds, and null means that there \
is no value or no end.
The tables are for people, and may change.
An error is one line on standard error, in both formats.

**Exit codes.**

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused, or not found |
| 2 | bad usage |
| 3 | the database cannot be reached |
| 4 | unhealthy (`worker health`, `admin verify`) |
| 128 + n | ended by signal n |

**Durations** are written `250ms`, `1.5s`, `30m`, `2h`, `7d`, `1w`, or `12` for seconds.

**Confirmation.** A command that deletes data asks for confirmation.
With `--yes` the command does not ask.
Without a terminal, as in cron, the command fails without `--yes`.
`--dry-run` shows what the command would delete, and changes nothing.
"""

_EVERYWHERE = {"dsn", "schema", "format", "help"}


def write_manual() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *_describe(tocsin, "tocsin", 2)])


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands and groups below this one, and itself, with what one types to
    call them."""
    yield path, command
    if isinstance(command, Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], f"{path} {name}")


def _describe(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if path != "tocsin":
        yield f"{'#' * level} {path}\n"
        if not isinstance(command, Group):
            yield f"`{' '.join([path, *command.collect_usage_pieces(context)])}`\n"
        yield _paragraphs(command)
        options = [
            p for p in command.params if isinstance(p, click.Option) and p.name not in _EVERYWHERE
        ]
        if options:
            yield "| option | meaning |\n| --- | --- |"
            yield from (_row(option, context) for option in options)
            yield ""
    assert isinstance(command, (Command, Group))
    if command.examples:
        test = (
            "test_the_examples_of_groups_can_be_typed"
            if isinstance(command, Group)
            else "test_each_example_can_be_typed"
        )
        yield "\n".join(
            [f"<!-- run by tests/cli/test_tree.py::{test} -->", "```sh", *command.examples, "```\n"]
        )
    if isinstance(command, Group):
        for name in sorted(command.commands):
            yield from _describe(
                command.commands[name], f"{path} {name}", level + (path != "tocsin")
            )


def _paragraphs(command: click.Command) -> str:
    """The help text, with one sentence a line."""
    parts = []
    for paragraph in cleandoc(str(command.help)).split("\n\n"):
        if paragraph.startswith("\b\n"):  # click leaves such a paragraph as it is
            table = paragraph.removeprefix("\b\n")
            parts.append(f"```text\n{table}\n```")
        else:
            parts.append(re.sub(r"(?<=[.!?]) (?=[A-Z`])", "\n", " ".join(paragraph.split())))
    return "\n\n".join(parts).strip() + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None, option
    name, text = (part.replace("|", "\\|") for part in record)
    return f"| `{name}` | {text} |"


if __name__ == "__main__":
    PAGE.write_text(write_manual(), encoding="utf-8")
